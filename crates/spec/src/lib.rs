//! VmSpec, the neutral description of one virtual machine, and its readers.
//!
//! One set of serde structs is the schema of the TOML file, of the command line's options
//! ([`option`](mod@option)) and of the JSON Schema ([`schema`]). Reading checks the form; [`VmSpec::validate`] checks
//! what the values say. Nothing here looks at the host.
//!
//! [`foreign`] reads the descriptions that other platforms keep of their VMs; [`cloud_init`] makes the disk that tells a
//! guest its name and keys.

#![forbid(unsafe_code)]

mod check;
pub mod cloud_init;
mod cpus;
mod devices;
mod error;
mod file;
pub mod foreign;
mod iso9660;
mod network;
mod shorthand;
mod size;
mod smbios;
mod suggest;
mod vm;

pub mod option;

pub use check::Problem;
pub use cpus::{Cpus, MAX_CPUS, Topology};
pub use devices::{Disk, Nic, NicKind, Rate, Share, Vsock};
pub use error::{Error, Place, Result};
pub use network::{Forward, ForwardError, MacAddress, MacAddressError, Protocol};
pub use size::{Size, SizeError};
pub use smbios::{Smbios, Uuid, UuidError};
pub use vm::{Boot, Console, HOST_KERNEL, Memory, VmSpec};

/// The JSON Schema of [`VmSpec`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(VmSpec).to_value()
}
