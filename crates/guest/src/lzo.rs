//! LZO1X (Linux Documentation/staging/lzo.rst), and the file format of lzop.

use crate::volume::at;

/// Magic number of an lzop file.
pub const LZOP: &[u8] = b"\x89LZO\0\r\n\x1a\n";
/// Largest block of an lzop file: lzop itself writes 256 KiB.
const MAX_BLOCK: usize = 64 << 20;

/// Unpacks a stream of at most `limit` bytes; `None` if it is damaged.
pub fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut input = Input { bytes: packed, place: 0 };
    let mut output: Vec<u8> = Vec::new();
    // How many literals the last instruction copied: 0 to 3, or 4 for a long run.
    let mut state = 0;
    let first = *packed.first()?;
    if first > 17 {
        input.place = 1;
        let count = usize::from(first) - 17;
        input.copy(&mut output, count, limit)?;
        state = count.min(4);
    }
    loop {
        let byte = usize::from(input.byte()?);
        let (length, distance, literals) = match byte {
            0..=15 if state == 0 => {
                let length = if byte == 0 { input.long(15)? } else { byte } + 3;
                input.copy(&mut output, length, limit)?;
                state = 4;
                continue;
            }
            0..=15 => {
                let high = usize::from(input.byte()?) << 2;
                let (length, base) = if state == 4 { (3, 2049) } else { (2, 1) };
                (length, high + (byte >> 2) + base, byte & 3)
            }
            16..=31 => {
                let length = if byte & 7 == 0 { input.long(7)? } else { byte & 7 } + 2;
                let word = input.word()?;
                let distance = 16384 + ((byte >> 3 & 1) << 14) + (word >> 2);
                if distance == 16384 {
                    return Some(output);
                }
                (length, distance, word & 3)
            }
            32..=63 => {
                let length = if byte & 31 == 0 { input.long(31)? } else { byte & 31 } + 2;
                let word = input.word()?;
                (length, (word >> 2) + 1, word & 3)
            }
            _ => {
                let length = if byte < 128 { 3 + (byte >> 5 & 1) } else { 5 + (byte >> 5 & 3) };
                let distance = (usize::from(input.byte()?) << 3) + (byte >> 2 & 7) + 1;
                (length, distance, byte & 3)
            }
        };
        let start = output.len().checked_sub(distance)?;
        if length > limit - output.len() {
            return None;
        }
        for place in start..start + length {
            output.push(output[place]);
        }
        input.copy(&mut output, literals, limit)?;
        state = literals;
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.place)?;
        self.place += 1;
        Some(byte)
    }

    fn word(&mut self) -> Option<usize> {
        let word = at::le16(self.bytes, self.place)?;
        self.place += 2;
        Some(word.into())
    }

    /// A length that begins with zeroes, each of which stands for 255.
    fn long(&mut self, base: usize) -> Option<usize> {
        let mut length = base;
        loop {
            match self.byte()? {
                0 => length = length.checked_add(255)?,
                last => return Some(length + usize::from(last)),
            }
        }
    }

    fn copy(&mut self, output: &mut Vec<u8>, count: usize, limit: usize) -> Option<()> {
        let bytes = self.bytes.get(self.place..)?.get(..count)?;
        if count > limit - output.len() {
            return None;
        }
        output.extend_from_slice(bytes);
        self.place += count;
        Some(())
    }
}

/// Unpacks an lzop file of at most `limit` bytes, and returns how long the file was.
pub fn unpack_file(file: &[u8], limit: usize) -> Option<(Vec<u8>, usize)> {
    const ADLER32: u32 = 1;
    const ADLER32_PACKED: u32 = 2;
    const FILTER: u32 = 0x800;
    const CRC32: u32 = 0x100;
    const CRC32_PACKED: u32 = 0x200;
    // From this version on there are a few fields more.
    const NEWER: u16 = 0x940;
    if !file.starts_with(LZOP) {
        return None;
    }
    let is_newer = at::be16(file, 9)? >= NEWER;
    let mut place = if is_newer { 17 } else { 14 };
    let flags = at::be32(file, place)?;
    place += 4 + if flags & FILTER != 0 { 4 } else { 0 } + if is_newer { 12 } else { 8 };
    place += 1 + usize::from(at::u8(file, place)?) + 4;
    let sum = |wanted: &[u32]| wanted.iter().filter(|&&flag| flags & flag != 0).count() * 4;
    let mut output = Vec::new();
    loop {
        let unpacked = at::be32(file, place)? as usize;
        place += 4;
        if unpacked == 0 {
            return Some((output, place));
        }
        let packed = at::be32(file, place)? as usize;
        if unpacked > MAX_BLOCK || unpacked > limit - output.len() || packed > unpacked {
            return None;
        }
        place += 4 + sum(&[ADLER32, CRC32]);
        if packed < unpacked {
            place += sum(&[ADLER32_PACKED, CRC32_PACKED]);
        }
        let block = file.get(place..)?.get(..packed)?;
        if packed == unpacked {
            output.extend_from_slice(block);
        } else {
            let block = unpack(block, unpacked)?;
            if block.len() != unpacked {
                return None;
            }
            output.extend(block);
        }
        place += packed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_lzop_packed_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let text: Vec<u8> = (0..300_000_u32)
            .flat_map(|i| format!("{} ", i.wrapping_mul(i) % 977).into_bytes())
            .collect();
        std::fs::write(folder.path().join("text"), &text).unwrap();
        let packed =
            std::process::Command::new("lzop").arg("-c").arg(folder.path().join("text")).output();
        let Ok(packed) = packed else {
            eprintln!("skipped: lzop is not installed");
            return;
        };
        let (unpacked, length) = unpack_file(&packed.stdout, text.len()).unwrap();
        assert!(unpacked == text);
        assert_eq!(length, packed.stdout.len());
        assert!(unpack_file(&packed.stdout, text.len() - 1).is_none());
    }

    #[test]
    fn a_stream_by_hand() {
        // Four literals, a match of 3 at distance 4, the end.
        let packed = [21, b'a', b'b', b'c', b'd', 0x40 | 3 << 2, 0, 17, 0, 0];
        assert_eq!(unpack(&packed, 7).unwrap(), b"abcdabc");
        assert_eq!(unpack(&packed, 6), None);
        assert_eq!(unpack(&packed[..8], 7), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(output) = unpack(&bytes, 5000) {
                prop_assert!(output.len() <= 5000);
            }
            let _ = unpack_file(&[LZOP, &bytes].concat(), 5000);
        }
    }
}
