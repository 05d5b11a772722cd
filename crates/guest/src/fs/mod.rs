//! File systems, read-only.

mod btrfs;
mod erofs;
pub(crate) mod ext;
mod fat;
mod folder;
mod iso9660;
mod ntfs;
mod squashfs;
mod walk;
mod xfs;

use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use crate::Result;
use crate::volume::{Memory, Volume, at, read_up_to};

/// A file system as it would be after its journal was replayed. Nothing is ever written.
///
/// Paths begin with `/`, have no `.`, `..` or empty parts, and only their last part may be a symbolic link, which is
/// not followed: [`Tree`](crate::Tree) does that. A name that is not UTF-8 is listed with replacement characters and
/// cannot be opened.
pub trait FileSystem {
    /// As `mount -t` calls it.
    fn kind(&self) -> &'static str;

    /// What Linux calls UUID.
    fn uuid(&self) -> Option<String>;

    /// What Linux calls LABEL.
    fn label(&self) -> Option<String>;

    /// What is in a folder, without `.` and `..`.
    fn read_dir(&self, path: &str) -> Result<Vec<Entry>>;

    /// What `path` is.
    fn metadata(&self, path: &str) -> Result<Metadata>;

    /// The content of a file of at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>>;

    /// A file as a volume, of which only what is needed is read where that is possible.
    fn open_file(&self, path: &str) -> Result<Arc<dyn Volume>> {
        Ok(Arc::new(Memory(self.read(path, MAX_IN_MEMORY)?)))
    }

    /// Where a symbolic link leads.
    fn read_link(&self, path: &str) -> Result<String>;

    /// The folder that is mounted if nothing else is said; only btrfs has another one than `/`.
    fn default_folder(&self) -> String {
        "/".into()
    }

    /// What should be known about its state.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What it is, without following it.
    pub kind: Kind,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content.
    pub length: u64,
    /// Its permission bits.
    pub mode: u16,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket.
    Other,
}

impl Kind {
    /// By the upper bits of a Unix mode.
    fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Folder,
            0o120_000 => Self::Link,
            _ => Self::Other,
        }
    }
}

/// What a volume holds.
pub enum Content {
    /// A file system that is read.
    FileSystem(Rc<dyn FileSystem>),
    /// A part of a file system that lies on several volumes.
    Part(Recognised),
    /// Something else, by the name that blkid has for it, with why it is not read.
    Other(Recognised),
    /// Nothing that is known.
    Unknown,
}

/// What is recognised and not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recognised {
    /// By the name that blkid has for it.
    pub kind: &'static str,
    /// What Linux calls UUID.
    pub uuid: Option<String>,
    /// What Linux calls LABEL.
    pub label: Option<String>,
    /// Why it is not read.
    pub note: Option<String>,
}

/// Bytes of a volume's start in which file systems have their names.
const START: usize = 0x11000;

/// Most names in one folder.
const MAX_ENTRIES: usize = 1 << 20;

/// Largest file that is read as a whole to be looked into.
const MAX_IN_MEMORY: u64 = 256 << 20;

