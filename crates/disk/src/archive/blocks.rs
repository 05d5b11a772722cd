//! The disks of XenServer's archives (XVA): a folder `Ref:N` of blocks of 1 MiB, called by their numbers. A block that
//! is not there is zeroes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::Member;
use super::verify::{Block, Checked, Verified};
use crate::layer::{Layer, Place, Run};
use crate::source::Source;
use crate::{Result, SECTOR_SIZE};

pub(super) const BLOCK: u64 = 1 << 20;

/// A disk.
pub(super) struct Blocks {
    sources: [Arc<dyn Source>; 1],
    /// Number, offset and length of each block that is there, in the order of numbers.
    blocks: Vec<(u64, u64, u64)>,
    pub length: u64,
    /// Bytes of all blocks that are there.
    pub stored: u64,
}

/// The disk that a member is a block of.
pub(super) fn disk_of(name: &str) -> Option<&str> {
    let (disk, number) = name.rsplit_once('/')?;
    (disk.starts_with("Ref:") && is_number(number)).then_some(disk)
}

fn is_number(text: &str) -> bool {
    text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Blocks {
    /// The disk of this name, if the archive has blocks of one.
    pub fn new(source: Arc<dyn Source>, members: &[Member], disk: &str) -> Option<Self> {
        let disk = disk.trim_end_matches('/');
        let mut blocks: Vec<(u64, u64, u64)> = members
            .iter()
            .filter(|member| disk_of(&member.name) == Some(disk))
            .filter_map(|member| {
                let number: u64 = member.name.rsplit_once('/')?.1.parse().ok()?;
                // Numbers that no disk has would overflow offsets.
                (number < 1 << 40).then_some((number, member.offset, member.length.min(BLOCK)))
            })
            .collect();
        blocks.sort_unstable();
        blocks.dedup_by_key(|block| block.0);
        let checked = checked(&blocks, members, disk);
        // XenServer always writes a disk's last block.
        let &(last, _, length) = blocks.last()?;
        let stored = blocks.iter().map(|block| block.2).sum();
        let length = (last * BLOCK + length).next_multiple_of(SECTOR_SIZE);
        let sources: [Arc<dyn Source>; 1] = [Arc::new(Verified::new(source, checked))];
        Some(Self { sources, blocks, length, stored })
    }
}

/// Blocks with where their checksums are.
fn checked(blocks: &[(u64, u64, u64)], members: &[Member], disk: &str) -> Vec<Block> {
    let mut checksums = BTreeMap::new();
    for member in members {
        let Some((name, kind)) = member.name.rsplit_once('.') else { continue };
        let is_sha1 = kind == "checksum";
        if disk_of(name) != Some(disk) || !(is_sha1 || kind == "xxhash") {
            continue;
        }
        let number = name.rsplit_once('/').and_then(|(_, number)| number.parse::<u64>().ok());
        if let Some(number) = number {
            let checked = Checked { offset: member.offset, length: member.length, is_sha1 };
            checksums.insert(number, checked);
        }
    }
    let block = |&(number, offset, length): &(u64, u64, u64)| Block {
        offset,
        length,
        checksum: checksums.get(&number).copied(),
    };
    blocks.iter().map(block).collect()
}

impl Layer for Blocks {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        let (number, within) = (range.start / BLOCK, range.start % BLOCK);
        let found = self.blocks.partition_point(|block| block.0 < number);
        Ok(match self.blocks.get(found) {
            Some(&(here, offset, length)) if here == number && within < length => {
                let place = Place::Stored { source: 0, offset: offset + within };
                Run { end: number * BLOCK + length, place }
            }
            Some(&(here, ..)) if here == number => {
                Run { end: (number + 1) * BLOCK, place: Place::Zero }
            }
            Some(&(next, ..)) => Run { end: next * BLOCK, place: Place::Zero },
            None => Run { end: range.end, place: Place::Zero },
        })
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        BLOCK
    }
}
