//! XFS, versions 4 and 5 ("XFS Algorithms & Data Structures", third edition). All numbers are big-endian.

mod dir;
mod extents;
mod log;
mod replay;

use std::rc::Rc;
use std::sync::Arc;

use self::extents::Extents;
pub use self::log::is_log;
use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, Metadata, folder};
use crate::volume::{Volume, at, read, text_of, uuid_of};
use crate::{Error, Result};

/// Directory entries say what they lead to.
const INCOMPAT_FTYPE: u32 = 1;
/// All that are understood: FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT, METADIR.
const INCOMPAT_KNOWN: u32 = 0x1ff;
/// All data is on a realtime device, which is zoned.
const INCOMPAT_ZONED: u32 = 0x200;
const INODE_MAGIC: u16 = 0x494e;
const SYMLINK_HEADER: usize = 56;
/// In the superblock: what it is known by, and the log's first block, which is 0 on another device.
const UUID: std::ops::Range<usize> = 32..48;
const LOG_START: usize = 48;
/// Metadata of realtime devices and the like is not read.
const FLAG_REALTIME: u16 = 1;

struct Xfs {
    volume: Arc<dyn Volume>,
    block: u64,
    blocks: u64,
    ag_blocks: u64,
    ag_count: u64,
    ag_block_bits: u32,
    inode_size: usize,
    inodes_per_block_bits: u32,
    dir_block: u64,
    is_v5: bool,
    has_ftype: bool,
    root: u64,
    uuid: String,
    label: String,
    notes: Vec<String>,
}

/// An inode as it was read.
struct Inode {
    mode: u16,
    format: u8,
    size: u64,
    extents: u64,
    flags: u16,
    /// The data fork.
    fork: Vec<u8>,
}

/// Opens the file system on `volume`, which is all of it.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    open_spread(&volume, &[])
}

/// The file system that begins with these bytes has its log on another device.
pub fn has_external_log(start: &[u8]) -> bool {
    at::be64(start, LOG_START) == Some(0)
}

/// Opens the file system on `volume`, whose log may be among `all`.
pub fn open_spread(
    volume: &Arc<dyn Volume>,
    all: &[Arc<dyn Volume>],
) -> Result<Rc<dyn FileSystem>> {
    const REALTIME_BLOCKS: usize = 16;
    let sector = read(&**volume, 0, 512)?;
    let mut fs =
        superblock(&sector, Arc::clone(volume)).ok_or_else(|| damaged("its superblock"))?;
    if fs.is_v5 {
        let features = at::be32(&sector, 216).unwrap_or(0);
        if features & INCOMPAT_ZONED != 0 {
            return Err(Error::unsupported("XFS file system", "it is zoned"));
        }
        if features & !INCOMPAT_KNOWN != 0 {
            let why = format!("it has unknown features {:#x}", features & !INCOMPAT_KNOWN);
            return Err(Error::unsupported("XFS file system", why));
        }
    }
    let mut notes = Vec::new();
    if at::be64(&sector, REALTIME_BLOCKS).is_some_and(|blocks| blocks > 0) {
        notes.push("files on its realtime device are not read here".to_owned());
    }
    let log = if has_external_log(&sector) {
        all.iter().find(|other| is_log(&***other, Some(&sector[UUID])))
    } else {
        Some(volume)
    };
    match log.map(|log| replayed(&fs, &sector, log)) {
        Some(Ok(Some(volume))) => {
            // The superblock may have changed as well.
            let sector = read(&*volume, 0, 512)?;
            fs = superblock(&sector, volume).ok_or_else(|| damaged("its superblock"))?;
        }
        Some(Ok(None)) => {}
        Some(Err(error)) => {
            let why = super::error_text(&error);
            notes.push(format!("it was not unmounted, and its log could not be replayed: {why}"));
        }
        None => notes.push(
            "its log is on another device, which is not here: its last changes may be missing"
                .into(),
        ),
    }
    fs.notes = notes;
    Ok(Rc::new(Walk::new(fs)))
}

