//! Where `qemu-img` 7.2 to 10.0 reads something else than what an image holds, or refuses it. Each test shows its answer,
//! too: should it learn better, what is said about it has to change.

use std::process::{Command, Output};

use disk::{Format, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, assert_holds, has_qemu_img, open, read_only};
use crate::differencing::{change, link_vhd, make, make_empty, sesparse};
use crate::link_vhdx::link_vhdx;

const LENGTH: usize = 4 << 20;

fn qemu_img(workshop: &Workshop, arguments: &[&str]) -> Output {
    let program = std::env::var_os("QEMU_IMG").unwrap_or("qemu-img".into());
    let output = Command::new(program).args(arguments).current_dir(workshop.folder.path()).output();
    output.unwrap()
}

/// Whether it takes the image, found out by content, for something else than the disk that it holds.
fn is_misread(workshop: &Workshop, name: &str) -> bool {
    let converted = qemu_img(workshop, &["convert", "-O", "raw", name, "back.raw"]);
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    std::fs::read(workshop.path("back.raw")).unwrap() != workshop.content
}

fn is_refused(workshop: &Workshop, name: &str) -> bool {
    !qemu_img(workshop, &["convert", "-O", "raw", name, "back.raw"]).status.success()
}

#[test]
fn a_differencing_vhd_is_not_taken_for_a_disk_without_a_parent() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd", "base.vhd");
    make_empty(&workshop, "vhd", "child.vhd");
    link_vhd(&workshop, "child.vhd", "base.vhd");
    assert!(is_misread(&workshop, "child.vhd"));
    workshop.assert_holds("child.vhd");
}

#[test]
fn an_avhdx_is_read_over_its_parent() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhdx,block-size=1M", "base.vhdx");
    make_empty(&workshop, "vhdx,block-size=1M", "child.avhdx");
    link_vhdx(&workshop.path("child.avhdx"), &workshop.path("base.vhdx"));
    assert!(is_refused(&workshop, "child.avhdx"));
    workshop.assert_holds("child.avhdx");
}

#[test]
fn the_footer_of_a_fixed_vhd_is_not_the_guests() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhd,layout=fixed", "disk.vhd");
    assert!(is_misread(&workshop, "disk.vhd"));
    let back = std::fs::read(workshop.path("back.raw")).unwrap();
    assert!(back[LENGTH..].starts_with(b"conectix"));
    assert_eq!(open(&workshop.path("disk.vhd")).len(), LENGTH as u64);
    workshop.assert_holds("disk.vhd");
}

#[test]
fn a_vhd_has_its_current_size_and_not_that_of_its_geometry() {
    if !has_qemu_img() {
        return;
    }
    // No number of cylinders, heads and sectors makes this.
    let length = LENGTH + 3 * 512;
    let workshop = Workshop::new(length);
    for layout in ["vhd", "vhd,layout=fixed"] {
        make(&workshop, layout, "disk.vhd");
        // Whoever made it is not known to QEMU, as most are not.
        change(&workshop.path("disk.vhd"), |bytes| {
            let end = bytes.len();
            for at in [0, end - 512]
                .into_iter()
                .filter(|at| bytes[*at..].starts_with(b"conectix"))
                .collect::<Vec<_>>()
            {
                bytes[at + 28..at + 32].copy_from_slice(b"tst ");
                bytes[at + 64..at + 68].fill(0);
                let sum = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum::<u32>();
                bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
            }
        });
        let raw = ["convert", "-f", "vpc", "-O", "raw", "disk.vhd", "back.raw"];
        assert!(qemu_img(&workshop, &raw).status.success());
        let found = std::fs::metadata(workshop.path("back.raw")).unwrap().len();
        assert_ne!(found, length as u64, "{layout}: qemu-img has learnt");
        assert_eq!(open(&workshop.path("disk.vhd")).len(), length as u64);
        workshop.assert_holds("disk.vhd");
        std::fs::remove_file(workshop.path("disk.vhd")).unwrap();
    }
}

#[test]
fn a_bare_extent_of_esx_is_no_raw_disk() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    let grains: Vec<usize> = (0..LENGTH / 4096).collect();
    std::fs::write(workshop.path("disk.vmdk"), sesparse(&grains, &workshop.content, 0)).unwrap();
    assert!(is_misread(&workshop, "disk.vmdk"));
    workshop.assert_holds("disk.vmdk");
}

#[test]
fn descriptors_of_esx_are_read_whatever_their_kind() {
    let workshop = Workshop::new(LENGTH);
    // vmfsThin and vmfsPreallocated are what ESX writes for its own files; the others are kinds of hosted ones.
    for (kind, extent, is_read_by_qemu) in [
        ("vmfs", "VMFS", true),
        ("vmfsThin", "VMFS", false),
        ("vmfsPreallocated", "VMFS", false),
        ("vmfsEagerZeroedThick", "VMFS", false),
        ("monolithicFlat", "FLAT", true),
    ] {
        let offset = if extent == "FLAT" { " 0" } else { "" };
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\
             RW {} {extent} \"disk.raw\"{offset}\n",
            LENGTH / 512
        );
        std::fs::write(workshop.path("disk.vmdk"), text).unwrap();
        workshop.assert_holds("disk.vmdk");
        let (_, infos) = disk::open_chain(workshop.path("disk.vmdk"), &read_only()).unwrap();
        assert_eq!(infos[0].detail("kind"), Some(kind));
        if has_qemu_img() {
            assert_eq!(is_refused(&workshop, "disk.vmdk"), !is_read_by_qemu, "{kind}");
        }
    }
}

