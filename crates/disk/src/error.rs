use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::{Format, HttpError};

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
    /// An HTTP server does not give what is wanted.
    #[error("Cannot read {url}")]
    Http {
        /// Where it is, without secrets.
        url: String,
        /// Why.
        #[source]
        source: Box<HttpError>,
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
    /// A structure would pass the end of its file.
    #[error("The file ends at byte {length}, but its header promises bytes {} to {}", range.start, range.end)]
    Truncated {
        /// What was wanted.
        range: Range<u64>,
        /// The file's length.
        length: u64,
    },
    /// A file was not copied to its end.
    #[error(
        "{name} was cut short: it ends at byte {length}, and at least {missing} more bytes belong to it"
    )]
    CutShort {
        /// The file's name, without its folder.
        name: String,
        /// The file's length.
        length: u64,
        /// Bytes that it lacks.
        missing: u64,
    },
    /// An image contradicts its own format.
    #[error("The {format} image is damaged: {what}")]
    Damaged {
        /// Its format.
        format: Format,
        /// What is wrong with it.
        what: String,
    },
    /// A disk cannot be written to a device.
    #[error("The device {} {what}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// An image uses what is not supported, or cannot be.
    #[error("This {format} image cannot be used: {what}")]
    Unsupported {
        /// Its format.
        format: Format,
        /// What it uses.
        what: String,
    },
    /// An image could not be used; the source says why.
    #[error("Cannot use the image {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// An image names a file that it may not.
    #[error("The image names the file {}, which is not within the folder {}", path.display(), folder.display())]
    OutsideFolder {
        /// What it names.
        path: PathBuf,
        /// Where its files must lie.
        folder: PathBuf,
    },
    /// None of the names that an image gives for a file leads to one.
    #[error("The image needs the file \"{name}\", which was not found")]
    NotFound {
        /// What it names.
        name: String,
    },
    /// An archive does not have what was wanted.
    #[error("The archive {} {what}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What it lacks, after its name.
        what: String,
    },
    /// A tar archive is damaged, or was cut off.
    #[error("{what} (at offset {offset})")]
    Tar {
        /// Where in the archive.
        offset: u64,
        /// What is wrong there: a sentence.
        what: String,
    },
    /// A chain of parents that leads back to itself, or is longer than any real one.
    #[error("The image's chain of parents {0}")]
    Chain(&'static str),
    /// A part of a conversion ended before its other parts.
    #[error("The conversion stopped")]
    Stopped,
    /// The parent was changed after the child was made.
    #[error("The parent {} is not the one that the image was made from: {what}", path.display())]
    ParentChanged {
        /// The parent.
        path: PathBuf,
        /// How that shows.
        what: String,
    },
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
    /// A file system or a volume on a loop device of the file, by the device's name.
    Loop(String),
    /// Another process, or a mounted file system, that we may not see.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Loop(name) => write!(f, "what is mounted by /dev/{name}"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}
