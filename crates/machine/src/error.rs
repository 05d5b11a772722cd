//! What can go wrong when a machine is built or run.

use std::io;
use std::path::PathBuf;

/// Result of a machine's work.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong when a machine is built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory's size cannot be.
    #[error(
        "A guest cannot have {size} bytes of memory: it needs at least {minimum} bytes, in units of {unit}"
    )]
    MemorySize {
        /// What was asked for, in bytes.
        size: u64,
        /// The least that works.
        minimum: u64,
        /// What the size must be a multiple of.
        unit: u64,
    },
    /// The host has not enough memory, or no pool of huge pages.
    #[error("The host did not give {size} bytes of memory")]
    MemoryAllocation {
        /// What was asked for, in bytes.
        size: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The board's tables do not fit into their range.
    #[error("The ACPI tables are too large")]
    TablesTooLarge,
    /// A file of the boot plan cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("{} cannot be booted", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::boot::KernelError,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "The initrd has {size} bytes, but only {room} bytes of memory are left for it: give the guest more memory"
    )]
    InitrdTooLarge {
        /// Bytes of the initrd.
        size: u64,
        /// Bytes that are free for it.
        room: u64,
    },
    /// The command line is too long.
    #[error("The kernel command line has {length} bytes; Linux takes at most {maximum}")]
    CommandLineTooLong {
        /// Bytes of it.
        length: usize,
        /// Most that the kernel takes.
        maximum: usize,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A device refused.
    #[error(transparent)]
    Device(#[from] devices::Error),
    /// An address that the machine itself chose is not in guest memory.
    #[error("Guest memory cannot be accessed")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The processor count cannot be.
    #[error("A guest can have 1 to {maximum} processors with this engine, not {asked}")]
    Processors {
        /// What was asked for.
        asked: u32,
        /// The most that works.
        maximum: u32,
    },
    /// A saved machine does not fit.
    #[error("The saved machine cannot go on: {0}")]
    SavedState(&'static str),
    /// A file of a saved machine.
    #[error("Cannot {action} {}", path.display())]
    SavedFile {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("Cannot start a thread")]
    Thread(#[source] io::Error),
}

/// The sentences of `error` and of all that lies behind it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
