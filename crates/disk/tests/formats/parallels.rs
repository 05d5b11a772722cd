//! Bundles of Parallels: folders with a descriptor, parts and snapshots.

use std::path::Path;

use disk::{FilePolicy, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, content, has_qemu_img, open, read_only};

const LENGTH: usize = 4 << 20;
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const NONE: &str = "{00000000-0000-0000-0000-000000000000}";
const FIRST: &str = "{11111111-aaaa-4bbb-8ccc-0123456789AB}";

/// An image of a part: its snapshot, its kind and its file.
type Image<'a> = (&'a str, &'a str, &'a str);

/// Writes a descriptor of parts, each with its length and its images, and of snapshots with their parents.
fn write_descriptor(folder: &Path, parts: &[(usize, &[Image<'_>])], shots: &[(&str, &str)]) {
    let mut start = 0;
    let mut storages = String::new();
    for (length, images) in parts {
        let end = start + length / 512;
        storages +=
            &format!("<Storage><Start>{start}</Start><End>{end}</End><Blocksize>128</Blocksize>");
        for (guid, kind, file) in *images {
            storages += &format!(
                "<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>"
            );
        }
        storages += "</Storage>";
        start = end;
    }
    let shots: String = shots
        .iter()
        .map(|(guid, parent)| {
            format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>")
        })
        .collect();
    let text = format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n\
         <Disk_Parameters><Disk_size>{start}</Disk_size><Padding>0</Padding></Disk_Parameters>\n\
         <StorageData>{storages}</StorageData>\n<Snapshots>{shots}</Snapshots>\n\
         </Parallels_disk_image>\n"
    );
    std::fs::write(folder.join("DiskDescriptor.xml"), text).unwrap();
}

/// A workshop with an empty bundle in it.
fn bundle() -> (Workshop, std::path::PathBuf) {
    let workshop = Workshop::new(LENGTH);
    let folder = workshop.path("disk.hdd");
    std::fs::create_dir(&folder).unwrap();
    (workshop, folder)
}

/// Makes an expanding image of `bytes`.
fn expanding(workshop: &Workshop, bytes: &[u8], name: &str) {
    std::fs::write(workshop.path("part.raw"), bytes).unwrap();
    let mut options = disk::ConvertOptions::new(disk::Format::Parallels);
    options.image.block_size = Some(64 << 10);
    let source = open(&workshop.path("part.raw"));
    disk::convert(&*source, workshop.path("disk.hdd").join(name), &options, |_| {}).unwrap();
}

#[test]
fn an_expanding_bundle_is_read_and_written() {
    let (workshop, folder) = bundle();
    expanding(&workshop, &workshop.content, "disk & 0.hds");
    let images: [Image<'_>; 1] = [(TOP, "Compressed", "disk &amp; 0.hds")];
    write_descriptor(&folder, &[(LENGTH, &images)], &[(TOP, NONE)]);
    for path in [folder.clone(), folder.join("DiskDescriptor.xml")] {
        assert_disk_holds(&*open(&path), &workshop.content, "bundle");
    }
    let mut model = workshop.content.clone();
    model[70_000..900_000].fill(5);
    let disk = disk::open(&folder, &ImageOptions::default()).unwrap();
    disk.write_at(&model[70_000..900_000], 70_000).unwrap();
    drop(disk);
    assert_disk_holds(&*open(&folder), &model, "written");
    if has_qemu_img() {
        workshop.qemu_img(&["check", "-q", "-f", "parallels", "disk.hdd/disk & 0.hds"]);
    }
}

#[test]
fn split_and_plain_bundles_are_read_and_written() {
    let (workshop, folder) = bundle();
    let seam = LENGTH / 4;
    std::fs::write(folder.join("one.hds"), &workshop.content[..seam]).unwrap();
    expanding(&workshop, &workshop.content[seam..], "two.hds");
    let one: [Image<'_>; 1] = [(TOP, "Plain", "one.hds")];
    let two: [Image<'_>; 1] = [(TOP, "Compressed", "two.hds")];
    write_descriptor(&folder, &[(seam, &one), (LENGTH - seam, &two)], &[(TOP, NONE)]);
    let (disk, images) = disk::open_chain(&folder, &ImageOptions::default()).unwrap();
    assert_disk_holds(&*disk, &workshop.content, "split");
    let names = ["DiskDescriptor.xml", "one.hds", "two.hds"];
    let files = names.map(|name| folder.join(name).canonicalize().unwrap());
    assert_eq!(images[0].parts, files[1..]);
    let lengths = files.iter().map(|path| path.metadata().unwrap().len());
    assert_eq!(images[0].file_length, lengths.sum::<u64>());
    // Over the seam, over the end of a part, and into clusters that are not there yet.
    let mut model = workshop.content.clone();
    for (start, end, byte) in [(seam - 70_000, seam + 70_000, 1), (LENGTH - 512, LENGTH, 2)] {
        model[start..end].fill(byte);
        disk.write_at(&model[start..end], start as u64).unwrap();
    }
    model[seam + (1 << 20)..].fill(9);
    disk.write_at(&model[seam + (1 << 20)..], (seam + (1 << 20)) as u64).unwrap();
    disk.write_zeroes(4096..200_000, true).unwrap();
    model[4096..200_000].fill(0);
    disk.flush().unwrap();
    assert_disk_holds(&*disk, &model, "while it is open");
    drop(disk);
    assert_disk_holds(&*open(&folder), &model, "written");
    assert_eq!(std::fs::read(folder.join("one.hds")).unwrap(), model[..seam]);
    if has_qemu_img() {
        workshop.qemu_img(&["check", "-q", "-f", "parallels", "disk.hdd/two.hds"]);
    }
}

#[test]
fn snapshots_lie_over_each_other() {
    let (workshop, folder) = bundle();
    // The first state is plain, the present one changes a part of it.
    let old = content(LENGTH / 2);
    let mut before = old.clone();
    before.resize(LENGTH, 0);
    std::fs::write(folder.join("base.hds"), &before).unwrap();
    let mut change = vec![0; LENGTH];
    change[1 << 20..3 << 20].fill(0xcd);
    expanding(&workshop, &change, "top.hds");
    let images: [Image<'_>; 2] = [(FIRST, "Plain", "base.hds"), (TOP, "Compressed", "top.hds")];
    write_descriptor(&folder, &[(LENGTH, &images)], &[(FIRST, NONE), (TOP, FIRST)]);
    let mut now = before.clone();
    now[1 << 20..3 << 20].fill(0xcd);
    let (disk, infos) = disk::open_chain(&folder, &read_only()).unwrap();
    assert_disk_holds(&*disk, &now, "present");
    let snapshots: Vec<_> = infos[0].snapshots.iter().map(|shot| shot.id.clone()).collect();
    assert_eq!(snapshots, [FIRST.to_ascii_lowercase()]);
    // What lies over a snapshot can be read only.
    assert!(disk::open(&folder, &ImageOptions::default()).unwrap().is_read_only());
    let options = ImageOptions { snapshot: Some(FIRST.to_owned()), ..read_only() };
    assert_disk_holds(&*disk::open(&folder, &options).unwrap(), &before, "snapshot");
}

#[test]
fn what_a_descriptor_may_not_say_is_refused() {
    let (workshop, folder) = bundle();
    let plain: [Image<'_>; 1] = [(TOP, "Plain", "../disk.raw")];
    write_descriptor(&folder, &[(LENGTH, &plain)], &[(TOP, NONE)]);
    // The bundle's own folder is the one that its files must lie in, unless a larger one is allowed.
    let refused = disk::open(folder.join("DiskDescriptor.xml"), &read_only());
    let Err(error) = refused else { panic!("a file outside was opened") };
    assert!(chain(&error).contains("not within the folder"), "{}", chain(&error));
    let files = FilePolicy::Within(workshop.folder.path().to_owned());
    let disk = disk::open(&folder, &ImageOptions { files, ..read_only() }).unwrap();
    assert_disk_holds(&*disk, &workshop.content, "allowed");
    drop(disk);

    let path = folder.join("DiskDescriptor.xml");
    let good = std::fs::read_to_string(&path).unwrap();
    let wrong = [
        (TOP, "{deadbeef-0000-0000-0000-000000000000}", "no snapshot"),
        (NONE, TOP, "back to themselves"),
        ("<Start>0", "<Start>1", "numbers of sectors"),
        ("<Padding>0", "<Padding>1", "padding"),
        ("Plain", "Encrypted", "of type"),
        ("</Storage>", "", "no XML"),
        ("<Disk_size>", "<Disk_size>99999999999999999999", "has"),
    ];
    for (from, to, reason) in wrong {
        let text = match from {
            TOP => good.replace(from, to).replacen(to, TOP, 1),
            _ => good.replace(from, to),
        };
        std::fs::write(&path, text).unwrap();
        let files = FilePolicy::Anywhere;
        let Err(error) = disk::open(&folder, &ImageOptions { files, ..read_only() }) else {
            panic!("{reason}")
        };
        assert!(chain(&error).contains(reason), "{reason}: {}", chain(&error));
    }
}
