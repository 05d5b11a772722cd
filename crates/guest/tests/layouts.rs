//! Disks that other programs have divided, put together and encrypted: sfdisk, which a test does nothing without, and mdadm,
//! LVM and cryptsetup, of which there are samples.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::partition::TableKind;
use guest::{BootPlan, Guest, PlanOptions, Report, VolumeReport};
use liblzma::read::XzDecoder;
use serde_json::Value;

const SIZE: u64 = 64 << 20;
const SECTOR: u64 = 512;

fn open(path: &Path) -> Arc<dyn Disk> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    Arc::new(RawDisk::open(path, &options).unwrap())
}

fn report(path: &Path) -> Report {
    Guest::open(&[open(path)]).report()
}

/// A disk that sfdisk has divided; `None` without that.
fn divided(folder: &Path, script: &str) -> Option<PathBuf> {
    let path = folder.join("disk");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let sfdisk = Command::new("/sbin/sfdisk")
        .args(["--quiet", path.to_str()?])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut sfdisk) = sfdisk else {
        eprintln!("skipped: sfdisk does not run here");
        return None;
    };
    sfdisk.stdin.take()?.write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    Some(path)
}

/// Number, length, name and identifier of each partition, as sfdisk reads them.
fn as_sfdisk_reads(path: &Path) -> Vec<(u64, u64, Option<String>, Option<String>)> {
    let output = Command::new("/sbin/sfdisk").arg("--json").arg(path).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let partitions = json["partitiontable"]["partitions"].as_array().unwrap().iter();
    partitions
        .map(|one| {
            let text = |key: &str| one[key].as_str().map(str::to_ascii_lowercase);
            let number = one["node"].as_str().unwrap().rsplit("disk").next().unwrap();
            let length = one["size"].as_u64().unwrap() * SECTOR;
            (number.parse().unwrap(), length, text("name"), text("uuid"))
        })
        .collect()
}

fn as_we_read(volumes: &[VolumeReport]) -> Vec<(u64, u64, Option<String>, Option<String>)> {
    let of = |volume: &VolumeReport| {
        let number = volume.name.strip_prefix("vda").unwrap().parse().unwrap();
        let name = volume.part_label.as_deref().map(str::to_ascii_lowercase);
        (number, volume.length, name, volume.part_uuid.clone())
    };
    volumes.iter().map(of).collect()
}

const GPT: &str = "label: gpt\n1: start=2048, size=16MiB, type=U, name=\"EFI system\"\n\
                   3: size=8MiB, type=L, name=\"bo\u{f6}t\"\n7: type=L\n";

#[test]
fn a_gpt_is_read_as_sfdisk_reads_it_and_by_its_backup_where_it_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = divided(folder.path(), GPT) else { return };
    let expected = as_sfdisk_reads(&path);
    let whole = report(&path);
    assert_eq!((whole.disks[0].table, whole.disks[0].notes.len()), (Some(TableKind::Gpt), 0));
    assert_eq!(as_we_read(&whole.volumes), expected);
    assert_eq!(
        whole.volumes.iter().map(|one| one.is_esp).collect::<Vec<_>>(),
        [true, false, false]
    );

    // The header, an entry, and both with the entry of the backup.
    let file = File::options().write(true).open(&path).unwrap();
    let entries_of_backup = SIZE - 33 * SECTOR;
    for place in [SECTOR + 16, 2 * SECTOR + 40] {
        let mut before = [0; 8];
        File::open(&path).unwrap().read_exact_at(&mut before, place).unwrap();
        file.write_all_at(&[0xee; 8], place).unwrap();
        let found = report(&path);
        assert_eq!(as_we_read(&found.volumes), expected, "{place}");
        assert!(found.disks[0].notes[0].contains("its backup was read"), "{found:?}");
        file.write_all_at(&before, place).unwrap();
    }
    file.write_all_at(&[0xee; 8], SECTOR + 16).unwrap();
    file.write_all_at(&[0xee; 8], entries_of_backup + 40).unwrap();
    let lost = report(&path);
    assert_eq!(lost.disks[0].notes, ["the partition table is damaged, and so is its backup"]);
    assert_eq!(lost.volumes.len(), 1);
}

