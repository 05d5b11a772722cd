//! The verbs for VMs of Hyper-V, against the lab's host.

#[path = "../../../platform/tests/hyperv/lab.rs"]
#[allow(dead_code, reason = "the driver's own tests need more of it")]
mod lab;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use lab::{Host, ODD};
use serde_json::Value;

use crate::OMNIVISOR;
use crate::sshd::Sshd;

fn omnivisor(password: &str, arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(OMNIVISOR)
        .args(arguments)
        .env("OMNIVISOR_PASSWORD", password)
        .env("HOME", home.path())
        .env("XDG_STATE_HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// An image for the lab's VMs.
fn image(folder: &Path) {
    std::fs::write(folder.join("raw"), vec![7_u8; 3 << 20]).unwrap();
    for name in ["base.vhdx", "old.vhdx"] {
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "vhdx", "raw", name])
            .current_dir(folder)
            .status();
        assert!(made.unwrap().success());
    }
}

#[test]
fn vms_of_a_host_are_listed_stopped_and_copied() {
    let host = Host::start(&[]);
    image(host.folder.path());
    let uri = host.uri().to_string();
    let listed = omnivisor("secret", &["list", "--format", "json", &uri]);
    assert!(listed.status.success(), "{listed:?}");
    let list: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(list["vms"].as_array().unwrap().len(), 3);
    let stopped = omnivisor("secret", &["stop", "--force", "--yes", &format!("{uri}/web")]);
    assert!(stopped.status.success(), "{stopped:?}");
    let odd = platform::VmName { uri: Some(host.uri()), name: ODD.into() }.to_string();
    let started = omnivisor("secret", &["start", &odd]);
    assert!(started.status.success(), "{started:?}");

    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("old");
    let pulled = omnivisor("secret", &["pull", &format!("{uri}/old"), target.to_str().unwrap()]);
    assert!(pulled.status.success(), "{pulled:?}");
    let inspected =
        omnivisor("", &["inspect", "--format", "json", target.join("old.xml").to_str().unwrap()]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let drive = &inspected["vms"][0]["description"]["drives"][0];
    assert_eq!((&drive["file"]["state"], &drive["format"]), (&"present".into(), &"vhdx".into()));

    let missing = omnivisor("secret", &["show", &format!("{uri}/nobody")]);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
}

#[test]
fn secrets_are_not_in_what_is_said() {
    let host = Host::start(&[]);
    let uri = host.uri().to_string();
    for (password, code) in [("sesame-1", 125), ("secret", 0)] {
        let listed = omnivisor(password, &["-vv", "list", &uri]);
        assert_eq!(listed.status.code(), Some(code), "{listed:?}");
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(!said.contains(password) && !said.contains("Negotiate TlR"), "{said}");
    }
}

#[test]
fn a_host_is_asked_and_read_by_ssh() {
    let host = Host::start(&[]);
    image(host.folder.path());
    let sshd = Sshd::new();
    let uri = format!("hyperv+ssh://127.0.0.1:{}", sshd.port);
    let (code, _, talk) = sshd.run(&["list", &uri]);
    assert!(code == 125 && talk.contains("Cannot run powershell on 127.0.0.1"), "{talk}");

    let answer =
        format!("exec {} powershell {} \"$@\"", lab::lab().display(), host.folder.path().display());
    sshd.add_program("powershell", &answer);
    let (code, list, talk) = sshd.run(&["list", &uri]);
    assert!(code == 0 && list.contains("web  ") && list.contains("192.0.2.7"), "{list}{talk}");
    let (code, _, talk) =
        sshd.run(&["snapshot", "create", &format!("{uri}/old"), "it's $HOME; `id`"]);
    assert_eq!(code, 0, "{talk}");
    assert_eq!(host.model()["vms"][1]["snapshots"][0]["name"], "it's $HOME; `id`");
    let (code, _, talk) =
        sshd.run(&["snapshot", "delete", "--yes", &format!("{uri}/old"), "it's $HOME; `id`"]);
    assert_eq!(code, 0, "{talk}");

    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("old");
    let (code, _, talk) = sshd.run(&["pull", &format!("{uri}/old"), target.to_str().unwrap()]);
    assert_eq!(code, 0, "{talk}");
    let copy = std::fs::read(target.join("old.vhdx")).unwrap();
    assert!(copy == std::fs::read(host.folder.path().join("old.vhdx")).unwrap());

    // PowerShell that is there and fails.
    sshd.add_program(
        "powershell",
        "printf '#< CLIXML\\r\\n<Objs><S S=\"Error\">Out of luck.</S></Objs>' >&2; exit 1\n",
    );
    let (code, _, talk) = sshd.run(&["list", &uri]);
    assert!(code == 125 && talk.contains("failed: Out of luck"), "{talk}");
}
