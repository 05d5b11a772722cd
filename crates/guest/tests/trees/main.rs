//! File systems made and filled by Linux, and read by us: the same names, sizes, modes, links and bytes. Needs root
//! and loop devices; without them, or without the file system's tools, a test says so and does nothing.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use disk::{Disk, Extents, OpenOptions, RawDisk};
use guest::fs::{Content, FileSystem, Kind};
use guest::volume::{Volume, Whole};
use guest::{Guest, Tree};
use tempfile::TempDir;

/// What a file is: kind, mode, length, and a hash of its content or its target.
type Listing = BTreeMap<String, (char, u32, u64, u64)>;

/// A file system in an image.
struct Image {
    folder: TempDir,
}

/// A mounted image, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, since whatever looks at new mounts may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{program}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(_) => false,
    }
}

impl Image {
    /// An image of `size`, made by this program; `None` if that, or mounting, is not possible here.
    fn new(size: u64, mkfs: &[&str]) -> Option<Self> {
        let image = Self { folder: tempfile::tempdir().unwrap() };
        fs::File::create(image.path()).unwrap().set_len(size).unwrap();
        let path = image.path();
        let path = path.to_str().unwrap();
        if !run(mkfs[0], &[&mkfs[1..], &[path]].concat()) {
            eprintln!("skipped: {} does not run here", mkfs[0]);
            return None;
        }
        if image.mount("").is_none() {
            eprintln!("skipped: loop mounts do not work here");
            return None;
        }
        Some(image)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&self, options: &str) -> Option<Mounted> {
        let point = self.folder.path().join("mounted");
        fs::create_dir_all(&point).unwrap();
        let options = format!("loop{options}");
        let (image, target) = (self.path(), point.to_str()?.to_owned());
        run("mount", &["-o", &options, image.to_str()?, &target]).then(|| Mounted(point))
    }

    /// A copy of the image as it is now.
    fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        assert!(run(
            "cp",
            &[
                "--sparse=always",
                self.path().to_str().unwrap(),
                folder.path().join("image").to_str().unwrap(),
            ]
        ));
        Self { folder }
    }

    fn open(&self) -> std::rc::Rc<dyn FileSystem> {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let disk = RawDisk::open(self.path(), &options).unwrap();
        match guest::fs::open(Arc::new(Whole(Arc::new(disk)))) {
            Content::FileSystem(fs) => fs,
            Content::Other(other) | Content::Part(other) => panic!("{other:?}"),
            Content::Unknown => panic!("nothing was recognised"),
        }
    }

    /// What we read is what Linux reads.
    fn check(&self) {
        let ours = of_guest(&Tree::new(self.open(), "/"));
        let mounted = self.mount(",ro").unwrap();
        let theirs = of_host(&mounted.0);
        for (path, theirs) in &theirs {
            assert_eq!(ours.get(path), Some(theirs), "{path}");
        }
        assert_eq!(ours.len(), theirs.len());
        assert!(theirs.len() > 10, "{theirs:?}");
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn of_host(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let (kind, length, hash) = if metadata.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                ('l', 0, hash(target.to_str().unwrap().as_bytes()))
            } else if metadata.is_dir() {
                folders.push(path.clone());
                ('d', 0, 0)
            } else if metadata.is_file() {
                ('f', metadata.len(), hash(&fs::read(&path).unwrap()))
            } else {
                ('o', 0, 0)
            };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            listing.insert(format!("/{name}"), (kind, metadata.mode() & 0o7777, length, hash));
        }
    }
    listing
}

