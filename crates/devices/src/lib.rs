//! Device models of the virtual machine.
