//! The log: a ring of records, which hold transactions. Those between its tail and its head may not have reached their
//! places ("XFS Algorithms & Data Structures", part "Journaling Log"; fs/xfs/libxfs/xfs_log_format.h).

use std::collections::HashMap;

use super::damaged;
use crate::Result;
use crate::checksum::crc32c;
use crate::volume::{Volume, at, read, read_up_to};

const SECTOR: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// Longest record: 256 KiB, and its headers.
const MAX_RECORD: u64 = (256 << 10) + 16 * SECTOR;
/// Sectors that may be on their way at once: eight of the longest records.
const IN_FLIGHT: u64 = 8 * MAX_RECORD / SECTOR;
/// Of a record's header: the words behind `h_cycle_data`, and the CRC, whose own place counts as zero.
const HEADER: usize = 328;
const CYCLE_DATA: usize = 44;
/// Bytes of a further header of a record: a cycle and 64 words.
const MORE_HEADER: usize = 260;
/// Most bytes of transactions that have not ended.
const MAX_PENDING: usize = 64 << 20;
/// Most regions of one item.
const MAX_REGIONS: u16 = 4096;

const START: u8 = 1;
const COMMIT: u8 = 2;
const CONTINUE: u8 = 4;
const WAS_CONTINUED: u8 = 8;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// A log with what is to be replayed of it.
pub struct Log<'a> {
    volume: &'a dyn Volume,
    start: u64,
    sectors: u64,
    tail: u64,
    head: u64,
    /// Its checksums were found to be right.
    is_checked: bool,
}

/// A part of a transaction: its regions, of which the first one says what it is.
#[derive(Default)]
pub struct Item {
    pub regions: Vec<Vec<u8>>,
    expected: u16,
}

#[derive(Default)]
struct Transaction {
    /// Bytes of its header, which may come in parts.
    header: usize,
    items: Vec<Item>,
}

const TRANSACTION_HEADER: usize = 16;

/// A volume is a log, which begins somewhere in a record; that of the file system with this UUID, if one is given.
pub fn is_log(volume: &dyn Volume, uuid: Option<&[u8]>) -> bool {
    const UUID: std::ops::Range<usize> = 304..320;
    let start = read_up_to(volume, 0, MAX_RECORD as usize).unwrap_or_default();
    let mut sectors = start.chunks_exact(SECTOR as usize);
    let is_version = |sector| matches!(at::be32(sector, 8), Some(1 | 2));
    sectors.any(|sector| {
        at::be32(sector, 0) == Some(MAGIC)
            && is_version(sector)
            && uuid.is_none_or(|uuid| sector[UUID] == *uuid)
    })
}

impl<'a> Log<'a> {
    /// The log at `start`; `None` if it was closed by an unmount or never written.
    pub fn open(volume: &'a dyn Volume, start: u64, length: u64) -> Result<Option<Self>> {
        let sectors = length / SECTOR;
        let mut log = Self { volume, start, sectors, tail: 0, head: 0, is_checked: false };
        if sectors == 0 || log.cycle(0)? == 0 {
            return Ok(None);
        }
        log.head = log.find_head()?;
        let (last, header) = log.last_record()?.ok_or_else(|| damaged("the end of its log"))?;
        let next = last + headers_of(&header) + length_of(&header)?.div_ceil(SECTOR);
        // What was only begun of the next one does not count.
        log.head = next % sectors;
        let operations = at::be32(&header, 40).unwrap_or(0);
        let data = log.read((last + headers_of(&header)) % sectors, 1)?;
        if operations == 1 && at::u8(&data, 9).unwrap_or(0) & UNMOUNT != 0 {
            return Ok(None);
        }
        log.tail = at::be64(&header, 24).unwrap_or(0) & 0xffff_ffff;
        if log.tail >= sectors {
            return Err(damaged("its log"));
        }
        Ok(Some(log))
    }

