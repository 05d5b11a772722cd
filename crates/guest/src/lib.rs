//! Looks into disks: what is in them, and how it is booted.
//!
//! [`Guest::open`] finds partitions and volumes on disks of any format ([`disk::Disk`]), opens the file systems on
//! them, and reads the guest's operating system and its boot loader's menu. [`Guest::plan`] turns the menu's entry
//! into what a machine boots. Nothing is ever written: journals are replayed in memory, and what a guest lacks to
//! run on virtio is appended to its initial RAM disk.
//!
//! All of it is somebody else's: sizes are checked before memory is taken, loops end, and symbolic links are followed
//! within the guest only ([`Tree`]).

#![forbid(unsafe_code)]

mod checksum;
mod error;
mod files;
pub mod fs;
mod fuzz;
mod guest;
mod initrd;
mod layers;
pub mod loader;
mod lzo;
mod modules;
mod names;
mod os;
mod parity;
pub mod partition;
mod plan;
mod storage;
mod tree;
pub mod volume;
mod windows;

pub use error::{Error, Result};
pub use fuzz::fuzz_storage;
pub use guest::{Guest, Report};
pub use initrd::{Contents, fuzz_initrd};
pub use names::on_virtio;
pub use os::{Fstab, Os};
pub use plan::{BootPlan, Firmware, LinuxBoot, NicName, PlanOptions};
pub use storage::{DiskReport, VolumeReport};
pub use tree::Tree;
pub use windows::{RegistryChange, RegistryPlan, fuzz_hive};
