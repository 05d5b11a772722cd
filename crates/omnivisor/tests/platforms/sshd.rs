//! An SSH server of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::OMNIVISOR;

/// A real sshd on a loopback port, with keys of its own, where `prlctl` says what was recorded.
pub struct Sshd {
    pub folder: tempfile::TempDir,
    process: std::process::Child,
    pub port: u16,
}

impl Sshd {
    pub fn new() -> Self {
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
            "[ \"$1\" = list ] || {{ echo \"$*\" >>{}; exit; }}\ncat {}\n",
            path("asked").display(),
            list.display()
        );
        write_program(&path("prlctl"), &script);
        let at = folder.path().display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\n\
             StrictModes no\nPidFile none\nPermitRootLogin yes\nSubsystem sftp internal-sftp\nSetEnv PATH={at}:/usr/bin:/bin\n"
        );
        std::fs::write(path("sshd"), config).unwrap();
        let host = std::fs::read_to_string(path("host.pub")).unwrap();
        std::fs::write(path("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let ssh =
            format!("exec ssh -F none -i {at}/user -o UserKnownHostsFile={at}/known \"$@\"\n");
        write_program(&path("ssh"), &ssh);
        // The same over a line that breaks after some megabytes.
        let breaking =
            "exec 3<&0; exec dd bs=16k count=200 status=none < <(exec AT/ssh \"$@\" <&3 3<&-)";
        let breaking = breaking.replace("AT", &at.to_string());
        write_program(&path("breaking-ssh"), &format!("exec bash -c '{breaking}' - \"$@\"\n"));
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

    /// Exit code, output and talk of the program.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run_by("ssh", arguments)
    }

    /// The same by another program than ssh.
    pub fn run_by(&self, ssh: &str, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(OMNIVISOR)
            .args(arguments)
            .env("OMNIVISOR_SSH", self.folder.path().join(ssh))
            .env("XDG_STATE_HOME", self.folder.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

impl Sshd {
    /// As after a change of it.
    pub fn read_configuration_again(&self) {
        let sent = Command::new("kill").arg("-HUP").arg(self.process.id().to_string()).status();
        assert!(sent.unwrap().success());
        // It executes itself again, and listens once more.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// A program that the server's users have.
    pub fn add_program(&self, name: &str, script: &str) {
        write_program(&self.folder.path().join(name), script);
    }
}

pub fn write_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
