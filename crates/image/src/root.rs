//! A full Debian on a disk, by mmdebstrap.

use crate::cache::Cache;
use crate::error::{About, Error};
use crate::kernel::Kernel;
use crate::{AGENT, apt};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Size of the file system as it is built: what Debian needs, and room to spare. The file is sparse.
const BASE_SIZE: &str = "2G";
/// What makes a minimal Debian usable; the rest is an `apt-get install` away.
const PACKAGES: &str =
    "systemd-sysv,systemd-resolved?,dbus,udev,kmod,iproute2,iputils-ping,ca-certificates,less,nano";

/// Where the agent is in the root.
const AGENT_PATH: &str = "/usr/local/sbin/omnivisor-agent";
/// Files of the root: its path, and its content.
const FILES: [(&str, &str); 7] = [
    ("/etc/hostname", "debian\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n"),
    ("/etc/fstab", "/dev/root / ext4 errors=remount-ro 0 0\n"),
    (
        "/etc/systemd/network/80-omnivisor.network",
        "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nUseDomains=yes\n",
    ),
    (
        // The host owns the console, so a password on it would protect nothing.
        "/etc/systemd/system/serial-getty@.service.d/omnivisor.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,9600 - $TERM\n",
    ),
    (
        "/etc/systemd/system/omnivisor-agent.service",
        "[Unit]\nDescription=Omnivisor guest agent\nConditionKernelCommandLine=omnivisor.serve\n\n\
         [Service]\nExecStart=/usr/local/sbin/omnivisor-agent --serve\nRestart=always\nRestartSec=1\n\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    ("/etc/apt/apt.conf.d/80-omnivisor", "APT::Install-Recommends \"false\";\n"),
];

