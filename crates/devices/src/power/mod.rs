//! ACPI power management: power-off and reset.
