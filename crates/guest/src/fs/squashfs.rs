//! squashfs 4.0 (kernel documentation, `fs/squashfs/squashfs_fs.h`). All numbers are little-endian.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;

use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::lzo;
use crate::volume::{Volume, at, read};
use crate::{Error, Result};

/// Bytes of metadata in one packed block.
const METADATA: usize = 8192;
/// Metadata blocks that are kept.
const MAX_CACHED: usize = 1024;
const NO_FRAGMENT: u32 = u32::MAX;

struct Squash {
    volume: Arc<dyn Volume>,
    packing: u16,
    block: usize,
    inodes: u64,
    folders: u64,
    fragments: u64,
    fragment_count: u32,
    /// Metadata blocks by where they begin.
    cache: RefCell<HashMap<u64, Rc<Block>>>,
    root: u64,
}

/// A block of metadata.
struct Block {
    content: Vec<u8>,
    /// Where the next one begins.
    next: u64,
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    let bytes = read(&*volume, 0, 96)?;
    let half = |place| at::le16(&bytes, place).unwrap_or(0);
    let word = |place| at::le32(&bytes, place).unwrap_or(0);
    let long = |place| at::le64(&bytes, place).unwrap_or(0);
    let block = word(12);
    if !bytes.starts_with(b"hsqs")
        || half(28) != 4
        || !block.is_power_of_two()
        || !(4096..=1 << 20).contains(&block)
    {
        return Err(damaged("its superblock"));
    }
    Ok(Rc::new(Walk::new(Squash {
        packing: half(20),
        block: block as usize,
        inodes: long(64),
        folders: long(72),
        fragments: long(80),
        fragment_count: word(16),
        cache: RefCell::default(),
        root: long(32),
        volume,
    })))
}

/// An inode as it was read.
struct Inode {
    kind: Kind,
    mode: u16,
    length: u64,
    what: What,
}

enum What {
    /// Where its blocks begin, how long each is, and its last part's fragment with the place there.
    File {
        start: u64,
        sizes: Vec<u32>,
        fragment: u32,
        within: u32,
    },
    /// Its block of entries, and where in that it begins.
    Folder {
        block: u32,
        within: u16,
        length: u32,
    },
    Link(Vec<u8>),
    Other,
}

/// A place in metadata: the block's, and the byte in its content.
struct Cursor<'a> {
    fs: &'a Squash,
    block: u64,
    within: usize,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let block = self.fs.metadata(self.block)?;
            let rest = block.content.get(self.within..).unwrap_or_default();
            let count = rest.len().min(length - bytes.len());
            bytes.extend_from_slice(&rest[..count]);
            self.within += count;
            if self.within >= block.content.len() {
                // An empty block leads nowhere.
                if block.content.is_empty() {
                    return Err(damaged("its metadata"));
                }
                (self.block, self.within) = (block.next, 0);
            }
        }
        Ok(bytes)
    }
}

impl Squash {
    fn metadata(&self, place: u64) -> Result<Rc<Block>> {
        const PLAIN: u16 = 0x8000;
        if let Some(known) = self.cache.borrow().get(&place) {
            return Ok(Rc::clone(known));
        }
        let header = read(&*self.volume, place, 2)?;
        let header = at::le16(&header, 0).unwrap_or(0);
        let length = usize::from(header & !PLAIN);
        let bytes = read(&*self.volume, place.saturating_add(2), length)?;
        let content = if header & PLAIN != 0 { bytes } else { self.unpack(&bytes, METADATA)? };
        let block = Rc::new(Block { content, next: place + 2 + length as u64 });
        let mut cache = self.cache.borrow_mut();
        if cache.len() == MAX_CACHED {
            cache.clear();
        }
        cache.insert(place, Rc::clone(&block));
        Ok(block)
    }

