//! ext2, ext3 and ext4, by the crate ext4-view, which replays the journal in memory.

use std::error::Error as StdError;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::volume::{Volume, at, read};
use crate::{Error, Result};

/// Most block groups: 128 TiB of the usual ones.
const MAX_GROUPS: u64 = 1 << 20;

/// An open file system.
pub struct Ext {
    inner: Ext4,
    kind: &'static str,
}

struct Reader(Arc<dyn Volume>);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
    ) -> std::result::Result<(), Box<dyn StdError + Send + Sync>> {
        Ok(self.0.read_at(buffer, offset)?)
    }
}

impl Ext {
    /// Opens the file system on `volume`.
    pub fn open(volume: Arc<dyn Volume>) -> Result<Self> {
        const HAS_JOURNAL: u32 = 4;
        // extents, 64bit, flex_bg
        const OF_EXT4: u32 = 0x40 | 0x80 | 0x200;
        let superblock = read(&*volume, 1024, 1024)?;
        let word = |offset| at::le32(&superblock, offset).unwrap_or(0);
        let kind = match (word(0x60) & OF_EXT4, word(0x5c) & HAS_JOURNAL) {
            (0, 0) => "ext2",
            (0, _) => "ext3",
            _ => "ext4",
        };
        check_sizes(&superblock, volume.len())?;
        let inner = Ext4::load(Box::new(Reader(volume))).map_err(|error| explain("/", error))?;
        Ok(Self { inner, kind })
    }
}

/// The crate reserves memory for every block group that the superblock claims.
fn check_sizes(superblock: &[u8], length: u64) -> Result<()> {
    let word = |offset| at::le32(superblock, offset).unwrap_or(0);
    let damaged = || Error::damaged("ext4 file system", "its sizes contradict its volume's");
    let block = 1024_u64.checked_shl(word(0x18)).filter(|&size| size <= 65536);
    let block = block.ok_or_else(damaged)?;
    // The upper half counts whether or not the file system says that it has one.
    let blocks = u64::from(word(0x4)) | u64::from(word(0x150)) << 32;
    let groups = blocks.saturating_sub(word(0x14).into()).div_ceil(word(0x20).max(1).into());
    // A block group's descriptor has at least 32 bytes, which lie on the volume.
    if groups > MAX_GROUPS || groups.saturating_mul(block.min(32)) > length {
        return Err(damaged());
    }
    Ok(())
}

impl FileSystem for Ext {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn uuid(&self) -> Option<String> {
        Some(self.inner.uuid().to_string())
    }

    fn label(&self) -> Option<String> {
        let label = self.inner.label().display().to_string();
        (!label.is_empty()).then_some(label)
    }

    fn read_dir(&self, path: &str) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.inner.read_dir(path).map_err(|error| explain(path, error))? {
            let entry = entry.map_err(|error| explain(path, error))?;
            let name = entry.file_name();
            if matches!(name.as_ref(), b"." | b"..") {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Err(Error::damaged("ext4 file system", "a folder has no end"));
            }
            let kind = kind_of(entry.file_type().map_err(|error| explain(path, error))?);
            entries.push(Entry { name: String::from_utf8_lossy(name.as_ref()).into(), kind });
        }
        Ok(entries)
    }

    fn metadata(&self, path: &str) -> Result<Metadata> {
        let metadata = self.inner.symlink_metadata(path).map_err(|error| explain(path, error))?;
        Ok(Metadata {
            kind: kind_of(metadata.file_type()),
            length: metadata.len(),
            mode: metadata.mode() & 0o7777,
        })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        if self.metadata(path)?.length > limit {
            return Err(Error::TooLarge { path: path.into(), limit });
        }
        self.inner.read(path).map_err(|error| explain(path, error))
    }

    fn read_link(&self, path: &str) -> Result<String> {
        let target = self.inner.read_link(path).map_err(|error| explain(path, error))?;
        Ok(String::from_utf8_lossy(target.as_ref()).into())
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

fn explain(path: &str, error: Ext4Error) -> Error {
    let kind = |expected| Error::Kind { path: path.into(), expected };
    match error {
        Ext4Error::NotFound => Error::NotFound(path.into()),
        Ext4Error::NotADirectory => kind("a folder"),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => kind("a file"),
        Ext4Error::NotASymlink => kind("a symbolic link"),
        Ext4Error::TooManySymlinks => Error::Links(path.into()),
        Ext4Error::Io(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => Error::damaged("ext4 file system", source.to_string()),
        },
        Ext4Error::Incompatible(why) => Error::unsupported("ext4 file system", why.to_string()),
        other => Error::damaged("ext4 file system", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_groups_than_the_volume_has_room_for_are_refused() {
        let mut superblock = vec![0; 1024];
        superblock[0x4..0x8].copy_from_slice(&8192_u32.to_le_bytes());
        superblock[0x20..0x24].copy_from_slice(&8192_u32.to_le_bytes());
        assert!(check_sizes(&superblock, 8 << 20).is_ok());
        superblock[0x150] = 6;
        assert!(check_sizes(&superblock, 8 << 20).is_err());
    }
}
