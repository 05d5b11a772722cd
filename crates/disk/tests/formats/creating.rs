//! New images of every format, read by us and by `qemu-img`.

use disk::{ConvertOptions, CreateOptions, Format, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, has_qemu_img, open};

const LENGTH: usize = (9 << 20) + 3 * 512;

/// What the image is like, and its ending.
const WAYS: [(&str, &str); 25] = [
    ("raw", "raw"),
    ("raw,preallocation=falloc", "raw"),
    ("raw,preallocation=full", "raw"),
    ("qcow2,preallocation=metadata", "qcow2"),
    ("qcow2,preallocation=falloc", "qcow2"),
    ("qcow2,preallocation=full", "qcow2"),
    ("qcow2,cluster-size=4k", "qcow2"),
    ("qcow2,extended-l2=on", "qcow2"),
    ("qcow2,data-file=guest.data", "qcow2"),
    ("qcow2,data-file=other.data,preallocation=falloc", "qcow2"),
    ("vmdk", "vmdk"),
    ("vmdk,block-size=16k", "vmdk"),
    ("vmdk,layout=stream", "vmdk"),
    ("vmdk,layout=fixed", "vmdk"),
    ("vmdk,layout=split-sparse", "vmdk"),
    ("vmdk,layout=split-fixed", "vmdk"),
    ("vdi", "vdi"),
    ("vdi,layout=fixed", "vdi"),
    ("vhd", "vhd"),
    ("vhd,block-size=512k", "vhd"),
    ("vhd,layout=fixed", "vhd"),
    ("vhdx", "vhdx"),
    ("vhdx,layout=fixed,block-size=1M", "vhdx"),
    ("parallels", "hds"),
    ("parallels,block-size=64k", "hds"),
];

fn options(text: &str) -> CreateOptions {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// How `qemu-img` calls a format.
fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.name(),
    }
}

/// The content of a new image, by `qemu-img`.
fn read_by_qemu(workshop: &Workshop, format: Format, name: &str) -> Vec<u8> {
    if matches!(format, Format::Qcow2 | Format::Vmdk | Format::Vdi | Format::Vhdx) {
        workshop.qemu_img(&["check", "-q", "-f", qemu_name(format), name]);
    }
    workshop.qemu_img(&["convert", "-f", qemu_name(format), "-O", "raw", name, "back.raw"]);
    std::fs::read(workshop.path("back.raw")).unwrap()
}

#[test]
fn images_of_every_format_are_made_and_hold_the_same_disk() {
    let workshop = Workshop::new(LENGTH);
    let source = open(&workshop.path("disk.raw"));
    for (index, (text, ending)) in WAYS.into_iter().enumerate() {
        eprintln!("{text}");
        let name = format!("{index}.{ending}");
        let mut convert = ConvertOptions::new(Format::Raw);
        convert.image = options(text);
        let format = convert.image.format;
        let report = disk::convert(&*source, workshop.path(&name), &convert, |_| {});
        let report = report.unwrap_or_else(|error| panic!("{text}: {}", chain(&error)));
        assert_eq!(report.data + report.zeroes + report.holes, LENGTH as u64);
        let options = ImageOptions { read_only: true, ..ImageOptions::default() };
        let (disk, infos) = disk::open_chain(workshop.path(&name), &options).unwrap();
        assert_eq!(infos[0].format, format);
        assert_eq!(disk.len(), LENGTH as u64, "{text}");
        assert_disk_holds(&*disk, &workshop.content, text);
        drop(disk);
        if has_qemu_img() {
            let back = read_by_qemu(&workshop, format, &name);
            assert!(back[..LENGTH] == workshop.content, "{text}: qemu-img reads something else");
        }
    }
    let left = std::fs::read_dir(workshop.folder.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.contains("partial")), "{left:?}");
}

