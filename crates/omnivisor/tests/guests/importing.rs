//! VMs that become ours.

use crate::harness::{PROMPT, Workshop, path, sums, text};

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
    assert!(std::fs::metadata(target.join("web.qcow2")).unwrap().len() < 1 << 20);
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
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
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