fn of_guest(tree: &Tree) -> Listing {
    let mut listing = Listing::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in tree.read_dir(&format!("{folder}/")).unwrap() {
            let path = format!("{folder}/{}", entry.name);
            let metadata = tree.link_metadata(&path).unwrap();
            assert!(path.len() < 2000, "{path}");
            assert_eq!(metadata.kind, entry.kind, "{path}");
            let (kind, length, hash) = match metadata.kind {
                Kind::Link => ('l', 0, hash(tree.read_link(&path).unwrap().as_bytes())),
                Kind::Folder => {
                    folders.push(path.clone());
                    ('d', 0, 0)
                }
                Kind::File => ('f', metadata.length, hash(&tree.read(&path, 1 << 30).unwrap())),
                Kind::Other => ('o', 0, 0),
            };
            listing.insert(path, (kind, metadata.mode.into(), length, hash));
        }
    }
    listing
}

/// Bytes that do not repeat soon; half of them can be packed.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|index| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if index / 4096 % 2 == 0 { (index % 17) as u8 } else { (state >> 33) as u8 }
        })
        .collect()
}

/// Everything that files can be, `many` of them in one folder.
fn fill(root: &Path, many: usize) {
    let write = |name: &str, data: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    };
    write("empty", b"");
    write("small", b"small");
    write("etc/os-release", b"ID=test\n");
    write("a block", &bytes(4096, 3));
    write("large", &bytes(3_000_001, 5));
    write("usr/lib/deep/er/and/deeper/file", &bytes(70_000, 7));
    write("\u{fc}ml\u{e4}ut/\u{65e5}\u{672c}", b"names");
    write(&"n".repeat(250), b"long");
    for index in 0..many {
        write(&format!("many/a file with a number {index}"), index.to_string().as_bytes());
    }
    symlink("small", root.join("short link")).unwrap();
    symlink("x/".repeat(400), root.join("long link")).unwrap();
    fs::hard_link(root.join("small"), root.join("hard link")).unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o4751)).unwrap();
    // Holes, and many small extents between them.
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for index in 0..600 {
        sparse.write_all_at(&bytes(4096, index), index * 16384 + 8192).unwrap();
    }
    sparse.set_len(50_000_000).unwrap();
    assert!(run("mkfifo", &[root.join("pipe").to_str().unwrap()]));
    // Set aside and never written.
    run("fallocate", &["-l", "1M", root.join("reserved").to_str().unwrap()]);
    // Gaps in a folder's blocks.
    for index in (0..many).step_by(3) {
        fs::remove_file(root.join(format!("many/a file with a number {index}"))).unwrap();
    }
}

/// What FAT has: names and bytes.
fn fill_plainly(root: &Path) {
    fs::create_dir_all(root.join("folder/Below it")).unwrap();
    fs::write(root.join("SHORT.TXT"), bytes(5000, 3)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("folder/Below it/A rather long name.conf"), bytes(100_000, 5)).unwrap();
    for index in 0..100 {
        fs::write(root.join(format!("folder/file number {index}")), index.to_string()).unwrap();
    }
}

fn check(size: u64, mkfs: &[&str], options: &str, many: usize) {
    let Some(image) = Image::new(size, mkfs) else { return };
    {
        let mounted = image.mount(options).unwrap();
        fill(&mounted.0, many);
    }
    image.check();
}

const MIB: u64 = 1 << 20;

/// A volume some of whose bytes were changed.
struct Damaged {
    inner: Whole,
    changes: Vec<(u64, u8)>,
}

impl Volume for Damaged {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> guest::Result<()> {
        self.inner.read_at(buffer, offset)?;
        for (place, byte) in &self.changes {
            let target = place.checked_sub(offset).and_then(|index| buffer.get_mut(index as usize));
            target.into_iter().for_each(|target| *target = *byte);
        }
        Ok(())
    }
}

/// Reads what can be read.
fn read_anything(volume: Arc<dyn Volume>) {
    let Content::FileSystem(fs) = guest::fs::open(volume) else { return };
    let tree = Tree::new(fs, "/");
    let mut folders = vec![String::new()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in tree.read_dir(&format!("{folder}/")).unwrap_or_default() {
            seen += 1;
            if seen > 200 {
                return;
            }
            let path = format!("{folder}/{}", entry.name);
            let _ = tree.link_metadata(&path);
            let _ = tree.read_link(&path);
            let _ = tree.read(&path, 4 * MIB);
            folders.push(path);
        }
    }
}

