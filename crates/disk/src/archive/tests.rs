use std::fs;
use std::process::Command;

use super::*;
use crate::{
    ConvertOptions, CreateOptions, ImageOptions, MemorySource, compare, convert, create, open,
    open_chain,
};

fn tar(folder: &Path, options: &[&str], names: &[&str]) -> PathBuf {
    let path = folder.join("archive.tar");
    let done = Command::new("tar")
        .current_dir(folder)
        .args(options)
        .args(["-cf", "archive.tar"])
        .args(names)
        .status();
    assert!(done.unwrap().success());
    path
}

fn raw(path: &Path) -> Arc<dyn Disk> {
    let options =
        ImageOptions { read_only: true, format: Some(Format::Raw), ..ImageOptions::default() };
    open(path, &options).unwrap()
}

/// A folder with a raw disk of 3 MiB.
fn folder() -> (tempfile::TempDir, Arc<dyn Disk>) {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3_u32 << 18).flat_map(|n| (n / 7 % 1000).to_le_bytes()).collect();
    fs::write(folder.path().join("disk.raw"), bytes).unwrap();
    let disk = raw(&folder.path().join("disk.raw"));
    (folder, disk)
}

fn to(format: &str) -> ConvertOptions {
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = format.parse().unwrap();
    options
}

#[test]
fn the_disk_of_an_ova_is_read_inside_of_it() {
    let (folder, disk) = folder();
    let image = folder.path().join("web-disk1.vmdk");
    convert(&*disk, &image, &to("vmdk,layout=stream"), |_| {}).unwrap();
    fs::write(folder.path().join("web.ovf"), "<Envelope/>").unwrap();
    for format in ["--format=ustar", "--format=gnu", "--format=pax"] {
        let archive = tar(folder.path(), &[format], &["web.ovf", "web-disk1.vmdk"]);
        for path in [archive.clone(), archive.join("web-disk1.vmdk")] {
            let (found, chain) = open_chain(&path, &ImageOptions::default()).unwrap();
            assert_eq!(compare(&*found, &*disk, |_| {}).unwrap().difference, None, "{format}");
            assert_eq!(chain[0].path, archive.join("web-disk1.vmdk"));
            assert!(found.is_read_only());
        }
        let error = open(archive.join("other.vmdk"), &ImageOptions::default()).err().unwrap();
        assert!(error.to_string().contains("holds no other.vmdk"), "{error}");
    }
}

#[test]
fn an_overlay_lies_over_a_disk_in_an_archive() {
    let (folder, disk) = folder();
    convert(&*disk, folder.path().join("a.vmdk"), &to("vmdk,layout=stream"), |_| {}).unwrap();
    let archive = tar(folder.path(), &["--format=ustar"], &["a.vmdk"]);
    let overlay = folder.path().join("overlay.qcow2");
    let mut options = CreateOptions::new(Format::Qcow2, disk.len());
    options.backing = Some(("archive.tar/a.vmdk".into(), Format::Vmdk));
    create(&overlay, &options).unwrap();
    let (found, chain) = open_chain(&overlay, &ImageOptions::default()).unwrap();
    assert_eq!(compare(&*found, &*disk, |_| {}).unwrap().difference, None);
    assert_eq!(chain[1].path, fs::canonicalize(archive).unwrap().join("a.vmdk"));
    // One in another folder is as far away as any other file there.
    let below = folder.path().join("below");
    fs::create_dir(&below).unwrap();
    options.backing = Some(("../archive.tar/a.vmdk".into(), Format::Vmdk));
    create(below.join("overlay.qcow2"), &options).unwrap();
    let error = open(below.join("overlay.qcow2"), &ImageOptions::default()).err().unwrap();
    let Error::Image { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::OutsideFolder { .. }), "{error}");
}

#[test]
fn of_several_disks_one_must_be_named() {
    let (folder, disk) = folder();
    let long = format!("{}/two.vhdx", "folder-with-a-long-name-".repeat(6));
    fs::create_dir(folder.path().join(&long).parent().unwrap()).unwrap();
    convert(&*disk, folder.path().join("one.qcow2"), &to("qcow2"), |_| {}).unwrap();
    convert(&*disk, folder.path().join(&long), &to("vhdx"), |_| {}).unwrap();
    let archive = tar(folder.path(), &["--format=pax"], &["one.qcow2", &long]);
    let error = open(&archive, &ImageOptions::default()).err().unwrap();
    assert!(error.to_string().contains("several disks, one.qcow2, folder"), "{error}");
    let found = open(archive.join(&long), &ImageOptions::default()).unwrap();
    assert_eq!(compare(&*found, &*disk, |_| {}).unwrap().difference, None);
}

