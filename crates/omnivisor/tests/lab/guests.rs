//! The guests' tests, on KVM: each package, and each kind of disk.

use crate::harness::{PROMPT, Workshop, path, sums};
use crate::packages::{KIND, PACKAGES, Package, Packed};
use crate::scenarios::harness::Scenarios;

/// Runs a VM until it asks for a login; its console must show `SAYS`.
const SCRIPT: &str = r#"
    machine --cmdline quiet ARGUMENTS </dev/null >console 2>talk & vm=$!
    until grep -qF -- 'PROMPT' console; do
        kill -0 $vm 2>/dev/null || fail "it ended: $(cat console talk)"
        [ $SECONDS -lt 150 ] || fail "it asks for no login: $(cat console talk)"
        sleep 1
    done
    says 'SAYS' console"#;

/// Where the packages of the next lab begin: all are more than the time of one on a busy computer.
const SECOND: usize = 5;
const THIRD: usize = 11;

#[test]
fn packages_of_vmware_virtualbox_and_hyper_v_boot_as_they_are() {
    boot(PACKAGES[..SECOND].iter().filter_map(unpacked));
}

#[test]
fn packages_of_parallels_xen_libvirt_and_proxmox_boot_as_they_are() {
    boot(PACKAGES[SECOND..THIRD].iter().filter_map(unpacked));
}

#[test]
fn boxes_of_vagrant_boot_as_they_are() {
    boot(PACKAGES[THIRD..].iter().filter_map(unpacked));
}

#[test]
fn small_guests_on_xfs_and_lvm_and_with_other_boot_loaders_boot_as_they_are() {
    let kinds =
        ["small-xfs", "small-lvm", "small-ext4-bls", "small-ext4-uki", "small-ext4-novirtio"];
    boot(kinds.into_iter().filter_map(|kind| disk(kind, "this is start 1;")));
}

#[test]
fn guests_with_systemd_boot_as_they_are() {
    let kinds = ["debian-ext4", "debian-btrfs", "debian-ext4-legacy", "dracut-ext4"];
    boot(kinds.into_iter().filter_map(|kind| disk(kind, "12 login: ")));
}

#[test]
fn a_guest_is_brought_home_and_verified_on_kvm() {
    const IMPORT: &str = r#"
        omnivisor import 'IMAGE' ours --engine "$ENGINE" </dev/null >talk 2>&1 || fail "$(cat talk)"
        for part in 'changed /etc/fstab' 'changed /boot/grub/menu.lst' 'it asks for a login after'; do
            says "$part" talk
        done
        grep 'asks for a login' talk"#;
    let Some(workshop) = Workshop::new("small-ext4-legacy") else { return };
    let image = workshop.convert("web.vmdk", "vmdk");
    let before = sums(&workshop.vm());
    Scenarios::default()
        .scenario("a VM is imported", IMPORT.replace("IMAGE", path(&image)))
        .run(&crate::Lab { writable: vec![workshop.vm()], ..crate::lab(1300) });
    assert_eq!(sums(&workshop.vm()), before, "the original was changed");
}

/// A VM that lies in a workshop.
struct Vm {
    name: &'static str,
    workshop: Workshop,
    packed: Packed,
}

fn unpacked(package: &Package) -> Option<Vm> {
    let workshop = Workshop::new(KIND)?;
    let packed = (package.pack)(&workshop)?;
    Some(Vm { name: package.name, workshop, packed })
}

/// A disk alone, of this kind (`tests/guests/disk`).
fn disk(kind: &'static str, says: &'static str) -> Option<Vm> {
    let workshop = Workshop::new(kind)?;
    let image = workshop.convert("disk.qcow2", "qcow2");
    let arguments = ["--net", "none", "--memory", "512M", "--disk", path(&image)];
    let packed = Packed { arguments: arguments.map(str::to_owned).to_vec(), says };
    Some(Vm { name: kind, workshop, packed })
}

/// Boots them, one after the other, and sees that no file of theirs was changed.
fn boot(vms: impl Iterator<Item = Vm>) {
    let mut scenarios = Scenarios::default();
    let mut originals = Vec::new();
    for Vm { name, workshop, packed } in vms {
        let arguments = packed.arguments.iter().map(|word| format!("'{word}' "));
        let script = SCRIPT.replace("ARGUMENTS", &arguments.collect::<String>());
        let script = script.replace("PROMPT", PROMPT).replace("SAYS", packed.says);
        scenarios = scenarios.scenario(name, script);
        originals.push((sums(&workshop.vm()), workshop));
    }
    // The lab could change them: its folder of each VM is the host's.
    let writable = originals.iter().map(|(_, workshop)| workshop.vm()).collect();
    scenarios.run(&crate::Lab { writable, ..crate::lab(1300) });
    for (before, workshop) in &originals {
        assert_eq!(sums(&workshop.vm()), *before, "an original was changed");
    }
}