#[test]
fn damaged_file_systems_are_errors_at_worst() {
    let kinds: [&[&str]; 3] =
        [&["mkfs.ext4", "-q", "-F"], &["mkfs.xfs", "-q", "-f"], &["mkfs.btrfs", "-q", "-f"]];
    for mkfs in kinds {
        let Some(image) = Image::new(320 * MIB, mkfs) else { continue };
        // With a log that is to be replayed.
        let copy;
        {
            let mounted = image.mount("").unwrap();
            assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
            for index in 0..40 {
                fs::write(mounted.0.join(format!("file {index}")), bytes(index * 300, 3)).unwrap();
            }
            fs::create_dir(mounted.0.join("folder")).unwrap();
            fs::write(mounted.0.join("folder/file"), bytes(200_000, 3)).unwrap();
            change(&mounted.0, 3, 100, true);
            fs::File::open(mounted.0.join("folder/file")).unwrap().sync_all().unwrap();
            copy = image.copy();
        }
        damage(&copy.path(), 60);
    }
}

#[test]
fn damaged_erofs_is_an_error_at_worst() {
    for way in [&["-zlz4", "-Eztailpacking"][..], &["-zlz4hc", "-C16384", "-Efragments"]] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 100);
        let image = folder.path().join("image");
        let (path, source) = (image.to_str().unwrap(), source.to_str().unwrap());
        if !run("mkfs.erofs", &[&["--quiet"], way, &[path, source]].concat()) {
            eprintln!("skipped: mkfs.erofs does not run here");
            return;
        }
        damage(&image, 40);
    }
}

/// Reads an image so many times, each time with other bytes changed.
fn damage(image: &Path, rounds: u32) {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(image, &options).unwrap());
    // Only what was written is worth a change.
    let written: Vec<_> = Extents::new(&*disk, 0..disk.len())
        .map(Result::unwrap)
        .filter(|extent| !matches!(extent.content, disk::Content::Zero | disk::Content::Hole))
        .collect();
    let mut state = std::env::var("SEED").map_or(1_u64, |seed| seed.parse().unwrap());
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (state >> 33) % below.max(1)
    };
    for _ in 0..rounds {
        let mut changes = Vec::new();
        for _ in 0..random(40) + 1 {
            let range = &written[random(written.len() as u64) as usize].range;
            let span = (range.end - range.start).min(64 << 10);
            changes.push((range.start + random(span), random(256) as u8));
        }
        read_anything(Arc::new(Damaged { inner: Whole(Arc::clone(&disk)), changes }));
    }
}

#[test]
fn ext4_is_read_as_linux_reads_it() {
    let mkfs = ["mkfs.ext4", "-q", "-F"];
    check(128 * MIB, &mkfs, "", 3000);
    check(128 * MIB, &[&mkfs[..], &["-b", "1024", "-O", "^has_journal,64bit"]].concat(), "", 100);
    // What is small is in the inodes.
    check(128 * MIB, &[&mkfs[..], &["-I", "512", "-O", "inline_data,ea_inode"]].concat(), "", 20);
    // Descriptors are far apart, and some are where superblocks might be.
    let features = "meta_bg,^resize_inode,bigalloc,mmp,large_dir";
    check(512 * MIB, &[&mkfs[..], &["-b", "1024", "-O", features]].concat(), "", 100);
}

#[test]
fn ext2_and_ext3_are_read_as_linux_reads_them() {
    check(128 * MIB, &["mkfs.ext2", "-q", "-F"], "", 500);
    check(128 * MIB, &["mkfs.ext2", "-q", "-F", "-O", "^filetype,^dir_index"], "", 100);
    check(128 * MIB, &["mkfs.ext3", "-q", "-F", "-b", "1024"], "", 500);
}