#[test]
fn an_mbr_with_logical_partitions_is_read_as_sfdisk_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let script = "label: dos\nlabel-id: 0x1234abcd\n1: size=4MiB, type=83, bootable\n2: size=40MiB, type=5\n\
                  5: size=6MiB, type=83\n6: size=8MiB, type=82\n7: type=8e\n";
    let Some(path) = divided(folder.path(), script) else { return };
    let found = report(&path);
    assert_eq!((found.disks[0].table, found.disks[0].notes.len()), (Some(TableKind::Mbr), 0));
    let numbered = |parts: Vec<(u64, u64, Option<String>, Option<String>)>| -> Vec<_> {
        parts.into_iter().map(|(number, length, ..)| (number, length)).collect()
    };
    let mut expected = numbered(as_sfdisk_reads(&path));
    // The extended one holds the others, and nothing of its own.
    expected.retain(|(number, _)| *number != 2);
    assert_eq!(numbered(as_we_read(&found.volumes)), expected);
    assert_eq!(found.volumes[1].part_uuid.as_deref(), Some("1234abcd-05"));
}

/// The samples of these names, as disks.
fn samples(folder: &Path, names: &[&str]) -> Vec<Arc<dyn Disk>> {
    let disk = |name: &&str| {
        let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/{name}.xz"));
        let mut bytes = Vec::new();
        XzDecoder::new(File::open(packed).unwrap()).read_to_end(&mut bytes).unwrap();
        // What follows was never written.
        bytes.resize(bytes.len().next_multiple_of(1 << 20), 0);
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        open(&path)
    };
    names.iter().map(disk).collect()
}

/// What was written into each file system of the samples.
fn lines() -> Vec<u8> {
    (1..=40_000).flat_map(|number| format!("line {number} of the file\n").into_bytes()).collect()
}

/// The file of the samples in the file system that has this name.
fn file_on(guest: &Guest, volume: &str) -> Option<Vec<u8>> {
    let (_, fs) = guest.file_systems().find(|(name, _)| *name == volume)?;
    fs.read("/lines", 4 << 20).ok()
}

#[test]
fn mirrors_and_stripes_of_mdadm_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    for (array, level) in [("mirror10", 1), ("mirror12", 1), ("stripe", 0)] {
        let disks = samples(folder.path(), &[&format!("{array}-a"), &format!("{array}-b")]);
        let name = format!("md/{array}");
        // In any order of the disks; of a mirror, one is enough.
        for disks in [disks.clone(), disks.iter().rev().cloned().collect(), disks[1..].to_vec()] {
            let guest = Guest::open(&disks);
            let found = guest.report();
            let volume = found.volumes.iter().find(|volume| volume.name == name).unwrap();
            if level == 0 && disks.len() == 1 {
                assert_eq!(volume.notes, ["1 of its 2 members are there"]);
                continue;
            }
            assert_eq!(volume.label.as_deref(), Some(array));
            assert!(file_on(&guest, &name) == Some(lines()), "{array}");
        }
    }
}

#[test]
fn a_parity_makes_up_for_a_member_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let disks = samples(folder.path(), &["parity090-a", "parity090-b", "parity090-c"]);
    let reversed = disks.iter().rev().cloned().collect();
    for disks in [disks.clone(), reversed, disks[1..].to_vec(), disks[..2].to_vec()] {
        let guest = Guest::open(&disks);
        assert!(file_on(&guest, "md5") == Some(lines()));
        // A part of the array is not taken for what it begins with.
        let volumes = guest.report().volumes;
        assert_eq!(volumes[0].content.as_deref(), Some("linux_raid_member"));
    }
    let volumes = Guest::open(&disks[..1]).report().volumes;
    assert_eq!(volumes[1].notes, ["1 of its 3 members are there"]);
}

