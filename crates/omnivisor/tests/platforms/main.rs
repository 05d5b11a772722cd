//! VMs where they live: libvirt's, with QEMU, in a user's own session; and on another computer, by ssh.

mod disks;
mod faults;
mod hyperv;
mod secrets;
mod session;
mod sshd;
#[path = "../scenarios/tiny.rs"]
mod tiny;
mod xenserver;

use serde_json::Value;

use session::Session;
use sshd::Sshd;

const OMNIVISOR: &str = env!("CARGO_BIN_EXE_omnivisor");

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
fn what_platforms_lack_is_told_once_for_each_reason() {
    let session = Session::new();
    let all = session.expect(&["platforms"]);
    assert_eq!(all.matches("whole machines are not saved yet").count(), 1, "{all}");
    assert!(all.lines().all(|line| line.chars().count() <= 120), "{all}");
    let narrow = "stty cols 80; ./omnivisor platforms";
    let narrow = session.command("script").args(["-qec", narrow, "/dev/null"]).output().unwrap();
    let narrow = String::from_utf8(narrow.stdout).unwrap();
    assert!(narrow.lines().count() > all.lines().count(), "{narrow}");
    assert!(narrow.lines().all(|line| line.trim_end().chars().count() <= 80), "{narrow}");
    let one = session.expect(&["platforms", "test:///default"]);
    let lines: Vec<_> = one.lines().collect();
    assert!(
        lines[0].starts_with("libvirt ") && lines[1].starts_with("yes     list, show"),
        "{one}"
    );
    assert!(lines[1].contains(", snapshot"), "{one}");
    // Programs have each verb by its name.
    let json = session.json(&["platforms", "test:///default"]);
    let abilities = json["abilities"].as_array().unwrap();
    assert_eq!(abilities.len(), 14);
    assert_eq!(
        (&abilities[7]["verb"], &abilities[7]["can"]),
        (&"snapshot list".into(), &"yes".into())
    );
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