    /// Shows the items of every transaction that ended, in their order. The first time, checksums are checked.
    pub fn each_transaction(
        &mut self,
        visit: &mut dyn FnMut(Vec<Item>) -> Result<()>,
    ) -> Result<()> {
        let mut open: HashMap<u32, Transaction> = HashMap::new();
        let mut pending = 0;
        let mut place = self.tail;
        let mut left = self.sectors;
        while place != self.head {
            let header = self.read(place, 1)?;
            if at::be32(&header, 0) != Some(MAGIC) {
                return Err(damaged("a record of its log"));
            }
            let (count, length) = (headers_of(&header), length_of(&header)?);
            let step = count + length.div_ceil(SECTOR);
            left = left.checked_sub(step).ok_or_else(|| damaged("its log"))?;
            let bytes = self.read(place, step)?;
            let data = unpacked(bytes, count as usize, length as usize, !self.is_checked);
            let Some(data) = data else {
                // A record that was not wholly written ends the log.
                self.head = place;
                break;
            };
            place = (place + step) % self.sectors;
            let operations = at::be32(&header, 40).unwrap_or(0);
            operations_of(&data, operations, &mut open, &mut pending, visit)?;
        }
        self.is_checked = true;
        Ok(())
    }

    /// Sectors from `place` on, around the end.
    fn read(&self, place: u64, count: u64) -> Result<Vec<u8>> {
        if count > MAX_RECORD / SECTOR || count > self.sectors || place >= self.sectors {
            return Err(damaged("its log"));
        }
        let first = count.min(self.sectors - place);
        let mut bytes = read(self.volume, self.start + place * SECTOR, (first * SECTOR) as usize)?;
        bytes.extend(read(self.volume, self.start, ((count - first) * SECTOR) as usize)?);
        Ok(bytes)
    }

    /// Each sector begins with the number of the cycle in which it was written, those of a record's header with the
    /// magic number first.
    fn cycle(&self, sector: u64) -> Result<u32> {
        Ok(cycle_of(&read(self.volume, self.start + sector * SECTOR, 8)?))
    }

    /// The first sector that the present cycle has not written: those of the cycle before follow.
    fn find_head(&self) -> Result<u64> {
        let present = self.cycle(0)?;
        let (mut low, mut high) = (0, self.sectors);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if self.cycle(middle)? == present { low = middle } else { high = middle }
        }
        // Records are written several at a time: one that is missing ends the log, whatever is behind it.
        let from = high.saturating_sub(IN_FLIGHT);
        let bytes =
            read(self.volume, self.start + from * SECTOR, ((high - from) * SECTOR) as usize)?;
        let mut sectors = bytes.chunks_exact(SECTOR as usize);
        let missing = sectors.position(|sector| cycle_of(sector) != present);
        Ok(missing.map_or(high, |index| from + index as u64))
    }

    /// The last record that is wholly before the head, and where it is.
    fn last_record(&self) -> Result<Option<(u64, Vec<u8>)>> {
        let mut place = self.head;
        for _ in 0..self.sectors.min(2 * IN_FLIGHT) {
            place = place.checked_sub(1).unwrap_or(self.sectors - 1);
            let header = self.read(place, 1)?;
            if at::be32(&header, 0) != Some(MAGIC)
                || at::be64(&header, 16).unwrap_or(0) & 0xffff_ffff != place
            {
                continue;
            }
            let step = headers_of(&header) + length_of(&header)?.div_ceil(SECTOR);
            let there = (self.head + self.sectors - place) % self.sectors;
            let there = if there == 0 { self.sectors } else { there };
            if step > there {
                continue;
            }
            let bytes = self.read(place, step)?;
            let count = headers_of(&header) as usize;
            if unpacked(bytes, count, length_of(&header)? as usize, true).is_some() {
                return Ok(Some((place, header)));
            }
        }
        Ok(None)
    }
}

fn cycle_of(sector: &[u8]) -> u32 {
    let first = at::be32(sector, 0).unwrap_or(0);
    if first == MAGIC { at::be32(sector, 4).unwrap_or(0) } else { first }
}

/// Sectors of a record's headers: larger buffers have one for each 32 KiB.
fn headers_of(header: &[u8]) -> u64 {
    const VERSION_2: u32 = 2;
    let is_second = at::be32(header, 8).unwrap_or(1) & VERSION_2 != 0;
    let size = at::be32(header, 320).unwrap_or(0);
    if is_second { u64::from(size).div_ceil(32 << 10).clamp(1, 16) } else { 1 }
}

/// Bytes of a record's data.
fn length_of(header: &[u8]) -> Result<u64> {
    let length = u64::from(at::be32(header, 12).unwrap_or(0));
    (length > 0 && length <= 256 << 10)
        .then_some(length)
        .ok_or_else(|| damaged("a record of its log"))
}

