//! Files that were cut short are told from whole ones.

use std::path::Path;

use disk::{ConvertOptions, Disk, Error, Format, ImageOptions};

use crate::common::{Workshop, assert_holds, chain, has_qemu_img, open, read_only};

const LENGTH: usize = (9 << 20) + 3 * 512;

/// Formats whose tables alone tell.
const TABLES: [&str; 12] = [
    "qcow2",
    "qcow2,compression=zlib",
    "qcow2,cluster-size=4K",
    "qcow2,extended-l2=on",
    "qcow2,preallocation=falloc",
    "vmdk",
    "vmdk,layout=split-sparse",
    "vdi",
    "vdi,layout=fixed",
    "vhd",
    "vhdx,block-size=1M",
    "parallels",
];
/// Those with a footer, or whose length is written down.
const FOOTERS: [&str; 4] =
    ["vmdk,layout=stream", "vmdk,layout=fixed", "vmdk,layout=split-fixed", "vhd,layout=fixed"];

/// Why an image is refused that should be whole.
fn refusal(path: &Path) -> Error {
    let options = ImageOptions { whole: true, ..read_only() };
    let mut error = match disk::open(path, &options) {
        Ok(_) => panic!("{} is taken", path.display()),
        Err(error) => error,
    };
    while let Error::Image { source, .. } = error {
        error = *source;
    }
    error
}

/// Makes an image of the workshop's disk, and tells where it is and which of its files is the longest.
fn image(workshop: &Workshop, way: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = way.parse().unwrap();
    let folder = tempfile::tempdir_in(workshop.folder.path()).unwrap().keep();
    let path = folder.join(format!("disk.{}", options.image.format));
    disk::convert(&*open(&workshop.path("disk.raw")), &path, &options, |_| {}).unwrap();
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let longest = files.max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    (path, longest)
}

/// Cuts a file in half and returns how long it was and is.
fn cut(path: &Path) -> (u64, u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole / 2 + 7).unwrap();
    (whole, whole / 2 + 7)
}

fn reads_all(disk: &dyn Disk) -> bool {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).is_ok()
}

#[test]
fn half_of_an_image_is_refused_with_what_is_missing() {
    let workshop = Workshop::new(LENGTH);
    for way in TABLES {
        let (path, longest) = image(&workshop, way);
        assert_holds(&path, &workshop.content);
        let (was, is) = cut(&longest);
        let error = refusal(&path);
        let Error::CutShort { name, length, missing } = &error else { panic!("{way}: {error}") };
        assert_eq!(Some(name.as_str()), longest.file_name().unwrap().to_str(), "{way}");
        assert_eq!(*length, is, "{way}");
        assert!((is + 1..=was).contains(&(length + missing)), "{way}: {error}");
        // Whoever opens it all the same gets an error and no zeroes.
        let opened = disk::open(&path, &read_only()).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert!(!reads_all(&*opened), "{way}");
    }
}

#[test]
fn half_of_an_image_whose_end_says_what_it_is_is_refused() {
    let workshop = Workshop::new(LENGTH);
    for way in FOOTERS {
        let (path, longest) = image(&workshop, way);
        assert_holds(&path, &workshop.content);
        cut(&longest);
        let text = refusal(&path).to_string();
        assert!(text.contains("missing") || text.contains("too short"), "{way}: {text}");
    }
}

#[test]
fn a_parent_is_looked_at_too() {
    let workshop = Workshop::new(LENGTH);
    let (base, _) = image(&workshop, "qcow2");
    let over = base.with_file_name("over.qcow2");
    let mut options = ConvertOptions::new(Format::Qcow2).image;
    (options.length, options.backing) = (LENGTH as u64, Some(("disk.qcow2".into(), Format::Qcow2)));
    disk::create(&over, &options).unwrap();
    assert_holds(&over, &workshop.content);
    cut(&base);
    assert!(matches!(refusal(&over), Error::CutShort { name, .. } if name == "disk.qcow2"));
}

#[test]
fn clusters_that_are_counted_but_nowhere_used_may_be_missing() {
    let workshop = Workshop::new(LENGTH);
    let (path, _) = image(&workshop, "qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    // What a crash leaves that came after the counts were written: counts of clusters behind the end of the file.
    let at = |offset: usize| u64::from_be_bytes(bytes[offset..offset + 8].try_into().unwrap());
    let block = at(at(48) as usize) as usize;
    let clusters = bytes.len().div_ceil(64 << 10);
    for cluster in clusters..clusters + 5 {
        bytes[block + cluster * 2 + 1] = 1;
    }
    std::fs::write(&path, bytes).unwrap();
    assert_holds(&path, &workshop.content);
}

#[test]
fn images_of_qemu_that_were_cut_short_are_refused() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    let ways: [(&str, &[&str]); 9] = [
        ("qcow2", &[]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-o", "refcount_bits=1"]),
        ("qcow2", &["-o", "refcount_bits=64"]),
        ("vmdk", &[]),
        ("vpc", &[]),
        ("vhdx", &["-o", "block_size=1M"]),
        ("vdi", &[]),
        ("parallels", &["-o", "cluster_size=64k"]),
    ];
    for (index, (format, options)) in ways.iter().enumerate() {
        let name = format!("{index}.{format}");
        workshop
            .qemu_img(&[&["convert", "-O", format][..], options, &["disk.raw", &name]].concat());
        workshop.assert_holds(&name);
        let (_, is) = cut(&workshop.path(&name));
        let error = refusal(&workshop.path(&name));
        assert!(
            matches!(&error, Error::CutShort { length, .. } if *length == is),
            "{format} {options:?}: {error}"
        );
    }
}
