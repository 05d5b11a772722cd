//! The images that are tried.

use std::sync::Arc;

use super::folder::{Files, Folder};
use super::{LENGTH, SECTOR};
use crate::{CreateOptions, Disk, Format};

/// Where the disks of several files have their seam.
const SEAM: u64 = 1 << 20;

/// A new image: its options, or what is no image that can be made at once.
pub(crate) fn image(text: &str) -> (Format, Files) {
    match text {
        "vmdk of two extents" => (Format::Vmdk, vmdk_of_two_extents()),
        "parallels of two parts" => (Format::Parallels, parallels_of_two_parts()),
        "vhd of single sectors" => (Format::Vhd, vhd_of_single_sectors()),
        _ => created(text, LENGTH),
    }
}

/// Bytes that are nowhere zero, in a disk that is shorter than its child.
pub(crate) fn parent() -> (Arc<dyn Disk>, Vec<u8>) {
    let mut bytes: Vec<u8> =
        (0..LENGTH / 4 * 3 / 512 * 512).map(|at| (at / 512 % 255) as u8 + 1).collect();
    let (format, files) = created("vmdk", LENGTH);
    let disk = Folder::new(&files).open(format, None).unwrap();
    disk.write_at(&bytes, 0).unwrap();
    bytes.resize(LENGTH as usize, 0);
    (Arc::new(disk), bytes)
}

pub(crate) fn created(text: &str, length: u64) -> (Format, Files) {
    let folder = tempfile::tempdir().unwrap();
    let mut options: CreateOptions = text.parse().unwrap();
    options.length = length;
    crate::create(folder.path().join("image"), &options).unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_by_key(|name| name != "image");
    let read = |name: String| {
        let bytes = std::fs::read(folder.path().join(&name)).unwrap();
        (name, bytes)
    };
    (options.format, names.into_iter().map(read).collect())
}

/// A sparse and a flat one.
fn vmdk_of_two_extents() -> Files {
    let (_, mut files) = created("vmdk,layout=split-sparse", SEAM);
    let (sparse, flat) = (SEAM / 512, (LENGTH - SEAM) / 512);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"custom of a test\"\nRW {sparse} SPARSE \"{}\"\nRW {flat} FLAT \"flat\" 0\n",
        files[1].0
    );
    files[0].1 = text.into_bytes();
    files.push(("flat".to_owned(), vec![0; (LENGTH - SEAM) as usize]));
    files
}

/// A plain and an expanding one.
fn parallels_of_two_parts() -> Files {
    const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
    let (seam, end) = (SEAM / 512, LENGTH / 512);
    let storage = |start: u64, end: u64, kind: &str| {
        format!(
            "<Storage><Start>{start}</Start><End>{end}</End><Image><GUID>{TOP}</GUID>\
             <Type>{kind}</Type><File>{kind}</File></Image></Storage>"
        )
    };
    let text = format!(
        "<Parallels_disk_image><Disk_Parameters><Disk_size>{end}</Disk_size></Disk_Parameters>\
         <StorageData>{}{}</StorageData><Snapshots><Shot><GUID>{TOP}</GUID>\
         <ParentGUID>{{00000000-0000-0000-0000-000000000000}}</ParentGUID></Shot></Snapshots>\
         </Parallels_disk_image>",
        storage(0, seam, "Plain"),
        storage(seam, end, "Compressed")
    );
    let (_, mut files) = created("parallels,block-size=64k", LENGTH - SEAM);
    files[0].0 = "Compressed".to_owned();
    files.insert(0, ("DiskDescriptor.xml".to_owned(), text.into_bytes()));
    files.push(("Plain".to_owned(), vec![0; SEAM as usize]));
    files
}

/// Of two blocks it has some sectors only, as Windows writes them: the others are the parent's.
fn vhd_of_single_sectors() -> Files {
    const TABLE: usize = 1536;
    let (format, files) = created("vhd,block-size=512k", LENGTH);
    let folder = Folder::new(&files);
    let disk = folder.open(format, None).unwrap();
    disk.write_at(&vec![0xab; 1 << 20], 0).unwrap();
    drop(disk);
    let mut files = folder.files();
    let bytes = &mut files[0].1;
    for block in 0..2 {
        let entry = TABLE + block * 4;
        let sector = u32::from_be_bytes(bytes[entry..entry + 4].try_into().unwrap());
        let bitmap = sector as usize * SECTOR;
        bytes[bitmap..bitmap + 128].fill(0b1101_1001);
    }
    files
}
