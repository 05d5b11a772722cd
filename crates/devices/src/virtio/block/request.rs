//! From descriptor chains to requests (VIRTIO 1.2 section 5.2.6).

use std::ops::Range;

use disk::SECTOR_SIZE;
use engine::GuestMemory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

/// The request was done.
pub(super) const STATUS_OK: u8 = 0;
/// The request failed, or must fail.
pub(super) const STATUS_IO_ERROR: u8 = 1;
/// The device knows no such request.
pub(super) const STATUS_UNSUPPORTED: u8 = 2;

/// Most data buffers of a request, which is also what one system call takes.
pub(super) const MAX_SEGMENTS: usize = 1024;
/// Most ranges of a discard request, and sectors in each: 1 GiB.
pub(super) const MAX_DISCARD: RangeLimits = RangeLimits { ranges: 32, sectors: 2 << 20 };
/// Most ranges of a write-zeroes request, and sectors in each: 256 MiB, because a file system may know
/// no better way than to write them, and a pause waits for the request.
pub(super) const MAX_WRITE_ZEROES: RangeLimits = RangeLimits { ranges: 1, sectors: 512 << 10 };
/// Length of a disk's name as GET_ID tells it.
pub(super) const ID_LENGTH: usize = 20;

const TYPE_IN: u64 = 0;
const TYPE_OUT: u64 = 1;
const TYPE_FLUSH: u64 = 4;
const TYPE_GET_ID: u64 = 8;
const TYPE_DISCARD: u64 = 11;
const TYPE_WRITE_ZEROES: u64 = 13;

const HEADER_LENGTH: usize = 16;
const RANGE_LENGTH: usize = 16;
const FLAG_UNMAP: u64 = 1;

/// How much one request may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeLimits {
    pub ranges: u32,
    pub sectors: u32,
}

/// A part of guest memory, which is not checked to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: GuestAddress,
    pub length: u32,
}

/// A request that can be carried out: its place on the disk exists and it may be done there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub head: u16,
    /// Where the status byte belongs; within guest memory.
    pub status: GuestAddress,
    pub operation: Operation,
    /// What to read into or to write from; the buffer of [`Operation::GetId`].
    pub data: Vec<Segment>,
    /// Sum of the lengths of `data`.
    pub length: u64,
}

/// What is to be done, with offsets in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    GetId,
    Discard(Vec<Range<u64>>),
    WriteZeroes(Vec<ZeroRange>),
}

/// A range that is to read as zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ZeroRange {
    pub range: Range<u64>,
    pub unmap: bool,
}

/// What a chain turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Request(Request),
    /// It is answered with a status and nothing else.
    Refused {
        head: u16,
        status: GuestAddress,
        code: u8,
    },
    /// It has no whole header or no byte for the status: it is given back with nothing written. That
    /// needs no reset, since the queue itself is sound.
    Unanswerable {
        head: u16,
    },
}

/// The disk, as far as requests are checked against it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub length: u64,
    pub read_only: bool,
}

/// Reads the request in the chain with this `head`, whose descriptors may be anything.
pub(super) fn parse(
    memory: &GuestMemory,
    head: u16,
    chain: impl Iterator<Item = Descriptor>,
    limits: Limits,
) -> Parsed {
    let unanswerable = Parsed::Unanswerable { head };
    let Some(mut chain) = Chain::collect(chain) else { return unanswerable };
    let Some(status) = chain.take_status() else { return unanswerable };
    if !memory.check_range(status, 1, Permissions::Write) {
        return unanswerable;
    }
    let Some(header) = chain.take_header(memory) else { return unanswerable };
    match request(memory, chain, &header, limits) {
        Ok((operation, data)) => {
            let length = total(&data);
            Parsed::Request(Request { head, status, operation, data, length })
        }
        Err(code) => Parsed::Refused { head, status, code },
    }
}

/// The operation and its data, or the status that refuses it.
fn request(
    memory: &GuestMemory,
    chain: Chain,
    header: &[u8; HEADER_LENGTH],
    limits: Limits,
) -> Result<(Operation, Vec<Segment>), u8> {
    if chain.too_many {
        return Err(STATUS_IO_ERROR);
    }
    let kind = word(header, 0);
    let sector = word(header, 8) | word(header, 12) << 32;
    match kind {
        TYPE_IN => {
            let offset = transfer(sector, &chain.writable, limits)?;
            Ok((Operation::Read { offset }, chain.writable))
        }
        TYPE_OUT => {
            let offset = transfer(sector, &chain.readable, changing(limits)?)?;
            Ok((Operation::Write { offset }, chain.readable))
        }
        TYPE_FLUSH => Ok((Operation::Flush, Vec::new())),
        TYPE_GET_ID => Ok((Operation::GetId, chain.writable)),
        TYPE_DISCARD => {
            let ranges = ranges(memory, &chain.readable, MAX_DISCARD, changing(limits)?)?;
            // A discard has no unmap flag (section 5.2.6.2).
            if ranges.iter().any(|range| range.unmap) {
                return Err(STATUS_UNSUPPORTED);
            }
            let ranges = ranges.into_iter().map(|range| range.range).collect();
            Ok((Operation::Discard(ranges), Vec::new()))
        }
        TYPE_WRITE_ZEROES => {
            let ranges = ranges(memory, &chain.readable, MAX_WRITE_ZEROES, changing(limits)?)?;
            Ok((Operation::WriteZeroes(ranges), Vec::new()))
        }
        _ => Err(STATUS_UNSUPPORTED),
    }
}