#[test]
fn two_sums_make_up_for_any_two_members_that_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    // Powers in the second sum begin behind it, or go by the members' numbers.
    for array in ["parity6", "restart6"] {
        let names = ["a", "b", "c", "d"].map(|member| format!("{array}-{member}"));
        let disks = samples(folder.path(), &names.each_ref().map(String::as_str));
        let name = format!("md/{array}");
        for pair in (0..16).map(|pair| [pair / 4, pair % 4]) {
            let there = |(index, _): &(usize, &Arc<dyn Disk>)| !pair.contains(index);
            let disks: Vec<_> = disks.iter().enumerate().filter(there).collect();
            let disks: Vec<_> = disks.into_iter().map(|(_, disk)| Arc::clone(disk)).collect();
            let found = file_on(&Guest::open(&disks), &name);
            assert!(found == Some(lines()), "{array} without {pair:?}");
        }
        let volumes = Guest::open(&disks[..1]).report().volumes;
        assert_eq!(volumes[1].notes, ["1 of its 4 members are there"]);
    }
}

#[test]
fn a_mirror_is_not_read_from_the_half_that_is_being_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let disks = samples(folder.path(), &["mirror12-a", "mirror12-b"]);
    // The feature MD_FEATURE_RECOVERY_OFFSET, and data that is not there yet.
    let file = File::options().write(true).open(folder.path().join("mirror12-a")).unwrap();
    file.write_all_at(&[2], 4096 + 8).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 1 << 20).unwrap();
    assert!(file_on(&Guest::open(&disks), "md/mirror12") == Some(lines()));
    let volumes = Guest::open(&disks[..1]).report().volumes;
    assert_eq!(volumes[1].notes, ["it has no active member"]);
}

#[test]
fn a_disk_with_the_marks_of_a_firmwares_array_is_read_and_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = divided(folder.path(), GPT) else { return };
    let before = report(&path);
    let file = File::options().write(true).open(&path).unwrap();
    let last = |sectors| SIZE - sectors * SECTOR;
    for (place, magic, format) in [
        (last(1), &[0xde, 0x11, 0xde, 0x11][..], "DDF"),
        (last(2), b"Intel Raid ISM Cfg Sig. ", "Intel Matrix Storage"),
    ] {
        file.write_all_at(magic, place).unwrap();
        let found = report(&path);
        assert_eq!(found.volumes, before.volumes);
        assert!(found.disks[0].notes[0].contains(format), "{:?}", found.disks[0].notes);
    }
}

#[test]
fn raid_and_caches_of_lvm_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let disks = samples(folder.path(), &["raids-a", "raids-b", "raids-c"]);
    let guest = Guest::open(&disks);
    for volume in ["mapper/raids-parity", "mapper/raids-through"] {
        assert!(file_on(&guest, volume) == Some(lines()), "{volume}");
    }
    let volumes = guest.report().volumes;
    let back = volumes.iter().find(|volume| volume.name == "mapper/raids-back").unwrap();
    assert_eq!(back.notes, ["what was written to its cache only is not read"]);
    for missing in 0..3 {
        let mut disks = disks.clone();
        disks.remove(missing);
        assert!(file_on(&Guest::open(&disks), "mapper/raids-parity") == Some(lines()));
    }
}

#[test]
fn a_mirror_of_lvm_is_not_read_from_images_that_are_not_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let disks = samples(folder.path(), &["twins-a", "twins-b"]);
    let notes = |guest: &Guest| -> Vec<String> {
        let volumes = guest.report().volumes;
        volumes.into_iter().find(|volume| volume.name == "mapper/twins-mirror").unwrap().notes
    };
    let stale =
        |number| format!("its part mirror_rimage_{number} is not up to date and is not read");
    // The first disk was away while the file was written.
    let guest = Guest::open(&disks);
    assert!(file_on(&guest, "mapper/twins-mirror") == Some(lines()));
    assert_eq!(notes(&guest), [stale(0)]);

    // The superblock of the second image: `disk_recovery_offset`, then `array_resync_offset`.
    const SUPERBLOCK: u64 = 1 << 20;
    let file = File::options().write(true).open(folder.path().join("twins-b")).unwrap();
    file.write_all_at(&[0; 8], SUPERBLOCK + 32).unwrap();
    let guest = Guest::open(&disks);
    assert_eq!(file_on(&guest, "mapper/twins-mirror"), None);
    let none = "no part that is there is up to date".to_owned();
    assert_eq!(notes(&guest), [stale(0), stale(1), none]);
    file.write_all_at(&[0xff; 8], SUPERBLOCK + 32).unwrap();
    file.write_all_at(&[0; 8], SUPERBLOCK + 40).unwrap();
    assert_eq!(notes(&Guest::open(&disks)), ["it was not synchronised yet".to_owned(), stale(0)]);
}

