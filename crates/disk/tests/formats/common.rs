//! Content to compare, and `qemu-img`, which tests are skipped without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk::{Content, Disk, Extents, ImageOptions};

/// What a disk may hold: zeroes, text, bytes that cannot be compressed, in pieces of odd sizes.
pub fn content(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut at = 0;
    while at < length {
        let size = ((random() % 300_000) as usize + 1).min(length - at);
        let piece = &mut bytes[at..at + size];
        match random() % 4 {
            0 => piece.chunks_mut(8).for_each(|part| {
                let value = random().to_le_bytes();
                part.copy_from_slice(&value[..part.len()]);
            }),
            1 => {
                let words = b"The quick brown fox jumps over the lazy dog. ";
                piece.iter_mut().zip(words.iter().cycle()).for_each(|(to, from)| *to = *from);
            }
            _ => {}
        }
        at += size;
    }
    // The end of a disk is where formats go wrong.
    bytes[length - 512..].fill(0xe5);
    bytes
}

/// A folder with `disk.raw` in it.
pub struct Workshop {
    pub folder: tempfile::TempDir,
    pub content: Vec<u8>,
}

impl Workshop {
    pub fn new(length: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content = content(length);
        std::fs::write(folder.path().join("disk.raw"), &content).unwrap();
        Self { folder, content }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `qemu-img` in the folder.
    pub fn qemu_img(&self, arguments: &[&str]) {
        let output = qemu_img().args(arguments).current_dir(self.folder.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {arguments:?}: {error}");
    }

    pub fn assert_holds(&self, name: &str) {
        assert_holds(&self.path(name), &self.content);
    }
}

fn qemu_img() -> Command {
    Command::new(std::env::var_os("QEMU_IMG").unwrap_or("qemu-img".into()))
}

/// Whether `qemu-img` is there; says so if not.
pub fn has_qemu_img() -> bool {
    let found = qemu_img().arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

pub fn read_only() -> ImageOptions {
    ImageOptions { read_only: true, ..ImageOptions::default() }
}

pub fn open(path: &Path) -> Arc<dyn Disk> {
    let options = ImageOptions { whole: true, ..read_only() };
    disk::open(path, &options).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The image holds this and zeroes after it, read in pieces of several sizes, and its map agrees.
pub fn assert_holds(path: &Path, expected: &[u8]) {
    assert_disk_holds(&*open(path), expected, &path.display().to_string());
}

pub fn assert_disk_holds(disk: &dyn Disk, expected: &[u8], name: &str) {
    assert!(disk.len() >= expected.len() as u64, "{name}: {} bytes", disk.len());
    assert!(disk.len() < expected.len() as u64 + (1 << 20), "{name}: {} bytes", disk.len());
    let mut expected = expected.to_vec();
    expected.resize(disk.len() as usize, 0);
    for size in [1 << 20, 4096, 123_457] {
        for (index, wanted) in expected.chunks(size).enumerate() {
            let mut found = vec![0xaa; wanted.len()];
            disk.read_at(&mut found, (index * size) as u64)
                .unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
            assert!(found == wanted, "{name}: bytes from {} in pieces of {size}", index * size);
        }
    }
    let mut position = 0;
    for extent in Extents::new(disk, 0..disk.len()) {
        let extent = extent.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(extent.range.start, position, "{name}");
        position = extent.range.end;
        let wanted = &expected[extent.range.start as usize..extent.range.end as usize];
        match extent.content {
            Content::Zero | Content::Hole => {
                assert!(wanted.iter().all(|&byte| byte == 0), "{name}: {:?}", extent.range);
            }
            Content::Data(Some(location)) => {
                let mut found = vec![0; wanted.len()];
                let mut done = 0;
                while done < found.len() {
                    let at = location.offset + done as u64;
                    let count = rustix::io::pread(location.file, &mut found[done..], at).unwrap();
                    assert!(count > 0, "{name}: {:?}", extent.range);
                    done += count;
                }
                assert!(
                    found == wanted,
                    "{name}: {:?} is not at {}",
                    extent.range,
                    location.offset
                );
            }
            Content::Data(None) => {}
        }
    }
    assert_eq!(position, disk.len(), "{name}");
}