/// The volume as the log on `log` leaves it; `None` if that says nothing new.
fn replayed(fs: &Xfs, sector: &[u8], log: &Arc<dyn Volume>) -> Result<Option<Arc<dyn Volume>>> {
    let bad = || damaged("its log");
    let start = match at::be64(sector, LOG_START).ok_or_else(bad)? {
        0 => 0,
        start => fs.offset(start).ok_or_else(bad)?,
    };
    let length = u64::from(at::be32(sector, 96).unwrap_or(0)) * fs.block;
    if start.checked_add(length).is_none_or(|end| end > log.len()) {
        return Err(bad());
    }
    replay::replay(fs, &**log, start, length)
}

fn superblock(sector: &[u8], volume: Arc<dyn Volume>) -> Option<Xfs> {
    const MORE_BITS: u16 = 0x8000;
    const FEATURES2_FTYPE: u32 = 0x200;
    let block_bits = u32::from(at::u8(sector, 120)?);
    let inode_bits = u32::from(at::u8(sector, 122)?);
    let dir_bits = u32::from(at::u8(sector, 192)?);
    let ag_block_bits = u32::from(at::u8(sector, 124)?);
    let version = at::be16(sector, 100)?;
    let plausible = sector.starts_with(b"XFSB")
        && (9..=16).contains(&block_bits)
        && (8..=11).contains(&inode_bits)
        && inode_bits <= block_bits
        && block_bits + dir_bits <= 16
        && ag_block_bits < 32
        && matches!(version & 15, 4 | 5);
    if !plausible {
        return None;
    }
    let ag_blocks = u64::from(at::be32(sector, 84)?);
    let ag_count = u64::from(at::be32(sector, 88)?);
    let is_v5 = version & 15 == 5;
    let has_ftype = if is_v5 {
        at::be32(sector, 216)? & INCOMPAT_FTYPE != 0
    } else {
        version & MORE_BITS != 0 && at::be32(sector, 200)? & FEATURES2_FTYPE != 0
    };
    (ag_blocks > 0 && ag_count > 0).then_some(())?;
    Some(Xfs {
        block: 1 << block_bits,
        blocks: at::be64(sector, 8)?,
        ag_blocks,
        ag_count,
        ag_block_bits,
        inode_size: 1 << inode_bits,
        inodes_per_block_bits: block_bits - inode_bits,
        dir_block: 1 << (block_bits + dir_bits),
        is_v5,
        has_ftype,
        root: at::be64(sector, 56)?,
        uuid: uuid_of(sector[UUID].first_chunk()?),
        label: text_of(&sector[108..120]),
        notes: Vec::new(),
        volume,
    })
}

impl Xfs {
    /// Where a block number of the file system lies, which holds the allocation group in its upper bits.
    fn offset(&self, block: u64) -> Option<u64> {
        let group = block >> self.ag_block_bits;
        let within = block & ((1 << self.ag_block_bits) - 1);
        let place = group.checked_mul(self.ag_blocks)?.checked_add(within)?;
        (group < self.ag_count && within < self.ag_blocks && place < self.blocks)
            .then(|| place.checked_mul(self.block))?
    }

    /// Where an inode lies.
    fn inode_place(&self, number: u64) -> Option<u64> {
        let slot = number & ((1 << self.inodes_per_block_bits) - 1);
        let block = self.offset(number >> self.inodes_per_block_bits)?;
        block.checked_add(slot * self.inode_size as u64)
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let place = self.inode_place(number);
        let start = place.ok_or_else(|| damaged("a number of an inode"))?;
        let bytes = read(&*self.volume, start, self.inode_size)?;
        parse_inode(&bytes).ok_or_else(|| damaged("an inode"))
    }

    /// The extents of a data fork, in their order.
    fn extents(&self, inode: &Inode) -> Result<Extents> {
        Extents::of(self, inode)
    }

