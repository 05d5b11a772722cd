//! Comparing, committing and converting, across formats.

use std::fs;
use std::path::Path;
use std::process::Command;

use disk::{ConvertOptions, CreateOptions, Disk, Format, ImageOptions};

const LENGTH: u64 = 5 << 20;

/// Every format and layout that can be made.
const TARGETS: [&str; 15] = [
    "raw",
    "raw,layout=fixed",
    "qcow2",
    "qcow2,extended-l2=on",
    "qcow2,block-size=4K",
    "qcow2,compression=zlib",
    "qcow2,compression=zstd",
    "vmdk",
    "vmdk,layout=stream",
    "vmdk,layout=split-sparse",
    "vhd",
    "vhd,layout=fixed",
    "vhdx",
    "vdi",
    "parallels",
];

fn read_only() -> ImageOptions {
    ImageOptions { read_only: true, ..ImageOptions::default() }
}

/// Data that begin and end anywhere, written zeroes, and holes.
fn source(folder: &Path) -> std::sync::Arc<dyn Disk> {
    let path = folder.join("source.raw");
    let mut bytes = vec![0; LENGTH as usize];
    let mut fill = |start: usize, length: usize| {
        for (index, byte) in bytes[start..start + length].iter_mut().enumerate() {
            *byte = (index % 251) as u8 + 1;
        }
    };
    fill(0, 512);
    fill(70_000, 300_000);
    fill((1 << 20) - 100, 200);
    fill((2 << 20) + 4096, 4096);
    fill(LENGTH as usize - 700, 700);
    fs::write(&path, &bytes).unwrap();
    disk::open(&path, &ImageOptions { format: Some(Format::Raw), ..read_only() }).unwrap()
}

#[test]
fn every_format_holds_what_was_converted() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    for (number, target) in TARGETS.iter().enumerate() {
        let path = folder.path().join(format!("{number}"));
        let mut options = ConvertOptions::new(Format::Raw);
        options.image = target.parse().unwrap();
        let mut last = 0;
        let report = disk::convert(&*source, &path, &options, |done| {
            assert!(done >= last, "progress goes forward");
            last = done;
        });
        let report = report.unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(last, LENGTH, "{target}");
        assert_eq!(report.data + report.zeroes + report.holes, LENGTH, "{target}: {report:?}");
        let made =
            disk::open(&path, &ImageOptions { format: Some(options.image.format), ..read_only() })
                .unwrap();
        let compared = disk::compare(&*source, &*made, |_| {}).unwrap();
        assert_eq!(compared.difference, None, "{target}");
        // And on, from this format to the next.
        let next = TARGETS[(number + 1) % TARGETS.len()];
        let path = folder.path().join(format!("{number}-again"));
        options.image = next.parse().unwrap();
        disk::convert(&*made, &path, &options, |_| {}).unwrap();
        let again =
            disk::open(&path, &ImageOptions { format: Some(options.image.format), ..read_only() })
                .unwrap();
        let compared = disk::compare(&*source, &*again, |_| {}).unwrap();
        assert_eq!(compared.difference, None, "{target} to {next}");
    }
}

#[test]
fn a_comparison_names_the_first_byte_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let path = folder.path().join("copy");
    disk::convert(&*source, &path, &ConvertOptions::new(Format::Qcow2), |_| {}).unwrap();
    let copy = disk::open(&path, &ImageOptions::default()).unwrap();
    let at = (3 << 20) + 12_345;
    copy.write_at(&[7], at).unwrap();
    copy.write_at(&[9], LENGTH - 3).unwrap();
    let compared = disk::compare(&*source, &*copy, |_| {}).unwrap();
    assert_eq!(compared.difference, Some(at));
    assert_eq!(disk::compare(&*copy, &*source, |_| {}).unwrap().difference, Some(at));
}

#[test]
fn a_longer_disk_equals_one_that_ends_before_its_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        disk::open(&path, &ImageOptions { format: Some(Format::Raw), ..read_only() }).unwrap()
    };
    let short = open("short", &[1; 4096]);
    let zeroes = open("zeroes", &[[1; 4096], [0; 4096]].concat());
    let more = open("more", &[[1; 4096], [2; 4096]].concat());
    assert_eq!(disk::compare(&*short, &*zeroes, |_| {}).unwrap().difference, None);
    assert_eq!(disk::compare(&*more, &*short, |_| {}).unwrap().difference, Some(4096));
}