#[test]
fn the_blocks_of_an_xva_are_one_disk() {
    let (folder, _) = folder();
    let blocks = folder.path().join("Ref:7");
    fs::create_dir(&blocks).unwrap();
    fs::write(blocks.join("00000000"), vec![1; BLOCK_LENGTH]).unwrap();
    // What sha1sum says of it.
    let digest = "59ddaa012ec56072188f4915d4d9f6b33524b317";
    fs::write(blocks.join("00000000.checksum"), digest).unwrap();
    fs::write(blocks.join("00000003"), vec![4; BLOCK_LENGTH]).unwrap();
    fs::write(blocks.join("00000004"), vec![5; 4096]).unwrap();
    fs::write(folder.path().join("ova.xml"), "<value/>").unwrap();
    let archive = tar(folder.path(), &[], &["ova.xml", "Ref:7"]);
    for path in [archive.clone(), archive.join("Ref:7")] {
        let disk = open(path, &ImageOptions::default()).unwrap();
        assert_eq!(disk.len(), 4 * BLOCK_LENGTH as u64 + 4096);
        let mut bytes = vec![9; disk.len() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        let expected = [1, 0, 0, 4].map(|byte| vec![byte; BLOCK_LENGTH]).concat();
        assert!(bytes[..4 * BLOCK_LENGTH] == expected && bytes[4 * BLOCK_LENGTH..] == [5; 4096]);
    }
}

const BLOCK_LENGTH: usize = blocks::BLOCK as usize;

fn header(name: &str, kind: u8, size: usize, magic: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[156] = kind;
    header[257..257 + magic.len()].copy_from_slice(magic);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[test]
fn what_extensions_say_is_of_the_next_member_and_links_and_folders_have_no_bytes() {
    let ustar = |name, kind, size| header(name, kind, size, b"ustar\0");
    let block = |text: &[u8]| [text, &vec![0; 512 - text.len()]].concat();
    let bytes = [
        header("of 1979", 0, 3, b""),
        block(b"abc"),
        ustar("./folder", b'5', 4096),
        ustar("link", b'1', 3),
        ustar("long", b'L', 5),
        block(b"name\0"),
        ustar("pax", b'x', 11),
        block(b"11 size=512"),
        ustar("all", b'g', 12),
        block(b"12 size=9999"),
        ustar("n", b'0', 0),
        vec![7; 512],
        ustar("./last", b'7', 1),
        block(b"x"),
    ]
    .concat();
    let found: Vec<_> = Members::of(&MemorySource::read_only(bytes.clone()))
        .map(|member| member.map(|one| (one.name.to_string(), one.header(), one.length, one.kind)))
        .collect::<Result<_>>()
        .unwrap();
    let member = |name: &str, header, length, kind| (name.to_owned(), header, length, kind);
    let expected = [
        member("of 1979", 0, 3, MemberKind::File),
        member("folder", 1024, 0, MemberKind::Folder),
        member("link", 1536, 0, MemberKind::Other),
        member("name", 5120, 512, MemberKind::File),
        member("last", 6144, 1, MemberKind::File),
    ];
    assert_eq!(found, expected);
    for (length, wrong) in [
        (514, "The archive ends at byte 514, within the 3 bytes"),
        (1100, "The archive ends within a header (at offset 1024)"),
    ] {
        let error = members(&MemorySource::read_only(bytes[..length].to_vec())).unwrap_err();
        assert!(error.to_string().starts_with(wrong), "{error}");
    }
}

#[test]
fn archives_that_are_cut_off_or_lie_are_refused_or_end_early() {
    let (folder, _) = folder();
    let archive = tar(folder.path(), &["--format=gnu"], &["disk.raw"]);
    let bytes = fs::read(archive).unwrap();
    let look = |bytes: Vec<u8>| members(&MemorySource::read_only(bytes));
    assert_eq!(look(bytes.clone()).unwrap().unwrap().len(), 1);
    assert!(look(bytes[..1000].to_vec()).is_err(), "the member passes the end");
    assert_eq!(look(bytes[512..2048].to_vec()).unwrap(), None);
    for at in 0..512 {
        let mut changed = bytes[..8192].to_vec();
        changed[at] ^= 0x80;
        // A checksum does not see a change of its own spaces.
        let _ = look(changed);
    }
}

#[test]
fn the_extents_of_a_split_disk_are_found_in_its_archive() {
    let (folder, disk) = folder();
    let vm = folder.path().join("vm");
    fs::create_dir(&vm).unwrap();
    convert(&*disk, vm.join("web.vmdk"), &to("vmdk,layout=split-sparse"), |_| {}).unwrap();
    let archive = tar(folder.path(), &[], &["vm/web.vmdk", "vm/web-s001.vmdk"]);
    let (found, chain) = open_chain(archive.join("vm/web.vmdk"), &ImageOptions::default()).unwrap();
    assert_eq!(compare(&*found, &*disk, |_| {}).unwrap().difference, None);
    assert_eq!(chain[0].format, Format::Vmdk);
    let archive = tar(folder.path(), &[], &["vm/web.vmdk"]);
    let error = open(archive.join("vm/web.vmdk"), &ImageOptions::default()).err().unwrap();
    let Error::Image { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("web-s001.vmdk"), "{source}");
}

#[test]
fn a_source_in_memory_is_opened_by_its_content() {
    let source = Arc::new(MemorySource::read_only(vec![3; 2000]));
    let (disk, info) = open_source(source, None).unwrap();
    assert_eq!((disk.len(), info.format), (1536, Format::Raw));
    let mut bytes = [0; 1536];
    disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [3; 1536]);
}

fn gzip(path: &Path) -> PathBuf {
    let done = Command::new("gzip").arg("-kf").arg(path).status();
    assert!(done.unwrap().success());
    PathBuf::from(format!("{}.gz", path.display()))
}

#[test]
fn what_gzip_compressed_is_read_inside_of_archives_and_alone() {
    let (folder, disk) = folder();
    let here = |name: &str| folder.path().join(name);
    convert(&*disk, here("web.vmdk"), &to("vmdk"), |_| {}).unwrap();
    convert(&*disk, here("web.vhd"), &to("vhd,layout=fixed"), |_| {}).unwrap();
    for name in ["web.vmdk", "web.vhd", "disk.raw"] {
        gzip(&here(name));
    }
    fs::write(here("web.ovf"), "<Envelope/>").unwrap();
    let archive = tar(folder.path(), &[], &["web.ovf", "web.vmdk.gz", "web.vhd.gz", "disk.raw.gz"]);
    let whole = gzip(&archive);
    let is_same = |path: PathBuf, format| {
        let options = ImageOptions { read_only: true, format, ..ImageOptions::default() };
        let (found, chain) =
            open_chain(&path, &options).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(compare(&*found, &*disk, |_| {}).unwrap().difference, None, "{path:?}");
        chain[0].path.clone()
    };
    for archive in [&archive, &whole] {
        // Only VMDK is told by its start.
        assert_eq!(is_same(archive.clone(), None), archive.join("web.vmdk.gz"));
        for name in ["web.vmdk.gz", "web.vmdk.gz/web.vmdk", "web.vhd.gz", "web.vhd.gz/web.vhd"] {
            assert_eq!(is_same(archive.join(name), None), archive.join(name));
        }
        is_same(archive.join("web.vmdk.gz/web.vmdk"), Some(Format::Vmdk));
        is_same(archive.join("web.vmdk.gz"), Some(Format::Vmdk));
        is_same(archive.join("disk.raw.gz/disk.raw"), Some(Format::Raw));
        assert!(open(archive.join("web.vmdk.gz/other"), &ImageOptions::default()).is_err());
    }
    for name in ["web.vmdk", "web.vhd", "disk.raw"] {
        let packed = here(&format!("{name}.gz"));
        assert_eq!(is_same(packed.clone(), None), packed.join(name));
        is_same(packed.join(name), None);
        let error = open(packed.join("other"), &ImageOptions::default()).err().unwrap();
        assert!(error.to_string().contains(&format!("holds {name} alone")), "{error}");
    }
    // A disk that is said to be raw is never unpacked.
    let packed = raw(&here("disk.raw.gz"));
    assert_eq!(packed.len(), fs::metadata(here("disk.raw.gz")).unwrap().len() / 512 * 512);
}
