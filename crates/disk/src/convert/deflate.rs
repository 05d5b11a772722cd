//! A deflate encoder (RFC 1951) for windows of 4 KiB, as QEMU reads qcow2's clusters with. General encoders gain little from
//! so small a window and still search it as they do a large one; this one looks at one place for each match, and is three
//! times as fast as zlib-rs at its usual level for six per cent more size.

use std::hint::select_unpredictable;

use super::prefix::{Bits, Code, DISTANCES, LITERALS, MAX_CODES_BYTES, write_codes};

/// What a match can reach back to.
const WINDOW: usize = 4096;
const MIN_MATCH: usize = 4;
const MAX_MATCH: usize = 258;
/// A block of codes covers at most so many bytes of input.
const BLOCK: usize = 64 << 10;
const HASH_BITS: u32 = 13;
/// Matches of at least this length are taken without looking for a longer one at the next byte.
const LONG: usize = 6;
/// Of a match's bytes, so many at its end are remembered as starts of others.
const KEPT: usize = 2;
/// After 2^N bytes without a match, one byte more is skipped each time.
const SKIP_SHIFT: usize = 6;
/// Four codes and the bits that wait for their byte fit into 64.
const MAX_CODE_BITS: usize = 14;

const END: usize = 256;

/// Compresses clusters one by one.
pub(super) struct Deflater {
    /// The last position of each hash, without its high bits: what is found there is compared anyway.
    recent: Box<[u16; 1 << HASH_BITS]>,
    sequences: Vec<Sequence>,
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
    output: Vec<u8>,
}

/// Literals, then a match; none where the length is 0.
#[derive(Clone, Copy)]
struct Sequence {
    literals: u32,
    length: u16,
    distance: u16,
}

impl Deflater {
    pub fn new() -> Self {
        Self {
            recent: Box::new([0; 1 << HASH_BITS]),
            sequences: Vec::new(),
            literals: [0; LITERALS],
            distances: [0; DISTANCES],
            output: Vec::new(),
        }
    }

    /// The stream, if it is shorter.
    pub fn compress(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.recent.fill(0);
        let mut room = std::mem::take(&mut self.output);
        room.resize(bytes.len() + MAX_CODES_BYTES + size_of::<u64>(), 0);
        let mut output = Bits::new(&mut room);
        let mut start = 0;
        let written = loop {
            let end = self.parse(bytes, start, bytes.len().min(start + BLOCK));
            let is_last = end == bytes.len();
            if self.write_block(&mut output, &bytes[start..end], is_last, bytes.len()).is_none() {
                break None;
            }
            if is_last {
                break Some(output.finish());
            }
            start = end;
        };
        let stream = written.filter(|length| *length < bytes.len());
        let stream = stream.and_then(|length| room.get(..length)).map(<[u8]>::to_vec);
        self.output = room;
        stream
    }

    /// Finds matches from `start` up to `end` or a little farther; returns where it stopped.
    fn parse(&mut self, bytes: &[u8], start: usize, end: usize) -> usize {
        self.sequences.clear();
        self.literals.fill(0);
        self.distances.fill(0);
        // Where eight bytes can be loaded.
        let search_end = end.min(bytes.len().saturating_sub(size_of::<u64>() - 1));
        // Where the literals begin that belong to the next match.
        let (mut at, mut pending) = (start, start);
        while at < search_end {
            let (mut length, mut distance) = self.find(bytes, at);
            if length < MIN_MATCH {
                at += 1 + ((at - pending) >> SKIP_SHIFT);
                continue;
            }
            while length < LONG && at + 1 < search_end {
                let next = self.find(bytes, at + 1);
                if next.0 <= length {
                    break;
                }
                at += 1;
                (length, distance) = next;
            }
            self.count_literals(&bytes[pending..at]);
            self.literals[length_symbol(length).0] += 1;
            self.distances[distance_symbol(distance).0] += 1;
            self.sequences.push(Sequence {
                literals: (at - pending) as u32,
                length: length as u16,
                distance: distance as u16,
            });
            let next = at + length;
            // What lies within a long match is rarely the start of another.
            for inner in (at + 2).max(next.saturating_sub(KEPT))..next.min(search_end) {
                self.recent[hash(load(bytes, inner))] = inner as u16;
            }
            (at, pending) = (next, next);
        }
        // A match may have passed the end.
        let end = end.max(pending);
        self.count_literals(&bytes[pending..end]);
        let literals = (end - pending) as u32;
        self.sequences.push(Sequence { literals, length: 0, distance: 0 });
        end
    }

