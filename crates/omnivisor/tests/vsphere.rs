//! The verbs for VMs of ESXi, against VMware's simulator.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const OMNIVISOR: &str = env!("CARGO_BIN_EXE_omnivisor");

/// A running simulator; it ends with the value.
struct Simulator {
    process: Child,
    thumbprint: String,
    uri: String,
}

impl Simulator {
    fn start() -> Self {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/vcsim-lab");
        let mut process = Command::new(lab)
            .args(["--esx", "-l", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = |begin: &str| {
            let line = lines.next().expect("the simulator says where it is").unwrap();
            line.strip_prefix(begin).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let thumbprint = line("thumbprint ");
        let uri = format!("esx://root@{}", line("ready https://").trim_end_matches("/sdk"));
        Self { process, thumbprint, uri }
    }

    fn omnivisor(&self, password: &str, arguments: &[&str]) -> Output {
        let home = tempfile::tempdir().unwrap();
        Command::new(OMNIVISOR)
            .args(arguments)
            .args(["--tls-thumbprint", &self.thumbprint])
            .env("OMNIVISOR_PASSWORD", password)
            .env("HOME", home.path())
            .env("XDG_STATE_HOME", home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // It removes its datastores when it is asked to end.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

#[test]
fn vms_of_a_host_are_listed_stopped_and_copied() {
    let simulator = Simulator::start();
    let listed = simulator.omnivisor("secret", &["list", "--format", "json", &simulator.uri]);
    assert!(listed.status.success(), "{listed:?}");
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(serde_json::from_str::<Value>(&text).is_ok() && text.contains("ha-host_VM1"), "{text}");

    let vm = format!("{}/ha-host_VM0", simulator.uri);
    let stopped = simulator.omnivisor("secret", &["stop", "--force", "--yes", &vm]);
    assert!(stopped.status.success(), "{stopped:?}");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("vm");
    let pulled = simulator.omnivisor("secret", &["pull", &vm, target.to_str().unwrap()]);
    assert!(pulled.status.success(), "{pulled:?}");
    let vmx = std::fs::read_to_string(target.join("ha-host_VM0.vmx")).unwrap();
    assert!(vmx.contains("scsi0:0.filename = \"disk1.vmdk\""), "{vmx}");

    let missing = simulator.omnivisor("secret", &["pull", &format!("{}/nobody", simulator.uri)]);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
}

#[test]
fn secrets_are_not_in_what_is_said() {
    let simulator = Simulator::start();
    let vm = format!("{}/ha-host_VM0", simulator.uri);
    let refused = simulator.omnivisor("sesame-1", &["-vv", "run", &vm]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("lets nobody in") && !said.contains("sesame"), "{said}");
    let listed = simulator.omnivisor("secret", &["-vv", "list", &simulator.uri]);
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(
        listed.status.success() && !said.contains("secret") && !said.contains("session="),
        "{said}"
    );
}

#[test]
fn a_password_comes_from_the_desktops_keyring() {
    let simulator = Simulator::start();
    let home = tempfile::tempdir().unwrap();
    let host = "server 127.0.0.1 user root";
    // A keyring of its own that is open, with a password for this server and a wrong one for another user.
    let script = format!(
        "printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null
         printf wrong | secret-tool store --label=other server 127.0.0.1 user admin
         printf secret | secret-tool store --label=web {host}
         exec {OMNIVISOR} list --tls-thumbprint {} {}",
        simulator.thumbprint, simulator.uri
    );
    let output = Command::new("dbus-run-session")
        .args(["--", "sh", "-c", &script])
        .env_remove("OMNIVISOR_PASSWORD")
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path())
        .env_remove("XDG_DATA_HOME")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("ha-host_VM0"), "{talk}");
}

#[test]
fn passwords_of_several_platforms_are_asked_for_one_after_the_other() {
    let simulator = Simulator::start();
    let home = tempfile::tempdir().unwrap();
    let other = simulator.uri.replace("127.0.0.1", "localhost");
    // The time limit is shorter than the typing.
    let line = format!(
        "{OMNIVISOR} list --timeout 5 --tls-thumbprint {} {} {other}; stty",
        simulator.thumbprint, simulator.uri
    );
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env_remove("OMNIVISOR_PASSWORD")
        .env("HOME", home.path())
        .env("XDG_STATE_HOME", home.path())
        .env("COLUMNS", "200")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let mut said = String::new();
    let mut byte = [0];
    while screen.read(&mut byte).unwrap() == 1 {
        said.push(char::from(byte[0]));
        if said.ends_with("1: ") || said.ends_with("localhost: ") {
            std::thread::sleep(std::time::Duration::from_secs(3));
            keys.write_all(b"secret\n").unwrap();
        }
    }
    assert!(terminal.wait().unwrap().success(), "{said}");
    assert_eq!(said.matches("Password of").count(), 2, "{said}");
    assert_eq!(said.matches("ha-host_VM0").count(), 2, "{said}");
    // What is typed afterwards is seen.
    assert!(!said.contains("secret") && !said.contains("-echo "), "{said}");
}
