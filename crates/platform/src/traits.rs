//! What a driver is to do.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;
use spec::foreign::Description;

use crate::{
    Ability, Action, Change, Pullable, Result, Snapshot, Undo, Uri, Verb, VmDetails, VmSummary,
};

/// A platform that was reached. A [`Connection`](crate::Connection) calls only what
/// [`ability`](crate::Connection::ability) promises.
///
/// VMs are named as [`list`](Self::list) names them, or by what identifies them.
pub trait Platform: Send + Sync {
    /// The product and its version, asked of the platform itself.
    fn product(&self) -> Result<String>;

    /// What this platform, as it is at this moment, can do otherwise than its driver says.
    fn ability(&self, _verb: Verb) -> Option<Ability> {
        None
    }

    /// All VMs.
    fn list(&self) -> Result<Vec<VmSummary>>;

    /// One VM.
    fn show(&self, vm: &str) -> Result<VmDetails>;

    /// Kept states of a VM, parents before their children.
    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>>;

    /// Changes a VM. Returns when the platform says that it is done, or, where a guest is only asked, that it was asked.
    fn perform(&self, vm: &str, action: &Action) -> Result<()>;

    /// For platforms that keep what guests write to their consoles.
    fn console(&self) -> Option<&dyn ConsoleLog> {
        None
    }

    /// For platforms whose disks can be read from afar.
    fn disks(&self) -> Option<&dyn RemoteDisks> {
        None
    }

    /// For platforms whose VMs' files can be copied.
    fn pull(&self) -> Option<&dyn Pull> {
        None
    }

    /// For platforms that tell of changes themselves; others are asked again and again.
    fn watch(&self) -> Option<&dyn Watch> {
        None
    }
}

/// Reads what a guest wrote to its console.
pub trait ConsoleLog {
    /// The last `limit` bytes of it, at most.
    fn console_log(&self, vm: &str, limit: usize) -> Result<Vec<u8>>;
}

/// Opens disks of VMs.
pub trait RemoteDisks {
    /// Opens a drive of the VM for reading: its place in the drives of [`Platform::show`]'s description.
    fn open_disk(&self, vm: &str, drive: usize) -> Result<Arc<dyn Disk>>;
}

/// Copies VMs.
pub trait Pull {
    /// Whether VMs that are on get a snapshot for that, called as [`crate::held`] says.
    fn makes_snapshots(&self) -> bool {
        false
    }

    /// Makes a VM ready to be copied; `tell` is told, in sentences, what is done to it for that.
    fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable>;

    /// Holds the disks of a VM still and opens them, so that it can be run here.
    fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still>;
}

/// A VM whose disks nobody changes.
pub struct Still {
    /// What it is made of.
    pub description: Description,
    /// Its disks.
    pub disks: Vec<StillDisk>,
    /// What else it is booted with.
    pub files: Vec<StillFile>,
    /// Undoes what was done to the VM, told whether all is copied.
    pub undo: Undo,
}

/// A file that a VM is booted with, and that lies outside of its disks.
pub struct StillFile {
    /// What it is.
    pub part: BootPart,
    /// All of it.
    pub content: Vec<u8>,
}

/// What such a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPart {
    /// A kernel.
    Kernel,
    /// Its initial RAM disk.
    Initrd,
}

/// A disk that nobody changes.
pub struct StillDisk {
    /// Its place in the drives of the description.
    pub drive: usize,
    /// What it holds.
    pub disk: Arc<dyn Disk>,
    /// What tells this state of it from every other one.
    pub stamp: String,
}

/// Tells of changes.
pub trait Watch {
    /// Calls `tell` with each change until it returns `false`; begins with all VMs as [`Change::Appeared`].
    fn watch(&self, tell: &mut dyn FnMut(Change) -> bool) -> Result<()>;
}

/// How to reach a platform.
#[derive(Clone)]
pub struct Options {
    /// So long may one call take.
    pub time_limit: Duration,
    /// Where our own VMs are registered; absent if there is no such folder.
    pub state_folder: Option<PathBuf>,
    /// SHA-256 of the server's certificate, in hexadecimal digits with or without colons: the only one to accept.
    pub tls_thumbprint: Option<String>,
    /// Certificates to trust, instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// Asks whoever uses the program for the password of `USER@HOST`; absent if nobody can be asked.
    pub ask_password: Option<AskPassword>,
}

/// Asks for the password of `USER@HOST`; nothing, if none is given.
pub type AskPassword = Arc<dyn Fn(&Uri) -> Option<Secret> + Send + Sync>;

impl Default for Options {
    fn default() -> Self {
        Self {
            time_limit: Duration::from_secs(30),
            state_folder: None,
            tls_thumbprint: None,
            tls_ca: None,
            ask_password: None,
        }
    }
}

/// A password: it is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