    fn count_literals(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.literals[usize::from(byte)] += 1);
    }

    /// Length and distance of the match at `at`, which is remembered.
    #[inline(always)]
    fn find(&mut self, bytes: &[u8], at: usize) -> (usize, usize) {
        let here = load(bytes, at);
        let slot = &mut self.recent[hash(here)];
        let distance = usize::from((at as u16).wrapping_sub(*slot));
        *slot = at as u16;
        let is_near = (distance.wrapping_sub(1) < WINDOW) & (distance <= at);
        // Whether a place is near is as good as random, and so would be the processor's guess.
        let from = select_unpredictable(is_near, at.wrapping_sub(distance), 0);
        let difference = here ^ load(bytes, from);
        if !is_near | (difference as u32 != 0) {
            return (0, 0);
        }
        match difference {
            0 => (common(bytes, at, from), distance),
            _ => (difference.trailing_zeros() as usize / 8, distance),
        }
    }

    /// Writes what was parsed from `bytes`; nothing if the stream would be longer than `limit`.
    fn write_block(
        &self,
        output: &mut Bits<'_>,
        bytes: &[u8],
        is_last: bool,
        limit: usize,
    ) -> Option<()> {
        let mut counts = self.literals;
        counts[END] = 1;
        let literals = Code::<LITERALS>::new(&counts, MAX_CODE_BITS);
        let distances = Code::<DISTANCES>::new(&self.distances, MAX_CODE_BITS);
        let cost = cost(&counts, &literals, length_extra)
            + cost(&self.distances, &distances, distance_extra);
        if output.len() + (cost / 8) as usize >= limit {
            return None;
        }
        output.put(is_last.into(), 1);
        output.put(2, 2);
        write_codes(output, &literals, &distances);
        let lengths = Lengths::new(&literals);
        let literal = |byte: u8| {
            let symbol = usize::from(byte);
            (literals.codes[symbol].into(), literals.lengths[symbol].into())
        };
        let mut rest = bytes;
        for sequence in &self.sequences {
            let (run, after) = rest.split_at(sequence.literals as usize);
            let (fours, single) = run.as_chunks::<4>();
            for four in fours {
                for &byte in four {
                    let (code, bits) = literal(byte);
                    output.add(code, bits);
                }
                output.flush();
            }
            for &byte in single {
                let (code, bits) = literal(byte);
                output.add(code, bits);
            }
            output.flush();
            let length = usize::from(sequence.length);
            if length == 0 {
                break;
            }
            let (code, bits) = lengths.0[length];
            output.add(code.into(), bits.into());
            let distance = usize::from(sequence.distance);
            let (symbol, bits) = distance_symbol(distance);
            let extra = (distance - 1) & ((1 << bits) - 1);
            output.add(distances.codes[symbol].into(), distances.lengths[symbol].into());
            output.add(extra as u64, bits);
            output.flush();
            rest = &after[length..];
        }
        output.put(literals.codes[END].into(), literals.lengths[END].into());
        Some(())
    }
}

/// The codes of all lengths with their extra bits, and how many bits those are.
struct Lengths([(u32, u8); MAX_MATCH + 1]);

impl Lengths {
    fn new(code: &Code<LITERALS>) -> Self {
        let mut all = [(0, 0); MAX_MATCH + 1];
        for (length, entry) in all.iter_mut().enumerate().skip(3) {
            let (symbol, bits) = length_symbol(length);
            let extra = ((length - 3) & ((1 << bits) - 1)) as u32;
            let code_bits = code.lengths[symbol];
            *entry = (u32::from(code.codes[symbol]) | extra << code_bits, code_bits + bits as u8);
        }
        Self(all)
    }
}

/// Bits of all symbols and what follows them.
fn cost<const N: usize>(counts: &[u32; N], code: &Code<N>, extra: fn(usize) -> u32) -> u64 {
    (0..N)
        .map(|symbol| {
            u64::from(counts[symbol]) * u64::from(u32::from(code.lengths[symbol]) + extra(symbol))
        })
        .sum()
}

