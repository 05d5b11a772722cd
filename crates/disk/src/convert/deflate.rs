//! A deflate encoder (RFC 1951) for windows of 4 KiB, as QEMU reads qcow2's clusters with. General encoders gain little from
//! so small a window and still search it as they do a large one; this one looks at two places for each match, and is three
//! times as fast at the same size.

/// What a match can reach back to.
const WINDOW: usize = 4096;
const MIN_MATCH: usize = 4;
const MAX_MATCH: usize = 258;
/// A block of codes covers at most so many bytes of input.
const BLOCK: usize = 64 << 10;
const HASH_BITS: u32 = 13;
/// Matches of at least this length are taken without looking for a longer one at the next byte.
const LONG: usize = 5;
/// Of a match's bytes, so many at its end are remembered as starts of others.
const KEPT: usize = 3;
/// After 2^N bytes without a match, one byte more is skipped each time.
const SKIP_SHIFT: usize = 5;

const END: usize = 256;
const LITERALS: usize = 286;
const DISTANCES: usize = 30;
const LENGTH_CODES: usize = 19;
/// Order in which the lengths of the codes of lengths are written (section 3.2.7).
const ORDER: [usize; LENGTH_CODES] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Compresses clusters one by one.
pub(super) struct Deflater {
    /// The last two positions of each hash, plus one.
    recent: Box<[[u32; 2]]>,
    /// A literal, or length and distance of a match.
    tokens: Vec<Token>,
    literals: Box<[u32; LITERALS]>,
    distances: Box<[u32; DISTANCES]>,
}

#[derive(Clone, Copy)]
struct Token {
    /// The literal if there is no distance.
    length: u16,
    distance: u16,
}

impl Deflater {
    pub fn new() -> Self {
        Self {
            recent: vec![[0; 2]; 1 << HASH_BITS].into(),
            tokens: Vec::with_capacity(BLOCK),
            literals: Box::new([0; LITERALS]),
            distances: Box::new([0; DISTANCES]),
        }
    }

    /// The stream, if it is shorter.
    pub fn compress(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.recent.fill([0; 2]);
        let mut output = Bits::new(bytes.len());
        let mut start = 0;
        loop {
            let end = self.parse(bytes, start, bytes.len().min(start + BLOCK));
            self.write_block(&mut output, end == bytes.len(), bytes.len())?;
            if end == bytes.len() {
                let stream = output.finish();
                return (stream.len() < bytes.len()).then_some(stream);
            }
            start = end;
        }
    }

    /// Finds matches from `start` up to `end` or a little farther; returns where it stopped.
    fn parse(&mut self, bytes: &[u8], start: usize, end: usize) -> usize {
        self.tokens.clear();
        self.literals.fill(0);
        self.distances.fill(0);
        let mut at = start;
        // Bytes since the last match.
        let mut misses = 0;
        while at < end {
            let (mut length, mut distance) = self.find(bytes, at);
            if length < MIN_MATCH {
                let step = (1 + (misses >> SKIP_SHIFT)).min(end - at);
                bytes[at..at + step].iter().for_each(|&byte| self.literal(byte));
                at += step;
                misses += step;
                continue;
            }
            misses = 0;
            while length < LONG && at + 1 < end {
                let next = self.find(bytes, at + 1);
                if next.0 <= length {
                    break;
                }
                self.literal(bytes[at]);
                at += 1;
                (length, distance) = next;
            }
            self.literals[length_symbol(length).0] += 1;
            self.distances[distance_symbol(distance).0] += 1;
            self.tokens.push(Token { length: length as u16, distance: distance as u16 });
            let next = at + length;
            // What lies within a long match is rarely the start of another.
            for inner in (at + 2).max(next.saturating_sub(KEPT))..next {
                let Some(first) = bytes[inner..].first_chunk::<MIN_MATCH>() else { break };
                let slot = &mut self.recent[hash(*first)];
                *slot = [inner as u32 + 1, slot[0]];
            }
            at = next;
        }
        at
    }

    fn literal(&mut self, byte: u8) {
        self.literals[usize::from(byte)] += 1;
        self.tokens.push(Token { length: byte.into(), distance: 0 });
    }

    /// Length and distance of the best match at `at`, which is remembered.
    fn find(&mut self, bytes: &[u8], at: usize) -> (usize, usize) {
        let Some(first) = bytes[at..].first_chunk::<MIN_MATCH>() else { return (0, 0) };
        let slot = &mut self.recent[hash(*first)];
        let candidates = *slot;
        if candidates[0] as usize != at + 1 {
            *slot = [at as u32 + 1, candidates[0]];
        }
        let most = MAX_MATCH.min(bytes.len() - at);
        let mut best = (0, 0);
        for candidate in candidates {
            let candidate = candidate as usize;
            if candidate == 0 || candidate > at || at + 1 - candidate > WINDOW {
                continue;
            }
            let from = candidate - 1;
            if bytes[from..].first_chunk() != Some(first) {
                continue;
            }
            let length = common(&bytes[at..at + most], &bytes[from..from + most]);
            if length > best.0 {
                best = (length, at - from);
            }
        }
        best
    }