    fn unpack(&self, packed: &[u8], most: usize) -> Result<Vec<u8>> {
        let bad = || damaged("a packed block");
        let mut bytes = Vec::new();
        let limit = most as u64 + 1;
        match self.packing {
            1 => flate2::read::ZlibDecoder::new(packed).take(limit).read_to_end(&mut bytes),
            2 => {
                let stream = liblzma::stream::Stream::new_lzma_decoder(64 << 20);
                let stream = stream.map_err(|_| bad())?;
                let reader = liblzma::read::XzDecoder::new_stream(packed, stream);
                reader.take(limit).read_to_end(&mut bytes)
            }
            3 => return lzo::unpack(packed, most).ok_or_else(bad),
            4 => {
                let stream = liblzma::stream::Stream::new_stream_decoder(64 << 20, 0);
                let stream = stream.map_err(|_| bad())?;
                let reader = liblzma::read::XzDecoder::new_stream(packed, stream);
                reader.take(limit).read_to_end(&mut bytes)
            }
            5 => {
                bytes.resize(most, 0);
                let count = lz4_flex::block::decompress_into(packed, &mut bytes);
                bytes.truncate(count.map_err(|_| bad())?);
                Ok(bytes.len())
            }
            6 => zstd::stream::read::Decoder::new(packed)
                .and_then(|reader| reader.take(limit).read_to_end(&mut bytes)),
            other => {
                let why = format!("it is packed by method {other}");
                return Err(Error::unsupported("squashfs file system", why));
            }
        }
        .map_err(|_| bad())?;
        if bytes.len() > most { Err(bad()) } else { Ok(bytes) }
    }

    /// The inode that a reference leads to: a block after the table's start, and a byte in it.
    fn inode(&self, reference: u64) -> Result<Inode> {
        let bad = || damaged("an inode");
        let block = self.inodes.checked_add(reference >> 16).ok_or_else(bad)?;
        let mut cursor = Cursor { fs: self, block, within: (reference & 0xffff) as usize };
        let header = cursor.take(16)?;
        let (kind, mode) = at::le16(&header, 0).zip(at::le16(&header, 2)).ok_or_else(bad)?;
        let mut rest = |length: usize| cursor.take(length);
        let (kind, length, what) = match kind {
            1 => {
                let body = rest(16)?;
                let word = |place| at::le32(&body, place).unwrap_or(0);
                (
                    Kind::Folder,
                    0,
                    What::Folder {
                        block: word(0),
                        within: at::le16(&body, 10).unwrap_or(0),
                        length: at::le16(&body, 8).unwrap_or(0).into(),
                    },
                )
            }
            8 => {
                let body = rest(24)?;
                let word = |place| at::le32(&body, place).unwrap_or(0);
                (
                    Kind::Folder,
                    0,
                    What::Folder {
                        block: word(8),
                        within: at::le16(&body, 18).unwrap_or(0),
                        length: word(4),
                    },
                )
            }
            2 | 9 => {
                let is_long = kind == 9;
                let body = rest(if is_long { 40 } else { 16 })?;
                let word = |place| at::le32(&body, place).unwrap_or(0);
                let long = |place| at::le64(&body, place).unwrap_or(0);
                let (start, length, fragment, within) = if is_long {
                    (long(0), long(8), word(28), word(32))
                } else {
                    (word(0).into(), word(12).into(), word(4), word(8))
                };
                let blocks = match fragment {
                    NO_FRAGMENT => length.div_ceil(self.block as u64),
                    _ => length / self.block as u64,
                };
                // Each block has four bytes in the inode, which lie on the volume.
                if blocks > self.volume.len() {
                    return Err(bad());
                }
                let sizes = rest(blocks as usize * 4)?;
                let sizes = sizes.chunks_exact(4).map(|size| at::le32(size, 0).unwrap_or(0));
                let sizes = sizes.collect();
                (Kind::File, length, What::File { start, sizes, fragment, within })
            }
            3 | 10 => {
                let length = at::le32(&rest(8)?, 4).unwrap_or(0);
                if length > 65536 {
                    return Err(bad());
                }
                (Kind::Link, length.into(), What::Link(rest(length as usize)?))
            }
            _ => (Kind::Other, 0, What::Other),
        };
        Ok(Inode { kind, mode, length, what })
    }