#[inline(always)]
fn load(bytes: &[u8], at: usize) -> u64 {
    // Every caller has checked that they are there.
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Of five bytes: matches of four alone save little.
#[inline(always)]
fn hash(here: u64) -> usize {
    ((here << 24).wrapping_mul(0x9e37_79b1_85eb_ca87) >> (64 - HASH_BITS)) as usize
}

/// How many bytes are the same at two places of which the first eight are.
fn common(bytes: &[u8], at: usize, from: usize) -> usize {
    let most = MAX_MATCH.min(bytes.len() - at);
    let mut length = size_of::<u64>();
    while length + size_of::<u64>() <= most {
        let difference = load(bytes, at + length) ^ load(bytes, from + length);
        if difference != 0 {
            return length + difference.trailing_zeros() as usize / 8;
        }
        length += size_of::<u64>();
    }
    while length < most && bytes[at + length] == bytes[from + length] {
        length += 1;
    }
    length
}

/// Symbol and number of extra bits of a length (section 3.2.5).
#[inline(always)]
fn length_symbol(length: usize) -> (usize, u32) {
    let value = length - 3;
    match value {
        0..8 => (257 + value, 0),
        255 => (285, 0),
        _ => {
            let log = value.ilog2();
            (257 + (log as usize - 1) * 4 + ((value >> (log - 2)) & 3), log - 2)
        }
    }
}

fn length_extra(symbol: usize) -> u32 {
    if (265..285).contains(&symbol) { (symbol as u32 - 261) / 4 } else { 0 }
}

/// Symbol and number of extra bits of a distance.
#[inline(always)]
fn distance_symbol(distance: usize) -> (usize, u32) {
    let value = distance - 1;
    if value < 4 {
        return (value, 0);
    }
    let log = value.ilog2();
    (2 * log as usize + ((value >> (log - 1)) & 1), log - 1)
}

fn distance_extra(symbol: usize) -> u32 {
    (symbol as u32 / 2).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress, Status};
    use proptest::prelude::*;

    /// Unpacks with zlib's own check of distances.
    fn unpack(stream: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut state = Decompress::new(false);
        let status = state.decompress(stream, &mut bytes, FlushDecompress::Finish).unwrap();
        assert_eq!((status, state.total_out()), (Status::StreamEnd, length as u64));
        bytes
    }

    fn check(bytes: &[u8]) -> Option<usize> {
        let stream = Deflater::new().compress(bytes)?;
        assert!(stream.len() < bytes.len());
        assert!(unpack(&stream, bytes.len()) == bytes);
        Some(stream.len())
    }

    #[test]
    fn text_zeroes_and_patterns_come_back() {
        let text: Vec<u8> = include_str!("deflate.rs").bytes().cycle().take(200_000).collect();
        assert!(check(&text[..65_536]).unwrap() < 65_536 / 2);
        assert!(check(&text).unwrap() < 200_000 / 2, "several blocks");
        assert!(check(&[0; 65_536]).unwrap() < 300);
        assert!(check(&[7; 100]).is_some());
        let counted: Vec<u8> = (0..16_384_u32).flat_map(u32::to_le_bytes).collect();
        assert!(check(&counted).unwrap() < 65_536);
    }

    #[test]
    fn what_cannot_be_compressed_is_not() {
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..65_536)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        assert_eq!(check(&noise), None);
        assert_eq!(check(b"abc"), None);
        assert_eq!(check(b""), None);
    }

    #[test]
    fn no_match_is_farther_than_the_window() {
        let piece: Vec<u8> =
            (0..3000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let bytes = [&piece[..], &[0; 1096], &piece, &[0; 1097], &piece].concat();
        let mut deflater = Deflater::new();
        deflater.parse(&bytes, 0, bytes.len());
        let distances: Vec<u16> = deflater.sequences.iter().map(|it| it.distance).collect();
        assert!(distances.contains(&4096) && distances.iter().all(|d| *d <= 4096));
        check(&bytes).unwrap();
    }

    proptest! {
        #[test]
        fn whatever_goes_in_comes_out(
            parts in proptest::collection::vec((any::<u8>(), 1_usize..600, 1_u8..20), 1..80)
        ) {
            let bytes: Vec<u8> = parts
                .iter()
                .flat_map(|&(first, count, modulus)| {
                    (0..count).map(move |n| first.wrapping_add((n * n) as u8 % modulus))
                })
                .collect();
            check(&bytes);
        }
    }
}