/// Opens a volume as one kind of file system.
type Opener = fn(Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>>;

/// The file systems that are read, by what [`detect`] calls them.
const OPENERS: [(&str, Opener); 8] = [
    ("ext4", ext::open),
    ("ntfs", |volume| Ok(Rc::new(ntfs::open(volume)?))),
    ("xfs", xfs::open),
    ("btrfs", btrfs::open),
    ("vfat", fat::open),
    ("iso9660", iso9660::open),
    ("squashfs", squashfs::open),
    ("erofs", erofs::open),
];

/// Finds out what is on `volume` and opens it.
pub fn open(volume: Arc<dyn Volume>) -> Content {
    let start = read_up_to(&*volume, 0, START).unwrap_or_default();
    let log = || xfs::is_log(&*volume, None).then_some(XFS_LOG);
    let Some(kind) = detect(&start).or_else(log) else { return Content::Unknown };
    let names = |note| {
        let (uuid, label) = names_of(kind, &start);
        Recognised { kind, uuid, label, note }
    };
    let is_part = match kind {
        "btrfs" => btrfs::devices_of(&start) > 1,
        "xfs" => xfs::has_external_log(&start),
        _ => false,
    };
    if is_part {
        return Content::Part(names(None));
    }
    let opener = OPENERS.iter().find(|(name, _)| *name == kind);
    match opener.map(|(_, open)| open(volume)) {
        Some(Ok(fs)) => Content::FileSystem(fs),
        Some(Err(error)) => Content::Other(names(Some(error_text(&error)))),
        None => Content::Other(names(is_encrypted(kind).then(|| "it is encrypted".into()))),
    }
}

/// Opens the file system that `part` is a [`Content::Part`] of, whose others are among `all`.
pub(crate) fn open_spread(
    part: &Arc<dyn Volume>,
    all: &[Arc<dyn Volume>],
) -> Result<Rc<dyn FileSystem>> {
    match detect(&read_up_to(&**part, 0, START)?) {
        Some("xfs") => xfs::open_spread(part, all),
        _ => btrfs::open_spread(part, all),
    }
}

/// The log of a file system on another volume.
pub(crate) const XFS_LOG: &str = "xfs_external_log";

/// What has this name can only be read with a passphrase or a key.
pub(crate) fn is_encrypted(kind: &str) -> bool {
    matches!(kind, "crypto_LUKS" | "BitLocker")
}

/// Opens a volume as every kind of file system of which that can be tried, whatever its signature.
pub(crate) fn open_as_any(volume: &Arc<dyn Volume>) -> Vec<Rc<dyn FileSystem>> {
    OPENERS.iter().filter_map(|(_, open)| open(Arc::clone(volume)).ok()).collect()
}

/// An error with its causes.
pub(crate) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `BCACHE_MAGIC` and `BCHFS_MAGIC` of Linux.
const BCACHE: [u8; 16] = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81_u128.to_be_bytes();
const BCACHEFS: [u8; 16] = 0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef_u128.to_be_bytes();

/// What begins with these bytes.
fn detect(start: &[u8]) -> Option<&'static str> {
    let has = |offset: usize, magic: &[u8]| {
        start.get(offset..).is_some_and(|bytes| bytes.starts_with(magic))
    };
    Some(if has(0x438, &[0x53, 0xef]) {
        // The journal of another file system has a superblock, too.
        if start.get(0x460).is_some_and(|features| features & 8 != 0) { "jbd" } else { "ext4" }
    } else if has(0, b"XFSB") {
        "xfs"
    } else if has(0x10040, b"_BHRfS_M") {
        "btrfs"
    } else if has(0, b"hsqs") {
        "squashfs"
    } else if has(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
        "erofs"
    } else if has(0x8001, b"CD001") {
        "iso9660"
    } else if has(0, b"LUKS\xba\xbe") {
        "crypto_LUKS"
    } else if has(3, b"-FVE-FS-") {
        "BitLocker"
    } else if has(4086, b"SWAPSPACE2") || has(4086, b"SWAP-SPACE") {
        "swap"
    } else if (0..4)
        .any(|sector| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2 001"))
    {
        "LVM2_member"
    } else if has(0, &0xa92b_4efc_u32.to_le_bytes()) || has(4096, &0xa92b_4efc_u32.to_le_bytes()) {
        "linux_raid_member"
    } else if has(3, b"NTFS    ") {
        "ntfs"
    } else if has(3, b"EXFAT   ") {
        "exfat"
    } else if has(0x10034, b"ReIsEr") {
        "reiserfs"
    } else if has(1024, &[0x10, 0x20, 0xf5, 0xf2]) {
        "f2fs"
    } else if has(0x1018, &BCACHE) {
        "bcache"
    } else if has(0x1018, &BCACHEFS) {
        "bcachefs"
    } else if has(0x8000, b"JFS1") {
        "jfs"
    } else if has(32, b"NXSB") {
        "apfs"
    } else if fat::is_fat(start) {
        "vfat"
    } else {
        return None;
    })
}

/// UUID and label of what is not opened.
fn names_of(kind: &str, start: &[u8]) -> (Option<String>, Option<String>) {
    use crate::volume::{text_of, uuid_of};
    let text = |range: std::ops::Range<usize>| {
        start.get(range).map(text_of).filter(|text| !text.is_empty())
    };
    let uuid = |offset: usize| {
        start
            .get(offset..)?
            .first_chunk()
            .map(uuid_of)
            .filter(|uuid| uuid.contains(|c| c != '0' && c != '-'))
    };
    match kind {
        "ext4" | "jbd" => (uuid(0x468), text(0x478..0x488)),
        "xfs" => (uuid(32), text(108..120)),
        "btrfs" => (uuid(0x10020), text(0x1012b..0x1022b)),
        "reiserfs" => (uuid(0x10054), text(0x10064..0x10074)),
        "f2fs" => (uuid(0x46c), None),
        "bcache" => (uuid(0x1028), None),
        "bcachefs" => (uuid(0x1038), None),
        "swap" => (uuid(0x40c), text(0x41c..0x42c)),
        "crypto_LUKS" if at::be16(start, 6) == Some(2) => (text(168..208), text(24..72)),
        "crypto_LUKS" => (text(168..208), None),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_named_as_blkid_names_it() {
        let magics: [(usize, &[u8], &str); 6] = [
            (0x438, &[0x53, 0xef], "ext4"),
            (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
            (0x1018, &BCACHE, "bcache"),
            (0x1018, &BCACHEFS, "bcachefs"),
            (0x8000, b"JFS1", "jfs"),
            (0x10034, b"ReIsEr2Fs", "reiserfs"),
        ];
        for (place, magic, name) in magics {
            let mut start = vec![0; START];
            start[place..][..magic.len()].copy_from_slice(magic);
            assert_eq!(detect(&start), Some(name));
            // The journal of another file system has the superblock of one.
            start[0x460] = 8;
            let expected = if name == "ext4" { "jbd" } else { name };
            assert_eq!(detect(&start), Some(expected));
        }
    }
}
