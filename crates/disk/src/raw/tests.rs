#[path = "../../tests/formats/loop_device.rs"]
mod loop_device;

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use self::loop_device::LoopDevice;
use super::*;
use crate::{Extents, Holder};

const LENGTH: u64 = 4 << 20;

fn scratch(length: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile) -> RawDisk {
    RawDisk::open(file.path(), &OpenOptions::default()).unwrap()
}

fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_and_lies_in_the_file() {
    let file = scratch(LENGTH);
    let disk = open(&file);
    disk.write_at(b"hello", 1000).unwrap();
    disk.flush().unwrap();
    let mut bytes = [0; 5];
    disk.read_at(&mut bytes, 1000).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_eq!(&std::fs::read(file.path()).unwrap()[1000..1005], b"hello");
}

#[test]
fn ranges_past_the_end_are_refused_and_change_nothing() {
    let file = scratch(1024);
    let disk = open(&file);
    for offset in [1020, 1024, u64::MAX - 2, u64::MAX] {
        assert!(matches!(disk.write_at(b"hello", offset), Err(Error::OutOfRange { .. })));
        assert!(matches!(disk.read_at(&mut [0; 5], offset), Err(Error::OutOfRange { .. })));
    }
    assert!(matches!(disk.discard(512..2048), Err(Error::OutOfRange { .. })));
    assert!(matches!(disk.write_zeroes(0..u64::MAX, true), Err(Error::OutOfRange { .. })));
    let backwards = Range { start: 1024, end: 512 };
    assert!(matches!(disk.write_zeroes(backwards, true), Err(Error::OutOfRange { .. })));
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 1024);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = scratch(1024);
    let disk = RawDisk::open(file.path(), &OpenOptions { read_only: true, direct: false }).unwrap();
    assert!(disk.is_read_only());
    assert!(matches!(disk.write_at(b"x", 0), Err(Error::ReadOnly)));
    assert!(matches!(disk.discard(0..512), Err(Error::ReadOnly)));
    assert!(matches!(disk.write_zeroes(0..512, false), Err(Error::ReadOnly)));
    disk.flush().unwrap();
}

#[test]
fn a_part_of_a_sector_at_the_end_is_left_out() {
    let file = scratch(1000);
    assert_eq!(open(&file).len(), 512);
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 1000);
}

#[test]
fn a_writer_excludes_everybody_and_is_named() {
    let file = scratch(1024);
    let read_only = OpenOptions { read_only: true, direct: false };
    let writer = open(&file);
    for options in [OpenOptions::default(), read_only] {
        match RawDisk::open(file.path(), &options) {
            Err(Error::InUse { path, holder: Holder::Process { pid, .. } }) => {
                assert_eq!(path, file.path());
                assert_eq!(pid, std::process::id());
            }
            other => panic!("{other:?}"),
        }
    }
    drop(writer);
    let first = RawDisk::open(file.path(), &read_only).unwrap();
    let second = RawDisk::open(file.path(), &read_only).unwrap();
    assert!(matches!(
        RawDisk::open(file.path(), &OpenOptions::default()),
        Err(Error::InUse { .. })
    ));
    drop((first, second));
    open(&file);
}

#[test]
fn a_reader_respects_the_locks_by_which_qemu_says_that_it_writes() {
    let file = scratch(1024);
    let other = File::options().read(true).write(true).open(file.path()).unwrap();
    let write_permission = sys::LockRange { start: 101, length: 1 };
    assert!(sys::try_lock(other.as_fd(), sys::Lock::Shared, write_permission).unwrap());
    for read_only in [true, false] {
        let options = OpenOptions { read_only, direct: false };
        assert!(matches!(RawDisk::open(file.path(), &options), Err(Error::InUse { .. })));
    }
}