    /// Shows the entries of a folder to `visit` until that has seen enough: names, kinds and references of inodes.
    fn each_entry(
        &self,
        folder: u64,
        visit: &mut dyn FnMut(Vec<u8>, Kind, u64) -> Result<bool>,
    ) -> Result<()> {
        /// The length counts two entries that are not there, and one byte.
        const NOT_THERE: u32 = 3;
        let bad = || damaged("a folder");
        let What::Folder { block, within, length } = self.inode(folder)?.what else {
            return Err(bad());
        };
        let block = self.folders.checked_add(block.into()).ok_or_else(bad)?;
        let mut cursor = Cursor { fs: self, block, within: within.into() };
        let mut left = length.saturating_sub(NOT_THERE) as usize;
        while left > 0 {
            let header = cursor.take(12)?;
            let (count, start) = at::le32(&header, 0).zip(at::le32(&header, 4)).ok_or_else(bad)?;
            left = left.checked_sub(12).filter(|_| count < 256).ok_or_else(bad)?;
            for _ in 0..=count {
                let entry = cursor.take(8)?;
                let half = |place| at::le16(&entry, place).unwrap_or(0);
                let name = cursor.take(usize::from(half(6)) + 1)?;
                left = left.checked_sub(8 + name.len()).ok_or_else(bad)?;
                let kind = match half(4) {
                    1 | 8 => Kind::Folder,
                    2 | 9 => Kind::File,
                    3 | 10 => Kind::Link,
                    _ => Kind::Other,
                };
                if !visit(name, kind, u64::from(start) << 16 | u64::from(half(0)))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A block of data, `length` bytes long when it is unpacked.
    fn data(&self, place: u64, size: u32, length: usize) -> Result<Vec<u8>> {
        const PLAIN: u32 = 1 << 24;
        let on_disk = (size & !PLAIN) as usize;
        if on_disk == 0 {
            return Ok(vec![0; length]);
        }
        if on_disk > self.block {
            return Err(damaged("a block"));
        }
        let bytes = read(&*self.volume, place, on_disk)?;
        if size & PLAIN != 0 { Ok(bytes) } else { self.unpack(&bytes, self.block) }
    }

    /// The block in which the last parts of several files are.
    fn fragment(&self, index: u32) -> Result<Vec<u8>> {
        const EACH: u32 = 512;
        const ENTRY: usize = 16;
        let bad = || damaged("a fragment");
        if index >= self.fragment_count {
            return Err(bad());
        }
        let list = self.fragments.checked_add(u64::from(index / EACH) * 8).ok_or_else(bad)?;
        let block = at::le64(&read(&*self.volume, list, 8)?, 0).ok_or_else(bad)?;
        let within = (index % EACH) as usize * ENTRY;
        let entry = Cursor { fs: self, block, within }.take(ENTRY)?;
        let (start, size) = at::le64(&entry, 0).zip(at::le32(&entry, 8)).ok_or_else(bad)?;
        self.data(start, size, 0)
    }
}

impl Nodes for Squash {
    type Id = u64;

    fn kind(&self) -> &'static str {
        "squashfs"
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn child(&self, folder: &u64, name: &str) -> Result<Option<u64>> {
        let mut found = None;
        self.each_entry(*folder, &mut |entry, _, inode| {
            if entry == name.as_bytes() {
                found = Some(inode);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    fn list(&self, folder: &u64) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.each_entry(*folder, &mut |name, kind, _| {
            entries.push(Entry { name: String::from_utf8_lossy(&name).into_owned(), kind });
            Ok(entries.len() < MAX_ENTRIES)
        })?;
        Ok(entries)
    }

    fn stat(&self, file: &u64) -> Result<Metadata> {
        let inode = self.inode(*file)?;
        Ok(Metadata { kind: inode.kind, length: inode.length, mode: inode.mode & 0o7777 })
    }

    fn content(&self, file: &u64, length: u64) -> Result<Vec<u8>> {
        let inode = self.inode(*file)?;
        let What::File { mut start, sizes, fragment, within } = inode.what else {
            return Err(damaged("a file"));
        };
        let length = usize::try_from(length).map_err(|_| damaged("a length"))?;
        let mut content = Vec::new();
        for size in sizes {
            let left = length.saturating_sub(content.len()).min(self.block);
            let block = self.data(start, size, left)?;
            content.extend_from_slice(block.get(..left).ok_or_else(|| damaged("a block"))?);
            start = start.saturating_add(u64::from(size & 0xff_ffff));
        }
        let left = length.saturating_sub(content.len());
        if left > 0 {
            let fragment = self.fragment(fragment)?;
            let part = fragment.get(within as usize..).and_then(|rest| rest.get(..left));
            content.extend_from_slice(part.ok_or_else(|| damaged("a fragment"))?);
        }
        Ok(content)
    }

    fn target(&self, link: &u64, _: u64) -> Result<Vec<u8>> {
        match self.inode(*link)?.what {
            What::Link(target) => Ok(target),
            _ => Err(damaged("a symbolic link")),
        }
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("squashfs file system", why)
}
