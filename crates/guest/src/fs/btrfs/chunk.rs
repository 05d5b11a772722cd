//! Chunks: where a logical address lies on the device.

use std::collections::BTreeMap;

use super::tree::Key;
use crate::volume::at;

const CHUNK_ITEM: u8 = 228;
const STRIPE: usize = 32;
/// RAID0, RAID10, RAID5 and RAID6 spread one chunk over several stripes.
const STRIPED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;
const MAX_CHUNKS: usize = 1 << 16;

/// The chunks by their first address.
#[derive(Clone, Default)]
pub struct Chunks(BTreeMap<u64, Chunk>);

#[derive(Clone, Copy)]
struct Chunk {
    length: u64,
    physical: u64,
}

impl Chunks {
    /// Those of the superblock, in which the tree of the others lies.
    pub fn of_system(mut bytes: &[u8]) -> Option<Self> {
        let mut chunks = Self::default();
        while !bytes.is_empty() {
            let (key, item) = bytes.split_at_checked(Key::LENGTH)?;
            let stripes = usize::from(at::le16(item, 44)?);
            let (item, rest) = item.split_at_checked(48 + stripes * STRIPE)?;
            chunks.add(&Key::of(key)?, item)?;
            bytes = rest;
        }
        Some(chunks)
    }

    /// Adds an item of the chunk tree if it is a chunk; `None` if it is damaged.
    pub fn add(&mut self, key: &Key, item: &[u8]) -> Option<()> {
        if key.kind != CHUNK_ITEM {
            return Some(());
        }
        let length = at::le64(item, 0)?;
        // Copies are as good as each other; a chunk in stripes cannot be on one device.
        if at::le64(item, 24)? & STRIPED != 0 && at::le16(item, 44)? > 1
            || self.0.len() == MAX_CHUNKS
        {
            return None;
        }
        let physical = at::le64(item, 48 + 8)?;
        self.0.insert(key.offset, Chunk { length, physical });
        Some(())
    }

    /// Where `length` bytes at a logical address lie.
    pub fn locate(&self, address: u64, length: u64) -> Option<u64> {
        let (start, chunk) = self.0.range(..=address).next_back()?;
        let within = address - start;
        (within.checked_add(length)? <= chunk.length).then(|| chunk.physical.checked_add(within))?
    }
}
