//! Where unpacking can begin within a gzip file: blocks of its deflate streams, with what they may refer to.
//!
//! The form of a file is also that of memory: points in their order, and windows that are read when they are needed.

use std::sync::Arc;

use flate2::Crc;
use libdeflater::CompressionLvl;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::damaged;
use super::decoder::{Decoder, WINDOW};
use crate::codec::{Codec, unpack};
use crate::source::{PartSource, Source, read_struct, read_vec};
use crate::{MAX_LENGTH, MemorySource, Result};

/// Least number of unpacked bytes between points.
const SPACING: u64 = 1 << 20;
/// An index takes one byte for so many of the file.
const SHARE: u64 = 64;
/// Most bytes of an index.
const MAX_INDEX: u64 = 32 << 20;
/// How an index begins; another form of it has another number.
const MAGIC: [u8; 8] = *b"gzindex1";

/// The points of a file.
pub(super) struct Index {
    /// How many bytes the file unpacks to.
    pub length: u64,
    /// Of which the first one is at the start.
    points: Vec<Point>,
    windows: Arc<dyn Source>,
}

/// A place where unpacking can begin.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Point {
    /// Bit of the file where a block begins.
    bit: U64,
    /// Which unpacked byte comes next.
    pub output: U64,
    /// Where its window begins among the windows.
    window: U64,
    /// Bytes of that, as a deflate stream; 0 where the block is the first one of a member.
    size: U32,
    /// CRC-32 of them.
    sum: U32,
}

/// The start of an index in a file. The key, the points and the windows follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// CRC-32 of the fields that follow, the key and the points.
    sum: U32,
    /// Bytes of the key.
    key: U32,
    points: U64,
    /// Bytes of the windows.
    windows: U64,
    /// How many bytes the file unpacks to.
    length: U64,
}

const _: () = assert!(size_of::<Point>() == 32 && size_of::<Header>() == 40);

impl Index {
    /// Unpacks all of a file and checks it.
    pub fn build(packed: &dyn Source) -> Result<Self> {
        let mut builder = Builder::new(packed.len());
        let mut decoder = Decoder::new();
        let mut sum = Crc::new();
        let mut begun = 0;
        loop {
            if !decoder.is_within {
                if !decoder.begin(packed)? {
                    break;
                }
                sum.reset();
                begun = decoder.output;
            }
            let is_due = builder.is_due(&decoder);
            if is_due && let Some(bit) = decoder.boundary() {
                builder.add(bit, &decoder);
            }
            sum.update(decoder.step(packed, usize::MAX, is_due)?);
            if decoder.output > MAX_LENGTH {
                return Err(damaged("it unpacks to more than any disk"));
            }
            if !decoder.is_within {
                let trailer = decoder.trailer(packed)?;
                let length = (decoder.output - begun) as u32;
                if trailer != (sum.sum(), length) {
                    return Err(damaged("its checksum is wrong"));
                }
            }
        }
        let windows = Arc::new(MemorySource::read_only(builder.windows));
        Ok(Self { length: decoder.output, points: builder.points, windows })
    }

    /// Whether it spares a reader anything worth being kept.
    pub fn is_worth_keeping(&self) -> bool {
        self.length > SPACING
    }

    /// The points before `start`, or there, the nearest one first; the last one is that at the start of the file.
    pub fn before(&self, start: u64) -> impl Iterator<Item = &Point> {
        let after = self.points.partition_point(|point| point.output.get() <= start);
        self.points[..after].iter().rev()
    }

    /// A decoder at a point; `None` if its window is damaged.
    pub fn decoder(&self, point: &Point, packed: &dyn Source) -> Result<Option<Decoder>> {
        let mut window = vec![0; WINDOW];
        let length = match point.size.get() {
            0 => Some(0),
            size => read_vec(&*self.windows, point.window.get(), size as usize)
                .ok()
                .filter(|bytes| crc(&[bytes]) == point.sum.get())
                .and_then(|bytes| unpack(Codec::Deflate, &bytes, &mut window)),
        };
        let Some(length) = length else { return Ok(None) };
        Decoder::at(packed, point.bit.get(), point.output.get(), &window[..length]).map(Some)
    }

