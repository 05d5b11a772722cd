//! A libvirt of its own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::OMNIVISOR;

/// libvirt's instance for one user, with a folder of its own; root has none, so it is nobody's.
pub struct Session {
    pub folder: tempfile::TempDir,
}

/// Debian's user and group `nobody`.
const NOBODY: u32 = 65534;

/// A VM that needs neither KVM nor a system: its firmware finds nothing to boot.
const DOMAIN: &str = "<domain type='qemu'><name>web 1</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
    <os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>\
    <driver name='qemu' type='qcow2'/><source file='DISK'/><target dev='vda' bus='virtio'/></disk>\
    <serial type='file'><source path='CONSOLE'/></serial></devices></domain>";

impl Session {
    pub fn new() -> Self {
        // Paths of Unix sockets are short.
        let folder = tempfile::Builder::new().prefix("lv").tempdir_in("/tmp").unwrap();
        let session = Self { folder };
        std::fs::create_dir(session.path("run")).unwrap();
        for path in [session.folder.path().to_owned(), session.path("run")] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
            if rustix::process::geteuid().is_root() {
                chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        session
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub fn define(&self) {
        let disk = self.path("disk.qcow2");
        let made = self
            .command("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&disk)
            .arg("8M")
            .status();
        assert!(made.unwrap().success());
        let xml = DOMAIN
            .replace("DISK", disk.to_str().unwrap())
            .replace("CONSOLE", self.path("console").to_str().unwrap());
        let file = self.path("domain.xml");
        std::fs::write(&file, xml).unwrap();
        let mut virsh = self.command("virsh");
        virsh.args(["-q", "-c", "qemu:///session", "define"]).arg(&file);
        assert!(virsh.status().unwrap().success());
    }

    /// Exit code, output and talk of the program, which nobody may read in the place where it was built.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let program = self.path("omnivisor");
        if !program.exists() {
            std::fs::copy(OMNIVISOR, &program).unwrap();
        }
        let output = self.command(program.to_str().unwrap()).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    pub fn expect(&self, arguments: &[&str]) -> String {
        let (code, output, talk) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {talk}");
        output
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.expect(&[arguments, &["--format", "json"]].concat())).unwrap()
    }

    pub fn state(&self) -> String {
        let list = self.json(&["list", "qemu:///session"]);
        list["vms"][0]["state"].as_str().unwrap().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The daemon ends by itself, two minutes after the last VM.
        for command in ["destroy", "undefine"] {
            let _ = self
                .command("virsh")
                .args(["-q", "-c", "qemu:///session", command, "web 1"])
                .stderr(Stdio::null())
                .status();
        }
    }
}