/// A raw ext4 disk with Debian of the host's release (on other systems, the stable one) and that kernel's modules.
pub fn debian(cache: &Cache, kernel: &Kernel, progress: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let suite = host_suite(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let mut hasher = DefaultHasher::new();
    (AGENT, FILES, PACKAGES, BASE_SIZE, &kernel.key).hash(&mut hasher);
    cache.entry(&format!("root-{suite}-{:016x}", hasher.finish()), |path| {
        for (program, package) in [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")] {
            require(program, package)?;
        }
        progress(&format!("Building a Debian {suite} root (a minute or two)"));
        let stage = Stage::new()?;
        build(&stage, &suite, kernel)?;
        copy_sparse(&stage.disk(), path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).about("changed", path)
    })
}

/// Makes a disk of `size` bytes (at least its own) out of a prepared root. The new file belongs to the caller.
pub fn copy_disk(base: &Path, target: &Path, size: u64) -> Result<(), Error> {
    require("resize2fs", "e2fsprogs")?;
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = target.with_file_name(name);
    let made = copy_sparse(base, &temporary).and_then(|()| {
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .about("changed", &temporary)?;
        let file =
            fs::OpenOptions::new().write(true).open(&temporary).about("opened", &temporary)?;
        let length = file.metadata().about("read", &temporary)?.len();
        if size > length {
            file.set_len(size).about("written", &temporary)?;
            apt::run(sbin("resize2fs").arg(&temporary))?;
        }
        file.sync_all().about("written", &temporary)?;
        fs::rename(&temporary, target).about("renamed", &temporary)
    });
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made
}

/// A folder that mmdebstrap's user namespace can write into, in which the caller may be somebody else than root.
struct Stage(PathBuf);

impl Stage {
    fn new() -> Result<Self, Error> {
        let folder = std::env::temp_dir().join(format!("omnivisor-root-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o711).create(&folder).about("created", &folder)?;
        let stage = Self(folder);
        let disk = stage.disk();
        fs::File::create(&disk).about("created", &disk)?;
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o666)).about("changed", &disk)?;
        Ok(stage)
    }

    fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// Writes a file that a hook will copy into the root.
    fn file(&self, name: &str, mode: u32, data: &[u8]) -> Result<PathBuf, Error> {
        let path = self.0.join(name);
        fs::write(&path, data).about("written", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).about("changed", &path)?;
        Ok(path)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = as_owner("rm").arg("-rf").arg(self.0.join("root")).output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build(stage: &Stage, suite: &str, kernel: &Kernel) -> Result<(), Error> {
    let agent = stage.file("agent", 0o755, AGENT)?;
    let mut command = sbin("mmdebstrap");
    // "auto" is root's own way, or a user namespace.
    command.args(["--quiet", "--mode=auto", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", PACKAGES.replace("systemd-resolved?,", resolved(suite))));
    hook(&mut command, &format!("upload {} {AGENT_PATH}", quoted(&agent)));
    hook(&mut command, &format!("chmod 755 \"$1\"{AGENT_PATH}"));
    for (index, (path, text)) in FILES.iter().enumerate() {
        let source = stage.file(&format!("file-{index}"), 0o644, text.as_bytes())?;
        if let Some((folder, _)) = path.rsplit_once('/') {
            hook(&mut command, &format!("mkdir -p \"$1\"{folder}"));
        }
        hook(&mut command, &format!("upload {} {path}", quoted(&source)));
    }
    if kernel.modules.is_dir() {
        let folder = format!("/lib/modules/{}", kernel.release);
        hook(&mut command, &format!("mkdir -p \"$1\"{folder}"));
        hook(&mut command, &format!("sync-in {} {folder}", quoted(&kernel.modules)));
        hook(&mut command, &format!("chroot \"$1\" depmod {}", kernel.release));
    }
    hook(&mut command, "chroot \"$1\" passwd --delete root >/dev/null");
    hook(&mut command, "chroot \"$1\" systemctl --quiet enable systemd-networkd omnivisor-agent");
    hook(
        &mut command,
        "chroot \"$1\" systemctl --quiet enable systemd-resolved 2>/dev/null || true",
    );
    hook(
        &mut command,
        "rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*.bin \"$1\"/var/cache/apt/archives/*.deb",
    );
    hook(
        &mut command,
        "rm -f \"$1\"/etc/machine-id \"$1\"/etc/resolv.conf && : > \"$1\"/etc/machine-id",
    );
    hook(&mut command, "ln -s /run/systemd/resolve/resolv.conf \"$1\"/etc/resolv.conf");
    let root = stage.0.join("root");
    command.arg(suite).arg(&root);
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    apt::run(&mut command)?;
    let mut mke2fs = as_owner("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "omnivisor-root", "-E", "root_owner=0:0", "-d"]);
    apt::run(mke2fs.arg(&root).arg(stage.disk()).arg(BASE_SIZE)).map(drop)
}

fn hook(command: &mut Command, script: &str) {
    command.arg(format!("--customize-hook={script}"));
}

/// Single quotes for the shell that runs hooks.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// The resolver became a package of its own after Debian 11.
fn resolved(suite: &str) -> &'static str {
    if suite == "bullseye" { "" } else { "systemd-resolved," }
}

/// The release of a Debian host; `stable` elsewhere.
fn host_suite(os_release: &str) -> String {
    let field = |name: &str| {
        let line =
            os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    let name =
        field("VERSION_CODENAME").filter(|name| name.chars().all(|c| c.is_ascii_lowercase()));
    match (field("ID").as_deref(), name) {
        (Some("debian"), Some(name)) if !name.is_empty() => name,
        _ => "stable".into(),
    }
}

fn require(program: &'static str, package: &'static str) -> Result<(), Error> {
    // An ordinary user's PATH has no sbin, where e2fsprogs is; mmdebstrap's hooks have it.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    if folders.any(|folder| folder.join(program).is_file()) {
        Ok(())
    } else {
        Err(Error::NoProgram { program, package })
    }
}

/// A program that may be where only root looks.
fn sbin(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A program run by whoever owns the files of a root: the caller if that is root, else a user namespace's root.
fn as_owner(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return sbin(program);
    }
    let mut command = sbin("mmdebstrap");
    command.args(["--unshare-helper", program]);
    command
}

/// Copies without the holes: as a clone where the file system can.
fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    apt::run(Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).arg(from).arg(to))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_the_hosts_release() {
        assert_eq!(host_suite("ID=debian\nVERSION_CODENAME=bookworm\n"), "bookworm");
        assert_eq!(host_suite("VERSION_CODENAME=\"trixie\"\nID=\"debian\"\n"), "trixie");
        assert_eq!(host_suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), "stable");
        assert_eq!(host_suite("ID=debian\nVERSION_CODENAME=$(reboot)\n"), "stable");
        assert_eq!(host_suite(""), "stable");
    }

    #[test]
    fn a_copy_has_the_size_that_was_asked_for_and_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("mark"), "here\n").unwrap();
        let mke2fs = ["-q", "-t", "ext4", "-d"];
        let mut command = sbin("mke2fs");
        apt::run(command.args(mke2fs).arg(&source).arg(&base).arg("16M")).unwrap();
        fs::set_permissions(&base, fs::Permissions::from_mode(0o444)).unwrap();
        let copy = folder.path().join("copy");
        copy_disk(&base, &copy, 100 << 20).unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().len(), 100 << 20);
        let output = apt::run(sbin("debugfs").args(["-R", "cat mark"]).arg(&copy)).unwrap();
        assert_eq!(output.stdout, b"here\n");
        apt::run(sbin("e2fsck").arg("-fn").arg(&copy)).unwrap();
        // Never smaller than the base.
        copy_disk(&base, &copy, 1).unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().len(), 16 << 20);
        assert!(copy_disk(&folder.path().join("none"), &copy, 1).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn names_with_quotes_stay_one_word() {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("printf %s {}", quoted(Path::new("a 'b' $c"))))
            .output();
        assert_eq!(output.unwrap().stdout, b"a 'b' $c");
    }
}
