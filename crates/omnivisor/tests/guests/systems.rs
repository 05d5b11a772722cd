//! Guests that differ in what is on their disks.

use crate::harness::{PROMPT, Workshop, text};

fn boots(kind: &str) -> Option<String> {
    let workshop = Workshop::new(kind)?;
    let image = workshop.convert("disk.qcow2", "qcow2");
    let arguments = ["-v", "--net", "none", "--memory", "1G", "--disk", image.to_str().unwrap()];
    Some(crate::boots(&workshop, &arguments))
}

#[test]
fn debian_with_systemd_on_ext4() {
    let Some(console) = boots("debian-ext4") else { return };
    assert!(console.contains("debian12 login: "), "{console}");
}

#[test]
fn debian_with_systemd_on_btrfs_with_subvolumes_and_zstd() {
    let Some(console) = boots("debian-btrfs") else { return };
    assert!(console.contains("debian12 login: "), "{console}");
}

#[test]
fn a_root_on_xfs() {
    boots("small-xfs");
}

#[test]
fn a_root_on_lvm() {
    boots("small-lvm");
}

#[test]
fn entries_of_the_boot_loader_specification() {
    boots("small-ext4-bls");
}

#[test]
fn a_unified_kernel_image() {
    boots("small-ext4-uki");
}

#[test]
fn grub_legacy_on_mbr_with_devices_named_by_their_controller() {
    // systemd waits for /srv, which its fstab has on /dev/sda1, before it lets anybody in.
    let Some(console) = boots("debian-ext4-legacy") else { return };
    assert!(
        console.contains("root=/dev/sda2 of the command line becomes root=/dev/vda2"),
        "{console}"
    );
    assert!(console.contains("/dev/sda1, which leads to /dev/vda1"), "{console}");
}

#[test]
fn an_initial_ram_disk_without_virtio_gets_the_guests_own_modules() {
    let Some(console) = boots("small-ext4-novirtio") else { return };
    assert!(console.contains("lacks drivers, which are added in memory: "), "{console}");
    assert!(console.contains("virtio_blk"), "{console}");
}

#[test]
fn an_initial_ram_disk_of_dracut_without_virtio_gets_the_guests_own_modules() {
    let Some(console) = boots("dracut-ext4") else { return };
    assert!(console.contains("dracut12 login: "), "{console}");
    assert!(console.contains("lacks drivers, which are added in memory: "), "{console}");
}

#[test]
fn another_entry_of_the_menu_is_started_by_its_title_or_place() {
    let Some(workshop) = Workshop::new("small-ext4") else { return };
    let run = |entry: &str| {
        let disk = workshop.raw.to_str().unwrap();
        let arguments = ["run", "--dry-run", "--net", "none", "--disk", disk, "--entry", entry];
        workshop.omnivisor().args(arguments).output().unwrap()
    };
    let titles: Vec<String> = ["0", "2"]
        .map(|place| {
            let plan = text(&run(place).stdout);
            let title = plan.lines().find_map(|line| line.strip_prefix("# from its disks: "));
            assert_eq!(plan.contains(" single "), place == "2", "{plan}");
            title.unwrap().to_owned()
        })
        .to_vec();
    assert!(titles[1].ends_with("(recovery mode)"), "{titles:?}");
    assert!(text(&run(&titles[1]).stdout).contains(" single "));
    let refused = run("other");
    assert_eq!(refused.status.code(), Some(126));
    let talk = text(&refused.stderr);
    assert!(talk.contains("no boot entry \"other\"") && talk.contains("inspect"), "{talk}");
}

#[test]
fn what_a_guest_writes_is_there_when_it_starts_again() {
    let Some(workshop) = Workshop::new("small-ext4") else { return };
    let image = workshop.convert("disk.qcow2", "qcow2");
    let arguments = ["--net", "none", "--disk", image.to_str().unwrap()];
    assert!(workshop.boot(&arguments, PROMPT).contains("this is start 1;"));
    assert!(crate::boots(&workshop, &arguments).contains("this is start 2;"));
}
