//! Files that are compressed as a whole by gzip (RFC 1952), read at any place without being unpacked to anywhere.
//!
//! One pass over the file checks it and keeps the decoder's state at places that lie evenly apart; reading begins at the
//! nearest one, or where somebody else has just stopped.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Crc;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

use super::{Source, truncated};
use crate::cache::Cache;
use crate::{Error, Format, MAX_LENGTH, Result};

/// Bytes of the file that are read at once.
const INPUT: u64 = 64 << 10;
/// Unit in which unpacked bytes are kept.
const CHUNK: u64 = 64 << 10;
/// Unpacked chunks that are kept: 8 MiB in sets of 4.
const CHUNK_SETS: usize = 32;
/// Most states that are kept, each of about 43 KiB.
const MAX_POINTS: usize = 384;
/// Unpacked bytes between states, until they are too many.
const SPACING: u64 = 1 << 20;
/// Readers that may go on where they stopped.
const MAX_READERS: usize = 4;
/// Longest header of a member: its name and comment are of no use to us.
const MAX_HEADER: u64 = 64 << 10;
/// How such files begin.
pub(crate) const MAGIC: &[u8] = &[0x1f, 0x8b, 8];

/// What the first bytes of a source unpack to, as far as it goes.
pub(crate) fn head(packed: &dyn Source) -> Result<Vec<u8>> {
    let mut reader = Reader::new();
    let mut bytes = vec![0; 4096];
    let mut filled = 0;
    if reader.begin(packed)? {
        while filled < bytes.len() && reader.is_within {
            filled += reader.step(packed, &mut bytes[filled..])?;
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The content of a source that gzip has compressed, to be read only.
pub struct GzipSource {
    packed: Arc<dyn Source>,
    length: u64,
    /// In the order of what they unpack next.
    points: Vec<Point>,
    readers: Mutex<Vec<Reader>>,
    chunks: Cache<[u8]>,
}

/// A decoder's state.
#[derive(Clone)]
struct Point {
    /// Where the packed bytes go on.
    input: u64,
    /// Which unpacked byte comes next.
    output: u64,
    inflate: Box<InflateState>,
}

/// A decoder on its way.
struct Reader {
    at: Point,
    /// Packed bytes from the one at `start` on.
    buffer: Vec<u8>,
    start: u64,
    is_within: bool,
}

impl GzipSource {
    /// Whether a source begins as gzip's files do.
    pub fn is_gzip(source: &dyn Source) -> Result<bool> {
        let mut magic = [0; 3];
        if source.len() < 18 {
            return Ok(false);
        }
        source.read_at(&mut magic, 0)?;
        Ok(magic == MAGIC)
    }

    /// Unpacks all of it once.
    pub fn open(packed: Arc<dyn Source>) -> Result<Self> {
        Self::with_points(packed, SPACING, MAX_POINTS)
    }

    fn with_points(packed: Arc<dyn Source>, mut spacing: u64, most: usize) -> Result<Self> {
        let mut points: Vec<Point> = Vec::new();
        let mut reader = Reader::new();
        let mut bytes = vec![0; CHUNK as usize];
        let mut sum = Crc::new();
        let mut begun = 0;
        loop {
            if !reader.is_within {
                if !reader.begin(&*packed)? {
                    break;
                }
                sum.reset();
                begun = reader.at.output;
            }
            if points.last().is_none_or(|last| reader.at.output - last.output >= spacing) {
                if points.len() >= most {
                    spacing *= 2;
                    let mut index = 0;
                    points.retain(|_| {
                        index += 1;
                        index % 2 == 1
                    });
                }
                points.push(reader.at.clone());
            }
            let count = reader.step(&*packed, &mut bytes)?;
            sum.update(&bytes[..count]);
            if reader.at.output > MAX_LENGTH {
                return Err(damaged("it unpacks to more than any disk"));
            }
            if !reader.is_within {
                let trailer = reader.trailer(&*packed)?;
                let length = (reader.at.output - begun) as u32;
                if trailer != (sum.sum(), length) {
                    return Err(damaged("its checksum is wrong"));
                }
            }
        }
        let (readers, chunks) = (Mutex::default(), Cache::new(CHUNK_SETS, 4));
        Ok(Self { packed, length: reader.at.output, points, readers, chunks })
    }

    /// Fills `target` from a place within a chunk, of which it is a part.
    fn read_chunk(&self, number: u64, within: usize, target: &mut [u8]) -> Result<()> {
        let part = within..within + target.len();
        if self.chunks.with(number, |chunk| target.copy_from_slice(&chunk[part.clone()])).is_some()
        {
            return Ok(());
        }
        let start = number * CHUNK;
        let mut reader = self.reader(start);
        loop {
            // A state can lie within a chunk.
            let here = reader.at.output / CHUNK;
            let begin = reader.at.output % CHUNK;
            let end = (self.length - here * CHUNK).min(CHUNK);
            let mut bytes = vec![0; (end - begin) as usize];
            reader.fill(&*self.packed, &mut bytes)?;
            if begin != 0 {
                continue;
            }
            if here != number {
                self.chunks.insert(here, bytes.into());
            } else {
                target.copy_from_slice(&bytes[part]);
                self.chunks.insert(here, bytes.into());
                let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
                if readers.len() >= MAX_READERS {
                    readers.remove(0);
                }
                readers.push(reader);
                return Ok(());
            }
        }
    }

    /// One that comes to `start` soonest.
    fn reader(&self, start: u64) -> Reader {
        let after = self.points.partition_point(|point| point.output <= start);
        // The first one is at the start.
        let point = &self.points[after.saturating_sub(1)];
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = readers
            .iter()
            .enumerate()
            .filter(|(_, reader)| (point.output..=start).contains(&reader.at.output))
            .max_by_key(|(_, reader)| reader.at.output);
        match nearest.map(|(index, _)| index) {
            Some(index) => readers.remove(index),
            None => Reader { at: point.clone(), is_within: true, ..Reader::new() },
        }
    }
}

impl Reader {
    fn new() -> Self {
        let at = Point { input: 0, output: 0, inflate: InflateState::new_boxed(DataFormat::Raw) };
        Self { at, buffer: Vec::new(), start: 0, is_within: false }
    }

    /// The packed bytes that come next; none at the end.
    fn input(&mut self, packed: &dyn Source) -> Result<&[u8]> {
        let end = self.start + self.buffer.len() as u64;
        if !(self.start..end).contains(&self.at.input) {
            let there = packed.len().saturating_sub(self.at.input).min(INPUT);
            self.buffer.resize(there as usize, 0);
            packed.read_at(&mut self.buffer, self.at.input)?;
            self.start = self.at.input;
        }
        Ok(&self.buffer[(self.at.input - self.start) as usize..])
    }

    fn byte(&mut self, packed: &dyn Source) -> Result<u8> {
        let byte = self.input(packed)?.first().copied();
        self.at.input += 1;
        byte.ok_or_else(|| damaged("it ends too early"))
    }

    /// Reads the header of the next member; `false` if there is none.
    fn begin(&mut self, packed: &dyn Source) -> Result<bool> {
        let start = self.at.input;
        match self.input(packed)? {
            [] if start != 0 => return Ok(false),
            // Tapes and tar fill up with zeroes; what else follows is left alone, as gzip does.
            [first, ..] if start != 0 && *first != 0x1f => return Ok(false),
            _ => {}
        }
        let mut header = [0; 10];
        for byte in &mut header {
            *byte = self.byte(packed)?;
        }
        let [0x1f, 0x8b, 8, flags, ..] = header else {
            return if start == 0 {
                Err(damaged("it does not begin as it should"))
            } else {
                Ok(false)
            };
        };
        let limit = start + MAX_HEADER;
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.byte(packed)?, self.byte(packed)?]);
            self.at.input += u64::from(length);
        }
        for text in [8, 16] {
            while flags & text != 0 && self.byte(packed)? != 0 {
                if self.at.input > limit {
                    return Err(damaged("its name is too long"));
                }
            }
        }
        if flags & 2 != 0 {
            self.at.input += 2;
        }
        self.at.inflate = InflateState::new_boxed(DataFormat::Raw);
        self.is_within = true;
        Ok(true)
    }

    /// CRC-32 and length of a member, which follow it.
    fn trailer(&mut self, packed: &dyn Source) -> Result<(u32, u32)> {
        let mut words = [0; 2];
        for word in &mut words {
            let mut bytes = [0; 4];
            for byte in &mut bytes {
                *byte = self.byte(packed)?;
            }
            *word = u32::from_le_bytes(bytes);
        }
        Ok((words[0], words[1]))
    }

    /// Unpacks some bytes of the member, and notes if that was its end.
    fn step(&mut self, packed: &dyn Source, output: &mut [u8]) -> Result<usize> {
        let is_last = self.input(packed)?.is_empty();
        let input = &self.buffer[(self.at.input - self.start) as usize..];
        let result = inflate(&mut self.at.inflate, input, output, MZFlush::None);
        self.at.input += result.bytes_consumed as u64;
        self.at.output += result.bytes_written as u64;
        match result.status {
            Ok(MZStatus::StreamEnd) => self.is_within = false,
            Ok(_) => {}
            Err(_) if result.bytes_written != 0 || result.bytes_consumed != 0 => {}
            Err(_) if is_last => return Err(damaged("it ends too early")),
            Err(_) => return Err(damaged("it cannot be unpacked")),
        }
        if self.is_within && result.bytes_written == 0 && result.bytes_consumed == 0 {
            return Err(damaged("it ends too early"));
        }
        Ok(result.bytes_written)
    }

    /// Unpacks as many bytes as the buffer takes, over the ends of members.
    fn fill(&mut self, packed: &dyn Source, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            if !self.is_within && !self.begin(packed)? {
                return Err(damaged("it was changed while it was read"));
            }
            let count = self.step(packed, buffer)?;
            if !self.is_within {
                self.trailer(packed)?;
            }
            buffer = &mut buffer[count..];
        }
        Ok(())
    }
}