/// What a kernel may not mount.
#[test]
fn ext4_is_read_as_mke2fs_fills_it() {
    for options in [["-b", "65536"], ["-O", "casefold,encrypt,verity,quota"]] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 500);
        let image = Image { folder };
        fs::File::create(image.path()).unwrap().set_len(256 * MIB).unwrap();
        let last =
            ["-d", source.to_str().unwrap(), image.path().to_str().unwrap()].map(str::to_owned);
        let last: Vec<&str> = last.iter().map(String::as_str).collect();
        if !run("mkfs.ext4", &[&["-q", "-F"], &options[..], &last].concat()) {
            eprintln!("skipped: mkfs.ext4 does not run here");
            return;
        }
        let mut ours = of_guest(&Tree::new(image.open(), "/"));
        ours.remove("/lost+found");
        assert_eq!(ours, of_host(&source), "{options:?}");
    }
}

#[test]
fn the_journals_of_ext3_and_ext4_are_replayed() {
    let mkfs = ["mkfs.ext4", "-q", "-F"];
    check_replay(64 * MIB, &mkfs, "", 1, false);
    check_replay(64 * MIB, &[&mkfs[..], &["-O", "^metadata_csum,^64bit"]].concat(), "", 2, false);
    // With blocks that look like the journal's own.
    check_replay(128 * MIB, &["mkfs.ext3", "-q", "-F"], ",data=journal", 3, false);
}

#[test]
fn a_journal_that_cannot_be_replayed_is_told() {
    let mkfs = ["mkfs.ext4", "-q", "-F", "-O", "fast_commit"];
    let Some(image) = Image::new(64 * MIB, &mkfs) else { return };
    let mounted = image.mount("").unwrap();
    fs::write(mounted.0.join("file"), b"first").unwrap();
    assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
    fs::File::options()
        .append(true)
        .open(mounted.0.join("file"))
        .unwrap()
        .write_all(b", then")
        .unwrap();
    fs::File::open(mounted.0.join("file")).unwrap().sync_all().unwrap();
    let fs = image.copy().open();
    assert_eq!(Tree::new(fs.clone(), "/").read("/file", 99).unwrap(), b"first");
    assert!(fs.notes()[0].contains("fast commits"), "{:?}", fs.notes());
}

#[test]
fn xfs_of_version_5_is_read_as_linux_reads_it() {
    check(320 * MIB, &["mkfs.xfs", "-q", "-f"], "", 6000);
    check(320 * MIB, &["mkfs.xfs", "-q", "-f", "-n", "size=16384", "-i", "size=1024"], "", 2000);
}

/// Linux may have no version 4 any more: its tools still make one, and fill it.
#[test]
fn xfs_of_version_4_is_read_as_it_was_written() {
    for options in [&["-m", "crc=0"][..], &["-m", "crc=0", "-n", "ftype=0", "-b", "size=1024"]] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("many")).unwrap();
        let mut prototype = String::from("none\n0 0\nd--755 0 0\nmany d--755 0 0\n");
        for (index, name) in (0..700).map(|index| (index, format!("a-file-with-a-number-{index}")))
        {
            let path = source.join("many").join(&name);
            fs::write(&path, bytes(index * 37, 3)).unwrap();
            prototype.push_str(&format!("{name} ---644 0 0 {}\n", path.display()));
        }
        fs::write(source.join("large"), bytes(9_000_000, 5)).unwrap();
        symlink("x/".repeat(400), source.join("long-link")).unwrap();
        symlink("large", source.join("short-link")).unwrap();
        prototype.push_str(&format!(
            "$\nlarge ---644 0 0 {}\nlong-link l--777 0 0 {}\nshort-link l--777 0 0 large\n$\n",
            source.join("large").display(),
            "x/".repeat(400)
        ));
        fs::write(folder.path().join("prototype"), prototype).unwrap();
        let image = Image { folder };
        fs::File::create(image.path()).unwrap().set_len(320 * MIB).unwrap();
        let (prototype, path) = (image.folder.path().join("prototype"), image.path());
        let last = ["-p", prototype.to_str().unwrap(), path.to_str().unwrap()];
        if !run("mkfs.xfs", &[&["-q", "-f"], options, &last].concat()) {
            eprintln!("skipped: mkfs.xfs makes no version 4 here");
            return;
        }
        assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(&source));
    }
}

