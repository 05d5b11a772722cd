//! Builds and runs a machine from a VmSpec, a boot plan and an engine.

#![forbid(unsafe_code)]

pub mod acpi;
mod board;
pub mod boot;
pub mod bus;
mod cpu;
pub mod disks;
mod error;
mod interrupts;
pub mod layout;
mod machine;
pub mod memory;
mod plug;
mod saved;
mod smbios;
mod topology;

pub use board::Board;
pub use error::{Error, Result, chain};
pub use machine::{Config, Control, Finished, MAX_CPUS, Machine, Outcome};
pub use plug::plug;
pub use saved::Saved;