    /// A part of a file's content, zeroes where it has holes.
    fn content_of(&self, inode: &Inode, length: u64) -> Result<Vec<u8>> {
        const LOCAL: u8 = 1;
        let length = usize::try_from(length).map_err(|_| damaged("a length"))?;
        if inode.format == LOCAL {
            let bytes = inode.fork.get(..length).ok_or_else(|| damaged("a length"))?;
            return Ok(bytes.to_vec());
        }
        if inode.flags & FLAG_REALTIME != 0 {
            return Err(Error::unsupported("XFS file", "it is on a realtime device"));
        }
        let mut content = vec![0; length];
        for extent in self.extents(inode)?.0 {
            let start = extent.logical.saturating_mul(self.block);
            if extent.is_unwritten || start >= length as u64 {
                continue;
            }
            let count = extent.count.saturating_mul(self.block).min(length as u64 - start) as usize;
            let place = self.offset(extent.physical).ok_or_else(|| damaged("an extent"))?;
            self.volume.read_at(&mut content[start as usize..][..count], place)?;
        }
        Ok(content)
    }
}

fn parse_inode(bytes: &[u8]) -> Option<Inode> {
    const FLAGS2_NREXT64: u64 = 1 << 4;
    if at::be16(bytes, 0)? != INODE_MAGIC {
        return None;
    }
    let is_v3 = at::u8(bytes, 4)? >= 3;
    let start = if is_v3 { 176 } else { 100 };
    let fork_end = match usize::from(at::u8(bytes, 82)?) {
        0 => bytes.len(),
        offset => start + offset * 8,
    };
    let is_large = is_v3 && at::be64(bytes, 120)? & FLAGS2_NREXT64 != 0;
    Some(Inode {
        mode: at::be16(bytes, 2)?,
        format: at::u8(bytes, 5)?,
        size: at::be64(bytes, 56)?,
        extents: if is_large { at::be64(bytes, 24)? } else { at::be32(bytes, 76)?.into() },
        flags: at::be16(bytes, 90)?,
        fork: bytes.get(start..fork_end)?.to_vec(),
    })
}

impl Nodes for Xfs {
    type Id = u64;

    fn kind(&self) -> &'static str {
        "xfs"
    }

    fn uuid(&self) -> Option<String> {
        Some(self.uuid.clone())
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn child(&self, folder: &u64, name: &str) -> Result<Option<u64>> {
        folder::child(name, |visit| self.each_entry(*folder, visit))
    }

    fn list(&self, folder: &u64) -> Result<Vec<Entry>> {
        let kind_of = |inode| Ok(Kind::of_mode(self.inode(inode)?.mode.into()));
        folder::list(kind_of, |visit| self.each_entry(*folder, visit))
    }

    fn stat(&self, file: &u64) -> Result<Metadata> {
        let inode = self.inode(*file)?;
        let mode = inode.mode & 0o7777;
        Ok(Metadata { kind: Kind::of_mode(inode.mode.into()), length: inode.size, mode })
    }

    fn content(&self, file: &u64, length: u64) -> Result<Vec<u8>> {
        self.content_of(&self.inode(*file)?, length)
    }

    fn target(&self, link: &u64, length: u64) -> Result<Vec<u8>> {
        const LOCAL: u8 = 1;
        let inode = self.inode(*link)?;
        if inode.format == LOCAL || !self.is_v5 {
            return self.content_of(&inode, length);
        }
        // Each block begins with a header.
        let mut target = Vec::new();
        for extent in self.extents(&inode)?.0 {
            for block in 0..extent.count.min(64) {
                let place =
                    self.offset(extent.physical + block).ok_or_else(|| damaged("an extent"))?;
                let bytes = read(&*self.volume, place, self.block as usize)?;
                let rest = (length as usize).saturating_sub(target.len());
                let part = bytes.get(SYMLINK_HEADER..).unwrap_or_default();
                target.extend_from_slice(&part[..rest.min(part.len())]);
            }
        }
        Ok(target)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("XFS file system", why)
}