    /// Writes what was parsed; nothing if the stream would be longer than `limit`.
    fn write_block(&mut self, output: &mut Bits, is_last: bool, limit: usize) -> Option<()> {
        self.literals[END] = 1;
        let literals = Code::<LITERALS>::new(&self.literals, 15);
        let distances = Code::<DISTANCES>::new(&self.distances, 15);
        let cost: u64 = (0..LITERALS)
            .map(|symbol| u64::from(self.literals[symbol]) * u64::from(literals.lengths[symbol]))
            .sum();
        if output.bytes.len() + (cost / 8) as usize >= limit {
            return None;
        }
        output.put(is_last.into(), 1);
        output.put(2, 2);
        write_codes(output, &literals, &distances);
        for token in &self.tokens {
            let length = usize::from(token.length);
            if token.distance == 0 {
                output.put(literals.codes[length].into(), literals.lengths[length].into());
                continue;
            }
            let (symbol, bits) = length_symbol(length);
            let extra = (length - 3) & ((1 << bits) - 1);
            output.put_both(literals.codes[symbol], literals.lengths[symbol], extra, bits);
            let distance = usize::from(token.distance);
            let (symbol, bits) = distance_symbol(distance);
            let extra = (distance - 1) & ((1 << bits) - 1);
            output.put_both(distances.codes[symbol], distances.lengths[symbol], extra, bits);
        }
        output.put(literals.codes[END].into(), literals.lengths[END].into());
        Some(())
    }
}

