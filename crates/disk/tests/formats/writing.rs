//! What we write, read and checked by `qemu-img`.

use std::sync::Arc;

use disk::{Disk, FilePolicy, Format, ImageOptions, Qcow2Options};

use crate::common::{Workshop, assert_disk_holds, chain, has_qemu_img, open};

const LENGTH: usize = (3 << 20) + 512;

fn open_for_writing(workshop: &Workshop, name: &str) -> Arc<dyn Disk> {
    disk::open(workshop.path(name), &ImageOptions::default())
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Writes here and there, in place and not, and keeps the model up.
fn scribble(disk: &dyn Disk, model: &mut [u8]) {
    let mut seed = 12345_u64;
    for round in 0..60_u8 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = (seed >> 20) as usize % model.len();
        let end = (start + (seed >> 50) as usize * 16 + 1).min(model.len());
        match round % 6 {
            5 => {
                model[start..end].fill(0);
                disk.write_zeroes(start as u64..end as u64, round % 4 == 1).unwrap();
            }
            _ => {
                model[start..end].fill(round + 1);
                disk.write_at(&model[start..end], start as u64).unwrap();
            }
        }
    }
    disk.flush().unwrap();
}

fn assert_qemu_agrees(workshop: &Workshop, name: &str, model: &[u8]) {
    assert_qemu_reads(workshop, "qcow2", name, model);
}

fn assert_qemu_reads(workshop: &Workshop, format: &str, name: &str, model: &[u8]) {
    if format != "vpc" && !name.contains("flat") {
        workshop.qemu_img(&["check", "-q", "-f", format, name]);
    }
    workshop.qemu_img(&["convert", "-f", format, "-O", "raw", name, "back.raw"]);
    let back = std::fs::read(workshop.path("back.raw")).unwrap();
    assert!(back == model, "{name}: qemu-img reads something else");
    assert_disk_holds(&*open(&workshop.path(name)), model, name);
}

#[test]
fn images_of_qemu_are_written_in_place() {
    if !has_qemu_img() {
        return;
    }
    let ways: [&[&str]; 13] = [
        &[],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "extended_l2=on"],
        &["-o", "data_file=one.data"],
        &["-o", "data_file=two.data,data_file_raw=on"],
        &["-o", "data_file=three.data,extended_l2=on"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=4"],
        &["-o", "refcount_bits=64"],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
    ];
    let workshop = Workshop::new(LENGTH);
    for (index, options) in ways.iter().enumerate() {
        eprintln!("{options:?}");
        let name = format!("{index}.qcow2");
        let mut arguments = vec!["convert", "-O", "qcow2"];
        arguments.extend_from_slice(options);
        arguments.extend(["disk.raw", &name]);
        workshop.qemu_img(&arguments);
        let mut model = workshop.content.clone();
        let disk = open_for_writing(&workshop, &name);
        scribble(&*disk, &mut model);
        assert_disk_holds(&*disk, &model, &name);
        drop(disk);
        assert_qemu_agrees(&workshop, &name, &model);
    }
}

