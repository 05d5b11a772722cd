//! VMs where they live: libvirt's, with QEMU, in a user's own session.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

const OMNIVISOR: &str = env!("CARGO_BIN_EXE_omnivisor");

/// libvirt's instance for one user, with a folder of its own; root has none, so it is nobody's.
struct Session {
    folder: tempfile::TempDir,
}

/// Debian's user and group `nobody`.
const NOBODY: u32 = 65534;

/// A VM that needs neither KVM nor a system: its firmware finds nothing to boot.
const DOMAIN: &str = "<domain type='qemu'><name>web 1</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
    <os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>\
    <driver name='qemu' type='qcow2'/><source file='DISK'/><target dev='vda' bus='virtio'/></disk>\
    <serial type='file'><source path='CONSOLE'/></serial></devices></domain>";

impl Session {
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
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

    fn define(&self) {
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
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let program = self.path("omnivisor");
        if !program.exists() {
            std::fs::copy(OMNIVISOR, &program).unwrap();
        }
        let output = self.command(program.to_str().unwrap()).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    fn expect(&self, arguments: &[&str]) -> String {
        let (code, output, talk) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {talk}");
        output
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.expect(&[arguments, &["--format", "json"]].concat())).unwrap()
    }

    fn state(&self) -> String {
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

#[test]
fn a_vm_of_libvirt_is_seen_and_steered() {
    let session = Session::new();
    session.define();
    let vm = "qemu:///session/web 1";
    assert_eq!(session.state(), "stopped");
    session.expect(&["start", vm]);
    assert_eq!(session.state(), "running");
    session.expect(&["pause", vm]);
    assert_eq!(session.state(), "paused");
    session.expect(&["snapshot", "create", vm, "first", "--description", "before all"]);
    session.expect(&["resume", vm]);
    assert_eq!(session.state(), "running");
    session.expect(&["snapshot", "create", vm, "second"]);
    let snapshots = session.json(&["snapshot", "list", vm]);
    assert_eq!(snapshots["snapshots"][0]["description"], "before all");
    assert_eq!(snapshots["snapshots"][1]["parent"], "first");
    assert_eq!(snapshots["snapshots"][1]["current"], true);

    // Without a terminal nothing is lost without --yes, and what would be is said.
    for (arguments, loss) in [
        (&["stop", "--force", vm][..], "its power is cut"),
        (&["reset", "--force", vm], "it is reset"),
        (&["snapshot", "revert", vm, "first"], "its present state is lost"),
        (&["snapshot", "delete", vm, "first"], "is deleted"),
    ] {
        let (code, _, talk) = session.run(arguments);
        assert!(code == 2 && talk.contains(loss) && talk.contains("--yes"), "{talk}");
    }
    assert_eq!(session.state(), "running");
    session.expect(&["snapshot", "revert", "--yes", vm, "first"]);
    assert_eq!(session.state(), "paused");
    session.expect(&["snapshot", "delete", "--yes", vm, "first"]);
    session.expect(&["stop", "--force", "--yes", vm]);
    assert_eq!(session.state(), "stopped");
    // SeaBIOS and iPXE have said something.
    session.expect(&["console-log", vm]);

    let (code, _, talk) = session.run(&["stop", "--force", "-y", vm]);
    assert!(code == 125 && talk.contains("domain is not running"), "{talk}");
    let (code, _, talk) = session.run(&["start", "qemu:///session/nobody"]);
    assert!(code == 127 && talk.contains("no VM called \"nobody\""), "{talk}");
    let (code, _, talk) = session.run(&["snapshot", "delete", "-y", vm, "third"]);
    assert!(code == 127 && talk.contains("no snapshot called \"third\""), "{talk}");
}

#[test]
fn what_libvirt_shows_is_what_inspect_reads() {
    let session = Session::new();
    session.define();
    let shown = session.json(&["show", "qemu:///session/web 1"]);
    let xml = session
        .command("virsh")
        .args(["-c", "qemu:///session", "dumpxml", "--inactive", "web 1"])
        .output()
        .unwrap();
    let file = session.path("web.xml");
    std::fs::write(&file, xml.stdout).unwrap();
    let read = session.json(&["inspect", "--allow-outside", file.to_str().unwrap()]);
    let (mut shown, mut read) =
        (shown["description"].clone(), read["vms"][0]["description"].clone());
    // Inspect has opened the disk.
    assert_eq!(read["drives"][0]["capacity"], 8 << 20);
    read["drives"][0]["capacity"] = Value::Null;
    for place in ["file", "folder"] {
        for one in [&mut shown, &mut read] {
            one[place] = Value::Null;
        }
    }
    assert_eq!(shown, read);
}

#[test]
fn a_platform_that_fails_hides_no_other() {
    let session = Session::new();
    let (code, list, talk) = session.run(&[
        "list",
        "--format",
        "json",
        "qemu:///system",
        "test:///default",
        "vbox+ssh://localhost:1",
    ]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(code, 125);
    assert_eq!(list["vms"][0]["uri"], "test:///default");
    assert_eq!(list["vms"][0]["name"], "test");
    assert_eq!(list["failures"].as_array().unwrap().len(), 2);
    assert!(talk.contains("qemu:///system:") && talk.contains("localhost"), "{talk}");
}

#[test]
fn a_name_that_makes_no_sense_is_a_matter_of_usage() {
    let session = Session::new();
    for (name, says) in
        [("nobody://x/y", "known are"), ("vbox+ssh://-oProxyCommand=x/y", "no host")]
    {
        let (code, _, talk) = session.run(&["show", name]);
        assert!(code == 2 && talk.contains(says), "{talk}");
    }
}
