//! Chains and states that `qemu-img` 7.2 to 10.0 gets wrong or refuses: differencing VHD, AVHDX, snapshots
//! of ESX, logs that were not replayed.

use std::path::Path;

use disk::{ConvertOptions, CreateOptions, Error, Format, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, open, read_only};
use crate::link_vhdx::link_vhdx;

const LENGTH: usize = 4 << 20;

/// Converts the raw disk to an image of ours.
pub fn make(workshop: &Workshop, text: &str, name: &str) {
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = text.parse().unwrap();
    let source = open(&workshop.path("disk.raw"));
    disk::convert(&*source, workshop.path(name), &options, |_| {}).unwrap();
}

pub fn make_empty(workshop: &Workshop, text: &str, name: &str) {
    let mut options: CreateOptions = text.parse().unwrap();
    options.length = LENGTH as u64;
    disk::create(workshop.path(name), &options).unwrap();
}

pub fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Writes into a child and returns what it holds then.
fn write_into(workshop: &Workshop, name: &str) -> Vec<u8> {
    let mut model = workshop.content.clone();
    let disk = disk::open(workshop.path(name), &ImageOptions::default())
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_disk_holds(&*disk, &model, name);
    for (start, end, value) in [(1000, 1700, 7), (900_000, 1_200_000, 8), (LENGTH - 512, LENGTH, 9)]
    {
        model[start..end].fill(value);
        disk.write_at(&model[start..end], start as u64).unwrap();
    }
    assert_disk_holds(&*disk, &model, name);
    model
}

/// The sum of VHD's structures.
fn seal_vhd(part: &mut [u8], field: usize) {
    part[field..field + 4].fill(0);
    let sum = !part.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(byte.into()));
    part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Makes `child` a differencing disk of the VHD `parent`.
pub fn link_vhd(workshop: &Workshop, child: &str, parent: &str) {
    let parent_bytes = std::fs::read(workshop.path(parent)).unwrap();
    let uuid = parent_bytes[parent_bytes.len() - 512 + 68..][..16].to_vec();
    change(&workshop.path(child), |bytes| {
        // A path in UTF-16, where the file ended, and a footer behind it.
        let path: Vec<u8> =
            format!(".\\{parent}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        let at = bytes.len() - 512;
        let mut footer = bytes.split_off(at);
        bytes.extend_from_slice(&path);
        bytes.resize(at + 512, 0);
        footer[60..64].copy_from_slice(&4_u32.to_be_bytes());
        seal_vhd(&mut footer, 64);
        bytes[..512].copy_from_slice(&footer);
        let header = &mut bytes[512..1536];
        header[40..56].copy_from_slice(&uuid);
        for (index, unit) in parent.encode_utf16().enumerate() {
            header[64 + index * 2..66 + index * 2].copy_from_slice(&unit.to_be_bytes());
        }
        header[576..580].copy_from_slice(b"W2ru");
        header[580..584].copy_from_slice(&512_u32.to_be_bytes());
        header[584..588].copy_from_slice(&(path.len() as u32).to_be_bytes());
        header[592..600].copy_from_slice(&(at as u64).to_be_bytes());
        seal_vhd(header, 36);
        bytes.extend_from_slice(&footer);
    });
}

#[test]
fn a_differencing_vhd_is_read_and_written_over_its_parent() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd,block-size=512k", "base.vhd");
    make_empty(&workshop, "vhd", "child.avhd");
    link_vhd(&workshop, "child.avhd", "base.vhd");
    let before = std::fs::read(workshop.path("base.vhd")).unwrap();
    let model = write_into(&workshop, "child.avhd");
    let (disk, infos) = disk::open_chain(workshop.path("child.avhd"), &read_only()).unwrap();
    assert_disk_holds(&*disk, &model, "child");
    assert_eq!(infos.len(), 2);
    assert!(std::fs::read(workshop.path("base.vhd")).unwrap() == before);
    drop(disk);
    // Another disk under the parent's name is not the parent.
    std::fs::remove_file(workshop.path("base.vhd")).unwrap();
    make(&workshop, "vhd", "base.vhd");
    let Err(Error::Image { source, .. }) = disk::open(workshop.path("child.avhd"), &read_only())
    else {
        panic!("another parent was taken")
    };
    assert!(matches!(*source, Error::ParentChanged { .. } | Error::NotFound { .. }), "{source}");
}