#[test]
fn a_commit_makes_the_parent_read_as_its_child() {
    for parent_format in ["raw", "qcow2"] {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let base = folder.path().join("base");
        let mut options = ConvertOptions::new(Format::Raw);
        options.image = parent_format.parse().unwrap();
        disk::convert(&*source, &base, &options, |_| {}).unwrap();
        let child = folder.path().join("child");
        let mut create = CreateOptions::new(Format::Qcow2, LENGTH);
        create.backing = Some(("base".into(), options.image.format));
        disk::create(&child, &create).unwrap();
        let disk = disk::open(&child, &ImageOptions::default()).unwrap();
        disk.write_at(&[5; 10_000], 100_000).unwrap();
        disk.write_zeroes(0..65_536, true).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let copy = folder.path().join("copy");
        {
            let disk = disk::open(&child, &read_only()).unwrap();
            disk::convert(&*disk, &copy, &ConvertOptions::new(Format::Qcow2), |_| {}).unwrap();
        }
        let done = disk::commit(&child, &ImageOptions::default()).unwrap();
        assert_eq!(fs::canonicalize(done.parent).unwrap(), fs::canonicalize(&base).unwrap());
        let base_options = ImageOptions { format: Some(options.image.format), ..read_only() };
        let base = disk::open(&base, &base_options).unwrap();
        let copy = disk::open(&copy, &read_only()).unwrap();
        assert_eq!(disk::compare(&*base, &*copy, |_| {}).unwrap().difference, None);
    }
}

/// What QEMU says of the longer image: its length, that it holds the same, and that it is in order.
fn assert_qemu_agrees(folder: &Path, path: &Path, format: Format, length: u64) {
    let name = if format == Format::Vhd { "vpc" } else { format.name() };
    let qemu = |arguments: &[&str]| {
        let run = Command::new("qemu-img").args(arguments).arg(path).current_dir(folder).output();
        run.map(|output| (output.status.success(), String::from_utf8(output.stdout).unwrap()))
    };
    let Ok((_, told)) = qemu(&["info", "--output=json", "-f", name]) else {
        eprintln!("skipped: qemu-img is not installed");
        return;
    };
    assert!(told.contains(&format!("\"virtual-size\": {length}")), "{told}");
    let (same, told) = qemu(&["compare", "-f", "raw", "-F", name, "source.raw"]).unwrap();
    assert!(same, "{format}: {told}");
    if !matches!(format, Format::Raw | Format::Vhd) && path.metadata().unwrap().len() > 4096 {
        let (is_in_order, told) = qemu(&["check", "-f", name]).unwrap();
        assert!(is_in_order, "{format}: {told}");
    }
}

#[test]
fn a_longer_disk_has_zeroes_at_its_end_and_its_old_content() {
    // With room for what a longer disk needs, and without.
    let ways = [
        ("raw", 9 << 30),
        ("qcow2", 9 << 30),
        ("qcow2,block-size=4K", 9 << 30),
        ("qcow2,compression=zstd", 9 << 30),
        ("vmdk", 9 << 30),
        ("vmdk", 20 << 20),
        ("vmdk,layout=fixed", 20 << 20),
        ("vhd", 9 << 30),
        ("vhd", 20 << 20),
        ("vhd,layout=fixed", 20 << 20),
        ("vhdx", 9 << 30),
        ("vhdx,block-size=1M", 200 << 30),
        ("vhdx,layout=fixed", 20 << 20),
        ("vdi", 9 << 30),
        ("vdi", 300 << 30),
        ("vdi,layout=fixed", 20 << 20),
        ("parallels", 9 << 30),
        ("parallels,block-size=4K", 20 << 20),
    ];
    for (target, length) in ways {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let path = folder.path().join("image");
        let mut options = ConvertOptions::new(Format::Raw);
        options.image = target.parse().unwrap();
        disk::convert(&*source, &path, &options, |_| {}).unwrap();
        let format = options.image.format;
        let write = ImageOptions { format: Some(format), ..ImageOptions::default() };
        disk::resize(&path, length, &write).unwrap_or_else(|error| panic!("{target}: {error:?}"));
        let longer = disk::open(&path, &write).unwrap();
        assert_eq!(longer.len(), length, "{target}");
        assert_eq!(disk::compare(&*longer, &*source, |_| {}).unwrap().difference, None, "{target}");
        drop(longer);
        assert_qemu_agrees(folder.path(), &path, format, length);
        assert!(disk::check(&path, &write, false).unwrap().is_in_order(), "{target}");
        let longer = disk::open(&path, &write).unwrap();
        longer.write_at(b"end", length - 3).unwrap();
        drop(longer);
        let again = disk::open(&path, &write).unwrap();
        let compared = disk::compare(&*again, &*source, |_| {}).unwrap();
        assert_eq!(compared.difference, Some(length - 3), "{target}");
        drop(again);
        assert!(disk::resize(&path, 512, &write).is_err());
    }
}