#[test]
fn a_program_that_locks_nothing_is_found_by_what_it_has_open() {
    for (mode, is_writer) in [("<>", true), ("<", false)] {
        let file = scratch(1024);
        let script = format!("exec 3{mode}'{}'; echo; read _", file.path().display());
        let mut other = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        other.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        for read_only in [true, false] {
            let opened = RawDisk::open(file.path(), &OpenOptions { read_only, direct: false });
            match opened {
                Err(Error::InUse { holder: Holder::Process { pid, .. }, .. }) => {
                    assert!(is_writer && pid == other.id());
                }
                opened => assert!(opened.is_ok() && !is_writer, "{opened:?}"),
            }
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let options = OpenOptions::default();
    let error = RawDisk::open(folder.path(), &options).unwrap_err();
    assert!(error.to_string().contains(folder.path().to_str().unwrap()));
    assert!(error.to_string().contains("a folder"));
    assert!(matches!(RawDisk::open("/dev/null", &options), Err(Error::NotADisk { .. })));
    let missing = folder.path().join("missing");
    let error = RawDisk::open(&missing, &options).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn map_tells_data_from_holes_without_gaps() {
    let file = scratch(LENGTH);
    let disk = open(&file);
    disk.write_at(&[1; 65536], 1 << 20).unwrap();
    let mut position = 0;
    let mut data = 0;
    for extent in Extents::new(&disk, 0..LENGTH) {
        let extent = extent.unwrap();
        assert_eq!(extent.range.start, position);
        position = extent.range.end;
        if let Content::Data(Some(location)) = extent.content {
            assert_eq!(location.offset, extent.range.start);
            data += extent.range.end - extent.range.start;
        }
    }
    assert_eq!(position, LENGTH);
    assert!((65536..LENGTH).contains(&data), "{data}");
}

#[test]
fn discarding_gives_back_space() {
    let file = scratch(LENGTH);
    let disk = open(&file);
    disk.write_at(&vec![7; LENGTH as usize], 0).unwrap();
    disk.flush().unwrap();
    let before = std::fs::metadata(file.path()).unwrap().blocks();
    disk.discard(0..LENGTH / 2).unwrap();
    let after = std::fs::metadata(file.path()).unwrap().blocks();
    if disk.punches_holes() {
        assert!(after < before, "{after} {before}");
    }
    assert!(content(&disk)[LENGTH as usize / 2..].iter().all(|&byte| byte == 7));
}

#[test]
fn zeroes_are_zeroes_whether_unmapped_or_written() {
    for unmap in [false, true] {
        let file = scratch(LENGTH);
        let disk = open(&file);
        disk.write_at(&vec![7; LENGTH as usize], 0).unwrap();
        disk.write_zeroes(512..LENGTH - 1024, unmap).unwrap();
        let mut expected = vec![0; LENGTH as usize];
        expected[..512].fill(7);
        expected[LENGTH as usize - 1024..].fill(7);
        assert!(content(&disk) == expected);
        disk.fill_with_zeroes(0..LENGTH).unwrap();
        assert!(content(&disk).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn direct_disks_read_and_write_what_is_not_aligned() {
    let file = scratch(LENGTH);
    let options = OpenOptions { read_only: false, direct: true };
    let Ok(disk) = RawDisk::open(file.path(), &options) else {
        eprintln!("skipped: the temporary folder's file system has no O_DIRECT");
        return;
    };
    let mut model = vec![0; LENGTH as usize];
    let pattern: Vec<u8> =
        (0..20_000_u32).map(|number| number as u8 ^ (number >> 8) as u8).collect();
    for (offset, length) in [(0, 4096), (1, 513), (4096, 8192), (5000, 20_000), (512, 512)] {
        disk.write_at(&pattern[..length], offset as u64).unwrap();
        model[offset..offset + length].copy_from_slice(&pattern[..length]);
        assert!(content(&disk) == model, "{offset} {length}");
    }
    disk.flush().unwrap();
    assert!(std::fs::read(file.path()).unwrap() == model);
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, Vec<u8>),
    Zero(Range<u64>, bool),
    Read(Range<u64>),
}

fn action() -> impl Strategy<Value = Action> {
    let range = || {
        (0..65536_u64, 0..20_000_u64).prop_map(|(start, length)| start..(start + length).min(65536))
    };
    prop_oneof![
        (0..60_000_u64, prop::collection::vec(any::<u8>(), 0..5000))
            .prop_map(|(at, bytes)| Action::Write(at, bytes)),
        (range(), any::<bool>()).prop_map(|(range, unmap)| Action::Zero(range, unmap)),
        range().prop_map(Action::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_behaves_like_a_vector(actions in prop::collection::vec(action(), 1..40)) {
        let file = scratch(65536);
        let disk = open(&file);
        let mut model = vec![0_u8; 65536];
        for action in actions {
            match action {
                Action::Write(at, bytes) => {
                    disk.write_at(&bytes, at).unwrap();
                    model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                }
                Action::Zero(range, unmap) => {
                    disk.write_zeroes(range.clone(), unmap).unwrap();
                    model[range.start as usize..range.end as usize].fill(0);
                }
                Action::Read(range) => {
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    disk.read_at(&mut bytes, range.start).unwrap();
                    prop_assert!(bytes == model[range.start as usize..range.end as usize]);
                }
            }
        }
        prop_assert!(content(&disk) == model);
        for extent in Extents::new(&disk, 0..65536) {
            let extent = extent.unwrap();
            if matches!(extent.content, Content::Hole) {
                let range = extent.range.start as usize..extent.range.end as usize;
                prop_assert!(model[range].iter().all(|&byte| byte == 0));
            }
        }
    }
}

#[test]
fn block_devices_are_disks_too() {
    let backing = scratch(LENGTH);
    let Some(device) = LoopDevice::new(backing.path()) else {
        eprintln!("skipped: loop devices need root");
        return;
    };
    for direct in [false, true] {
        let options = OpenOptions { read_only: false, direct };
        let disk = RawDisk::open(&device.path, &options).unwrap();
        assert_eq!(disk.len(), LENGTH);
        assert!(!disk.punches_holes());
        let bytes = vec![7; LENGTH as usize];
        disk.write_at(&bytes, 0).unwrap();
        disk.write_at(b"odd", 1001).unwrap();
        disk.write_zeroes(4096..8192, true).unwrap();
        disk.write_zeroes(8192..9216, false).unwrap();
        disk.discard(1 << 20..2 << 20).unwrap();
        disk.discard(700..701).unwrap();
        disk.flush().unwrap();
        let mut model = bytes;
        model[1001..1004].copy_from_slice(b"odd");
        model[4096..9216].fill(0);
        let content = content(&disk);
        assert!(content[..1 << 20] == model[..1 << 20]);
        assert!(content[2 << 20..] == model[2 << 20..]);
        assert!(matches!(disk.write_at(&[0; 2], LENGTH - 1), Err(Error::OutOfRange { .. })));
        match RawDisk::open(&device.path, &OpenOptions::default()) {
            Err(Error::InUse { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_that_is_mounted_is_in_use() {
    let backing = scratch(LENGTH);
    let Some(device) = LoopDevice::new(backing.path()) else {
        eprintln!("skipped: loop devices need root");
        return;
    };
    let image = backing.path();
    let options = OpenOptions { read_only: true, direct: false };
    let point = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let point = point.path().to_str().unwrap();
    if !run("mkfs.ext4", &["-q", &device.path]) || !run("mount", &[&device.path, point]) {
        eprintln!("skipped: no ext4 is mounted here");
        return;
    }
    let mounted = RawDisk::open(image, &options);
    assert!(run("umount", &[point]));
    assert!(
        matches!(&mounted, Err(Error::InUse { holder: Holder::Loop(name), .. })
            if device.path.ends_with(name)),
        "{mounted:?}"
    );
    RawDisk::open(image, &options).unwrap();
}

#[test]
fn a_disk_is_converted_onto_a_block_device() {
    use crate::{ConvertOptions, Format};
    let backing = scratch(LENGTH);
    let Some(device) = LoopDevice::new(backing.path()) else {
        eprintln!("skipped: loop devices need root");
        return;
    };
    // Shorter than the device, with data, written zeroes and holes.
    let length = LENGTH - (1 << 20);
    let file = scratch(length);
    let source = open(&file);
    source.write_at(&[5; 300_000], 100_000).unwrap();
    source.write_at(&[0; 200_000], 200_000).unwrap();
    source.write_at(&[6; 700], length - 700).unwrap();
    let old = vec![7; LENGTH as usize];
    let disk = RawDisk::open(&device.path, &OpenOptions::default()).unwrap();
    disk.write_at(&old, 0).unwrap();
    drop(disk);
    let mut options = ConvertOptions::new(Format::Raw);
    let refused = crate::convert(&source, &device.path, &options, |_| {}).unwrap_err();
    assert!(matches!(refused, Error::Io { action: "write over", .. }), "{refused}");
    options.replace = true;
    let report = crate::convert(&source, &device.path, &options, |_| {}).unwrap();
    assert_eq!(report.data + report.zeroes + report.holes, length);
    assert!(report.holes > 0 && report.zeroes > 0);
    let disk = RawDisk::open(&device.path, &OpenOptions::default()).unwrap();
    let found = content(&disk);
    assert!(found[..length as usize] == content(&source));
    assert!(found[length as usize..] == old[length as usize..]);
    drop(disk);
    // What is no raw disk, and what is too long.
    options.image = "qcow2".parse().unwrap();
    let refused = crate::convert(&source, &device.path, &options, |_| {}).unwrap_err();
    assert!(refused.to_string().ends_with("takes raw disks only"), "{refused}");
    options.image = "raw".parse().unwrap();
    let long = scratch(LENGTH + 512);
    let refused = crate::convert(&open(&long), &device.path, &options, |_| {}).unwrap_err();
    assert!(refused.to_string().contains("fewer than"), "{refused}");
}