#[test]
fn images_of_other_formats_are_written_in_place() {
    if !has_qemu_img() {
        return;
    }
    let ways: [(&str, &[&str]); 13] = [
        ("vmdk", &[]),
        ("vmdk", &["-o", "zeroed_grain=on"]),
        ("vmdk", &["-o", "subformat=monolithicFlat"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
        ("vpc", &["-o", "force_size=on"]),
        ("vpc", &["-o", "force_size=on,subformat=fixed"]),
        ("vdi", &[]),
        ("vdi", &["-o", "static=on"]),
        ("vhdx", &[]),
        ("vhdx", &["-o", "subformat=fixed,block_size=1M"]),
        ("parallels", &[]),
        ("parallels", &["-o", "cluster_size=64k"]),
    ];
    let workshop = Workshop::new(LENGTH);
    for (index, (format, options)) in ways.iter().enumerate() {
        eprintln!("{format} {options:?}");
        let name = format!(
            "{index}{}.{format}",
            if options.concat().contains("Flat") { "flat" } else { "" }
        );
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        arguments.extend_from_slice(options);
        arguments.extend(["disk.raw", &name]);
        workshop.qemu_img(&arguments);
        let mut model = workshop.content.clone();
        let before = std::fs::read(workshop.path(&name)).unwrap();
        let disk = open_for_writing(&workshop, &name);
        drop(disk);
        assert!(std::fs::read(workshop.path(&name)).unwrap() == before, "opening changed it");
        let disk = open_for_writing(&workshop, &name);
        scribble(&*disk, &mut model);
        assert_disk_holds(&*disk, &model, &name);
        drop(disk);
        assert_qemu_reads(&workshop, format, &name, &model);
        assert_disk_holds(&*open(&workshop.path(&name)), &model, &name);
    }
}

#[test]
fn a_streamoptimized_disk_is_only_read() {
    let workshop = Workshop::new(LENGTH);
    let mut options = disk::ConvertOptions::new(Format::Vmdk);
    options.image.layout = disk::Layout::Stream;
    let source = open(&workshop.path("disk.raw"));
    disk::convert(&*source, workshop.path("disk.vmdk"), &options, |_| {}).unwrap();
    let disk = open_for_writing(&workshop, "disk.vmdk");
    assert!(disk.is_read_only());
    assert!(matches!(disk.write_at(&[1; 512], 0), Err(disk::Error::ReadOnly)));
}

#[test]
fn an_internal_snapshot_survives_what_is_written_after_it() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    for options in ["compat=1.1", "extended_l2=on"] {
        workshop.qemu_img(&["convert", "-O", "qcow2", "-o", options, "disk.raw", "disk.qcow2"]);
        workshop.qemu_img(&["snapshot", "-c", "before", "disk.qcow2"]);
        let mut model = workshop.content.clone();
        let disk = open_for_writing(&workshop, "disk.qcow2");
        scribble(&*disk, &mut model);
        drop(disk);
        assert_qemu_agrees(&workshop, "disk.qcow2", &model);
        workshop.qemu_img(&["snapshot", "-a", "before", "disk.qcow2"]);
        assert_qemu_agrees(&workshop, "disk.qcow2", &workshop.content);
    }
}

#[test]
fn new_images_are_read_by_qemu() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    for cluster_bits in [9, 12, 16, 21] {
        let name = format!("{cluster_bits}.qcow2");
        let options = Qcow2Options { cluster_bits, ..Qcow2Options::new(LENGTH as u64) };
        disk::create_qcow2(workshop.path(&name), &options).unwrap();
        assert!(disk::create_qcow2(workshop.path(&name), &options).is_err());
        let mut model = vec![0; LENGTH];
        let disk = open_for_writing(&workshop, &name);
        scribble(&*disk, &mut model);
        drop(disk);
        assert_qemu_agrees(&workshop, &name, &model);
    }
}

#[test]
fn an_overlay_over_any_format_leaves_it_alone() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    let formats = [("vmdk", Format::Vmdk), ("vdi", Format::Vdi), ("vhdx", Format::Vhdx)];
    for (qemu, format) in formats {
        let (base, name) = (format!("base.{qemu}"), format!("{qemu}.overlay"));
        workshop.qemu_img(&["convert", "-O", qemu, "disk.raw", &base]);
        let before = std::fs::read(workshop.path(&base)).unwrap();
        let parent = open(&workshop.path(&base));
        let named = Some((base.clone(), format));
        let overlay = disk::overlay(workshop.path(&name), parent.clone(), named).unwrap();
        let mut model = workshop.content.clone();
        assert_disk_holds(&*overlay, &model, &name);
        scribble(&*overlay, &mut model);
        assert_disk_holds(&*overlay, &model, &name);
        drop(overlay);
        let again = disk::open_over(workshop.path(&name), parent).unwrap();
        assert_disk_holds(&*again, &model, &name);
        drop(again);
        // QEMU may not see zeroes written past what it needs to; the content is what counts.
        assert_qemu_agrees(&workshop, &name, &model);
        assert!(std::fs::read(workshop.path(&base)).unwrap() == before);
    }
}

#[test]
fn images_that_were_not_closed_in_order_are_only_read() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    workshop.qemu_img(&["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let path = workshop.path("disk.qcow2");
    let bytes = std::fs::read(&path).unwrap();
    for (bit, reason) in [(1, "not closed in order"), (2, "marked as damaged")] {
        let mut marked = bytes.clone();
        marked[79] = bit;
        std::fs::write(&path, &marked).unwrap();
        let Err(error) = disk::open(&path, &ImageOptions::default()) else { panic!("{reason}") };
        assert!(chain(&error).contains(reason), "{}", chain(&error));
        workshop.assert_holds("disk.qcow2");
        assert!(std::fs::read(&path).unwrap() == marked);
    }
}

#[test]
fn a_reader_and_a_writer_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    disk::create_qcow2(&path, &Qcow2Options::new(1 << 20)).unwrap();
    let options = ImageOptions { files: FilePolicy::Anywhere, ..ImageOptions::default() };
    let writer = disk::open(&path, &options).unwrap();
    for read_only in [true, false] {
        let options = ImageOptions { read_only, ..options.clone() };
        assert!(matches!(disk::open(&path, &options), Err(disk::Error::InUse { .. })));
    }
    drop(writer);
    disk::open(&path, &options).unwrap();
}