#[test]
fn empty_images_of_every_format_are_made() {
    let workshop = Workshop::new(1 << 20);
    for (index, (text, ending)) in WAYS.into_iter().enumerate() {
        let name = format!("{index}.{ending}");
        let mut options = options(text);
        options.length = LENGTH as u64;
        disk::create(workshop.path(&name), &options)
            .unwrap_or_else(|error| panic!("{text}: {}", chain(&error)));
        assert!(disk::create(workshop.path(&name), &options).is_err());
        assert_disk_holds(&*open(&workshop.path(&name)), &vec![0; LENGTH], text);
        if has_qemu_img() {
            let back = read_by_qemu(&workshop, options.format, &name);
            assert!(back.iter().all(|&byte| byte == 0), "{text}");
        }
    }
}

#[test]
fn a_disk_of_several_parts_is_split_where_vmware_splits_it() {
    let workshop = Workshop::new(1 << 20);
    let length = (2_u64 << 30) + (1 << 20);
    let raw = std::fs::File::options().write(true).open(workshop.path("disk.raw")).unwrap();
    raw.set_len(length).unwrap();
    let seam = 2047 << 20;
    for at in [seam - 4096, seam, seam + (1 << 20), length - 512] {
        std::os::unix::fs::FileExt::write_all_at(&raw, &at.to_le_bytes(), at).unwrap();
    }
    drop(raw);
    let source = open(&workshop.path("disk.raw"));
    for (text, letter) in [("vmdk,layout=split-sparse", 's'), ("vmdk,layout=split-fixed", 'f')] {
        let name = format!("{letter}.vmdk");
        let mut convert = ConvertOptions::new(Format::Raw);
        convert.image = options(text);
        disk::convert(&*source, workshop.path(&name), &convert, |_| {}).unwrap();
        for number in 1..=2 {
            assert!(workshop.path(&format!("{letter}-{letter}00{number}.vmdk")).exists());
        }
        let disk = open(&workshop.path(&name));
        assert_eq!(disk.len(), length);
        for at in [seam - 4096, seam, seam + (1 << 20), length - 512] {
            let mut found = [0; 8];
            disk.read_at(&mut found, at).unwrap();
            assert_eq!(u64::from_le_bytes(found), at);
        }
        if has_qemu_img() {
            workshop.qemu_img(&["compare", "-q", "-f", "raw", "-F", "vmdk", "disk.raw", &name]);
        }
        drop(disk);
        for entry in std::fs::read_dir(workshop.folder.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".vmdk") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

#[test]
fn a_streamoptimized_disk_of_any_version_is_read() {
    let workshop = Workshop::new(LENGTH);
    let mut convert = ConvertOptions::new(Format::Vmdk);
    convert.image = options("vmdk,layout=stream");
    let source = open(&workshop.path("disk.raw"));
    disk::convert(&*source, workshop.path("disk.vmdk"), &convert, |_| {}).unwrap();
    let mut bytes = std::fs::read(workshop.path("disk.vmdk")).unwrap();
    for version in 1..=3_u32 {
        // The header, and the footer that counts.
        let headers = bytes.chunks_mut(512).filter(|sector| sector.starts_with(b"KDMV"));
        let count =
            headers.map(|sector| sector[4..8].copy_from_slice(&version.to_le_bytes())).count();
        assert_eq!(count, 2);
        std::fs::write(workshop.path("disk.vmdk"), &bytes).unwrap();
        workshop.assert_holds("disk.vmdk");
    }
}

#[test]
fn what_a_format_cannot_have_is_refused_and_leaves_nothing_behind() {
    let workshop = Workshop::new(1 << 20);
    let wrong = [
        "raw,layout=stream",
        "vmdk,compression=zstd",
        "vmdk,block-size=3000",
        "qcow2,cluster-size=4M",
        "qcow2,extended-l2=on,cluster-size=4k",
        "qcow2,data-file=../escape",
        "qcow2,data-file=a,compression=zlib",
        "qed",
    ];
    for text in wrong {
        let mut options = options(text);
        options.length = 1 << 20;
        assert!(disk::create(workshop.path("new"), &options).is_err(), "{text}");
    }
    for text in ["zip", "qcow2,colour=blue", "qcow2,cluster-size=x", "vmdk,layout", "raw,a=b"] {
        assert!(text.parse::<CreateOptions>().is_err(), "{text}");
    }
    assert_eq!(std::fs::read_dir(workshop.folder.path()).unwrap().count(), 1);
}
