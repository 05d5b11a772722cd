//! Folders: trees of names, whose root is in the folder's record and whose other nodes are blocks of an attribute.
//!
//! The crate ntfs looks for blocks that are smaller than a cluster in the wrong places.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use super::damaged;
use crate::Result;
use crate::volume::{Volume, at, read};

/// Bytes before the header of a node: in the root, and in a block.
const ROOT: usize = 16;
const BLOCK: usize = 24;
/// What a block's last bytes of each sector are put aside for.
const SECTOR: usize = 512;
/// Largest block; Windows has 4 KiB.
const MAX_BLOCK: usize = 64 << 10;
/// Deepest tree.
const MAX_DEPTH: usize = 32;

/// The capital letter of each unit of UTF-16, by which names are sorted.
pub struct Capitals(Vec<u16>);

impl Capitals {
    const LENGTH: usize = 1 << 17;

    /// From the content of `$UpCase`.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != Self::LENGTH {
            return Err(damaged("its table of capital letters has a wrong length"));
        }
        let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        Ok(Self(units.collect()))
    }

    fn compare(
        &self,
        one: impl Iterator<Item = u16>,
        other: impl Iterator<Item = u16>,
    ) -> Ordering {
        let capital = |unit: u16| self.0[usize::from(unit)];
        one.map(capital).cmp(other.map(capital))
    }
}

/// A name in a folder.
pub struct Name<'a> {
    /// Number of the file's record.
    pub file: u64,
    pub is_folder: bool,
    /// It is for DOS, beside a longer one.
    pub is_short: bool,
    /// In UTF-16.
    bytes: &'a [u8],
}

impl<'a> Name<'a> {
    fn of(entry: &'a [u8]) -> Option<Self> {
        const KEY: usize = 16;
        const FOLDER: u32 = 1 << 28;
        const DOS: u8 = 2;
        let key = entry.get(KEY..)?.get(..usize::from(at::le16(entry, 10)?))?;
        let length = 2 * usize::from(at::u8(key, 0x40)?);
        Some(Self {
            file: at::le64(entry, 0)? & 0xffff_ffff_ffff,
            is_folder: at::le32(key, 0x38)? & FOLDER != 0,
            is_short: at::u8(key, 0x41)? == DOS,
            bytes: key.get(0x42..)?.get(..length)?,
        })
    }

    fn units(&self) -> impl Iterator<Item = u16> + 'a {
        self.bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
    }

    pub fn text(&self) -> String {
        char::decode_utf16(self.units()).map(|unit| unit.unwrap_or('\u{fffd}')).collect()
    }
}

/// An entry of a node.
struct Entry<'a> {
    /// None in the last one.
    name: Option<Name<'a>>,
    /// The block with what comes before it.
    below: Option<u64>,
}

/// The names of a folder.
pub struct Index {
    /// The attribute `$INDEX_ROOT`.
    root: Vec<u8>,
    /// The attribute `$INDEX_ALLOCATION`.
    blocks: Option<Arc<dyn Volume>>,
    /// Bytes of a block.
    block: usize,
    /// In what the places of blocks are counted.
    unit: u64,
}

impl Index {
    pub fn new(root: Vec<u8>, blocks: Option<Arc<dyn Volume>>, cluster: u64) -> Result<Self> {
        let block = at::le32(&root, 8).ok_or_else(bad)? as usize;
        if !(SECTOR..=MAX_BLOCK).contains(&block) || !block.is_multiple_of(SECTOR) {
            return Err(bad());
        }
        let unit = if cluster <= block as u64 { cluster } else { SECTOR as u64 };
        Ok(Self { root, blocks, block, unit })
    }

    /// The record of the file with this name, whatever its case.
    pub fn find(&self, capitals: &Capitals, name: &str) -> Result<Option<u64>> {
        let mut node = self.root.get(ROOT..).ok_or_else(bad)?.to_vec();
        for _ in 0..MAX_DEPTH {
            let mut below = None;
            for entry in entries(&node) {
                let entry = entry?;
                let order = entry.name.as_ref().map_or(Ordering::Less, |entry| {
                    capitals.compare(name.encode_utf16(), entry.units())
                });
                match (order, entry.name) {
                    (Ordering::Equal, Some(name)) => return Ok(Some(name.file)),
                    (Ordering::Greater, _) => {}
                    _ => {
                        below = entry.below;
                        break;
                    }
                }
            }
            let Some(below) = below else { return Ok(None) };
            node = self.node(below)?;
        }
        Err(bad())
    }

    /// Shows every name to `visit`.
    pub fn each(&self, visit: &mut dyn FnMut(Name<'_>) -> Result<()>) -> Result<()> {
        let mut seen = HashSet::new();
        let mut nodes = Vec::new();
        let mut node = self.root.get(ROOT..).ok_or_else(bad)?.to_vec();
        loop {
            for entry in entries(&node) {
                let Entry { name, below } = entry?;
                // No block is below two nodes, or below itself.
                if below.is_some_and(|below| !seen.insert(below)) {
                    return Err(bad());
                }
                nodes.extend(below);
                name.map_or(Ok(()), &mut *visit)?;
            }
            let Some(next) = nodes.pop() else { return Ok(()) };
            node = self.node(next)?;
        }
    }

    /// A node in a block.
    fn node(&self, place: u64) -> Result<Vec<u8>> {
        let blocks = self.blocks.as_deref().ok_or_else(bad)?;
        let mut block = read(blocks, place.checked_mul(self.unit).ok_or_else(bad)?, self.block)?;
        if !block.starts_with(b"INDX") || at::le64(&block, 16) != Some(place) {
            return Err(bad());
        }
        let (start, count) = at::le16(&block, 4).zip(at::le16(&block, 6)).ok_or_else(bad)?;
        let length = usize::from(count) * 2;
        let aside = block.get(usize::from(start)..).and_then(|rest| rest.get(..length));
        let aside = aside.filter(|_| usize::from(count) == self.block / SECTOR + 1);
        let aside = aside.ok_or_else(bad)?.to_vec();
        let (mark, aside) = aside.split_at(2);
        // A sector without the mark is of another time than the first.
        for (sector, aside) in block.chunks_exact_mut(SECTOR).zip(aside.chunks_exact(2)) {
            let end = &mut sector[SECTOR - 2..];
            if end != mark {
                return Err(bad());
            }
            end.copy_from_slice(aside);
        }
        Ok(block.split_off(BLOCK))
    }
}

/// The entries of a node, up to its last one.
fn entries(node: &[u8]) -> impl Iterator<Item = Result<Entry<'_>>> {
    const HAS_BELOW: u16 = 1;
    const LAST: u16 = 2;
    let mut rest = at::le32(node, 0)
        .zip(at::le32(node, 4))
        .and_then(|(start, end)| node.get(..end as usize)?.get(start as usize..));
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let entry = rest.and_then(|bytes| {
            let length = usize::from(at::le16(bytes, 8)?);
            let flags = at::le16(bytes, 12)?;
            let entry = bytes.get(..length)?;
            rest = bytes.get(length..).filter(|_| length > 0);
            is_over = flags & LAST != 0;
            let below = match flags & HAS_BELOW {
                0 => None,
                _ => Some(at::le64(entry, length.checked_sub(8)?)?),
            };
            let name = if is_over { None } else { Some(Name::of(entry)?) };
            Some(Entry { name, below })
        });
        is_over |= entry.is_none();
        Some(entry.ok_or_else(bad))
    })
}

fn bad() -> crate::Error {
    damaged("the index of a folder")
}