#[test]
fn sectors_of_a_block_that_a_differencing_vhd_lacks_come_from_the_parent() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd", "base.vhd");
    make_empty(&workshop, "vhd", "child.vhd");
    link_vhd(&workshop, "child.vhd", "base.vhd");
    // A block of which every third sector is here, as Windows writes them.
    let mut model = workshop.content.clone();
    change(&workshop.path("child.vhd"), |bytes| {
        let footer = bytes.split_off(bytes.len() - 512);
        let block = bytes.len();
        let mut bitmap = vec![0; 512];
        let mut data = vec![0xee; 2 << 20];
        for sector in (0..4096).step_by(3) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
            data[sector * 512..sector * 512 + 512].fill(0x3c);
            model[sector * 512..sector * 512 + 512].fill(0x3c);
        }
        bytes.extend_from_slice(&bitmap);
        bytes.extend_from_slice(&data);
        bytes.extend_from_slice(&footer);
        bytes[1536..1540].copy_from_slice(&((block / 512) as u32).to_be_bytes());
    });
    assert_disk_holds(&*open(&workshop.path("child.vhd")), &model, "partial");
    let disk = disk::open(workshop.path("child.vhd"), &ImageOptions::default()).unwrap();
    model[700..1200].fill(1);
    disk.write_at(&model[700..1200], 700).unwrap();
    assert_disk_holds(&*disk, &model, "partial, written");
    drop(disk);
    assert_disk_holds(&*open(&workshop.path("child.vhd")), &model, "partial, reopened");
}

#[test]
fn an_avhdx_is_read_and_written_over_its_parent() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhdx,block-size=1M", "base.vhdx");
    make_empty(&workshop, "vhdx,block-size=2M", "child.avhdx");
    link_vhdx(&workshop.path("child.avhdx"), &workshop.path("base.vhdx"));
    let model = write_into(&workshop, "child.avhdx");
    let (disk, infos) = disk::open_chain(workshop.path("child.avhdx"), &read_only()).unwrap();
    assert_disk_holds(&*disk, &model, "child");
    assert_eq!(infos.len(), 2);
    drop(disk);
    // What is written to the parent gives it another identifier.
    let base = disk::open(workshop.path("base.vhdx"), &ImageOptions::default()).unwrap();
    base.write_at(&[1; 512], 0).unwrap();
    drop(base);
    let Err(error) = disk::open(workshop.path("child.avhdx"), &read_only()) else {
        panic!("a changed parent was taken")
    };
    assert!(
        chain(&error).contains("not the one that the image was made from"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_vhdx_with_a_log_is_replayed_in_memory_and_left_as_it_is() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhdx,block-size=1M", "disk.vhdx");
    let path = workshop.path("disk.vhdx");
    make_empty(&workshop, "vhdx,block-size=1M", "empty.vhdx");
    let disk = disk::open(workshop.path("empty.vhdx"), &ImageOptions::default()).unwrap();
    disk.write_at(&workshop.content, 0).unwrap();
    disk.flush().unwrap();
    // The state after the log and before the table, as a loss of power leaves it.
    std::fs::copy(workshop.path("empty.vhdx"), &path).unwrap();
    drop(disk);
    change(&path, |bytes| bytes[3 << 20..(3 << 20) + 4096].fill(0));
    let before = std::fs::read(&path).unwrap();
    let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
    assert_disk_holds(&*disk, &workshop.content, "log");
    assert!(infos[0].details.iter().any(|(name, _)| *name == "log"), "{:?}", infos[0].details);
    drop(disk);
    assert!(std::fs::read(&path).unwrap() == before);
    // Whoever may write replays it for good.
    drop(disk::open(&path, &ImageOptions::default()).unwrap());
    let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
    assert_disk_holds(&*disk, &workshop.content, "replayed");
    assert!(!infos[0].details.iter().any(|(name, _)| *name == "log"));
}

#[test]
fn a_fixed_vhd_is_found_out_by_its_footer() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd,layout=fixed", "disk.img");
    let (disk, infos) = disk::open_chain(workshop.path("disk.img"), &read_only()).unwrap();
    assert_eq!((infos[0].format, disk.len()), (Format::Vhd, LENGTH as u64));
    assert_disk_holds(&*disk, &workshop.content, "fixed");
}

#[test]
fn a_dynamic_vhd_whose_footer_is_lost_is_read_by_the_copy() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd", "disk.vhd");
    let path = workshop.path("disk.vhd");
    change(&path, |bytes| bytes.truncate(bytes.len() - 512));
    assert_disk_holds(&*open(&path), &workshop.content, "without a footer");
    let disk = disk::open(&path, &ImageOptions::default()).unwrap();
    disk.write_at(&[9; 512], 0).unwrap();
    drop(disk);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[bytes.len() - 512..].starts_with(b"conectix"));
}

/// The descriptor of a disk with a parent.
fn descriptor(
    kind: &str,
    extent_kind: &str,
    extent: &str,
    parent: &str,
    content_id: &str,
) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID={content_id}\n\
         createType=\"{kind}\"\nparentFileNameHint=\"{parent}\"\n\
         RW {} {extent_kind} \"{extent}\"\n",
        LENGTH / 512
    )
}

/// A flat base, as on VMFS, and its content's number.
fn vmfs_base(workshop: &Workshop) -> String {
    make(workshop, "vmdk,layout=fixed", "base.vmdk");
    let text = std::fs::read_to_string(workshop.path("base.vmdk")).unwrap();
    let text = text.replace("monolithicFlat", "vmfs").replace(" FLAT ", " VMFS ");
    std::fs::write(workshop.path("base.vmdk"), &text).unwrap();
    text.lines().find_map(|line| line.strip_prefix("CID=")).unwrap().to_owned()
}

