//! VMs that become ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::harness::{PROMPT, Workshop, path, sums, text};
use crate::windows::{State, key_of, system};

#[test]
fn a_guest_with_devices_of_its_controller_is_made_at_home_on_virtio() {
    let Some(workshop) = Workshop::new("small-ext4-legacy") else { return };
    let image = workshop.convert("web.vmdk", "vmdk");
    let before = sums(&workshop.vm());
    let target = workshop.path("ours");
    let import = ["import", path(&image), path(&target), "--engine", "soft"];
    let plan = text(&workshop.verb(&[&import[..], &["--dry-run"]].concat()).stdout);
    assert!(plan.contains("/dev/sda2 becomes UUID="), "{plan}");
    assert!(!target.exists(), "a plan was more than that");
    let talk = text(&workshop.verb(&import).stderr);
    for part in ["changed /etc/fstab", "changed /boot/grub/menu.lst", "it asks for a login after"] {
        assert!(talk.contains(part), "{part}: {talk}");
    }
    assert_eq!(sums(&workshop.vm()), before, "the original was changed");
    // What is done is not done again.
    let talk = text(&workshop.verb(&import).stderr);
    assert!(talk.contains("Going on: disk web.qcow2, changes, verified is done."), "{talk}");
    assert!(!talk.contains("written") && !talk.contains("is started:"), "{talk}");
    // Now its menu names the root by its UUID.
    let console = workshop.boot(&["-v", "--net", "none", path(&target)], PROMPT);
    assert!(console.contains("root=UUID=") && !console.contains("root=/dev/"), "{console}");
}

#[test]
fn a_linked_vm_boots_over_its_originals() {
    let Some(workshop) = Workshop::new("small-ext4") else { return };
    workshop.convert("web.vmdk", "vmdk");
    let vmx = workshop.write(
        "web.vmx",
        "config.version = \"8\"\ndisplayName = \"web\"\nmemsize = \"512\"\nsata0.present = \"TRUE\"\n\
         sata0:0.present = \"TRUE\"\nsata0:0.fileName = \"web.vmdk\"\n",
    );
    let before = sums(&workshop.vm());
    let target = workshop.path("ours");
    workshop.verb(&[
        "import",
        path(&vmx),
        path(&target),
        "--engine",
        "soft",
        "--link",
        "--no-verify",
    ]);
    assert!(fs::metadata(target.join("web.qcow2")).unwrap().len() < 1 << 20);
    for start in ["this is start 1;", "this is start 2;"] {
        let console = workshop.boot(&["--net", "none", path(&target)], PROMPT);
        assert!(console.contains(start), "{console}");
    }
    assert_eq!(sums(&workshop.vm()), before, "an original was changed");
}