/// The data of a record, whose sectors get their first words back from its headers; `None` if its checksum is wrong.
fn unpacked(mut bytes: Vec<u8>, headers: usize, length: usize, check: bool) -> Option<Vec<u8>> {
    let sector = SECTOR as usize;
    let mut data = bytes.split_off(headers * sector);
    data.truncate(length);
    // Version 4 has none.
    let expected = at::le32(&bytes, 32)?;
    bytes[32..36].fill(0);
    // Of its headers, only those count that the data is long enough for.
    let used = length.div_ceil(64 * sector);
    let checksum = |header: usize| {
        let mut crc = crc32c(!0, &bytes[..header]);
        for more in bytes.chunks_exact(sector).take(used).skip(1) {
            crc = crc32c(crc, &more[..MORE_HEADER]);
        }
        !crc32c(crc, &data)
    };
    // 32-bit systems leave out the four bytes that fill up the header.
    if check && expected != 0 && expected != checksum(HEADER) && expected != checksum(HEADER - 4) {
        return None;
    }
    for (index, target) in data.chunks_mut(sector).enumerate() {
        let (header, word) = (index / 64, index % 64);
        let place = if header == 0 { CYCLE_DATA } else { header * sector + 4 } + word * 4;
        let count = target.len().min(4);
        target[..count].copy_from_slice(&bytes.get(place..place + 4)?[..count]);
    }
    Some(data)
}

/// Takes the operations of a record's data apart.
fn operations_of(
    data: &[u8],
    operations: u32,
    open: &mut HashMap<u32, Transaction>,
    pending: &mut usize,
    visit: &mut dyn FnMut(Vec<Item>) -> Result<()>,
) -> Result<()> {
    const OPERATION: usize = 12;
    let bad = || damaged("a transaction in its log");
    let mut place = 0;
    for _ in 0..operations {
        let header = data.get(place..place + OPERATION).ok_or_else(bad)?;
        let (id, length) = at::be32(header, 0).zip(at::be32(header, 4)).ok_or_else(bad)?;
        let flags = header[9];
        place += OPERATION;
        let bytes = data.get(place..).and_then(|rest| rest.get(..length as usize));
        let bytes = bytes.ok_or_else(bad)?;
        place += bytes.len();
        let Some(transaction) = open.get_mut(&id) else {
            if flags & START != 0 && open.len() < 1 << 16 {
                open.insert(id, Transaction::default());
            }
            continue;
        };
        *pending += bytes.len();
        if *pending > MAX_PENDING {
            return Err(bad());
        }
        match flags & !END {
            0 | CONTINUE => transaction.add(bytes).ok_or_else(bad)?,
            flags if flags & WAS_CONTINUED != 0 => transaction.extend(bytes).ok_or_else(bad)?,
            COMMIT => {
                let items = open.remove(&id).map(|done| done.items).unwrap_or_default();
                let regions = items.iter().flat_map(|item| &item.regions);
                *pending = pending.saturating_sub(regions.map(Vec::len).sum());
                visit(items)?;
            }
            UNMOUNT => {
                open.remove(&id);
            }
            _ => return Err(bad()),
        }
    }
    Ok(())
}

impl Transaction {
    /// A new region.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        if self.header < TRANSACTION_HEADER {
            self.header += bytes.len();
            return (self.header <= TRANSACTION_HEADER).then_some(());
        }
        let is_full = |item: &Item| item.regions.len() >= usize::from(item.expected);
        if self.items.last().is_none_or(is_full) {
            let expected = at::le16(bytes, 2).filter(|count| (1..=MAX_REGIONS).contains(count))?;
            self.items.push(Item { regions: Vec::new(), expected });
        }
        self.items.last_mut()?.regions.push(bytes.to_vec());
        Some(())
    }

    /// The rest of the last region.
    fn extend(&mut self, bytes: &[u8]) -> Option<()> {
        if self.header < TRANSACTION_HEADER {
            self.header += bytes.len();
            return (self.header <= TRANSACTION_HEADER).then_some(());
        }
        self.items.last_mut()?.regions.last_mut()?.extend_from_slice(bytes);
        Some(())
    }
}
