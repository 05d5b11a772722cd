use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Result of a disk's work.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened.
    #[error("Cannot open the disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else uses the file in a way that excludes ours.
    #[error("The disk {} is in use by {holder}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who uses it.
        holder: Holder,
    },
    /// The path leads to something that holds no disk.
    #[error("{} is {kind}, not a file or a block device", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is, such as "a folder".
        kind: &'static str,
    },
    /// The operating system refused.
    #[error("Cannot {action} the disk {}", path.display())]
    Io {
        /// What was tried, after "cannot".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A range passes the end of the disk.
    #[error("Bytes {} to {} are not within the disk's {length}", range.start, range.end)]
    OutOfRange {
        /// What was asked for.
        range: Range<u64>,
        /// The disk's length.
        length: u64,
    },
    /// A change to a read-only disk.
    #[error("The disk is read-only")]
    ReadOnly,
}

/// Who uses a disk that we want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process, by its number and its name.
    Process {
        /// Process number.
        pid: u32,
        /// Its name, as the kernel keeps it.
        name: String,
    },
    /// Another process, or a mounted file system, that we may not see.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}
