//! What can go wrong, and what repairs it.

use crate::cpio::ArchiveError;
use std::io;
use std::path::PathBuf;

/// Why an image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host is not a Debian or a derivative.
    #[error(
        "This host has no apt to fetch a guest from; give --kernel FILE and --disk FILE instead"
    )]
    NoApt,
    /// apt has never fetched its lists.
    #[error("apt does not know any packages yet; run `sudo apt-get update`")]
    NoLists,
    /// apt's lists do not have the package.
    #[error(
        "apt knows no package {0}; see `apt-cache search --names-only '^linux-image'` for the kernels it has"
    )]
    UnknownPackage(String),
    /// The package is not a kernel.
    #[error("Package {0} has no kernel in it; name a linux-image package")]
    NotAKernel(String),
    /// A file is no kernel that says which one it is.
    #[error("{} does not say its release, so no initramfs can be built for it", .0.display())]
    NoRelease(PathBuf),
    /// A download failed.
    #[error(
        "apt could not fetch {package}: {reason}; check the network, then run `sudo apt-get update`"
    )]
    Fetch {
        /// What was to be fetched.
        package: String,
        /// The last line that apt said.
        reason: String,
    },
    /// A program of the host is missing.
    #[error("{program} is not installed; run `sudo apt-get install {package}`")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program of the host failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// The last line that it said.
        reason: String,
    },
    /// The host's own kernel is not where it should be.
    #[error("The host's kernel {0} does not exist; give a kernel with --kernel FILE")]
    NoHostKernel(PathBuf),
    /// The host's own kernel is only for root.
    #[error("The host's kernel {0} is readable only by root; run `sudo chmod +r {0}`")]
    HostKernelMode(PathBuf),
    /// The kernel has neither the driver nor its module.
    #[error("The kernel {kernel} has no module {module}, which the guest needs")]
    NoModule {
        /// The kernel's release.
        kernel: String,
        /// The module's name.
        module: String,
    },
    /// A module cannot be read.
    #[error("The kernel module {0} is damaged; remove the cache folder and try again")]
    BadModule(PathBuf),
    /// The initramfs cannot be written down.
    #[error("The initramfs could not be built")]
    Archive(#[from] ArchiveError),
    /// There is no folder for the cache.
    #[error("There is no folder for the cache; set XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    /// A file operation failed.
    #[error("{} could not be {action}", path.display())]
    File {
        /// What was to be done: read, written, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Says which file an error is about.
pub(crate) trait About<T> {
    fn about(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> About<T> for Result<T, E> {
    fn about(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::File { action, path: path.into(), source: source.into() })
    }
}