    /// An index as it lies in a file; `None` if it is damaged, or another file's than that with this key.
    pub fn read(file: Arc<dyn Source>, key: &str, packed: u64) -> Option<Self> {
        let header: Header = read_struct(&*file, 0).ok()?;
        if header.magic != MAGIC || header.key.get() as usize != key.len() {
            return None;
        }
        let table = header.points.get().checked_mul(size_of::<Point>() as u64)?;
        let start = size_of::<Header>() as u64;
        let points_at = start + u64::from(header.key.get());
        let windows_at = points_at.checked_add(table)?;
        let end = windows_at.checked_add(header.windows.get())?;
        if end != file.len() {
            return None;
        }
        // No longer than the file is.
        let table = read_vec(&*file, points_at, table as usize).ok()?;
        let found = read_vec(&*file, start, key.len()).ok()?;
        if found != key.as_bytes() || header.crc(key, &table) != header.sum.get() {
            return None;
        }
        let points = table
            .as_chunks::<{ size_of::<Point>() }>()
            .0
            .iter()
            .map(|bytes| zerocopy::transmute!(*bytes))
            .collect();
        let windows = Arc::new(PartSource::new(file, windows_at..end));
        let index = Self { length: header.length.get(), points, windows };
        index.makes_sense(packed).then_some(index)
    }

    fn makes_sense(&self, packed: u64) -> bool {
        let begins = self
            .points
            .first()
            .is_none_or(|first| first.output.get() == 0 && first.size.get() == 0);
        let follows = self
            .points
            .is_sorted_by(|a, b| a.output.get() < b.output.get() && a.bit.get() < b.bit.get());
        let ends = self
            .points
            .last()
            .is_none_or(|last| last.output.get() <= self.length && last.bit.get() / 8 < packed);
        let is_there = !self.points.is_empty() || self.length == 0;
        begins && follows && ends && is_there && self.length <= MAX_LENGTH
    }

    /// The bytes of a file that keeps it.
    pub fn to_bytes(&self, key: &str) -> Result<Vec<u8>> {
        let table = self.points.as_bytes();
        let mut header = Header {
            magic: MAGIC,
            sum: U32::ZERO,
            key: U32::new(key.len() as u32),
            points: U64::new(self.points.len() as u64),
            windows: U64::new(self.windows.len()),
            length: U64::new(self.length),
        };
        header.sum = header.crc(key, table).into();
        let windows = read_vec(&*self.windows, 0, self.windows.len() as usize)?;
        Ok([header.as_bytes(), key.as_bytes(), table, &windows].concat())
    }
}

impl Header {
    fn crc(&self, key: &str, table: &[u8]) -> u32 {
        let fields = [self.key.as_bytes(), self.points.as_bytes(), self.windows.as_bytes()];
        let [a, b, c] = fields;
        crc(&[a, b, c, self.length.as_bytes(), key.as_bytes(), table])
    }
}

/// An index that is made while a file is unpacked.
struct Builder {
    points: Vec<Point>,
    windows: Vec<u8>,
    /// Packed bytes that pay for one of the index.
    share: u64,
    deflate: libdeflater::Compressor,
}

impl Builder {
    fn new(packed: u64) -> Self {
        Self {
            points: Vec::new(),
            windows: Vec::new(),
            share: SHARE.max(packed.div_ceil(MAX_INDEX)),
            deflate: libdeflater::Compressor::new(CompressionLvl::new(1).unwrap_or_default()),
        }
    }

    /// Whether the next block is to become a point.
    fn is_due(&self, decoder: &Decoder) -> bool {
        let taken = self.windows.len() + size_of_val(&self.points[..]);
        self.points.last().is_none_or(|last| {
            decoder.output - last.output.get() >= SPACING
                && taken as u64 <= decoder.input / self.share
        })
    }

    fn add(&mut self, bit: u64, decoder: &Decoder) {
        let start = self.windows.len();
        let window = decoder.window();
        if !window.is_empty() {
            self.windows.resize(start + self.deflate.deflate_compress_bound(window.len()), 0);
            let room = &mut self.windows[start..];
            // It is as much as can be needed.
            let length = self.deflate.deflate_compress(window, room).unwrap_or(0);
            self.windows.truncate(start + length);
        }
        let window = &self.windows[start..];
        self.points.push(Point {
            bit: bit.into(),
            output: decoder.output.into(),
            window: (start as u64).into(),
            size: (window.len() as u32).into(),
            sum: crc(&[window]).into(),
        });
    }
}

/// Makes the checksum of an index right that is without a key.
pub(super) fn seal(file: &mut [u8]) {
    let Some((header, rest)) = file.split_at_mut_checked(size_of::<Header>()) else { return };
    let Ok(header) = Header::mut_from_bytes(header) else { return };
    let table = header.points.get().saturating_mul(size_of::<Point>() as u64);
    let table = usize::try_from(table).ok().and_then(|length| rest.get(..length));
    header.sum = header.crc("", table.unwrap_or_default()).into();
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut sum = Crc::new();
    parts.iter().for_each(|part| sum.update(part));
    sum.sum()
}
