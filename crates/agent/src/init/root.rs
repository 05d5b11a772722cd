//! Leaving the initramfs for a real root, and the host's folders.

use super::settings::{Root, Settings, Share};
use agent::children;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the root is put together.
const NEW_ROOT: &str = "/newroot";
/// The unchanged root under an overlay, and the memory over it.
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest name of a device.
const MAX_DEVICE_NAME: u64 = 256;
/// Deepest folder of the initramfs that is looked into when it is emptied.
const MAX_DEPTH: u32 = 32;

/// What stands between the guest and its root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No such device.
    #[error("The root device {0} did not appear; attach it with --disk or change root=")]
    NoDevice(String),
    /// It could not be mounted.
    #[error("{what} could not be mounted on {target}")]
    Mount {
        /// Device, tag or kind.
        what: String,
        /// Folder.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The switch itself failed.
    #[error("The root could not be entered")]
    Switch(#[source] io::Error),
    /// No init in it runs.
    #[error("{0} could not be started; name another with init=")]
    Init(String, #[source] io::Error),
}

/// Mounts the root and makes it `/`.
pub fn enter(root: &Root, settings: &Settings) -> Result<(), RootError> {
    let switch = |error: Errno| RootError::Switch(error.into());
    make_dir(NEW_ROOT);
    let volatile = settings.overlay;
    let base = if volatile { LOWER } else { NEW_ROOT };
    make_dir(base);
    let readonly = volatile || !settings.writable;
    mount_root(root, base, if readonly { MountFlags::RDONLY } else { MountFlags::empty() })?;
    if volatile {
        make_dir(UPPER);
        mount_at("tmpfs", UPPER, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
        make_dir("/upper/data");
        make_dir("/upper/work");
        let layers = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
        mount_at("overlay", NEW_ROOT, "overlay", MountFlags::empty(), Some(layers))?;
    }
    for folder in ["/dev", "/proc", "/sys", "/run"] {
        let target = format!("{NEW_ROOT}{folder}");
        make_dir(&target);
        mount_move(folder, target.as_str()).map_err(switch)?;
    }
    if readonly {
        let target = format!("{NEW_ROOT}/tmp");
        make_dir(&target);
        mount_at(
            "tmpfs",
            &target,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=1777"),
        )?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = rustix::fs::open("/", flags, Mode::empty()).map_err(switch)?;
    rustix::process::chdir(NEW_ROOT).map_err(switch)?;
    mount_move(".", "/").map_err(switch)?;
    rustix::process::chroot(".").map_err(switch)?;
    rustix::process::chdir("/").map_err(switch)?;
    if let Ok(stat) = rustix::fs::fstat(&old_root) {
        empty(old_root.as_fd(), stat.st_dev, MAX_DEPTH);
    }
    Ok(())
}

/// Replaces PID 1 by the root's own init.
pub fn exec_init(settings: &Settings) -> Result<(), RootError> {
    let candidates = match &settings.init {
        Some(init) => vec![init.as_str()],
        None => vec!["/sbin/init", "/lib/systemd/systemd", "/bin/init", "/bin/sh"],
    };
    let mut failure = None;
    for init in candidates {
        let error = Command::new(init).exec();
        failure.get_or_insert(RootError::Init(init.into(), error));
    }
    failure.map_or(Ok(()), Err)
}

/// Mounts a folder of the host.
pub fn mount_share(share: &Share) -> Result<(), RootError> {
    let target = &share.path;
    std::fs::create_dir_all(target).map_err(|source| RootError::Mount {
        what: share.tag.clone(),
        target: target.clone(),
        source,
    })?;
    let flags = if share.readonly { MountFlags::RDONLY } else { MountFlags::empty() };
    mount_at(&share.tag, target, "virtiofs", flags, None)
}

/// Whether that folder is on a disk that can be written: one whose file system should be left in order.
pub fn is_writable_disk(folder: &Path) -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return false };
    let last = mounts.lines().filter(|line| {
        let mut fields = line.split(' ');
        fields.next().is_some_and(|device| device.starts_with("/dev/"))
            && fields.next().is_some_and(|target| Path::new(target) == folder)
    });
    last.count() > 0
        && rustix::fs::statvfs(folder)
            .is_ok_and(|stat| !stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn mount_root(root: &Root, target: &str, flags: MountFlags) -> Result<(), RootError> {
    match root {
        Root::Share(tag) => mount_at(tag, target, "virtiofs", flags, None),
        Root::Device { device, kind } => {
            let device = wait_for_device(device)?;
            let kinds = match kind {
                Some(kind) => kind.split(',').map(str::to_owned).collect(),
                None => known_filesystems(),
            };
            let mut failure = None;
            for kind in kinds {
                match mount_at(&device, target, &kind, flags, None) {
                    Ok(()) => return Ok(()),
                    Err(error) => failure = Some(error),
                }
            }
            Err(failure.unwrap_or(RootError::NoDevice(device)))
        }
    }
}

/// The device's path, once it is there.
fn wait_for_device(device: &str) -> Result<String, RootError> {
    let start = Instant::now();
    loop {
        if let Some(path) = find_device(device) {
            return Ok(path);
        }
        if start.elapsed() > PATIENCE {
            return Err(RootError::NoDevice(device.into()));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn find_device(device: &str) -> Option<String> {
    if device.starts_with('/') {
        return Path::new(device).exists().then(|| device.to_owned());
    }
    let mut command = Command::new("/bin/busybox");
    command.args(["findfs", device]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = children::spawn(&mut command).ok()?;
    let mut path = String::new();
    child.stdout.take()?.take(MAX_DEVICE_NAME).read_to_string(&mut path).ok()?;
    children::collect(&mut child, true).ok()?;
    path.starts_with("/dev/").then(|| path.trim_end().to_owned())
}

/// The kernel's file systems that live on block devices.
fn known_filesystems() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    list.lines().filter_map(|line| line.strip_prefix('\t')).map(str::to_owned).collect()
}

fn mount_at(
    what: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), RootError> {
    let failed = |source| RootError::Mount { what: what.into(), target: target.into(), source };
    let source = CString::new(what).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
    mount(source, target, kind, flags, data).map_err(|error| failed(error.into()))
}

fn make_dir(path: &str) {
    let _ = rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755));
}

/// Removes what is in the folder, to give the initramfs's memory back; never on another file system.
fn empty(folder: impl AsFd, device: u64, depth: u32) {
    let folder = folder.as_fd();
    let Ok(entries) = Dir::read_from(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if stat.st_dev != device {
            continue;
        }
        let mut flags = AtFlags::empty();
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            flags = AtFlags::REMOVEDIR;
            let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inner) = rustix::fs::openat(folder, name, open, Mode::empty())
                && depth > 0
            {
                empty(inner, device, depth - 1);
            }
        }
        let _ = rustix::fs::unlinkat(folder, name, flags);
    }
}
