//! Losses of power while a disk is made longer: it is as it was or longer, and holds what it held.

use super::folder::{Files, Folder};
use super::images::created;
use super::{SECTOR, assert_sound, content};
use crate::layer::Place;
use crate::open::Neighbours;
use crate::{Disk, Format, Result, parallels, qcow2, vdi, vhd, vhdx, vmdk};

/// The last block is not whole, and has bytes behind the disk's end.
const LENGTH: u64 = (1 << 20) + 70 * 512;
/// Cuts of the writes, as far as there are so many writes, each with as many choices of what is lost.
const CUTS: usize = 40;
const CHOICES: u64 = 4;

fn grow(format: Format, folder: &Folder, length: u64) -> Result<()> {
    let main = folder.main();
    let neighbours = Neighbours { read_only: false, remote: Some(&*main), ..Neighbours::NONE };
    match format {
        Format::Qcow2 => qcow2::grow(main, length),
        Format::Vmdk => vmdk::grow(main.clone(), &neighbours, length),
        Format::Vhd => vhd::grow(main, length),
        Format::Vhdx => vhdx::grow(main, length),
        Format::Vdi => vdi::grow(main, length),
        Format::Parallels => parallels::grow(main, length),
        other => panic!("{other} cannot be made longer"),
    }
}

/// The disk is as it was, or as long as it shall become.
fn assert_holds(format: Format, files: &Files, expected: &[u8], length: u64, what: &str) -> u64 {
    let disk = Folder::read_only(files).open(format, None).unwrap();
    let found = disk.len();
    assert!([expected.len() as u64, length].contains(&found), "{what}: {found} bytes");
    let mut bytes = vec![0; expected.len() + (4 << 20)];
    let there = bytes.len().min(found as usize);
    disk.read_at(&mut bytes[..there], 0).unwrap();
    assert!(bytes.starts_with(expected), "{what}");
    // The footer of a fixed VHD is where the new part begins until it is cleared.
    let new = bytes[expected.len()..].strip_prefix(b"conectix".as_slice());
    let new = new.map_or(&bytes[expected.len()..], |_| &bytes[expected.len() + SECTOR..]);
    assert!(new.iter().all(|&byte| byte == 0), "{what}: the new part has something");
    found
}

/// Makes a disk with something in it so long, cutting that everywhere.
fn survives(text: &str, length: u64) {
    let (format, empty) = created(text, LENGTH);
    let start = Folder::new(&empty);
    let disk = start.open(format, None).unwrap();
    disk.write_at(&vec![0xa5; 90_000], 0).unwrap();
    disk.write_at(&[0x5a; 3000], LENGTH - 3000).unwrap();
    let expected = content(&disk);
    let last = disk.layer.locate(LENGTH - 1..LENGTH).unwrap().place;
    let block = disk.layer.block_size();
    drop(disk);
    let mut files = start.files();
    if let (Place::Stored { source: 0, offset }, 2..) = (last, block) {
        // What no disk of ours has behind its end, but those of others.
        let behind = offset as usize + 1..(offset + 1 + block - LENGTH % block) as usize;
        let bytes = &mut files[0].1;
        let end = behind.end.min(bytes.len());
        bytes[behind.start..end].fill(0xee);
    }
    let folder = Folder::new(&files);
    grow(format, &folder, length).unwrap();
    let found = assert_holds(format, &folder.files(), &expected, length, "made longer");
    assert_eq!(found, length);
    assert_sound(format, &folder.files(), "made longer");
    let events = folder.events();
    for number in 0..CUTS.min(events + 1) {
        let cut = number * events / CUTS.min(events + 1);
        for choice in 0..CHOICES {
            let what = format!("{text}, {cut} of {events}, {choice}");
            let seed = (cut as u64 * CHOICES + choice).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let left = folder.crash(cut, seed);
            let found = assert_holds(format, &left, &expected, length, &what);
            assert_sound(format, &left, &what);
            // Whoever comes next can write, and make it as long as it was to be.
            let again = Folder::new(&left);
            let disk = again.open(format, None).unwrap();
            disk.write_at(&expected[..5000], 0).unwrap();
            drop(disk);
            if found != length {
                grow(format, &again, length).unwrap();
            }
            let disk = again.open(format, None).unwrap();
            disk.write_at(b"the end", length - 7).unwrap();
            drop(disk);
            let files = again.files();
            let disk = Folder::read_only(&files).open(format, None).unwrap();
            let mut end = [0; 7];
            disk.read_at(&mut end, length - 7).unwrap();
            assert_eq!(&end, b"the end", "{what}");
            drop(disk);
            assert_sound(format, &files, &what);
        }
    }
}

macro_rules! grown {
    ($($name:ident: $text:literal, $length:expr;)+) => {$(
        #[test]
        fn $name() {
            survives($text, $length);
        }
    )+};
}

// Each kind with and without room for what a longer disk needs.
grown! {
    a_crash_while_qcow2_grows_loses_nothing: "qcow2,cluster-size=4k", 9 << 30;
    a_crash_while_vmdk_grows_loses_nothing: "vmdk", 900 << 20;
    a_crash_while_vmdk_grows_within_a_table_loses_nothing: "vmdk", 3 << 20;
    a_crash_while_a_flat_vmdk_grows_loses_nothing: "vmdk,layout=fixed", 5 << 20;
    a_crash_while_vdi_grows_loses_nothing: "vdi", 9 << 30;
    a_crash_while_the_map_of_vdi_moves_loses_nothing: "vdi", 300 << 30;
    a_crash_while_a_static_vdi_grows_loses_nothing: "vdi,layout=fixed", 3 << 20;
    a_crash_while_vhd_grows_loses_nothing: "vhd,block-size=512k", 300 << 20;
    a_crash_while_a_fixed_vhd_grows_loses_nothing: "vhd,layout=fixed", 5 << 20;
    a_crash_while_vhdx_grows_loses_nothing: "vhdx,block-size=1M", 9 << 30;
    a_crash_while_the_table_of_vhdx_moves_loses_nothing: "vhdx,block-size=1M", 300 << 30;
    a_crash_while_a_fixed_vhdx_grows_loses_nothing: "vhdx,layout=fixed,block-size=1M", 3 << 20;
    a_crash_while_parallels_grows_loses_nothing: "parallels,block-size=4k", 4 << 20;
    a_crash_while_the_clusters_of_parallels_move_loses_nothing: "parallels,block-size=4k", 90 << 20;
}
