//! The guest's first root: the agent as `/init`, busybox, and the modules of the devices that the guest gets.

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::error::{About, Error};
use crate::kernel::Kernel;
use crate::modinfo::Modules;
use crate::{AGENT, apt};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agent's list of modules to load.
const MODULE_LIST: &str = "etc/omnivisor/modules";
/// Changed with what an initramfs is made of, so that those in the cache are not taken for the new ones.
const RECIPE: u32 = 2;
/// Small files that programs expect.
const FILES: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
    ("etc/profile", "export PS1='\\h:\\w\\$ '\n"),
    ("etc/os-release", "NAME=\"Omnivisor guest\"\nID=omnivisor\n"),
];

/// What a guest's initramfs has drivers for. A boot loads no module that it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// virtio-net.
    pub net: bool,
    /// virtio-blk, and ext4.
    pub blk: bool,
    /// virtio-vsock.
    pub vsock: bool,
    /// virtio-fs.
    pub fs: bool,
    /// virtio-balloon.
    pub balloon: bool,
    /// virtio-rng.
    pub rng: bool,
    /// virtio-console.
    pub console: bool,
    /// overlayfs.
    pub overlay: bool,
}

impl Features {
    /// All of them.
    pub fn all() -> Self {
        Self {
            net: true,
            blk: true,
            vsock: true,
            fs: true,
            balloon: true,
            rng: true,
            console: true,
            overlay: true,
        }
    }

    /// Modules to load, in this order as far as they do not depend on each other; those with a `?` exist only in some
    /// kernels. What the agent waits for first comes first.
    fn modules(self) -> Vec<&'static str> {
        let groups: [(bool, &[&str]); 8] = [
            (self.vsock, &["virtio_pci", "vmw_vsock_virtio_transport"]),
            (self.console, &["virtio_pci", "virtio_console"]),
            (self.blk, &["virtio_pci", "virtio_blk", "crc32c_generic?", "ext4"]),
            (self.net, &["virtio_pci", "af_packet?", "virtio_net"]),
            (self.fs, &["virtio_pci", "virtiofs"]),
            (self.overlay, &["overlay"]),
            (self.rng, &["virtio_pci", "virtio_rng"]),
            (self.balloon, &["virtio_pci", "virtio_balloon"]),
        ];
        groups
            .iter()
            .filter(|(wanted, _)| *wanted)
            .flat_map(|(_, names)| names.iter().copied())
            .collect()
    }
}

/// An initramfs under construction. It begins as the agent and the folders that the agent mounts on.
#[derive(Clone, Debug)]
pub struct Initramfs {
    archive: Archive,
}

impl Initramfs {
    /// One that boots, with the agent and nothing else.
    pub fn new() -> Result<Self, Error> {
        let mut archive = Archive::default();
        archive.file("init", 0o755, AGENT)?;
        for folder in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "root",
            "mnt",
            "etc/omnivisor",
            "bin",
            "sbin",
            "usr/bin",
            "usr/sbin",
        ] {
            archive.folder(folder)?;
        }
        // The kernel opens its console before the agent has mounted /dev.
        archive.char_device("dev/console", 0o600, 5, 1)?;
        archive.char_device("dev/null", 0o666, 1, 3)?;
        for (path, text) in FILES {
            archive.file(path, 0o644, text)?;
        }
        Ok(Self { archive })
    }

    /// Adds busybox, a static program, under all its names.
    pub fn busybox(&mut self, program: &Path) -> Result<(), Error> {
        let data = fs::read(program).about("read", program)?;
        let list = apt::run(Command::new(program).arg("--list"))?;
        self.archive.file("bin/busybox", 0o755, data)?;
        for name in String::from_utf8_lossy(&list.stdout).lines() {
            let path = format!("bin/{name}");
            if !name.contains('/') && !self.archive.contains(&path) {
                self.archive.symlink(&path, "busybox")?;
            }
        }
        Ok(())
    }

    /// Adds the modules that the features need, to be loaded by the agent.
    pub fn modules(&mut self, kernel: &Kernel, features: Features) -> Result<(), Error> {
        let modules = Modules::of(kernel)?;
        let mut list = String::new();
        for module in modules.closure(&features.modules())? {
            let path = format!("lib/modules/{}/{}", kernel.release, module.path);
            list.push_str(&format!("/{path}\n"));
            self.archive.file(&path, 0o644, module.data)?;
        }
        self.archive.file(MODULE_LIST, 0o644, list)?;
        Ok(())
    }

    /// The tree, to add more to it.
    pub fn archive_mut(&mut self) -> &mut Archive {
        &mut self.archive
    }

    /// Writes it to a file: uncompressed, because that is faster to load than to unpack.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let file = fs::File::create(path).about("created", path)?;
        Ok(self.archive.write_to(&mut BufWriter::with_capacity(1 << 20, file))?)
    }
}

/// The initramfs for that kernel and those features, from the cache or built for it.
///
/// Where the root comes from elsewhere (`has_root`), it does without busybox if there is none.
pub fn initramfs(
    cache: &Cache,
    kernel: &Kernel,
    features: Features,
    has_root: bool,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, Error> {
    let busybox = match find_busybox(cache, progress) {
        Ok(busybox) => Some(busybox),
        Err(_) if has_root => None,
        Err(error) => return Err(error),
    };
    let mut hasher = DefaultHasher::new();
    (RECIPE, AGENT, FILES, features, &busybox, kernel.enforces_signatures).hash(&mut hasher);
    features.modules().hash(&mut hasher);
    let name = format!("initramfs-{}-{:016x}", kernel.key, hasher.finish());
    cache.entry(&name, |path| {
        progress("Building the initramfs");
        let mut initramfs = Initramfs::new()?;
        if let Some(busybox) = &busybox {
            initramfs.busybox(busybox)?;
        }
        initramfs.modules(kernel, features)?;
        initramfs.write(path)
    })
}

/// Debian's busybox. Its path tells its version.
fn find_busybox(cache: &Cache, progress: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let package = apt::resolve(cache, "busybox-static", None)?;
    let folder = cache.entry(&package.key(), |path| apt::unpack(&package, path, progress))?;
    let program = folder.join("bin/busybox");
    // Where /bin is a link, packages have its files in /usr/bin.
    Ok(if program.exists() { program } else { folder.join("usr/bin/busybox") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_boot_loads_no_module() {
        assert!(Features::default().modules().is_empty());
        assert_eq!(Features { overlay: true, ..Features::default() }.modules(), ["overlay"]);
    }

    #[test]
    fn an_initramfs_without_kernel_and_busybox_has_the_agent() {
        let mut initramfs = Initramfs::new().unwrap();
        for path in ["init", "dev/console", "etc/passwd", "proc"] {
            assert!(initramfs.archive_mut().contains(path), "{path}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        initramfs.write(file.path()).unwrap();
        let written = fs::read(file.path()).unwrap();
        assert!(written.len() > AGENT.len() && written.starts_with(b"070701"));
    }
}
