//! Our images, before and after they are written in place, read by other people's readers.

use std::io::Read;
use std::path::Path;

use disk::{ConvertOptions, Format, ImageOptions};

use crate::common::{Workshop, open};

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
