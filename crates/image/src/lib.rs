//! Guest kernels and roots fetched through the host's package manager, and the initramfs that carries them.
//!
//! [`prepare`] turns what a user names, `debian` or `host`, into files that a machine can boot. Everything comes
//! from the host's own apt, so that its signatures are checked by whoever the user already trusts, and is kept in a
//! [`Cache`].

#![forbid(unsafe_code)]

mod apt;
mod cache;
mod cpio;
mod error;
mod initramfs;
mod kernel;
mod modinfo;
mod root;

pub use cache::Cache;
pub use cpio::{Archive, ArchiveError};
pub use error::Error;
pub use initramfs::{Features, Initramfs, initramfs};
pub use kernel::Kernel;
pub use root::copy_disk;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The guest's program, static: `/init` of every initramfs.
pub const AGENT: &[u8] = include_bytes!(env!("OMNIVISOR_AGENT_PROGRAM"));
/// The virtio-fs tag under which [`ImageRef::Host`] expects the host's root.
pub const HOST_ROOT_TAG: &str = "host";

/// What a user can name as an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// A kernel from Debian's archive: `debian` for the cloud kernel of the host's release, `debian:6.12` for
    /// another version of it, `debian:PACKAGE` for any kernel package.
    Debian {
        /// A kernel package, or a meta package that depends on one.
        package: String,
    },
    /// The kernel that the host runs, with the host's root shared read-only under an overlay: `host`.
    Host,
}

/// What the guest is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Devices and file systems whose drivers the initramfs loads.
    pub features: Features,
    /// Prepare a full Debian root on a disk, too, instead of booting into the initramfs's busybox.
    pub full_root: bool,
}

/// Files that boot. They belong to the cache: a guest may read them, but must not write to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The kernel as it is distributed: a bzImage.
    pub kernel: PathBuf,
    /// The initramfs: an uncompressed cpio archive.
    pub initrd: PathBuf,
    /// Words that the kernel command line needs for this image.
    pub cmdline_extra: String,
    /// A raw disk with a full root, where one was asked for, to be copied by [`copy_disk`] or overlaid.
    pub disk: Option<PathBuf>,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub version: String,
}

/// Fetches and builds what `image` needs, as far as the cache does not have it. `progress` is told what takes time.
pub fn prepare(
    image: &ImageRef,
    options: &Options,
    progress: &dyn Fn(&str),
) -> Result<Prepared, Error> {
    prepare_in(&Cache::open()?, image, options, progress)
}

/// As [`prepare`], with a cache of the caller's.
pub fn prepare_in(
    cache: &Cache,
    image: &ImageRef,
    options: &Options,
    progress: &dyn Fn(&str),
) -> Result<Prepared, Error> {
    let mut features = options.features;
    let mut cmdline_extra = String::new();
    let kernel = match image {
        ImageRef::Debian { package } => Kernel::from_debian(cache, package, progress)?,
        ImageRef::Host => {
            features.fs = true;
            features.overlay = true;
            cmdline_extra = format!("omnivisor.root={HOST_ROOT_TAG} omnivisor.overlay");
            Kernel::of_host()?
        }
    };
    let has_root = options.full_root || *image == ImageRef::Host;
    let mut disk = None;
    if options.full_root {
        features.blk = true;
        cmdline_extra = "root=/dev/vda rw".into();
        disk = Some(root::debian(cache, &kernel, progress)?);
    }
    let initrd = initramfs(cache, &kernel, features, has_root, progress)?;
    Ok(Prepared { kernel: kernel.image, initrd, cmdline_extra, disk, version: kernel.release })
}

/// The files for a kernel of the user's own, with an initramfs for its release. Where the root comes from elsewhere
/// (`has_root`), that does without busybox if there is none.
pub fn prepare_kernel(
    kernel: Kernel,
    features: Features,
    has_root: bool,
    progress: &dyn Fn(&str),
) -> Result<Prepared, Error> {
    let initrd = initramfs(&Cache::open()?, &kernel, features, has_root, progress)?;
    let cmdline_extra = String::new();
    Ok(Prepared {
        kernel: kernel.image,
        initrd,
        cmdline_extra,
        disk: None,
        version: kernel.release,
    })
}

/// The name of an image is not one we know.
#[derive(Debug, thiserror::Error)]
#[error("Unknown image {0:?}; say debian, debian:6.12, debian:PACKAGE, or host")]
pub struct UnknownImage(String);

impl FromStr for ImageRef {
    type Err = UnknownImage;

    fn from_str(text: &str) -> Result<Self, UnknownImage> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        match (name, rest) {
            ("host", None) => Ok(Self::Host),
            ("debian", None) => Ok(Self::Debian { package: "linux-image-cloud-amd64".into() }),
            ("debian", Some(version)) if is_version(version) => {
                Ok(Self::Debian { package: format!("linux-image-{version}-cloud-amd64") })
            }
            ("debian", Some(package)) if apt::is_package_name(package) => {
                Ok(Self::Debian { package: package.into() })
            }
            _ => Err(UnknownImage(text.into())),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { package } => write!(f, "debian:{package}"),
            Self::Host => f.write_str("host"),
        }
    }
}

fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_read() {
        let debian = |package: &str| ImageRef::Debian { package: package.into() };
        assert_eq!("debian".parse::<ImageRef>().unwrap(), debian("linux-image-cloud-amd64"));
        assert_eq!(
            "debian:6.12".parse::<ImageRef>().unwrap(),
            debian("linux-image-6.12-cloud-amd64")
        );
        assert_eq!(
            "debian:linux-image-amd64".parse::<ImageRef>().unwrap(),
            debian("linux-image-amd64")
        );
        assert_eq!("host".parse::<ImageRef>().unwrap(), ImageRef::Host);
        let package = debian("linux-image-amd64");
        assert_eq!(package.to_string().parse::<ImageRef>().unwrap(), package);
        for wrong in [
            "",
            "debain",
            "host:6",
            "debian:",
            "debian:-o",
            "debian:../x",
            "debian:A b",
            "ubuntu:24.04",
        ] {
            assert!(wrong.parse::<ImageRef>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_agent_is_a_static_program() {
        assert_eq!(AGENT[..4], *b"\x7fELF");
        assert!(AGENT.len() < 1536 << 10, "{} bytes", AGENT.len());
        // A program that needs an interpreter (PT_INTERP) would not start in an initramfs.
        let program_headers = u64::from_le_bytes(*AGENT[32..].first_chunk().unwrap()) as usize;
        let count = usize::from(u16::from_le_bytes(*AGENT[56..].first_chunk().unwrap()));
        for header in AGENT[program_headers..].chunks(56).take(count) {
            assert_ne!(u32::from_le_bytes(*header.first_chunk().unwrap()), 3);
        }
    }
}
