//! PCI: configuration space, base address registers, MSI-X.
