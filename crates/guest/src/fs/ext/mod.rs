//! ext2, ext3 and ext4 (Linux's Documentation/filesystems/ext4). All numbers but the journal's are little-endian.

mod dir;
mod fast_commit;
mod inode;
mod journal;
mod map;
mod superblock;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use self::fast_commit::Changes;
use self::inode::Inode;
use self::superblock::Superblock;
use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Metadata, folder};
use crate::volume::{Volume, read};
use crate::{Error, Result};

/// Bytes of metadata that are kept.
const MAX_CACHED: u64 = 16 << 20;
const ROOT: u32 = 2;

struct Ext {
    volume: Arc<dyn Volume>,
    superblock: Superblock,
    cache: RefCell<HashMap<u64, Rc<Vec<u8>>>>,
    /// What fast commits say.
    changes: Changes,
    notes: Vec<String>,
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    let mut fs = Ext::new(volume)?;
    if fs.superblock.needs_recovery()
        && let Err(error) = fs.recover()
    {
        let why = super::error_text(&error);
        fs.notes
            .push(format!("it was not unmounted, and its journal could not be replayed: {why}"));
    }
    Ok(Rc::new(Walk::new(fs)))
}

/// For fuzzing: the file system on `volume` with `bytes` as its fast commits.
pub fn open_with_fast_commits(volume: Arc<dyn Volume>, bytes: &[u8]) -> Result<Rc<dyn FileSystem>> {
    let mut fs = Ext::new(volume)?;
    fs.changes = fast_commit::replay(&fs, fast_commit::unchecked(bytes))?;
    Ok(Rc::new(Walk::new(fs)))
}

impl Ext {
    fn new(volume: Arc<dyn Volume>) -> Result<Self> {
        let superblock = Superblock::of(&read(&*volume, 1024, 1024)?)?;
        Ok(Self {
            volume,
            superblock,
            cache: RefCell::default(),
            changes: Changes::default(),
            notes: Vec::new(),
        })
    }

    /// Puts what the journal says over it.
    fn recover(&mut self) -> Result<()> {
        if self.superblock.journal_inode == 0 {
            return Err(Error::unsupported("journal", "it is on another device"));
        }
        let replayed = journal::replay(self)?;
        // The superblock may have changed as well.
        *self = Self::new(replayed.volume)?;
        self.changes = fast_commit::replay(self, replayed.fast_commits)?;
        Ok(())
    }

    /// A block of metadata.
    fn block(&self, number: u64) -> Result<Rc<Vec<u8>>> {
        if let Some(known) = self.cache.borrow().get(&number) {
            return Ok(Rc::clone(known));
        }
        let size = self.superblock.block;
        let block = Rc::new(read(&*self.volume, self.place(number)?, size as usize)?);
        let mut cache = self.cache.borrow_mut();
        if cache.len() as u64 >= MAX_CACHED / size {
            cache.clear();
        }
        cache.insert(number, Rc::clone(&block));
        Ok(block)
    }

    /// Where a block lies.
    fn place(&self, block: u64) -> Result<u64> {
        block.checked_mul(self.superblock.block).ok_or_else(|| damaged("the number of a block"))
    }

    /// The first bytes of a file, zeroes where it has holes.
    fn content_of(&self, inode: &Inode, length: u64) -> Result<Vec<u8>> {
        if inode.is_encrypted() {
            return Err(Error::unsupported("file", "it is encrypted"));
        }
        let length = usize::try_from(length).map_err(|_| damaged("a length"))?;
        if inode.is_inline() {
            let mut content =
                inode.inline().ok_or_else(|| damaged("a file in its inode"))?.concat();
            content.resize(length, 0);
            return Ok(content);
        }
        let size = self.superblock.block;
        let mut content = vec![0; length];
        for extent in self.extents(inode, (length as u64).div_ceil(size))? {
            let start = (extent.logical * size) as usize;
            let count = (extent.count * size).min((length - start) as u64) as usize;
            self.volume.read_at(&mut content[start..][..count], self.place(extent.physical)?)?;
        }
        Ok(content)
    }
}

impl Nodes for Ext {
    type Id = u32;

    fn kind(&self) -> &'static str {
        self.superblock.kind()
    }

    fn uuid(&self) -> Option<String> {
        Some(self.superblock.uuid.clone())
    }

    fn label(&self) -> Option<String> {
        Some(self.superblock.label.clone())
    }

    fn root(&self) -> u32 {
        ROOT
    }

    fn child(&self, folder: &u32, name: &str) -> Result<Option<u32>> {
        folder::child(name, |visit| self.each_entry(*folder, visit))
    }

    fn list(&self, folder: &u32) -> Result<Vec<Entry>> {
        let kind_of = |inode| Ok(self.inode(inode)?.kind());
        folder::list(kind_of, |visit| self.each_entry(*folder, visit))
    }

    fn stat(&self, file: &u32) -> Result<Metadata> {
        let inode = self.inode(*file)?;
        Ok(Metadata { kind: inode.kind(), length: inode.size, mode: inode.mode & 0o7777 })
    }

    fn content(&self, file: &u32, length: u64) -> Result<Vec<u8>> {
        self.content_of(&self.inode(*file)?, length)
    }

    fn target(&self, link: &u32, length: u64) -> Result<Vec<u8>> {
        let inode = self.inode(*link)?;
        match inode.short_target() {
            Some(target) => Ok(target.to_vec()),
            None => self.content_of(&inode, length),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("ext4 file system", why)
}
