//! The archive format of an initramfs: "newc" cpio, Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// Longest path the kernel unpacks, PATH_MAX with its NUL.
const MAX_PATH: usize = 4096;
/// Most bytes in one file: the format has 32 bits; the limit is lower so that a mistake does not fill the memory.
const MAX_FILE: usize = 1 << 30;
/// Deepest path.
const MAX_DEPTH: usize = 64;
const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// A tree of files in memory. Written out, equal trees are equal bytes: sorted, owned by root, without times.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// Why an entry cannot be in an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Empty, absolute, with `.` or `..` or a NUL in it, too long or too deep.
    #[error("{0:?} cannot be a path in an initramfs")]
    Path(String),
    /// Something that is not a folder is above it, or something else has its name.
    #[error("{0:?} is in the initramfs already")]
    Exists(String),
    /// Larger than an initramfs can hold.
    #[error("{0:?} is too large for an initramfs")]
    TooLarge(String),
    /// The archive could not be written.
    #[error("The archive could not be written")]
    Io(#[from] io::Error),
}

impl Archive {
    /// Adds a folder and those above it; those that exist keep their mode.
    pub fn folder(&mut self, path: &str) -> Result<(), ArchiveError> {
        self.parents(path)?;
        match self.nodes.get(path) {
            Some(node) if node.mode & S_IFDIR == 0 => Err(ArchiveError::Exists(path.into())),
            Some(_) => Ok(()),
            None => self.insert(path, S_IFDIR | 0o755, (0, 0), Vec::new()),
        }
    }

    /// Adds a file, with the permission bits of `mode`.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        data: impl Into<Vec<u8>>,
    ) -> Result<(), ArchiveError> {
        let data = data.into();
        if data.len() > MAX_FILE {
            return Err(ArchiveError::TooLarge(path.into()));
        }
        self.insert(path, S_IFREG | (mode & 0o7777), (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        if target.is_empty() || target.len() >= MAX_PATH || target.contains('\0') {
            return Err(ArchiveError::Path(target.into()));
        }
        self.insert(path, S_IFLNK | 0o777, (0, 0), target.into())
    }

    /// Adds a character device.
    pub fn char_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), ArchiveError> {
        self.insert(path, S_IFCHR | (mode & 0o7777), (major, minor), Vec::new())
    }

    /// Whether something has that path.
    pub fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Writes the archive, with its trailer.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), ArchiveError> {
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            write_entry(out, index as u32 + 1, path, node)?;
        }
        let trailer = Node { mode: 0, device: (0, 0), data: Vec::new() };
        write_entry(out, 0, TRAILER, &trailer)?;
        Ok(out.flush()?)
    }

    fn insert(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        data: Vec<u8>,
    ) -> Result<(), ArchiveError> {
        self.parents(path)?;
        if self.nodes.contains_key(path) {
            return Err(ArchiveError::Exists(path.into()));
        }
        self.nodes.insert(path.into(), Node { mode, device, data });
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<(), ArchiveError> {
        let bad = path.len() >= MAX_PATH
            || path.contains('\0')
            || path.split('/').count() > MAX_DEPTH
            || path.split('/').any(|part| matches!(part, "" | "." | ".."))
            || path == TRAILER;
        if bad {
            return Err(ArchiveError::Path(path.into()));
        }
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.nodes.get(parent) {
                Some(node) if node.mode & S_IFDIR == 0 => {
                    return Err(ArchiveError::Exists(parent.into()));
                }
                Some(_) => {}
                None => {
                    let node = Node { mode: S_IFDIR | 0o755, device: (0, 0), data: Vec::new() };
                    self.nodes.insert(parent.into(), node);
                }
            }
        }
        Ok(())
    }
}

fn write_entry(out: &mut impl Write, inode: u32, path: &str, node: &Node) -> io::Result<()> {
    let links = if node.mode & S_IFDIR != 0 { 2 } else { 1 };
    let fields = [
        inode,
        node.mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        node.data.len() as u32,
        0, // device of the file itself
        0,
        node.device.0,
        node.device.1,
        path.len() as u32 + 1,
        0, // checksum, which this variant does not have
    ];
    let mut header = String::from(MAGIC);
    for field in fields {
        header.push_str(&format!("{field:08X}"));
    }
    out.write_all(header.as_bytes())?;
    out.write_all(path.as_bytes())?;
    // The name's NUL, and padding so that the data starts at a multiple of four.
    let unpadded = header.len() + path.len() + 1;
    out.write_all(&[0; 4][..1 + unpadded.next_multiple_of(4) - unpadded])?;
    out.write_all(&node.data)?;
    out.write_all(&[0; 3][..node.data.len().next_multiple_of(4) - node.data.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        bytes
    }

    fn example() -> Archive {
        let mut archive = Archive::default();
        archive.file("bin/tool", 0o755, *b"#!/bin/sh\n").unwrap();
        archive.symlink("bin/alias", "tool").unwrap();
        archive.folder("empty").unwrap();
        archive.file("a", 0o600, vec![7; 1001]).unwrap();
        archive
    }

    #[test]
    fn another_program_unpacks_it() {
        let mut archive = example();
        archive.char_device("dev/console", 0o600, 5, 1).unwrap();
        let Ok(mut cpio) = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            eprintln!("skipped: busybox is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&bytes(&archive)).unwrap();
        let output = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<Vec<&str>> =
            output.lines().map(|line| line.split_whitespace().collect()).collect();
        let names: Vec<String> = lines
            .iter()
            .map(|line| {
                format!(
                    "{} {}",
                    line[0],
                    line[line.iter().position(|w| w.contains(':')).unwrap() + 1]
                )
            })
            .collect();
        let expected = [
            "-rw------- a",
            "drwxr-xr-x bin",
            "lrwxrwxrwx bin/alias",
            "-rwxr-xr-x bin/tool",
            "drwxr-xr-x dev",
            "crw------- dev/console",
            "drwxr-xr-x empty",
        ];
        assert_eq!(names, expected, "{output}");
    }

    #[test]
    fn equal_trees_are_equal_bytes() {
        let mut other = Archive::default();
        other.file("a", 0o600, vec![7; 1001]).unwrap();
        other.folder("empty").unwrap();
        other.symlink("bin/alias", "tool").unwrap();
        other.file("bin/tool", 0o755, *b"#!/bin/sh\n").unwrap();
        assert_eq!(bytes(&example()), bytes(&other));
        assert_eq!(bytes(&other).len() % 4, 0);
    }

    #[test]
    fn impossible_paths_are_refused() {
        let mut archive = example();
        for path in [
            "",
            "/etc",
            "a/../b",
            "./a",
            "b/",
            "x\0y",
            "TRAILER!!!",
            &"d/".repeat(100),
            &"x".repeat(5000),
        ] {
            assert!(
                matches!(archive.file(path, 0o644, *b""), Err(ArchiveError::Path(_))),
                "{path:?}"
            );
        }
        for path in ["a", "a/b", "bin", "bin/alias/x"] {
            assert!(
                matches!(archive.file(path, 0o644, *b""), Err(ArchiveError::Exists(_))),
                "{path:?}"
            );
        }
        assert!(archive.folder("bin").is_ok());
        assert!(archive.folder("a").is_err());
        assert!(archive.symlink("new", "").is_err());
    }
}