#[test]
fn a_bundle_of_parallels_is_one_disk() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    let folder = workshop.path("disk.hdd");
    std::fs::create_dir(&folder).unwrap();
    let seam = LENGTH / 2;
    let mut storages = String::new();
    for (index, part) in workshop.content.chunks(seam).enumerate() {
        std::fs::write(folder.join(format!("{index}.hds")), part).unwrap();
        let (start, end) = (index * seam / 512, (index + 1) * seam / 512);
        storages += &format!(
            "<Storage><Start>{start}</Start><End>{end}</End><Blocksize>128</Blocksize><Image>\
             <GUID>{{5fbaabe3-6958-40ff-92a7-860e329aab41}}</GUID><Type>Plain</Type>\
             <File>{index}.hds</File></Image></Storage>"
        );
    }
    let text = format!(
        "<?xml version='1.0'?><Parallels_disk_image Version=\"1.0\"><Disk_Parameters>\
         <Disk_size>{}</Disk_size><Padding>0</Padding></Disk_Parameters>\
         <StorageData>{storages}</StorageData><Snapshots><Shot>\
         <GUID>{{5fbaabe3-6958-40ff-92a7-860e329aab41}}</GUID>\
         <ParentGUID>{{00000000-0000-0000-0000-000000000000}}</ParentGUID></Shot></Snapshots>\
         </Parallels_disk_image>",
        LENGTH / 512
    );
    std::fs::write(folder.join("DiskDescriptor.xml"), text).unwrap();
    assert!(is_refused(&workshop, "disk.hdd"));
    assert!(is_misread(&workshop, "disk.hdd/DiskDescriptor.xml"));
    assert!(is_misread(&workshop, "disk.hdd/0.hds"));
    assert_holds(&folder, &workshop.content);
}

#[test]
fn a_vdi_with_a_parent_is_read_over_it() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vdi", "base.vdi");
    make_empty(&workshop, "vdi", "child.vdi");
    // The header's fields: the kind, then the identifiers of image, change, parent and parent's change.
    let base = std::fs::read(workshop.path("base.vdi")).unwrap();
    change(&workshop.path("child.vdi"), |bytes| {
        bytes[76..80].copy_from_slice(&4_u32.to_le_bytes());
        bytes[424..440].copy_from_slice(&base[392..408]);
        bytes[440..456].copy_from_slice(&base[408..424]);
    });
    assert!(is_refused(&workshop, "child.vdi"));
    let (disk, infos) = disk::open_chain(workshop.path("child.vdi"), &read_only()).unwrap();
    assert_eq!(infos.len(), 2);
    assert_disk_holds(&*disk, &workshop.content, "child");
}

#[test]
fn a_vhdx_with_a_log_is_read_by_who_may_not_write() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    make_empty(&workshop, "vhdx,block-size=1M", "open.vhdx");
    let writer = disk::open(workshop.path("open.vhdx"), &ImageOptions::default()).unwrap();
    writer.write_at(&workshop.content, 0).unwrap();
    writer.flush().unwrap();
    std::fs::copy(workshop.path("open.vhdx"), workshop.path("left.vhdx")).unwrap();
    drop(writer);
    assert!(is_refused(&workshop, "left.vhdx"));
    let (disk, infos) = disk::open_chain(workshop.path("left.vhdx"), &read_only()).unwrap();
    assert_eq!(infos[0].format, Format::Vhdx);
    assert_disk_holds(&*disk, &workshop.content, "log");
}

#[test]
fn a_vhdx_of_4_kib_sectors_is_read_and_written_and_tells_its_sectors() {
    let workshop = Workshop::new(LENGTH);
    make(&workshop, "vhdx,block-size=1M", "disk.vhdx");
    let path = workshop.path("disk.vhdx");
    // The metadata's items are at 64 KiB of their region: parameters (8), size (8), identifier (16), logical sector.
    change(&path, |bytes| {
        let at = (2 << 20) + (64 << 10) + 32;
        assert_eq!(bytes[at..at + 4], 512_u32.to_le_bytes());
        bytes[at..at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    });
    assert_eq!(open(&path).geometry().logical_block, 4096);
    workshop.assert_holds("disk.vhdx");
    let mut model = workshop.content.clone();
    model[8192..1_200_128].fill(6);
    let disk = disk::open(&path, &ImageOptions::default()).unwrap();
    disk.write_at(&model[8192..1_200_128], 8192).unwrap();
    drop(disk);
    assert_holds(&path, &model);
    if has_qemu_img() {
        let check = qemu_img(&workshop, &["check", "-q", "-f", "vhdx", "disk.vhdx"]);
        let error = String::from_utf8_lossy(&check.stderr).into_owned();
        // It knows sectors of 512 bytes only.
        assert!(check.status.success() || error.contains("not supported"), "{error}");
    }
}
