//! Installed hypervisor products: their virtual machines are seen and steered where they live.
//!
//! A [`Uri`] names a platform, a [`VmName`] one of its machines. [`connect`] finds the [`Driver`] and returns a
//! [`Connection`], which refuses a verb that the platform lacks by its name, before anything happens. Drivers are
//! listed in [`DRIVERS`].
//!
//! Nothing on a platform is changed by reading, and each reply is the word of a stranger: bounded in size and time,
//! and never trusted to have the right form.

#![forbid(unsafe_code)]

mod blocks;
mod connection;
mod credentials;
mod describe;
mod error;
mod esx;
mod files;
mod fuzz;
mod held;
mod https;
mod hyperv;
mod libvirt;
mod lock;
mod mirror;
mod name;
pub mod own;
mod parallels;
mod pull;
mod registry;
mod runner;
mod tls;
mod traits;
mod verb;
mod virtualbox;
mod vm;
mod xapi;
mod xen;
mod xml;

pub use connection::{Connection, connect};
pub use error::{Error, Kind, Result};
pub use esx::fuzz as fuzz_soap;
pub use fuzz::fuzz;
pub use held::is_held;
pub use hyperv::fuzz as fuzz_hyperv;
pub use mirror::{Mirror, Whole};
pub use name::{Uri, VmName};
pub use pull::{
    Progress, PullOptions, PullReport, Pullable, PulledFile, RemoteFile, StreamFile, Undo,
};
pub use registry::{DRIVERS, Driver, Met, driver};
pub use runner::{Output, Runner};
pub use spec::foreign::Snapshot;
pub use traits::{
    AskPassword, BootPart, ConsoleLog, Options, Platform, Pull, RemoteDisks, Secret, Still,
    StillDisk, StillFile, Watch,
};
pub use verb::{Ability, Action, Verb};
pub use vm::{Change, State, VmDetails, VmSummary};
