//! Which chunks of a disk are here: kept in a file beside it.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::pull::{hexadecimal, write_whole};
use crate::{Error, Result};

/// What such a file begins with; its version is in it.
const MAGIC: &str = "omnivisor-mirror 1";
/// Longest such file: of a disk of 64 TiB.
const LONGEST: u64 = 64 << 20;

/// Which chunks are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    length: u64,
    chunk: u64,
    stamp: String,
    bits: Vec<u8>,
    missing: u64,
}

impl Map {
    /// Of a disk of which nothing is here.
    pub fn new(length: u64, stamp: &str, chunk: u64) -> Self {
        let chunks = length.div_ceil(chunk);
        let stamp = stamp.replace(char::is_control, " ");
        Self { length, chunk, stamp, bits: vec![0; chunks.div_ceil(8) as usize], missing: chunks }
    }

    /// The one of the disk at `path`; `None` if there is none or nothing is to be made of it.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let map = Self::beside(path);
        match std::fs::metadata(&map) {
            Ok(metadata) if metadata.len() <= LONGEST && path.exists() => {}
            _ => return Ok(None),
        }
        let bytes = std::fs::read(&map).map_err(|source| Error::File { path: map, source })?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (sum, body) = bytes.split_at_checked(65)?;
        if sum != format!("{}\n", hexadecimal(&Sha256::digest(body))).as_bytes() {
            return None;
        }
        let mut lines = body.splitn(4, |byte| *byte == b'\n');
        let mut line = || std::str::from_utf8(lines.next()?).ok();
        let (magic, numbers, stamp) = (line()?, line()?, line()?.to_owned());
        let (length, chunk) = numbers.split_once(' ')?;
        let (length, chunk): (u64, u64) = (length.parse().ok()?, chunk.parse().ok()?);
        let bits = lines.next()?.to_vec();
        if magic != MAGIC || chunk != super::CHUNK {
            return None;
        }
        let chunks = length.div_ceil(chunk);
        if bits.len() as u64 != chunks.div_ceil(8) {
            return None;
        }
        let mut map = Self { length, chunk, stamp, bits, missing: 0 };
        map.missing = (0..chunks).filter(|at| !map.has(*at)).count() as u64;
        Some(map)
    }

    /// Writes it beside the disk at `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let head = format!("{MAGIC}\n{} {}\n{}\n", self.length, self.chunk, self.stamp);
        let body = [head.as_bytes(), &self.bits].concat();
        let sum = format!("{}\n", hexadecimal(&Sha256::digest(&body)));
        write_whole(&Self::beside(path), &[sum.as_bytes(), &body].concat())
    }

    fn beside(path: &Path) -> PathBuf {
        path.with_added_extension("map")
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn fits(&self, length: u64, stamp: &str) -> bool {
        self.length == length && self.stamp == stamp.replace(char::is_control, " ")
    }

    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Bytes that are here.
    pub fn here(&self) -> u64 {
        self.length.saturating_sub(self.missing * self.chunk)
    }

    pub fn has(&self, chunk: u64) -> bool {
        let byte = self.bits.get((chunk / 8) as usize).copied().unwrap_or(u8::MAX);
        byte & 1 << (chunk % 8) != 0
    }

    pub fn add(&mut self, chunk: u64) {
        if !self.has(chunk) {
            self.bits[(chunk / 8) as usize] |= 1 << (chunk % 8);
            self.missing -= 1;
        }
    }

    /// The first chunk from `start` on that is not here.
    pub fn next_missing(&self, start: u64) -> Option<u64> {
        let chunks = self.length.div_ceil(self.chunk);
        let mut at = start;
        while at < chunks {
            if at.is_multiple_of(8) && self.bits[(at / 8) as usize] == u8::MAX {
                at += 8;
            } else if self.has(at) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Where the chunks that are not here end, `most` at most.
    pub fn run_of_missing(&self, start: u64, most: u64) -> u64 {
        let chunks = self.length.div_ceil(self.chunk);
        let end = chunks.min(start.saturating_add(most));
        (start..end).find(|at| self.has(*at)).unwrap_or(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_map_is_read_as_it_was_written(
            length in 1..(100 * super::super::CHUNK),
            here in prop::collection::vec(0..100_u64, 0..80),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            std::fs::write(&path, "").unwrap();
            let mut map = Map::new(length, "monday\n1", super::super::CHUNK);
            let chunks = length.div_ceil(super::super::CHUNK);
            for chunk in here.iter().filter(|chunk| **chunk < chunks) {
                map.add(*chunk);
            }
            map.write(&path).unwrap();
            let back = Map::read(&path).unwrap().unwrap();
            prop_assert!(back.fits(length, "monday\n1") && !back.fits(length, "tuesday"));
            let missing = (0..chunks).filter(|at| !here.contains(at));
            prop_assert_eq!(back.next_missing(0), missing.clone().next());
            prop_assert_eq!(back.is_complete(), missing.count() == 0);
            prop_assert_eq!(back, map);
        }

        #[test]
        fn what_is_damaged_is_none(at in 0..200_usize, bit in 0..8_u32) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            std::fs::write(&path, "").unwrap();
            Map::new(900 * super::super::CHUNK, "m", super::super::CHUNK).write(&path).unwrap();
            let beside = Map::beside(&path);
            let mut bytes = std::fs::read(&beside).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(Map::parse(&bytes), None);
            prop_assert_eq!(Map::parse(&bytes[..at]), None);
        }
    }
}