#[test]
fn what_cannot_be_made_longer_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let ways = [
        ("vmdk,layout=stream", 1 << 30, "only read"),
        ("vmdk,layout=split-sparse", 3 << 30, "2047 MiB"),
        ("vmdk", 3 << 40, "cannot be so long"),
        ("vhd", 3 << 40, "2040 GiB"),
        ("vhdx", 65 << 40, "cannot have"),
        ("vdi", 65 << 40, "larger blocks"),
        ("parallels", 3 << 40, "2 TiB"),
    ];
    for (number, (target, length, reason)) in ways.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}"));
        let mut options = ConvertOptions::new(Format::Raw);
        options.image = target.parse().unwrap();
        disk::convert(&*source, &path, &options, |_| {}).unwrap();
        let before = fs::read(&path).unwrap();
        let error = disk::resize(&path, length, &ImageOptions::default()).unwrap_err();
        let told = format!("{error:?}");
        assert!(told.contains(reason), "{target}: {told}");
        let disk = disk::open(&path, &read_only()).unwrap();
        assert_eq!(disk::compare(&*disk, &*source, |_| {}).unwrap().difference, None, "{target}");
        assert!(fs::read(&path).unwrap() == before, "{target} was changed");
    }
}

#[test]
fn a_longer_overlay_does_not_show_what_its_parent_has_there() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base"), vec![7; 1 << 20]).unwrap();
    let path = folder.path().join("child");
    let mut create = CreateOptions::new(Format::Qcow2, 128 << 10);
    create.backing = Some(("base".into(), Format::Raw));
    disk::create(&path, &create).unwrap();
    disk::resize(&path, 2 << 20, &ImageOptions::default()).unwrap();
    let disk = disk::open(&path, &ImageOptions::default()).unwrap();
    let mut bytes = vec![1; 2 << 20];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..128 << 10] == [7; 128 << 10] && bytes[128 << 10..].iter().all(|b| *b == 0));
}

#[test]
fn only_an_image_with_a_parent_can_be_committed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    disk::create(&path, &CreateOptions::new(Format::Qcow2, LENGTH)).unwrap();
    let error = disk::commit(&path, &ImageOptions::default()).unwrap_err();
    assert!(error.to_string().contains("has no parent"), "{error}");
}

#[test]
fn reading_all_finds_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let path = folder.path().join("packed");
    let mut options = ConvertOptions::new(Format::Qcow2);
    options.image.compression = Some(disk::Compression::Zstd);
    disk::convert(&*source, &path, &options, |_| {}).unwrap();
    let read = |path: &Path| disk::read_all(&*disk::open(path, &read_only()).unwrap(), |_| {});
    assert!(read(&path).unwrap() > 300_000);
    let mut bytes = fs::read(&path).unwrap();
    // Every Zstandard frame begins with this number.
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let at = bytes.windows(4).rposition(|window| window == magic).unwrap();
    bytes[at + 4..at + 16].fill(0xff);
    fs::write(&path, bytes).unwrap();
    assert!(read(&path).is_err());
}