#[test]
fn a_guest_that_is_not_up_in_time_is_no_success() {
    let Some(workshop) = Workshop::new("small-ext4") else { return };
    let image = workshop.convert("web.qcow2", "qcow2");
    let output = workshop
        .omnivisor()
        .args([
            "import",
            path(&image),
            path(&workshop.path("ours")),
            "--engine",
            "soft",
            "--timeout",
            "1",
        ])
        .output()
        .unwrap();
    let talk = text(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{talk}");
    assert!(talk.contains("The guest was not up in time"), "{talk}");
}

#[test]
fn a_disk_without_a_system_is_brought_home_and_not_started() {
    let Some(workshop) = Workshop::new("small-ext4") else { return };
    let disk = workshop.path("empty.raw");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let target = workshop.path("ours");
    let talk = text(&workshop.verb(&["import", path(&disk), path(&target)]).stderr);
    assert!(talk.contains("It cannot be started here yet: it needs firmware"), "{talk}");
    assert!(target.join("empty.qcow2").is_file() && target.join("vm.toml").is_file());
    // A folder that holds something else is left alone.
    let refused = workshop
        .omnivisor()
        .args(["import", path(&disk), path(&workshop.path(""))])
        .output()
        .unwrap();
    assert!(text(&refused.stderr).contains("is not empty"));
}

/// Sends a signal to a process that was started here.
fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Starts an import, and kills it once it has noted that a part of the disk is done; whether it was not too late.
fn is_killed_within_a_disk(workshop: &Workshop, import: &[&str], image: &Path) -> bool {
    let at = |end: &str| PathBuf::from(format!("{}.partial{end}", path(image)));
    let mut child = workshop.omnivisor().args(import).stderr(Stdio::null()).spawn().unwrap();
    // It notes what is done every two seconds, which it spends asleep.
    let mut slept = false;
    while child.try_wait().unwrap().is_none() {
        if at(".journal").exists() {
            signal("KILL", child.id());
            child.wait().unwrap();
            return !image.exists();
        }
        if !slept && at("").exists() {
            signal("STOP", child.id());
            thread::sleep(Duration::from_millis(2100));
            signal("CONT", child.id());
            slept = true;
        }
    }
    false
}

#[test]
fn an_import_that_was_killed_goes_on_within_a_disk() {
    let workshop = Workshop::empty();
    let (disk, target) = (workshop.path("disk.raw"), workshop.path("ours"));
    fs::write(&disk, vec![7; 256 << 20]).unwrap();
    // A format whose blocks cannot be shared with the source's.
    let import = ["import", path(&disk), path(&target), "--to", "vdi"];
    let image = target.join("disk.vdi");
    let killed = (0..20).any(|_| {
        let _ = fs::remove_dir_all(&target);
        is_killed_within_a_disk(&workshop, &import, &image)
    });
    assert!(killed, "it was always too fast");
    let talk = text(&workshop.verb(&import).stderr);
    assert!(talk.contains("disk.vdi: went on behind the "), "{talk}");
    let compared = workshop.verb(&["disk", "compare", path(&disk), path(&image)]);
    assert!(compared.status.success(), "{compared:?}");
}

/// Where the only partition of a disk begins.
const PARTITION: usize = 1 << 20;

/// A VMDK with a Windows in its only partition.
fn windows_disk(workshop: &Workshop, state: State) -> Option<PathBuf> {
    let (volume, raw) = (workshop.path("volume"), workshop.path("win.raw"));
    if !system(&workshop.path(""), &volume, state) {
        return None;
    }
    let content = fs::read(&volume).unwrap();
    let mut disk = vec![0; PARTITION];
    // One partition of kind 7 (NTFS), by its first sector and its length.
    disk[446 + 4] = 7;
    disk[446 + 8..446 + 12].copy_from_slice(&((PARTITION / 512) as u32).to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&((content.len() / 512) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend(content);
    fs::write(&raw, disk).unwrap();
    let image = workshop.vm().join("win.vmdk");
    workshop.verb(&["convert", path(&raw), path(&image), "--to", "vmdk"]);
    Some(image)
}

/// A key of the registry on an image.
fn key_in(workshop: &Workshop, image: &Path, key: &str) -> String {
    let (raw, volume) = (workshop.path("made.raw"), workshop.path("made"));
    let _ = fs::remove_file(&raw);
    workshop.verb(&["convert", path(image), path(&raw), "--to", "raw", "--allow-outside"]);
    fs::write(&volume, &fs::read(&raw).unwrap()[PARTITION..]).unwrap();
    key_of(&volume, &workshop.path(""), key)
}

#[test]
fn a_windows_gets_its_drivers_of_ahci_and_nvme_started_at_boot() {
    let workshop = Workshop::empty();
    let Some(image) = windows_disk(&workshop, State::default()) else { return };
    let before = sums(&workshop.vm());
    let key = r"ControlSet001\Services\storahci";
    for more in [&["--to", "vhdx"][..], &["--link"]] {
        let target = workshop.path(if more.len() == 1 { "linked" } else { "ours" });
        let import = [&["import", path(&image), path(&target)], more].concat();
        let plan = text(&workshop.verb(&[&import[..], &["--dry-run"]].concat()).stdout);
        assert!(plan.contains(&format!(r"SYSTEM: {key}\Start becomes 0, it was 3")), "{plan}");
        assert!(plan.contains("booting Windows needs firmware"), "{plan}");
        assert!(!target.exists(), "a plan was more than that");
        let talk = text(&workshop.verb(&import).stderr);
        assert!(talk.contains("The registry is changed: 4 values."), "{talk}");
        let made = target.join(if more.len() == 1 { "win.qcow2" } else { "win.vhdx" });
        let text_of = key_in(&workshop, &made, key);
        assert!(text_of.matches("dword:00000000").count() == 2, "{text_of}");
        // What is done is not done again.
        let talk = text(&workshop.verb(&import).stderr);
        assert!(talk.contains("registry is done") && !talk.contains("is changed:"), "{talk}");
    }
    assert_eq!(sums(&workshop.vm()), before, "the original was changed");
}

#[test]
fn a_windows_that_was_not_shut_down_is_changed_only_if_that_is_said() {
    let workshop = Workshop::empty();
    let hibernated = State { hibernated: true, ..State::default() };
    let Some(image) = windows_disk(&workshop, hibernated) else { return };
    let target = workshop.path("ours");
    let import = ["import", path(&image), path(&target)];
    let refused = workshop.omnivisor().args(import).output().unwrap();
    let talk = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{talk}");
    assert!(talk.contains("Windows is hibernated") && talk.contains("--unchanged"), "{talk}");
    assert!(!target.exists());
    let talk = text(&workshop.verb(&[&import[..], &["--unchanged"]].concat()).stderr);
    assert!(!talk.contains("is changed:"), "{talk}");
    fs::remove_dir_all(&target).unwrap();
    let talk = text(&workshop.verb(&[&import[..], &["--force"]].concat()).stderr);
    assert!(talk.contains("The registry is changed: 4 values."), "{talk}");
}
