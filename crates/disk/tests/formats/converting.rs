//! Conversion, both ways, against `qemu-img`.

use disk::{Compression, ConvertOptions, Format, Report};

use crate::common::{Workshop, assert_disk_holds, chain, has_qemu_img, open};

const LENGTH: usize = (6 << 20) + 512;

fn compressed(compression: Compression) -> ConvertOptions {
    let mut options = ConvertOptions::new(Format::Qcow2);
    options.image.compression = Some(compression);
    options
}

fn convert(workshop: &Workshop, from: &str, to: &str, options: &ConvertOptions) -> Report {
    let source = open(&workshop.path(from));
    let mut last = 0;
    let report = disk::convert(&*source, workshop.path(to), options, |done| {
        assert!(done > last);
        last = done;
    });
    let report = report.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(last, source.len());
    assert_eq!(report.data + report.zeroes + report.holes, source.len());
    report
}

#[test]
fn any_disk_becomes_raw_or_qcow2_with_the_same_content() {
    let workshop = Workshop::new(LENGTH);
    let qcow2 = ConvertOptions::new(Format::Qcow2);
    let ways = [
        ("plain.qcow2", qcow2.clone()),
        ("zlib.qcow2", compressed(Compression::Zlib)),
        ("zstd.qcow2", compressed(Compression::Zstd)),
        (
            "one.qcow2",
            ConvertOptions { jobs: Some(1), level: Some(1), ..compressed(Compression::Zlib) },
        ),
    ];
    for (name, options) in ways {
        let report = convert(&workshop, "disk.raw", name, &options);
        assert_eq!(report.compressed != 0, options.image.compression.is_some(), "{name}");
        assert!(report.zeroes + report.holes > 0, "{name}");
        let disk = open(&workshop.path(name));
        assert_disk_holds(&*disk, &workshop.content, name);
        drop(disk);
        let back = format!("{name}.raw");
        convert(&workshop, name, &back, &ConvertOptions::new(Format::Raw));
        assert!(std::fs::read(workshop.path(&back)).unwrap() == workshop.content, "{name}");
        assert!(!workshop.path(&format!("{name}.partial")).exists());
        if has_qemu_img() {
            workshop.qemu_img(&["check", "-q", "-f", "qcow2", name]);
            workshop.qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "disk.raw", name]);
        }
    }
    let length = |name: &str| workshop.path(name).metadata().unwrap().len();
    assert!(length("zlib.qcow2") < length("plain.qcow2"));
    assert!(length("zstd.qcow2") < length("plain.qcow2"));
}

#[test]
fn a_compressed_image_can_be_written_in_place_afterwards() {
    let workshop = Workshop::new(LENGTH);
    convert(&workshop, "disk.raw", "disk.qcow2", &compressed(Compression::Zstd));
    let mut model = workshop.content.clone();
    let disk = disk::open(workshop.path("disk.qcow2"), &disk::ImageOptions::default()).unwrap();
    model[100_000..400_000].fill(9);
    disk.write_at(&model[100_000..400_000], 100_000).unwrap();
    assert_disk_holds(&*disk, &model, "written");
    drop(disk);
    assert_disk_holds(&*open(&workshop.path("disk.qcow2")), &model, "reopened");
    if has_qemu_img() {
        workshop.qemu_img(&["check", "-q", "-f", "qcow2", "disk.qcow2"]);
    }
}

#[test]
fn chains_become_one_image_and_raw_stays_sparse() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    workshop.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    workshop.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "top.qcow2",
    ]);
    convert(&workshop, "top.qcow2", "flat.raw", &ConvertOptions::new(Format::Raw));
    assert!(std::fs::read(workshop.path("flat.raw")).unwrap() == workshop.content);
    let blocks =
        std::os::unix::fs::MetadataExt::blocks(&workshop.path("flat.raw").metadata().unwrap());
    assert!(blocks * 512 < LENGTH as u64);
}

#[test]
fn a_file_that_is_there_is_replaced_only_on_demand_and_only_in_the_end() {
    let workshop = Workshop::new(1 << 20);
    std::fs::write(workshop.path("there.raw"), b"precious").unwrap();
    let source = open(&workshop.path("disk.raw"));
    let mut options = ConvertOptions::new(Format::Raw);
    let target = workshop.path("there.raw");
    assert!(disk::convert(&*source, &target, &options, |_| {}).is_err());
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    options.replace = true;
    // What an earlier conversion that was killed left behind is in nobody's way.
    std::fs::write(workshop.path("there.raw.partial"), b"half").unwrap();
    disk::convert(&*source, &target, &options, |_| {
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    })
    .unwrap();
    assert!(std::fs::read(&target).unwrap() == workshop.content);
    options.image.format = Format::Qed;
    let error = disk::convert(&*source, workshop.path("new.qed"), &options, |_| {}).unwrap_err();
    assert!(error.to_string().contains("cannot be made"));
    assert!(!workshop.path("new.qed").exists());
}
