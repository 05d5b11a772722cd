//! The log (2.3): replayed in memory, so that a file that is only read is left as it is; and written.

use std::collections::BTreeMap;
use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::{FileHeader, damaged, is_whole, seal};
use crate::Result;
use crate::create::writable;
use crate::source::{Source, WritableSource, read_padded, read_vec, truncated};

pub(super) const SECTOR: usize = 4096;
/// Longer logs, and more changed sectors, are not real.
const MAX_LOG: u32 = 64 << 20;
const MAX_SECTORS: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryHeader {
    signature: [u8; 4],
    checksum: U32,
    entry_length: U32,
    tail: U32,
    sequence_number: U64,
    descriptor_count: U32,
    reserved: U32,
    log_guid: [u8; 16],
    flushed_file_offset: U64,
    last_file_offset: U64,
}

/// Of data, or of zeroes: then `trailing_bytes` is reserved and `leading_bytes` their number.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Descriptor {
    signature: [u8; 4],
    trailing_bytes: [u8; 4],
    leading_bytes: [u8; 8],
    file_offset: U64,
    sequence_number: U64,
}

/// The source with its log replayed; `None` if there is nothing to replay.
pub(super) fn replay(header: &FileHeader, source: Arc<dyn Source>) -> Result<Option<Replayed>> {
    if header.log_guid == [0; 16] {
        return Ok(None);
    }
    let length = header.log_length.get();
    if header.log_version.get() != 0
        || length > MAX_LOG
        || !(length as usize).is_multiple_of(SECTOR)
    {
        return Err(damaged("its log has a wrong version or length"));
    }
    let log = read_vec(&*source, header.log_offset.get(), length as usize)?;
    let entries = active_sequence(&log, &header.log_guid)?;
    let mut replayed = Replayed { length: source.len(), source, sectors: BTreeMap::new() };
    for entry in &entries {
        replayed.apply(entry)?;
    }
    let changed = !replayed.sectors.is_empty() || replayed.length != replayed.source.len();
    Ok(changed.then_some(replayed))
}

/// Writes back what a replayed log changes, before the file is changed otherwise.
pub(super) fn write_back(replayed: &Replayed, target: &dyn WritableSource) -> Result<()> {
    if replayed.length > replayed.source.len() {
        target.set_len(replayed.length)?;
    }
    for (number, bytes) in &replayed.sectors {
        let zeroes = [0; SECTOR];
        target.write_at(bytes.as_deref().unwrap_or(&zeroes), number * SECTOR as u64)?;
    }
    target.flush()
}

/// The log of a file that is being changed.
#[derive(Debug)]
pub(super) struct Log {
    pub offset: u64,
    pub length: u64,
    pub guid: [u8; 16],
    /// Where the next entry goes, within the log.
    pub head: u64,
    pub sequence_number: u64,
}

impl Log {
    /// How many sectors an entry can have, so that it never touches the one before it.
    pub fn capacity(&self) -> usize {
        // Half of the log, less the sectors with descriptors, 126 in the first and 128 in each other.
        let sectors = (self.length / 2 / SECTOR as u64) as usize;
        (sectors - sectors.div_ceil(64)).min(1024)
    }

