//! Blocks are checked against their checksums when they are first read: SHA-1 (`.checksum`) or XXH64
//! (`.xxhash`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha1::{Digest, Sha1};

use crate::source::{Source, read_vec};
use crate::{Error, Format, Result};

/// Longest text of a checksum.
const MAX_DIGITS: u64 = 64;

/// A block within the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub offset: u64,
    pub length: u64,
    /// The member with its checksum.
    pub checksum: Option<Checked>,
}

/// Where the digits of a checksum lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    pub offset: u64,
    pub length: u64,
    /// Otherwise XXH64.
    pub is_sha1: bool,
}

enum Checksum {
    Sha1([u8; 20]),
    Xxh64(u64),
}

impl Checksum {
    /// From its digits.
    fn parse(text: &[u8], is_sha1: bool) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim_matches(['\0', '\n', ' ']);
        if !is_sha1 {
            return u64::from_str_radix(text, 16).ok().map(Self::Xxh64);
        }
        let mut digest = [0; 20];
        if text.len() != 40 || !text.is_ascii() {
            return None;
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self::Sha1(digest))
    }

    fn is_of(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Sha1(digest) => Sha1::digest(bytes)[..] == digest[..],
            Self::Xxh64(hash) => xxh64(bytes) == *hash,
        }
    }
}

/// The archive, of which only blocks are read.
#[derive(Debug)]
pub(super) struct Verified {
    source: Arc<dyn Source>,
    /// By their offset, each with whether it was checked.
    members: Vec<(Block, AtomicBool)>,
}

impl Verified {
    pub fn new(source: Arc<dyn Source>, mut members: Vec<Block>) -> Self {
        members.sort_by_key(|member| member.offset);
        let members = members.into_iter().map(|member| (member, AtomicBool::new(false))).collect();
        Self { source, members }
    }
}

impl Source for Verified {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn version(&self) -> Option<String> {
        self.source.version()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        let first =
            self.members.partition_point(|(member, _)| member.offset + member.length <= offset);
        for (member, is_checked) in &self.members[first..] {
            if member.offset >= end {
                break;
            }
            let Some(checksum) = &member.checksum else { continue };
            if !is_checked.load(Ordering::Relaxed) {
                // At most 1 MiB.
                let bytes = read_vec(&*self.source, member.offset, member.length as usize)?;
                let length = checksum.length.min(MAX_DIGITS) as usize;
                let digits = read_vec(&*self.source, checksum.offset, length)?;
                let expected = Checksum::parse(&digits, checksum.is_sha1);
                if !expected.is_some_and(|expected| expected.is_of(&bytes)) {
                    let what = format!("the block at {} has another checksum", member.offset);
                    return Err(Error::Damaged { format: Format::Raw, what });
                }
                is_checked.store(true, Ordering::Relaxed);
            }
        }
        self.source.read_at(buffer, offset)
    }
}

const PRIMES: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

/// XXH64 without a seed (xxHash, doc/xxhash_spec.md).
fn xxh64(bytes: &[u8]) -> u64 {
    let [p1, p2, p3, p4, p5] = PRIMES;
    let round = |lane: u64, input: u64| {
        lane.wrapping_add(input.wrapping_mul(p2)).rotate_left(31).wrapping_mul(p1)
    };
    let (words, mut rest) = bytes.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let mut hash = p5;
    let stripes = bytes.len() / 32;
    if stripes != 0 {
        let mut lanes = [p1.wrapping_add(p2), p2, 0, 0_u64.wrapping_sub(p1)];
        for _ in 0..stripes {
            for lane in &mut lanes {
                *lane = round(*lane, words.next().unwrap_or_default());
            }
        }
        let turns = [1, 7, 12, 18];
        hash = lanes
            .iter()
            .zip(turns)
            .fold(0, |sum: u64, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(p1).wrapping_add(p4);
        }
    }
    hash = hash.wrapping_add(bytes.len() as u64);
    for word in words {
        hash = (hash ^ round(0, word)).rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
    }
    if let Some((half, tail)) = rest.split_first_chunk::<4>() {
        let half = u64::from(u32::from_le_bytes(*half)).wrapping_mul(p1);
        hash = (hash ^ half).rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
        rest = tail;
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte).wrapping_mul(p5)).rotate_left(11).wrapping_mul(p1);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(p2);
    hash = (hash ^ hash >> 29).wrapping_mul(p3);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    #[test]
    fn xxh64_agrees_with_known_values() {
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition"), 0xfbce_a83c_8a37_8bf1);
    }
}