/// Changes of every kind, many of them to the same files and folders.
fn change(root: &Path, seed: u64, count: usize, fsync: bool) {
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (state >> 33) % below
    };
    for folder in ["x", "y", "x/z"] {
        let _ = fs::create_dir(root.join(folder));
    }
    for index in 0..count {
        let folder = ["", "x", "y", "x/z", "many"][random(5) as usize];
        let at = |number: u64| root.join(folder).join(format!("changed {number}"));
        let path = at(random(25));
        let other =
            root.join(["x", "y"][random(2) as usize]).join(format!("changed {}", random(25)));
        match random(9) {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::rename(&path, &other)),
            2 => drop(fs::hard_link(&path, &other)),
            3 => drop(symlink("where ever", &path)),
            4 => {
                if let Ok(file) = fs::File::options().write(true).open(&path) {
                    file.set_len(random(100_000)).unwrap();
                }
            }
            5 => drop(fs::set_permissions(&path, fs::Permissions::from_mode(0o640))),
            _ => {
                let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
                if let Ok(file) = file {
                    for _ in 0..random(4) + 1 {
                        let data = match random(4) {
                            // The magic number of ext4's journal.
                            0 => [0xc0, 0x3b, 0x39, 0x98].repeat(random(10_000) as usize),
                            _ => bytes(random(40_000) as usize, index as u64),
                        };
                        file.write_all_at(&data, random(75_000) * 4).unwrap();
                    }
                }
            }
        }
        // Some of it in the log, at different times.
        if fsync && random(6) == 0 {
            for path in [&path, &other, &root.join(folder)] {
                if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink()) {
                    fs::File::open(path).unwrap().sync_all().unwrap();
                }
            }
        }
    }
}

/// Changes files, takes a copy as a machine leaves it whose power is lost, and lets Linux replay the log in that.
fn check_replay(size: u64, mkfs: &[&str], options: &str, seed: u64, fsync: bool) {
    let Some(image) = Image::new(size, mkfs) else { return };
    eprintln!("seed {seed}");
    let copy;
    {
        let mounted = image.mount(options).unwrap();
        fill(&mounted.0, 300);
        // What is in its place already.
        assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
        change(&mounted.0, seed, 400, fsync);
        if !fsync {
            assert!(run("sync", &["-f", mounted.0.to_str().unwrap()]));
            fs::File::open(mounted.0.join("small")).unwrap().sync_all().unwrap();
        }
        copy = image.copy();
    }
    let fs = copy.open();
    assert_eq!(fs.notes(), Vec::<String>::new());
    let ours = of_guest(&Tree::new(fs, "/"));
    drop(image);
    drop(copy.mount("").unwrap());
    let again = copy.mount(",ro").unwrap();
    let theirs = of_host(&again.0);
    for (path, theirs) in &theirs {
        assert_eq!(ours.get(path), Some(theirs), "{path}, seed {seed}");
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "{more:?}, seed {seed}");
    assert!(theirs.len() > 200);
}

#[test]
fn the_log_of_xfs_is_replayed() {
    let seeds = std::env::var("SEEDS").map_or(0..2, |seeds| 0..seeds.parse().unwrap());
    for seed in seeds {
        let size: &[&str] = [&[][..], &["-n", "size=8192", "-i", "size=1024"]][seed as usize % 2];
        let options = ["", ",logbsize=256k"][seed as usize % 2];
        check_replay(320 * MIB, &[&["mkfs.xfs", "-q", "-f"], size].concat(), options, seed, false);
    }
}

