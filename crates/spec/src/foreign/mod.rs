//! Descriptions of other platforms.
//!
//! [`read`] finds out what it is given and returns a [`Description`]: all that is understood of a VM in neutral
//! terms, and by name whatever is not. [`Description::to_spec`] makes the [`VmSpec`](crate::VmSpec) of it that is run.
//!
//! Descriptions are the word of whoever made them: files that they name count only within the VM's folder unless
//! [`ReadOptions::anywhere`] is set, and each reader bounds what it takes in.

mod description;
mod export;
mod folder;
mod fuzz;
mod hyperv;
mod libvirt;
mod ovf;
mod parallels;
mod proxmox;
mod read;
mod tar;
mod text;
mod to_spec;
mod vagrant;
mod virtualbox;
mod vmware;
mod xen;
mod xml;

pub use description::{
    Architecture, Bus, Configuration, Controller, Description, DirectBoot, Drive, DriveKind,
    FileRef, FileState, Firmware, FirmwareKind, Level, MemoryAmount, NetworkCard, Note,
    OtherDevice, Platform, Processors, Property, SerialPort, SharedFolder, Snapshot, Unread,
    Virtualization, utc,
};
pub use export::{Export, Form, UnknownForm, export};
pub use fuzz::fuzz;
pub use read::{OWN_DESCRIPTION, ReadOptions, is_description, parse, read};
pub use xml::resolve_reference;