fn hash(first: [u8; MIN_MATCH]) -> usize {
    (u32::from_le_bytes(first).wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize
}

/// How many bytes two slices of one length have in common at their start.
fn common(a: &[u8], b: &[u8]) -> usize {
    let (left, left_rest) = a.as_chunks::<8>();
    let (right, right_rest) = b.as_chunks::<8>();
    for (number, (left, right)) in left.iter().zip(right).enumerate() {
        let difference = u64::from_le_bytes(*left) ^ u64::from_le_bytes(*right);
        if difference != 0 {
            return number * 8 + difference.trailing_zeros() as usize / 8;
        }
    }
    let rest = left_rest.iter().zip(right_rest).take_while(|(left, right)| left == right).count();
    left.len() * 8 + rest
}

/// Symbol and number of extra bits of a length (section 3.2.5).
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

/// Symbol and number of extra bits of a distance.
fn distance_symbol(distance: usize) -> (usize, u32) {
    let value = distance - 1;
    if value < 4 {
        return (value, 0);
    }
    let log = value.ilog2();
    (2 * log as usize + ((value >> (log - 1)) & 1), log - 1)
}

/// A prefix code of N symbols.
struct Code<const N: usize> {
    lengths: [u8; N],
    /// With the first bit lowest.
    codes: [u16; N],
}

impl<const N: usize> Code<N> {
    /// The best code whose symbols have at most `limit` bits.
    fn new(counts: &[u32; N], limit: usize) -> Self {
        let mut code = Self { lengths: [0; N], codes: [0; N] };
        let mut used: Vec<(u32, u16)> = (0..N as u16)
            .map(|symbol| (counts[usize::from(symbol)], symbol))
            .filter(|(count, _)| *count != 0)
            .collect();
        // A code of one symbol is not complete, which not every decoder takes.
        for symbol in 0..2 {
            if used.len() < 2 && used.iter().all(|(_, other)| *other != symbol) {
                used.push((1, symbol));
            }
        }
        used.sort_unstable();
        let mut of_length = count_lengths(&used, limit);
        // The rarest have the longest codes.
        let mut length = limit;
        for (_, symbol) in &used {
            while of_length[length] == 0 {
                length -= 1;
            }
            of_length[length] -= 1;
            code.lengths[usize::from(*symbol)] = length as u8;
        }
        code.assign();
        code
    }

    /// Codes in the order of lengths, then of symbols (section 3.2.2).
    fn assign(&mut self) {
        let mut next = 0_u16;
        for length in 1..=15 {
            for symbol in 0..N {
                if self.lengths[symbol] == length {
                    self.codes[symbol] = next.reverse_bits() >> (16 - length);
                    next += 1;
                }
            }
            next <<= 1;
        }
    }
}

/// How many codes there are of each length, for counts in rising order.
fn count_lengths(used: &[(u32, u16)], limit: usize) -> [usize; 16] {
    // Huffman's tree with two queues: leaves in the order of counts, and inner nodes in the order of their making.
    let mut weights: Vec<u64> = used.iter().map(|(count, _)| u64::from(*count)).collect();
    let leaves = weights.len();
    let mut parents = vec![0; 2 * leaves - 1];
    let (mut leaf, mut node) = (0, leaves);
    while weights.len() < 2 * leaves - 1 {
        let made = weights.len();
        let mut weight = 0;
        for _ in 0..2 {
            let take_leaf = leaf < leaves && (node >= made || weights[leaf] <= weights[node]);
            let taken = if take_leaf { &mut leaf } else { &mut node };
            weight += weights[*taken];
            parents[*taken] = made;
            *taken += 1;
        }
        weights.push(weight);
    }
    let mut depths = vec![0; 2 * leaves - 1];
    let mut of_length = [0; 16];
    for number in (0..2 * leaves - 2).rev() {
        depths[number] = depths[parents[number]] + 1;
        if number < leaves {
            of_length[depths[number].min(limit)] += 1;
        }
    }
    // Cutting off long codes made too many: each that is taken from the longest is paid for by a longer one elsewhere.
    let mut room: usize = (1..=limit).map(|length| of_length[length] << (limit - length)).sum();
    while room > 1 << limit {
        of_length[limit] -= 1;
        if let Some(length) = (1..limit).rev().find(|length| of_length[*length] != 0) {
            of_length[length] -= 1;
            of_length[length + 1] += 2;
        }
        room -= 1;
    }
    of_length
}

/// Writes both codes by the lengths of their symbols (section 3.2.7).
fn write_codes(output: &mut Bits, literals: &Code<LITERALS>, distances: &Code<DISTANCES>) {
    let count = |lengths: &[u8], least: usize| {
        lengths.iter().rposition(|length| *length != 0).map_or(least, |last| least.max(last + 1))
    };
    let (literal_count, distance_count) =
        (count(&literals.lengths, 257), count(&distances.lengths, 1));
    let lengths =
        [&literals.lengths[..literal_count], &distances.lengths[..distance_count]].concat();
    // Symbol, extra value and its bits.
    let mut symbols: Vec<(u8, u8, u32)> = Vec::new();
    let mut at = 0;
    while at < lengths.len() {
        let value = lengths[at];
        let run = lengths[at..].iter().take_while(|length| **length == value).count();
        let repeat = at > 0 && lengths[at - 1] == value && value != 0;
        let taken = match (value, run) {
            (0, 11..) => {
                let taken = run.min(138);
                symbols.push((18, (taken - 11) as u8, 7));
                taken
            }
            (0, 3..) => {
                symbols.push((17, (run - 3) as u8, 3));
                run
            }
            (_, 3..) if repeat => {
                let taken = run.min(6);
                symbols.push((16, (taken - 3) as u8, 2));
                taken
            }
            _ => {
                symbols.push((value, 0, 0));
                1
            }
        };
        at += taken;
    }
    let mut counts = [0; LENGTH_CODES];
    symbols.iter().for_each(|(symbol, ..)| counts[usize::from(*symbol)] += 1);
    let code = Code::<LENGTH_CODES>::new(&counts, 7);
    let written = ORDER.iter().rposition(|symbol| code.lengths[*symbol] != 0).unwrap_or(0) + 1;
    let written = written.max(4);
    output.put((literal_count - 257) as u64, 5);
    output.put((distance_count - 1) as u64, 5);
    output.put((written - 4) as u64, 4);
    ORDER[..written].iter().for_each(|symbol| output.put(code.lengths[*symbol].into(), 3));
    for (symbol, extra, bits) in symbols {
        let symbol = usize::from(symbol);
        output.put(code.codes[symbol].into(), code.lengths[symbol].into());
        output.put(extra.into(), bits);
    }
}

/// Bits, the first one lowest in its byte.
struct Bits {
    bytes: Vec<u8>,
    waiting: u64,
    count: u32,
}

impl Bits {
    fn new(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), waiting: 0, count: 0 }
    }

    /// At most 32 bits.
    fn put(&mut self, bits: u64, count: u32) {
        self.waiting |= bits << self.count;
        self.count += count;
        if self.count >= 32 {
            self.bytes.extend_from_slice(&(self.waiting as u32).to_le_bytes());
            self.waiting >>= 32;
            self.count -= 32;
        }
    }

    /// A code and its extra bits.
    fn put_both(&mut self, code: u16, length: u8, extra: usize, bits: u32) {
        let length = u32::from(length);
        self.put(u64::from(code) | (extra as u64) << length, length + bits);
    }

    fn finish(mut self) -> Vec<u8> {
        let whole = self.count.div_ceil(8) as usize;
        self.bytes.extend_from_slice(&self.waiting.to_le_bytes()[..whole]);
        self.bytes
    }
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
    fn codes_of_very_different_counts_are_limited() {
        // Counts as Fibonacci's numbers make the deepest tree.
        let mut counts = [0; LITERALS];
        let (mut a, mut b) = (1_u32, 1);
        for count in counts.iter_mut().take(40) {
            *count = a;
            (a, b) = (b, a + b);
        }
        let code = Code::<LITERALS>::new(&counts, 15);
        let room: u32 = code.lengths.iter().filter(|l| **l != 0).map(|l| 1 << (15 - l)).sum();
        assert_eq!(room, 1 << 15);
    }

    #[test]
    fn no_match_is_farther_than_the_window() {
        let piece: Vec<u8> =
            (0..3000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let bytes = [&piece[..], &[0; 1096], &piece, &[0; 1097], &piece].concat();
        let mut deflater = Deflater::new();
        deflater.parse(&bytes, 0, bytes.len());
        let distances: Vec<u16> = deflater.tokens.iter().map(|token| token.distance).collect();
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
