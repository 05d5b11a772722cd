//! Chunks: where a logical address lies on the devices.

use std::collections::{BTreeMap, HashSet};

use super::tree::Key;
use crate::parity::Role;
use crate::volume::at;

const CHUNK_ITEM: u8 = 228;
const HEADER: usize = 48;
const STRIPE: usize = 32;
const MAX_CHUNKS: usize = 1 << 16;

/// Ways of spreading a chunk over its stripes; by all others, each stripe is a copy of it.
const RAID0: u64 = 1 << 3;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;

/// What a device calls itself.
pub type DeviceId = [u8; 16];

/// The chunks by their first address.
#[derive(Clone, Default)]
pub struct Chunks(BTreeMap<u64, Chunk>);

#[derive(Clone)]
struct Chunk {
    length: u64,
    kind: u64,
    /// Bytes on one device before the next one's turn.
    stripe: u64,
    /// Copies of each stripe in RAID 10.
    copies: usize,
    on: Vec<(DeviceId, u64)>,
}

/// Bytes that lie together.
pub struct Run {
    pub length: u64,
    /// Where they are, each time whole.
    pub copies: Vec<(DeviceId, u64)>,
    /// What makes up for them.
    pub row: Option<Row>,
}

/// What devices have beside each other where a chunk has parity.
pub struct Row {
    /// What the run is of it: [`Role::Data`] of this number.
    pub column: usize,
    pub shares: Vec<(Role, DeviceId, u64)>,
}

impl Chunks {
    /// Those of the superblock, in which the tree of the others lies.
    pub fn of_system(mut bytes: &[u8]) -> Option<Self> {
        let mut chunks = Self::default();
        while !bytes.is_empty() {
            let (key, item) = bytes.split_at_checked(Key::LENGTH)?;
            let stripes = usize::from(at::le16(item, 44)?);
            let (item, rest) = item.split_at_checked(HEADER + stripes * STRIPE)?;
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
        let count = usize::from(at::le16(item, 44)?);
        let stripes = item.get(HEADER..)?.get(..count * STRIPE)?.chunks_exact(STRIPE);
        let chunk = Chunk {
            length: at::le64(item, 0)?,
            stripe: at::le64(item, 16)?,
            kind: at::le64(item, 24)?,
            copies: usize::from(at::le16(item, 46)?),
            on: stripes
                .map(|stripe| Some((*stripe[16..].first_chunk()?, at::le64(stripe, 8)?)))
                .collect::<Option<_>>()?,
        };
        let plausible = chunk.stripe > 0 && chunk.data_stripes() > 0 && self.0.len() < MAX_CHUNKS;
        plausible.then(|| self.0.insert(key.offset, chunk))?;
        Some(())
    }

    /// Where the bytes from a logical address on lie, as many of `length` as lie together.
    pub fn locate(&self, address: u64, length: u64) -> Option<Run> {
        let (start, chunk) = self.0.range(..=address).next_back()?;
        chunk.locate(address - start, length)
    }

    /// The devices that chunks lie on.
    pub fn devices(&self) -> HashSet<DeviceId> {
        self.0.values().flat_map(|chunk| &chunk.on).map(|(device, _)| *device).collect()
    }
}

impl Chunk {
    /// Stripes that are no copies of others and no parity.
    fn data_stripes(&self) -> usize {
        let count = self.on.len();
        match self.kind & (RAID0 | RAID10 | RAID5 | RAID6) {
            0 => count.min(1),
            RAID0 => count,
            RAID10 => count.checked_div(self.copies).unwrap_or(0),
            RAID5 => count.saturating_sub(1),
            RAID6 => count.saturating_sub(2),
            _ => 0,
        }
    }

    fn locate(&self, within: u64, length: u64) -> Option<Run> {
        let length = length.min(self.length.checked_sub(within).filter(|&left| left > 0)?);
        let spread = self.kind & (RAID0 | RAID10 | RAID5 | RAID6);
        if spread == 0 {
            let place = |&(device, start): &(_, u64)| Some((device, start.checked_add(within)?));
            let copies = self.on.iter().map(place).collect::<Option<_>>()?;
            return Some(Run { length, copies, row: None });
        }
        let (number, into) = (within / self.stripe, within % self.stripe);
        let data = self.data_stripes() as u64;
        let (row, column) = (number / data, (number % data) as usize);
        let offset = row.checked_mul(self.stripe)?.checked_add(into)?;
        let place = |&(device, start): &(_, u64)| Some((device, start.checked_add(offset)?));
        let length = length.min(self.stripe - into);
        if matches!(spread, RAID5 | RAID6) {
            // All moves on by a device in each row.
            let turn = (row % self.on.len() as u64) as usize;
            let turned = self.on[turn..].iter().chain(&self.on[..turn]);
            let places: Vec<_> = turned.map(place).collect::<Option<_>>()?;
            let roles = (0..data as usize).map(Role::Data).chain([Role::P, Role::Q]);
            let shares = roles.zip(&places).map(|(role, &(device, start))| (role, device, start));
            let row = Row { column, shares: shares.collect() };
            return Some(Run { length, copies: vec![places[column]], row: Some(row) });
        }
        let count = if spread == RAID10 { self.copies } else { 1 };
        let copies = self.on.get(column * count..)?.get(..count)?.iter().map(place);
        Some(Run { length, copies: copies.collect::<Option<_>>()?, row: None })
    }
}