#[test]
fn btrfs_is_read_as_linux_reads_it() {
    let mkfs = ["mkfs.btrfs", "-q", "-f"];
    check(256 * MIB, &mkfs, "", 3000);
    for packing in ["zlib", "lzo", "zstd:3"] {
        check(256 * MIB, &mkfs, &format!(",compress-force={packing}"), 100);
    }
}

/// An image behind a loop device.
struct Device {
    image: PathBuf,
    path: String,
}

impl Device {
    /// `None` where there are no loop devices.
    fn new(image: PathBuf, size: u64) -> Option<Self> {
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(&image).output().ok()?;
        let path = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
        output.status.success().then_some(Self { image, path })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

#[test]
fn btrfs_on_several_devices_is_read_as_linux_reads_it() {
    // How many, with what, and whether one may be missing.
    let ways: [(usize, &[&str], bool); 4] = [
        (2, &["--data", "raid1", "--metadata", "raid1"], true),
        (4, &["--data", "raid10", "--metadata", "raid1c3"], true),
        (3, &["--data", "raid0", "--metadata", "raid0"], false),
        (3, &["--data", "raid5", "--metadata", "raid6"], false),
    ];
    for (count, way, may_miss) in ways {
        let folder = tempfile::tempdir().unwrap();
        let device = |number| Device::new(folder.path().join(format!("{number}")), 256 * MIB);
        let Some(devices) = (0..count).map(device).collect::<Option<Vec<_>>>() else {
            return eprintln!("skipped: there are no loop devices here");
        };
        let paths: Vec<&str> = devices.iter().map(|device| &*device.path).collect();
        let options: Vec<_> = paths.iter().map(|path| format!("device={path}")).collect();
        let (options, point) = (options.join(","), folder.path().join("mounted"));
        fs::create_dir(&point).unwrap();
        let mounted = run("mkfs.btrfs", &[&["-q", "-f"], way, &paths].concat())
            && run("mount", &["-o", &options, paths[0], point.to_str().unwrap()]);
        if !mounted {
            return eprintln!("skipped: btrfs does not run here");
        }
        let mounted = Mounted(point);
        fill(&mounted.0, 300);
        let expected = of_host(&mounted.0);
        assert!(run("umount", &[mounted.0.to_str().unwrap()]));
        let open = |devices: &[Device]| {
            let options = OpenOptions { read_only: true, ..OpenOptions::default() };
            let disk = |device: &Device| -> Arc<dyn Disk> {
                Arc::new(RawDisk::open(&device.image, &options).unwrap())
            };
            Guest::open(&devices.iter().map(disk).collect::<Vec<_>>())
        };
        let check = |guest: &Guest, name: &str| {
            let report = guest.report();
            let tree = guest.tree().unwrap_or_else(|| panic!("{way:?}: {report:?}"));
            assert_eq!(report.root.as_deref(), Some(name));
            assert!(of_guest(tree) == expected, "{way:?}");
            report.volumes[0].notes.clone()
        };
        assert!(check(&open(&devices), "vda").is_empty());
        let guest = open(&devices[1..]);
        if may_miss {
            assert_eq!(check(&guest, "vda"), [format!("1 of its {count} devices cannot be used")]);
        } else {
            let notes = &guest.report().volumes[0].notes;
            assert!(notes[0].contains("one of its devices is not there"), "{notes:?}");
        }
    }
}

#[test]
fn the_log_of_btrfs_is_replayed() {
    let seeds = std::env::var("SEEDS").map_or(0..2, |seeds| 0..seeds.parse().unwrap());
    for seed in seeds {
        let options = [",commit=300", ",commit=300,compress-force=zstd"][seed as usize % 2];
        check_replay(256 * MIB, &["mkfs.btrfs", "-q", "-f"], options, seed, true);
    }
}

#[test]
fn vfat_is_read_as_it_was_written() {
    for bits in ["12", "16", "32"] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fill_plainly(&source);
        let image = Image { folder };
        let size = if bits == "12" { 8 * MIB } else { 64 * MIB };
        fs::File::create(image.path()).unwrap().set_len(size).unwrap();
        let path = image.path();
        let (path, source_path) = (path.to_str().unwrap(), source.to_str().unwrap());
        let names = ["SHORT.TXT", "empty", "folder"].map(|name| format!("{source_path}/{name}"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let copied = run("mkfs.vfat", &["-F", bits, "-n", "LABEL", path])
            && run("mcopy", &[&["-i", path, "-s"], &names[..], &["::"]].concat());
        if !copied {
            eprintln!("skipped: dosfstools or mtools do not run here");
            return;
        }
        assert_eq!(image.open().label().as_deref(), Some("LABEL"));
        let plain = |listing: Listing| -> Vec<_> {
            listing
                .into_iter()
                .map(|(path, (kind, _, length, hash))| (path, kind, length, hash))
                .collect()
        };
        let tree = Tree::new(image.open(), "/");
        assert_eq!(plain(of_guest(&tree)), plain(of_host(&source)));
        // The same by offset.
        for (path, _) in of_guest(&tree).iter().filter(|(_, (kind, ..))| *kind == 'f') {
            let opened = tree.open(path).unwrap();
            let mut bytes = vec![0; opened.len() as usize];
            opened.read_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, tree.read(path, u64::MAX).unwrap(), "{path}");
        }
    }
}

#[test]
fn squashfs_is_read_as_linux_reads_it() {
    for packing in ["gzip", "xz", "lzo", "lz4", "zstd"] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 1500);
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let options = ["-quiet", "-no-progress", "-comp", packing, "-b", "65536"];
        if !run("mksquashfs", &[&[&*source, path.to_str().unwrap()], &options[..]].concat()) {
            eprintln!("skipped: mksquashfs does not run here or has no {packing}");
            continue;
        }
        // By what was packed: Linux may not know all ways of packing.
        assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(Path::new(&source)));
    }
}

