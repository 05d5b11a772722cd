//! Prefix codes of deflate (RFC 1951) and the bits that they are written with.

pub(super) const LITERALS: usize = 286;
pub(super) const DISTANCES: usize = 30;
const LENGTH_CODES: usize = 19;
/// Order in which the lengths of the codes of lengths are written (section 3.2.7).
const ORDER: [usize; LENGTH_CODES] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Bytes that the codes themselves take at most when written: 14 bits, and at most 14 for each symbol's length.
pub(super) const MAX_CODES_BYTES: usize = 640;

/// A prefix code of N symbols.
pub(super) struct Code<const N: usize> {
    pub lengths: [u8; N],
    /// With the first bit lowest.
    pub codes: [u16; N],
}

impl<const N: usize> Code<N> {
    /// The best code whose symbols have at most `limit` bits.
    pub fn new(counts: &[u32; N], limit: usize) -> Self {
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
        let mut of_length = [0_u16; 16];
        self.lengths.iter().for_each(|length| of_length[usize::from(*length)] += 1);
        let mut next = [0_u16; 16];
        for length in 1..15 {
            next[length + 1] = (next[length] + of_length[length]) << 1;
        }
        for (code, &length) in self.codes.iter_mut().zip(&self.lengths) {
            if length != 0 {
                let next = &mut next[usize::from(length)];
                *code = next.reverse_bits() >> (16 - length);
                *next += 1;
            }
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
pub(super) fn write_codes(
    output: &mut Bits<'_>,
    literals: &Code<LITERALS>,
    distances: &Code<DISTANCES>,
) {
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

/// Bits, the first one lowest in its byte. Whoever writes them sees to it that the room is enough.
pub(super) struct Bits<'a> {
    room: &'a mut [u8],
    /// Whole bytes that are written.
    at: usize,
    waiting: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Writes into `room`, which has eight bytes more than will be needed.
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { room, at: 0, waiting: 0, count: 0 }
    }

    /// Whole bytes so far.
    pub fn len(&self) -> usize {
        self.at
    }

    /// At most 56 bits until the next [`flush`](Self::flush).
    #[inline(always)]
    pub fn add(&mut self, bits: u64, count: u32) {
        self.waiting |= bits << self.count;
        self.count += count;
    }

    /// Writes whole bytes.
    #[inline(always)]
    pub fn flush(&mut self) {
        if let Some(room) = self.room.get_mut(self.at..).and_then(<[u8]>::first_chunk_mut) {
            *room = self.waiting.to_le_bytes();
        }
        self.at += (self.count / 8) as usize;
        self.waiting >>= self.count & !7;
        self.count &= 7;
    }

    pub fn put(&mut self, bits: u64, count: u32) {
        self.add(bits, count);
        self.flush();
    }

    /// How many bytes there are with the last one.
    pub fn finish(mut self) -> usize {
        self.flush();
        self.at + usize::from(self.count != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