/// The grains of 4 KiB that a child has, and what its disk holds.
fn child_grains(workshop: &Workshop) -> (Vec<usize>, Vec<u8>) {
    let grains = vec![0, 1, 7, 100, 511, 512, 1023];
    let mut model = workshop.content.clone();
    for grain in &grains {
        model[grain * 4096..grain * 4096 + 4096].fill(0xa0 + (*grain % 16) as u8);
    }
    (grains, model)
}

#[test]
fn a_cowd_snapshot_is_read_over_its_base() {
    let workshop = Workshop::new(LENGTH);
    let content_id = vmfs_base(&workshop);
    let (grains, model) = child_grains(&workshop);
    // Header, a directory of one entry, one table of 4096 entries, grains of 8 sectors.
    let mut bytes = b"COWD".to_vec();
    for value in [1, 3, (LENGTH / 512) as u32, 8, 4, 1] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.resize(4 * 512, 0);
    bytes.extend_from_slice(&5_u32.to_le_bytes());
    bytes.resize(5 * 512 + 4096 * 4, 0);
    for grain in grains {
        let sector = (bytes.len() / 512) as u32;
        let entry = 5 * 512 + grain * 4;
        bytes[entry..entry + 4].copy_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&model[grain * 4096..grain * 4096 + 4096]);
    }
    std::fs::write(workshop.path("child-delta.vmdk"), bytes).unwrap();
    let text = descriptor("vmfsSparse", "VMFSSPARSE", "child-delta.vmdk", "base.vmdk", &content_id);
    std::fs::write(workshop.path("child.vmdk"), text).unwrap();
    let (disk, infos) = disk::open_chain(workshop.path("child.vmdk"), &read_only()).unwrap();
    assert_disk_holds(&*disk, &model, "COWD");
    assert_eq!(infos.len(), 2);
}

/// A seSparse extent with these grains; `replay` is what its volatile header says of the journal.
pub fn sesparse(grains: &[usize], model: &[u8], replay: u64) -> Vec<u8> {
    const GRAIN_TABLE: usize = 64 * 512;
    const TABLES: usize = 16 * 512;
    const GRAINS: usize = 256 * 512;
    let mut bytes = vec![0; GRAINS];
    let header = [
        0xcafe_babe_u64,
        0x0000_0002_0000_0001,
        (LENGTH / 512) as u64,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        1,
        3,
        1,
        8,
        8,
        16,
        128,
        144,
        8,
        152,
        8,
        256,
        8192,
    ];
    for (index, value) in header.iter().enumerate() {
        bytes[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }
    for (index, value) in [0xcafe_cafe_u64, 1, 1, replay].iter().enumerate() {
        bytes[512 + index * 8..520 + index * 8].copy_from_slice(&value.to_le_bytes());
    }
    // The disk's only table is number 0.
    bytes[8 * 512..8 * 512 + 8].copy_from_slice(&0x1000_0000_0000_0000_u64.to_le_bytes());
    for (number, grain) in grains.iter().enumerate() {
        let entry = 3_u64 << 60 | (number as u64 & 0xfff) << 48 | number as u64 >> 12;
        let at = TABLES + grain * 8;
        assert!(at < TABLES + GRAIN_TABLE);
        bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        bytes.extend_from_slice(&model[grain * 4096..grain * 4096 + 4096]);
    }
    bytes
}

#[test]
fn a_sesparse_snapshot_is_read_over_its_base() {
    let workshop = Workshop::new(LENGTH);
    let content_id = vmfs_base(&workshop);
    let (grains, model) = child_grains(&workshop);
    let extent = workshop.path("child-sesparse.vmdk");
    std::fs::write(&extent, sesparse(&grains, &model, 0)).unwrap();
    let text = descriptor("seSparse", "SESPARSE", "child-sesparse.vmdk", "base.vmdk", &content_id);
    std::fs::write(workshop.path("child.vmdk"), text).unwrap();
    let (disk, infos) = disk::open_chain(workshop.path("child.vmdk"), &read_only()).unwrap();
    assert_disk_holds(&*disk, &model, "seSparse");
    assert_eq!(infos.len(), 2);
    drop(disk);

    // Alone it is no raw disk either.
    let (disk, infos) = disk::open_chain(&extent, &read_only()).unwrap();
    assert_eq!((infos[0].format, disk.len()), (Format::Vmdk, LENGTH as u64));
    drop(disk);
    std::fs::write(&extent, sesparse(&grains, &model, 1)).unwrap();
    let Err(error) = disk::open(workshop.path("child.vmdk"), &read_only()) else {
        panic!("a journal was passed over")
    };
    assert!(chain(&error).contains("journal"), "{}", chain(&error));
}
