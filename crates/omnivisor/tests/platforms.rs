//! VMs where they live: libvirt's, with QEMU, in a user's own session.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
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

/// A real sshd on a loopback port, with keys of its own, where `prlctl` says what was recorded.
struct Sshd {
    folder: tempfile::TempDir,
    process: std::process::Child,
    port: u16,
}

impl Sshd {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path(key))
                .status();
            assert!(made.unwrap().success());
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let list =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../platform/tests/parallels/list.json");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = list ] || {{ echo \"$*\" >>{}; exit; }}\ncat {}\n",
            path("asked").display(),
            list.display()
        );
        std::fs::write(path("prlctl"), script).unwrap();
        std::fs::set_permissions(path("prlctl"), PermissionsExt::from_mode(0o755)).unwrap();
        let at = folder.path().display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\n\
             StrictModes no\nPidFile none\nPermitRootLogin yes\nSetEnv PATH={at}:/usr/bin:/bin\n"
        );
        std::fs::write(path("sshd"), config).unwrap();
        let host = std::fs::read_to_string(path("host.pub")).unwrap();
        std::fs::write(path("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let ssh = format!(
            "#!/bin/sh\nexec ssh -F none -i {at}/user -o UserKnownHostsFile={at}/known \"$@\"\n"
        );
        std::fs::write(path("ssh"), ssh).unwrap();
        std::fs::set_permissions(path("ssh"), PermissionsExt::from_mode(0o755)).unwrap();
        let _ = std::fs::create_dir("/run/sshd");
        let process = Command::new("/usr/sbin/sshd")
            .args(["-D", "-q", "-f"])
            .arg(path("sshd"))
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { folder, process, port }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(OMNIVISOR)
            .args(arguments)
            .env("OMNIVISOR_SSH", self.folder.path().join("ssh"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_platform_on_another_computer_is_asked_by_ssh() {
    let sshd = Sshd::new();
    let uri = format!("parallels+ssh://127.0.0.1:{}", sshd.port);
    let (code, list, talk) = sshd.run(&["list", &uri]);
    assert_eq!(code, 0, "{talk}");
    assert!(list.contains("build / web  running") && list.contains("10.211.55.7"), "{list}");
    let (code, _, talk) =
        sshd.run(&["snapshot", "create", &format!("{uri}/old"), "it's $HOME; `id`"]);
    assert_eq!(code, 0, "{talk}");
    let asked = std::fs::read_to_string(sshd.folder.path().join("asked")).unwrap();
    assert_eq!(asked, "snapshot 0b7a7b42-6a2e-4f2c-8d4e-5a6c7d8e9f00 --name it's $HOME; `id`\n");

    // A program that is missing there, a host that is not known, and a key that is not let in.
    let (code, _, talk) = sshd.run(&["list", &format!("xen+ssh://127.0.0.1:{}", sshd.port)]);
    assert!(code == 125 && talk.contains("Cannot run xl on 127.0.0.1"), "{talk}");
    let known = sshd.folder.path().join("known");
    let right = std::fs::read_to_string(&known).unwrap();
    std::fs::write(&known, "").unwrap();
    let (code, _, talk) = sshd.run(&["list", &uri]);
    assert!(code == 125 && talk.contains("accept it: ssh -p"), "{talk}");
    std::fs::write(&known, right).unwrap();
    std::fs::write(sshd.folder.path().join("user.pub"), "").unwrap();
    let (code, _, talk) = sshd.run(&["list", &uri]);
    assert!(code == 125 && talk.contains("ssh-copy-id -p"), "{talk}");
}