fn changing(limits: Limits) -> Result<Limits, u8> {
    if limits.read_only { Err(STATUS_IO_ERROR) } else { Ok(limits) }
}

/// Offset on the disk of a transfer of `data` at `sector`.
fn transfer(sector: u64, data: &[Segment], limits: Limits) -> Result<u64, u8> {
    let length = total(data);
    if !length.is_multiple_of(SECTOR_SIZE) {
        return Err(STATUS_IO_ERROR);
    }
    Ok(range(sector, length, limits)?.start)
}

fn range(sector: u64, length: u64, limits: Limits) -> Result<Range<u64>, u8> {
    let start = sector.checked_mul(SECTOR_SIZE).ok_or(STATUS_IO_ERROR)?;
    let end = start.checked_add(length).ok_or(STATUS_IO_ERROR)?;
    if end > limits.length { Err(STATUS_IO_ERROR) } else { Ok(start..end) }
}

/// The ranges of a discard or write-zeroes request.
fn ranges(
    memory: &GuestMemory,
    data: &[Segment],
    most: RangeLimits,
    limits: Limits,
) -> Result<Vec<ZeroRange>, u8> {
    const { assert!(MAX_WRITE_ZEROES.ranges <= MAX_DISCARD.ranges) };
    let length = total(data);
    let count = length / RANGE_LENGTH as u64;
    if !length.is_multiple_of(RANGE_LENGTH as u64) || count == 0 || count > most.ranges.into() {
        return Err(STATUS_IO_ERROR);
    }
    let mut bytes = [0; RANGE_LENGTH * MAX_DISCARD.ranges as usize];
    let bytes = &mut bytes[..length as usize];
    gather(memory, data, bytes).ok_or(STATUS_IO_ERROR)?;
    let (entries, _) = bytes.as_chunks::<RANGE_LENGTH>();
    entries
        .iter()
        .map(|entry| {
            let (sector, count) = (word(entry, 0) | word(entry, 4) << 32, word(entry, 8));
            let flags = word(entry, 12);
            if flags & !FLAG_UNMAP != 0 {
                return Err(STATUS_UNSUPPORTED);
            }
            if count > most.sectors.into() {
                return Err(STATUS_IO_ERROR);
            }
            let range = range(sector, count * SECTOR_SIZE, limits)?;
            Ok(ZeroRange { range, unmap: flags & FLAG_UNMAP != 0 })
        })
        .collect()
}

/// Fills `bytes` from the beginning of `data`; `None` where that is not guest memory.
pub(super) fn gather(memory: &GuestMemory, data: &[Segment], bytes: &mut [u8]) -> Option<()> {
    let mut rest = bytes;
    for segment in data {
        let count = rest.len().min(segment.length as usize);
        let (part, after) = rest.split_at_mut(count);
        memory.read_slice(part, segment.address).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Writes `bytes` to the beginning of `data`; `None` where that is not guest memory.
pub(super) fn scatter(memory: &GuestMemory, data: &[Segment], bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    for segment in data {
        let (part, after) = rest.split_at(rest.len().min(segment.length as usize));
        memory.write_slice(part, segment.address).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Takes the first `count` bytes off `data`; it must have them.
pub(super) fn split_front(data: &mut Vec<Segment>, mut count: u64) {
    let mut whole = 0;
    for segment in data.iter_mut() {
        if count < segment.length.into() {
            // Less than the length, so it fits; an address past the end is refused when it is used.
            segment.length -= count as u32;
            segment.address.0 = segment.address.0.wrapping_add(count);
            break;
        }
        count -= u64::from(segment.length);
        whole += 1;
    }
    data.drain(..whole);
}

/// The little-endian 32-bit word at byte `at` of a header or a range.
fn word(bytes: &[u8; 16], at: usize) -> u64 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]).into()
}

fn total(data: &[Segment]) -> u64 {
    data.iter().map(|segment| u64::from(segment.length)).sum()
}

/// The buffers of a chain, in two runs of bytes.
struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// There were more than fit; of the writable ones the last is kept.
    too_many: bool,
}

impl Chain {
    /// `None` for a chain that ends where its last descriptor says that it goes on, or that has a
    /// readable buffer behind a writable one (section 2.7.4.2).
    fn collect(chain: impl Iterator<Item = Descriptor>) -> Option<Self> {
        // Room for a whole list and for the header or the status.
        const ROOM: usize = MAX_SEGMENTS + 1;
        let mut found = Self { readable: Vec::new(), writable: Vec::new(), too_many: false };
        let mut goes_on = true;
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
            let list = if descriptor.is_write_only() {
                &mut found.writable
            } else if found.writable.is_empty() {
                &mut found.readable
            } else {
                return None;
            };
            if segment.length == 0 {
                continue;
            }
            if list.len() == ROOM {
                found.too_many = true;
                list.pop();
            }
            list.push(segment);
        }
        (!goes_on).then_some(found)
    }

    /// Takes off the last writable byte.
    fn take_status(&mut self) -> Option<GuestAddress> {
        let last = self.writable.last_mut()?;
        last.length -= 1;
        let status = last.address.0.checked_add(last.length.into())?;
        if last.length == 0 {
            self.writable.pop();
        }
        Some(GuestAddress(status))
    }

    /// Takes off the first readable bytes, however they are cut.
    fn take_header(&mut self, memory: &GuestMemory) -> Option<[u8; HEADER_LENGTH]> {
        let mut header = [0; HEADER_LENGTH];
        gather(memory, &self.readable, &mut header)?;
        split_front(&mut self.readable, HEADER_LENGTH as u64);
        Some(header)
    }
}