impl fmt::Debug for GzipSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipSource").field("packed", &self.packed).finish_non_exhaustive()
    }
}

impl Source for GzipSource {
    fn len(&self) -> u64 {
        self.length
    }

    fn version(&self) -> Option<String> {
        Some(format!("unpacked {}", self.packed.version()?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length) {
            return Err(truncated(self, offset, buffer.len()));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = at % CHUNK;
            // No more than a chunk.
            let count = ((CHUNK - within) as usize).min(buffer.len() - done);
            let target = &mut buffer[done..done + count];
            self.read_chunk(at / CHUNK, within as usize, target)?;
            done += count;
        }
        Ok(())
    }
}

fn damaged(what: &str) -> Error {
    Error::Damaged { format: Format::Raw, what: format!("as a gzip file, {what}") }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::MemorySource;

    fn content(length: u32) -> Vec<u8> {
        (0..length / 4)
            .flat_map(|n| (n.wrapping_mul(n) >> ((n >> 12) % 24)).to_le_bytes())
            .collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn open(packed: &[u8]) -> Result<GzipSource> {
        GzipSource::open(Arc::new(MemorySource::read_only(packed.to_vec())))
    }

    #[test]
    fn every_place_is_read_in_any_order() {
        let wanted = content(9 << 20);
        let source = open(&gzip(&wanted)).unwrap();
        assert_eq!(source.len(), wanted.len() as u64);
        assert_eq!(source.points.len(), 9);
        let mut found = vec![0; 100_000];
        for index in 0..200_u64 {
            let offset = index * 7_654_321 % (wanted.len() - found.len()) as u64;
            source.read_at(&mut found, offset).unwrap();
            assert!(found == wanted[offset as usize..][..found.len()], "at {offset}");
        }
        let mut all = vec![0; wanted.len()];
        source.read_at(&mut all, 0).unwrap();
        assert!(all == wanted);
        assert!(source.read_at(&mut [0; 2], wanted.len() as u64 - 1).is_err());
    }

    #[test]
    fn members_follow_each_other_and_zeroes_end_them() {
        let wanted = content(3 << 20);
        let (first, second) = wanted.split_at(1_234_567);
        let empty = gzip(&[]);
        let packed = [&gzip(first)[..], &empty, &gzip(second), &[0; 512]].concat();
        let source = open(&packed).unwrap();
        let mut all = vec![0; wanted.len()];
        source.read_at(&mut all, 0).unwrap();
        assert!(all == wanted);
        source.read_at(&mut all[..9], 1_234_560).unwrap();
        assert!(all[..9] == wanted[1_234_560..][..9]);
        assert_eq!(open(&empty).unwrap().len(), 0);
    }

    #[test]
    fn states_do_not_become_too_many() {
        let wanted = content(4 << 20);
        let packed = Arc::new(MemorySource::read_only(gzip(&wanted)));
        let source = GzipSource::with_points(packed, 1 << 10, 16).unwrap();
        assert!((8..=16).contains(&source.points.len()));
        let mut found = [1; 4096];
        for offset in [wanted.len() - 4096, 1 << 20, 0] {
            source.read_at(&mut found, offset as u64).unwrap();
            assert!(found == wanted[offset..][..4096]);
        }
    }

    #[test]
    fn what_was_cut_off_or_changed_is_refused() {
        let packed = gzip(&content(200_000));
        for end in [0, 5, 17, 100, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
            assert!(open(&packed[..end]).is_err(), "cut at {end}");
        }
        for at in [0, 1, 2, packed.len() / 2, packed.len() - 8, packed.len() - 1] {
            let mut packed = packed.clone();
            packed[at] ^= 0x55;
            assert!(open(&packed).is_err(), "changed at {at}");
        }
        // A header that goes on for ever.
        let mut endless = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0];
        endless.resize(1 << 20, b'a');
        assert!(open(&endless).is_err());
    }
}