#[test]
fn stripes_pieces_and_snapshots_of_lvm_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let disks = samples(folder.path(), &["group-a", "group-b"]);
    let guest = Guest::open(&disks);
    for volume in ["mapper/guest-striped", "mapper/guest-before"] {
        assert!(file_on(&guest, volume) == Some(lines()), "{volume}");
    }
    // Since the snapshot was made, the file was removed.
    assert!(guest.file_systems().any(|(name, _)| name == "mapper/guest-linear"));
    assert_eq!(file_on(&guest, "mapper/guest-linear"), None);
}

#[test]
fn what_is_encrypted_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    for (name, uuid, label) in [
        ("luks1", "11111111-2222-3333-4444-555555555555", None),
        ("luks2", "11111111-2222-3333-4444-666666666666", Some("sealed")),
    ] {
        let guest = Guest::open(&samples(folder.path(), &[name]));
        let volume = &guest.report().volumes[0];
        assert_eq!(volume.content.as_deref(), Some("crypto_LUKS"));
        assert_eq!((volume.uuid.as_deref(), volume.label.as_deref()), (Some(uuid), label));
        assert_eq!(volume.notes, ["it is encrypted"]);
        let plan = guest.plan(&PlanOptions::default());
        let Ok(BootPlan::Firmware { reason, .. }) = plan else { panic!("{plan:?}") };
        assert!(reason.ends_with("vda is encrypted"), "{reason}");
    }
}

/// As xen-tools lays a guest out: `xvda2` is the root and `xvda1` the swap space, and there is no `xvda`.
#[test]
fn partitions_that_are_disks_are_found_by_what_the_fstab_says_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("tree/etc")).unwrap();
    std::fs::write(path("tree/etc/os-release"), "ID=debian\n").unwrap();
    let fstab = "/dev/xvda2 / ext4 noatime 0 1\n/dev/xvda1 none swap sw 0 0\n/dev/xvda3 /srv ext4 defaults 0 2\n";
    std::fs::write(path("tree/etc/fstab"), fstab).unwrap();
    for name in ["root", "swap", "more"] {
        File::create(path(name)).unwrap().set_len(8 << 20).unwrap();
    }
    let tree = path("tree");
    let made = [
        ("/sbin/mkfs.ext4", vec!["-q", "-d", tree.to_str().unwrap()], "root"),
        ("/sbin/mkswap", vec!["-q"], "swap"),
        ("/sbin/mkswap", vec!["-q"], "more"),
    ];
    for (program, arguments, name) in made {
        let status = Command::new(program).args(arguments).arg(path(name)).status();
        let Ok(status) = status else { return eprintln!("skipped: {program} does not run here") };
        assert!(status.success(), "{program}");
    }
    let named = |disks: &[&str]| {
        let disks: Vec<_> = disks.iter().map(|name| open(&path(name))).collect();
        let report = Guest::open(&disks).report();
        let named = report.named_by_controller();
        named.map(|(name, volume)| format!("{name} is {}", volume.name)).collect::<Vec<_>>()
    };
    assert_eq!(named(&["root", "swap"]), ["/dev/xvda2 is vda", "/dev/xvda1 is vdb"]);
    assert_eq!(named(&["swap", "root"]), ["/dev/xvda2 is vdb", "/dev/xvda1 is vda"]);
    // Of two swap spaces nobody knows which.
    assert_eq!(named(&["root", "swap", "more"]), ["/dev/xvda2 is vda"]);
}