#[test]
fn erofs_is_read_as_it_was_packed() {
    // Debian's mkfs.erofs of today makes the first three; later ones know more.
    let ways: [&[&str]; 8] = [
        &[],
        &["-zlz4"],
        &["-zlz4hc,9", "-C65536", "-Eztailpacking"],
        &["-zlz4", "-Efragments,dedupe", "-C32768"],
        &["-Eforce-inode-extended", "--chunksize=4096"],
        &["-zdeflate"],
        &["-zlzma"],
        &["-zzstd"],
    ];
    let mut made = 0;
    for way in ways {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source, 1500);
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let options = [&["--quiet"], way, &[path.to_str().unwrap(), &source]].concat();
        if !run("mkfs.erofs", &options) {
            eprintln!("skipped: mkfs.erofs does not run here or has no {way:?}");
            continue;
        }
        made += 1;
        let fs = image.open();
        assert_eq!(fs.kind(), "erofs");
        // By what was packed: Linux may not know all ways of packing.
        assert_eq!(of_guest(&Tree::new(fs, "/")), of_host(Path::new(&source)), "{way:?}");
    }
    assert!(made == 0 || made >= 3, "mkfs.erofs made {made} images only");
}

#[test]
fn iso9660_is_read_as_it_was_written() {
    for (program, names) in [("genisoimage", "-R"), ("xorriso", "-R"), ("genisoimage", "-J")] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let is_joliet = names == "-J";
        if is_joliet {
            fill_plainly(&source);
        } else {
            fs::create_dir(&source).unwrap();
            fill(&source, 500);
            // Rock Ridge knows parts of a target, not slashes, and genisoimage cuts long ones off.
            fs::remove_file(source.join("long link")).unwrap();
            symlink(format!("/../{}./end", "part/".repeat(40)), source.join("long")).unwrap();
            fs::create_dir_all(source.join("a/b/c/d/e/f/g/h/i/j/k")).unwrap();
            fs::write(source.join("a/b/c/d/e/f/g/h/i/j/k/deep"), b"deep").unwrap();
            // As files would be that are read from a medium.
            assert!(run("chmod", &["-R", "u+rwX", source.to_str().unwrap()]));
        }
        let image = Image { folder };
        let (path, source) = (image.path(), source.to_str().unwrap().to_owned());
        let mut options =
            vec!["-quiet", names, "-V", "LABEL", "-o", path.to_str().unwrap(), &*source];
        if program == "xorriso" {
            options.splice(0..0, ["-as", "mkisofs"]);
        }
        if !run(program, &options) {
            eprintln!("skipped: {program} does not run here");
            continue;
        }
        let fs = image.open();
        assert_eq!((fs.label().as_deref(), fs.kind()), (Some("LABEL"), "iso9660"));
        let plain = |mut listing: Listing| {
            // What makes up for folders that are too deep, and modes that Joliet does not have.
            listing.remove("/rr_moved");
            listing.values_mut().filter(|_| is_joliet).for_each(|file| file.1 = 0);
            listing
        };
        let (ours, theirs) =
            (plain(of_guest(&Tree::new(fs, "/"))), plain(of_host(Path::new(&source))));
        for (path, theirs) in &theirs {
            assert_eq!(ours.get(path), Some(theirs), "{path} {program} {names}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}

#[test]
fn ntfs_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    if !run("mkntfs", &["-q", "-F", "-L", "Windows", path.to_str().unwrap()]) {
        eprintln!("skipped: mkntfs does not run here");
        return;
    }
    let files = [("small", 300), ("a large file with a long name", 700_000), ("empty", 0)];
    for (name, length) in files {
        let source = folder.path().join(name);
        fs::write(&source, bytes(length, 5)).unwrap();
        let (path, source) = (path.to_str().unwrap(), source.to_str().unwrap());
        assert!(run("ntfscp", &["-q", path, source, name]));
    }
    let fs = Image { folder }.open();
    assert_eq!(fs.label().as_deref(), Some("Windows"));
    let tree = Tree::new(fs, "/");
    for (name, length) in files {
        assert!(tree.read(&format!("/{}", name.to_uppercase()), MIB).unwrap() == bytes(length, 5));
        assert!(tree.names("/").contains(&name.to_owned()));
    }
    assert!(tree.read("/none", MIB).is_err());
}

#[test]
fn the_subvolumes_of_btrfs_are_folders_and_one_is_the_default() {
    let Some(image) = Image::new(256 * MIB, &["mkfs.btrfs", "-q", "-f"]) else { return };
    {
        let mounted = image.mount("").unwrap();
        let at = |name: &str| mounted.0.join(name).to_str().unwrap().to_owned();
        for name in ["@", "@home", "@/.snapshots"] {
            assert!(run("btrfs", &["subvolume", "create", &at(name)]));
        }
        fill(&mounted.0.join("@"), 50);
        fs::create_dir(at("@/.snapshots/1")).unwrap();
        let snapshot = at("@/.snapshots/1/snapshot");
        assert!(run("btrfs", &["subvolume", "snapshot", &at("@"), &snapshot]));
        fs::write(at("@/small"), b"changed since").unwrap();
        assert!(run("btrfs", &["subvolume", "set-default", &snapshot]));
    }
    let fs = image.open();
    assert_eq!(fs.default_folder(), "/@/.snapshots/1/snapshot");
    let tree = Tree::new(fs.clone(), &fs.default_folder());
    assert_eq!(tree.read("/small", 99).unwrap(), b"small");
    let tree = Tree::new(fs, "/@");
    assert_eq!(tree.read("/small", 99).unwrap(), b"changed since");
    let mounted = image.mount(",ro,subvolid=5").unwrap();
    assert_eq!(of_guest(&Tree::new(image.open(), "/")), of_host(&mounted.0));
}
