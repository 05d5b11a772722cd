//! The log (2.3), replayed in memory: the file is left as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{FileHeader, damaged, is_whole};
use crate::Result;
use crate::source::{Source, read_padded, read_vec, truncated};

const SECTOR: usize = 4096;
/// Longer logs, and more changed sectors, are not real.
const MAX_LOG: u32 = 64 << 20;
const MAX_SECTORS: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
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
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Descriptor {
    signature: [u8; 4],
    trailing_bytes: [u8; 4],
    leading_bytes: [u8; 8],
    file_offset: U64,
    sequence_number: U64,
}

/// The source with its log replayed, and whether there was anything to replay.
pub(super) fn replay(
    header: &FileHeader,
    source: Arc<dyn Source>,
) -> Result<(Arc<dyn Source>, bool)> {
    if header.log_guid == [0; 16] {
        return Ok((source, false));
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
    if changed { Ok((Arc::new(replayed), true)) } else { Ok((replayed.source, false)) }
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
struct Replayed {
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
