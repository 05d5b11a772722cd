//! Our images, before and after they are written in place, read by other people's readers.

use std::io::Read;
use std::path::Path;

use disk::{ConvertOptions, Format, ImageOptions};
use imago::file::File;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate};

use crate::common::{Workshop, assert_holds, open};

const LENGTH: usize = (4 << 20) + 512;

/// Makes an image of each kind, writes into it where it can be, and compares what the reader says.
fn check(ways: &[&str], ending: &str, read: impl Fn(&Path) -> Vec<u8>) {
    let workshop = Workshop::new(LENGTH);
    let source = open(&workshop.path("disk.raw"));
    for (index, text) in ways.iter().enumerate() {
        let path = workshop.path(&format!("{index}.{ending}"));
        let mut options = ConvertOptions::new(Format::Raw);
        options.image = text.parse().unwrap();
        disk::convert(&*source, &path, &options, |_| {}).unwrap();
        assert!(read(&path) == workshop.content, "{text}");
        let disk = disk::open(&path, &ImageOptions::default()).unwrap();
        if disk.is_read_only() {
            continue;
        }
        let mut model = workshop.content.clone();
        for (start, end, value) in [(700, 90_000, 1), (1_500_000, 3_000_000, 2)] {
            model[start..end].fill(value);
            disk.write_at(&model[start..end], start as u64).unwrap();
        }
        disk.flush().unwrap();
        drop(disk);
        assert!(read(&path) == model, "{text}, written");
    }
}

#[test]
fn our_vmdk_is_read_by_vmdk_core() {
    let ways = ["vmdk", "vmdk,layout=stream", "vmdk,layout=fixed", "vmdk,layout=split-sparse"];
    check(&ways, "vmdk", |path| {
        let mut bytes = Vec::new();
        vmdk::VmdkFileReader::open_path(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    });
}

#[test]
fn our_vhdx_is_read_by_vhdx_core() {
    check(&["vhdx", "vhdx,block-size=1M", "vhdx,layout=fixed"], "vhdx", |path| {
        let mut bytes = Vec::new();
        vhdx::VhdxReader::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    });
}

/// The image as imago opens it, with its parents and its external data.
fn imago_qcow2(path: &Path, write: bool) -> FormatAccess<File> {
    let image = Qcow2::<File>::builder_path(path).write(write);
    FormatAccess::new(image.open(PermissiveImplicitOpenGate::default()).unwrap())
}

fn read_all(disk: &FormatAccess<File>) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn our_qcow2_is_read_by_imago() {
    let ways = [
        "qcow2",
        "qcow2,cluster-size=4k",
        "qcow2,cluster-size=2M",
        "qcow2,compression=zlib",
        "qcow2,preallocation=metadata",
        "qcow2,data-file=guest.data",
    ];
    check(&ways, "qcow2", |path| read_all(&imago_qcow2(path, false)));
}

#[test]
fn our_flat_vmdk_is_read_by_imago() {
    check(&["vmdk,layout=fixed", "vmdk,layout=split-fixed"], "vmdk", |path| {
        let image = imago::vmdk::Vmdk::<File>::builder_path(path);
        read_all(&FormatAccess::new(image.open(PermissiveImplicitOpenGate::default()).unwrap()))
    });
}

#[test]
fn qcow2_of_imago_is_read_and_written_and_it_reads_that() {
    let workshop = Workshop::new(LENGTH);
    for (index, (cluster, width)) in [(65536, 16), (512, 1), (2 << 20, 64)].into_iter().enumerate()
    {
        let path = workshop.path(&format!("{index}.qcow2"));
        let file = File::try_from(
            std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap(),
        );
        let new = Qcow2CreateBuilder::<File>::new(file.unwrap()).size(LENGTH as u64);
        new.cluster_size(cluster).refcount_width(width).create().unwrap();
        let theirs = imago_qcow2(&path, true);
        theirs.write(&workshop.content, 0).unwrap();
        theirs.write_zeroes(1 << 20, 200_704).unwrap();
        theirs.flush().unwrap();
        drop(theirs);
        let mut model = workshop.content.clone();
        model[1 << 20..(1 << 20) + 200_704].fill(0);
        assert_holds(&path, &model);

        model[5000..2_000_000].fill(9);
        let ours = disk::open(&path, &ImageOptions::default()).unwrap();
        ours.write_at(&model[5000..2_000_000], 5000).unwrap();
        ours.discard(3 << 20..LENGTH as u64).unwrap();
        ours.write_zeroes(3 << 20..LENGTH as u64, true).unwrap();
        drop(ours);
        model[3 << 20..].fill(0);
        assert!(read_all(&imago_qcow2(&path, false)) == model, "clusters of {cluster}");
        assert!(disk::check(&path, &ImageOptions::default(), false).unwrap().is_in_order());
    }
}
