//! A guest's kernel: where it and its modules are.

use crate::apt;
use crate::cache::Cache;
use crate::error::{About, Error};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Longest release: the length of `struct utsname`'s field.
const MAX_RELEASE: usize = 65;

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its release, as of `uname -r`.
    pub release: String,
    /// The file as it is distributed: a bzImage.
    pub image: PathBuf,
    /// Its folder of modules; there may be none.
    pub modules: PathBuf,
    /// Whether it loads only signed modules.
    pub enforces_signatures: bool,
    /// Tells it from other kernels, also of the same release; fit for a file name.
    pub(crate) key: String,
}

impl Kernel {
    /// The kernel in a Debian package, or in the package that a meta package depends on.
    pub fn from_debian(
        cache: &Cache,
        package: &str,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let package = apt::resolve(cache, package, Some("linux-image-"))?;
        let key = package.key();
        let folder = cache.entry(&format!("kernel-{key}"), |path| {
            apt::unpack(&package, path, progress)?;
            let release = find_release(path).ok_or(Error::NotAKernel(package.name.clone()))?;
            tidy(path, &release)
        })?;
        let release =
            fs::read_to_string(folder.join("release")).about("read", folder.join("release"))?;
        Ok(Self {
            image: folder.join("vmlinuz"),
            modules: folder.join("modules"),
            enforces_signatures: enforces_signatures(&folder.join("config")),
            release,
            key,
        })
    }

    /// The kernel that the host runs.
    pub fn of_host() -> Result<Self, Error> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let modules = Path::new("/lib/modules").join(&release);
        // Debian's place, and that of systems whose boot loader has its own copy.
        let in_boot = Path::new("/boot").join(format!("vmlinuz-{release}"));
        let with_modules = modules.join("vmlinuz");
        let image = if !in_boot.exists() && with_modules.exists() { with_modules } else { in_boot };
        Self::from_files(release, image, modules)
    }

    /// A kernel of the user's own: `file` as it is distributed, and `elf` as it is unpacked. Its modules are looked for
    /// in `modules` beside it and where packages and `make modules_install` put them.
    pub fn of_file(file: &Path, elf: &Path) -> Result<Self, Error> {
        let release = release_of(&fs::read(elf).about("read", elf)?);
        let release = release.ok_or_else(|| Error::NoRelease(file.to_owned()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let places = [
            folder.join("modules"),
            folder.join("../lib/modules").join(&release),
            Path::new("/lib/modules").join(&release),
        ];
        let modules = places.into_iter().find(|place| place.is_dir());
        Self::from_files(release, file.to_owned(), modules.unwrap_or_default())
    }

    /// A kernel that is somewhere on the host.
    pub fn from_files(release: String, image: PathBuf, modules: PathBuf) -> Result<Self, Error> {
        let data = match fs::File::open(&image).and_then(|file| file.metadata()) {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoHostKernel(image));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::HostKernelMode(image));
            }
            Err(error) => return Err(error).about("read", image),
        };
        // Kernels are rebuilt without a new release.
        let mut hasher = DefaultHasher::new();
        (&image, &modules, &release, data.len(), data.modified().ok()).hash(&mut hasher);
        let key = format!("host-{:016x}", hasher.finish());
        let config = image.with_file_name(format!("config-{release}"));
        let enforces_signatures = enforces_signatures(&config);
        Ok(Self { release, image, modules, enforces_signatures, key })
    }
}

/// The release of the kernel in an unpacked package.
fn find_release(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder.join("boot"))
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .find(|release| !release.is_empty())
}

/// The release that a kernel says of itself in its banner.
fn release_of(elf: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    // The first may be a format, as in `Linux version %s`.
    memchr::memmem::find_iter(elf, BANNER).find_map(|at| {
        let rest = &elf[at + BANNER.len()..];
        let word = rest.iter().take(MAX_RELEASE).position(|&byte| byte == b' ')?;
        let release = std::str::from_utf8(&rest[..word]).ok()?;
        let is_release = release.starts_with(|c: char| c.is_ascii_digit())
            && release.chars().all(|c| c.is_ascii_alphanumeric() || "-+._~".contains(c));
        is_release.then(|| release.to_owned())
    })
}

/// Whether the kernel's configuration says that it refuses modules without a signature.
fn enforces_signatures(config: &Path) -> bool {
    let enforcing = [
        "CONFIG_MODULE_SIG_FORCE=y",
        "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y",
        "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y",
    ];
    let text = fs::read_to_string(config).unwrap_or_default();
    text.lines().any(|line| enforcing.contains(&line))
}

/// Keeps the kernel and its modules, and writes down the release.
fn tidy(folder: &Path, release: &str) -> Result<(), Error> {
    let rename =
        |from: PathBuf, to: &str| fs::rename(&from, folder.join(to)).about("renamed", from);
    rename(folder.join("boot").join(format!("vmlinuz-{release}")), "vmlinuz")?;
    let config = folder.join("boot").join(format!("config-{release}"));
    if config.is_file() {
        rename(config, "config")?;
    }
    // Merged-/usr releases ship modules there.
    for library in ["lib", "usr/lib"] {
        let modules = folder.join(library).join("modules").join(release);
        if modules.is_dir() {
            rename(modules, "modules")?;
            break;
        }
    }
    for rest in ["boot", "lib", "usr", "etc"] {
        let rest = folder.join(rest);
        if rest.exists() {
            fs::remove_dir_all(&rest).about("removed", rest)?;
        }
    }
    fs::write(folder.join("release"), release).about("written", folder.join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_its_release_in_its_banner() {
        let found = |text: &str| release_of(text.as_bytes());
        let banner = "x\0Linux version %s (b)\0Linux version 6.1.0-51-cloud-amd64 (debian) \0";
        assert_eq!(found(banner).as_deref(), Some("6.1.0-51-cloud-amd64"));
        for wrong in ["", "Linux version ", "Linux version 6.1", "Linux version ../../etc x"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_package_without_a_kernel_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find_release(folder.path()), None);
        fs::create_dir(folder.path().join("boot")).unwrap();
        fs::write(folder.path().join("boot/config-6.1"), "").unwrap();
        assert_eq!(find_release(folder.path()), None);
        fs::write(folder.path().join("boot/vmlinuz-6.1"), "").unwrap();
        assert_eq!(find_release(folder.path()).as_deref(), Some("6.1"));
    }

    #[test]
    fn a_kernel_on_the_host_is_known_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("vmlinuz");
        let open =
            || Kernel::from_files("6.1".into(), image.clone(), folder.path().join("modules"));
        assert!(matches!(open(), Err(Error::NoHostKernel(_))));
        fs::write(&image, "one").unwrap();
        let one = open().unwrap();
        assert_eq!(one.key, open().unwrap().key);
        fs::write(&image, "other").unwrap();
        assert_ne!(one.key, open().unwrap().key);
        assert!(!one.enforces_signatures);
        fs::write(folder.path().join("config-6.1"), "# A\nCONFIG_MODULE_SIG_FORCE=y\n").unwrap();
        assert!(open().unwrap().enforces_signatures);
    }
}