    /// Writes an entry by which these sectors change; each entry stands for itself, because what the
    /// ones before it change is on the disk already.
    pub fn append(&mut self, source: &dyn Source, sectors: &[(u64, Vec<u8>)]) -> Result<()> {
        let target = writable(source)?;
        let table = size_of::<EntryHeader>() + sectors.len() * size_of::<Descriptor>();
        let length = table.next_multiple_of(SECTOR) + sectors.len() * SECTOR;
        self.sequence_number += 1;
        let header = EntryHeader {
            signature: *b"loge",
            checksum: 0.into(),
            // An entry is at most half of the log, whose length has 32 bits.
            entry_length: (length as u32).into(),
            tail: (self.head as u32).into(),
            sequence_number: self.sequence_number.into(),
            descriptor_count: (sectors.len() as u32).into(),
            reserved: 0.into(),
            log_guid: self.guid,
            flushed_file_offset: source.len().into(),
            last_file_offset: source.len().into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        for (offset, sector) in sectors {
            let mut descriptor = Descriptor {
                signature: *b"desc",
                trailing_bytes: [0; 4],
                leading_bytes: [0; 8],
                file_offset: (*offset).into(),
                sequence_number: self.sequence_number.into(),
            };
            descriptor.trailing_bytes.copy_from_slice(&sector[SECTOR - 4..]);
            descriptor.leading_bytes.copy_from_slice(&sector[..8]);
            bytes.extend_from_slice(descriptor.as_bytes());
        }
        bytes.resize(table.next_multiple_of(SECTOR), 0);
        for (_, sector) in sectors {
            let number = self.sequence_number.to_le_bytes();
            bytes.extend_from_slice(b"data");
            bytes.extend_from_slice(&number[4..]);
            bytes.extend_from_slice(&sector[8..SECTOR - 4]);
            bytes.extend_from_slice(&number[..4]);
        }
        seal(&mut bytes);
        let until_end = (self.length - self.head).min(length as u64) as usize;
        target.write_at(&bytes[..until_end], self.offset + self.head)?;
        target.write_at(&bytes[until_end..], self.offset)?;
        self.head = (self.head + length as u64) % self.length;
        target.flush()
    }
}

struct Entry {
    header: EntryHeader,
    bytes: Vec<u8>,
}

/// The entries of the sequence that was written last, oldest first (2.3.3).
fn active_sequence(log: &[u8], guid: &[u8; 16]) -> Result<Vec<Entry>> {
    // Each entry is checksummed from every place that could be its start; a real log needs twice its size.
    let mut budget = log.len() * 8 + SECTOR;
    let mut best: Option<(u64, Vec<Entry>)> = None;
    let mut start = 0;
    while start < log.len() {
        let mut entries: Vec<(usize, Entry)> = Vec::new();
        let (mut at, mut used) = (start, 0);
        while used < log.len() {
            let Some(entry) = entry_at(log, at, guid, &mut budget)? else { break };
            let follows = entries.last().is_none_or(|(_, last)| {
                last.header.sequence_number.get().checked_add(1)
                    == Some(entry.header.sequence_number.get())
            });
            if !follows {
                break;
            }
            let length = entry.bytes.len();
            entries.push((at, entry));
            at = (at + length) % log.len();
            used += length;
        }
        // Those before the last one's tail are done with.
        let tail = entries.last().map(|(_, last)| last.header.tail.get() as usize);
        let first = entries.iter().position(|(at, _)| Some(*at) == tail);
        let next = start + entries.first().map_or(SECTOR, |(_, entry)| entry.bytes.len());
        if let (Some(first), Some((_, last))) = (first, entries.last()) {
            let number = last.header.sequence_number.get();
            if best.as_ref().is_none_or(|(found, _)| number > *found) {
                let entries = entries.into_iter().skip(first).map(|(_, entry)| entry).collect();
                best = Some((number, entries));
            }
        }
        start = next;
    }
    let (_, entries) = best.ok_or_else(|| damaged("its log has no whole entry"))?;
    Ok(entries)
}

fn entry_at(log: &[u8], at: usize, guid: &[u8; 16], budget: &mut usize) -> Result<Option<Entry>> {
    let Some((header, _)) =
        log.get(at..).and_then(|bytes| EntryHeader::read_from_prefix(bytes).ok())
    else {
        return Ok(None);
    };
    let length = header.entry_length.get() as usize;
    let is_real = &header.signature == b"loge"
        && &header.log_guid == guid
        && length >= SECTOR
        && length <= log.len()
        && length.is_multiple_of(SECTOR)
        && header.sequence_number.get() != 0;
    if !is_real {
        return Ok(None);
    }
    *budget = budget.checked_sub(length).ok_or_else(|| damaged("its log contradicts itself"))?;
    let until_end = length.min(log.len() - at);
    let mut bytes = log[at..at + until_end].to_vec();
    bytes.extend_from_slice(&log[..length - until_end]);
    Ok(is_whole(&bytes).then_some(Entry { header, bytes }))
}

/// A source with other bytes in some sectors of 4 KiB; `None` stands for zeroes.
#[derive(Debug)]
pub(super) struct Replayed {
    source: Arc<dyn Source>,
    length: u64,
    sectors: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl Replayed {
    fn apply(&mut self, entry: &Entry) -> Result<()> {
        let header = &entry.header;
        if header.flushed_file_offset.get() > self.source.len() {
            return Err(damaged("it is shorter than its log says"));
        }
        let count = header.descriptor_count.get() as usize;
        let descriptors = size_of::<EntryHeader>()
            .checked_add(count.saturating_mul(32))
            .filter(|&end| end <= entry.bytes.len())
            .ok_or_else(|| damaged("an entry of its log has too many descriptors"))?;
        let mut data = descriptors.next_multiple_of(SECTOR);
        let table = &entry.bytes[size_of::<EntryHeader>()..descriptors];
        for descriptor in table.chunks_exact(32) {
            let Ok(descriptor) = Descriptor::read_from_bytes(descriptor) else { break };
            let offset = descriptor.file_offset.get();
            if !offset.is_multiple_of(SECTOR as u64)
                || descriptor.sequence_number != header.sequence_number
            {
                return Err(damaged("an entry of its log is not whole"));
            }
            match &descriptor.signature {
                b"desc" => {
                    let sector = entry.bytes.get(data..data + SECTOR);
                    let sector = sector.filter(|sector| sector.starts_with(b"data"));
                    let sector = sector.ok_or_else(|| damaged("its log lacks data"))?;
                    data += SECTOR;
                    let mut bytes = sector.to_vec();
                    bytes[..8].copy_from_slice(&descriptor.leading_bytes);
                    bytes[SECTOR - 4..].copy_from_slice(&descriptor.trailing_bytes);
                    self.set(offset, Some(bytes.into()))?;
                }
                b"zero" => {
                    let length = u64::from_le_bytes(descriptor.leading_bytes);
                    if length / SECTOR as u64 > MAX_SECTORS {
                        return Err(damaged("its log has too many zeroes"));
                    }
                    for index in 0..length / SECTOR as u64 {
                        self.set(offset.saturating_add(index * SECTOR as u64), None)?;
                    }
                }
                _ => return Err(damaged("its log has a descriptor that is not known")),
            }
        }
        self.length = self.length.max(header.last_file_offset.get());
        Ok(())
    }

    fn set(&mut self, offset: u64, bytes: Option<Box<[u8]>>) -> Result<()> {
        self.sectors.insert(offset / SECTOR as u64, bytes);
        if self.sectors.len() as u64 > MAX_SECTORS {
            return Err(damaged("its log changes too much"));
        }
        Ok(())
    }
}

impl Source for Replayed {
    fn len(&self) -> u64 {
        self.length
    }

    fn version(&self) -> Option<String> {
        self.source.version()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.length);
        let end = end.ok_or_else(|| truncated(self, offset, buffer.len()))?;
        read_padded(&*self.source, buffer, offset)?;
        let size = SECTOR as u64;
        for (number, bytes) in self.sectors.range(offset / size..end.div_ceil(size)) {
            let start = number * size;
            let (from, to) = (start.max(offset), (start + size).min(end));
            let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            match bytes {
                Some(bytes) => {
                    target.copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
                }
                None => target.fill(0),
            }
        }
        Ok(())
    }
}
