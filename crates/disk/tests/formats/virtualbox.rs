//! What VirtualBox writes.

use std::io::Read;
use std::path::{Path, PathBuf};

use disk::{FilePolicy, ImageOptions};

use crate::common::{chain, open, read_only};

/// Unpacks a sample into a folder.
fn unpack(name: &str, target: &Path) -> PathBuf {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/samples/virtualbox")
        .join(format!("{name}.xz"));
    let mut bytes = Vec::new();
    liblzma::read::XzDecoder::new(std::fs::File::open(packed).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::write(target, bytes).unwrap();
    target.to_owned()
}

fn assert_same(disk: &dyn disk::Disk, raw: &[u8], name: &str) {
    assert_eq!(disk.len(), raw.len() as u64, "{name}");
    let mut bytes = vec![0; 1 << 20];
    for (index, wanted) in raw.chunks(bytes.len()).enumerate() {
        let found = &mut bytes[..wanted.len()];
        disk.read_at(found, (index << 20) as u64)
            .unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert!(found == wanted, "{name}: MiB {index}");
    }
}

#[test]
fn every_format_of_virtualbox_holds_the_same_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let raw = std::fs::read(unpack("disk.raw", &path("disk.raw"))).unwrap();
    let samples = [
        ("disk-sparse.vmdk", "vmdk"),
        ("disk-stream.vmdk", "vmdk"),
        ("disk-dyn.vdi", "vdi"),
        ("disk.hdd", "parallels"),
        ("disk.qcow", "qcow"),
        ("disk.qed", "qed"),
        ("disk.vhd", "vhd"),
        ("disk-fixed.vhd", "vhd"),
    ];
    for (name, format) in samples {
        let sample = unpack(name, &path(name));
        let (disk, infos) = disk::open_chain(&sample, &read_only()).unwrap();
        assert_eq!(infos[0].format.name(), format);
        assert_same(&*disk, &raw, name);
    }
}

#[test]
fn parents_of_vdi_are_found_by_their_identifier_within_the_machines_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = open(&unpack("disk-dyn.vdi", &path("vm/base.vdi")));
    let mut raw = vec![0; base.len() as usize];
    base.read_at(&mut raw, 0).unwrap();
    drop(base);
    unpack("snapshot.vdi", &path("vm/Snapshots/one.vdi"));
    let clone = unpack("clone.vdi", &path("vm/Snapshots/two.vdi"));

    let Err(error) = disk::open(&clone, &read_only()) else { panic!("the base was not needed") };
    assert!(chain(&error).contains("was not found"), "{}", chain(&error));
    let files = FilePolicy::Within(path("vm"));
    let (disk, infos) = disk::open_chain(&clone, &ImageOptions { files, ..read_only() }).unwrap();
    assert_same(&*disk, &raw, "clone");
    let names: Vec<_> = infos.iter().map(|info| info.path.file_name().unwrap()).collect();
    assert_eq!(names.last().unwrap().to_str(), Some("base.vdi"));

    // A base that was written to is not what its children were made from.
    drop(disk);
    let base = disk::open(path("vm/base.vdi"), &ImageOptions::default()).unwrap();
    base.write_at(&raw[..512], 0).unwrap();
    drop(base);
    let files = FilePolicy::Within(path("vm"));
    let changed = disk::open(&clone, &ImageOptions { files, ..read_only() });
    let Err(error) = changed else { panic!("its base was written to") };
    assert!(chain(&error).contains("it was written to since"), "{}", chain(&error));
}
