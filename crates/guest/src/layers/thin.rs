//! Thin volumes: blocks of a pool, found by B-trees in its metadata (drivers/md/dm-thin-metadata.c,
//! drivers/md/persistent-data/dm-btree-internal.h). All numbers are little-endian.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::volume::{Volume, at, read};
use crate::{Error, Result};

const BLOCK: usize = 4096;
const SECTOR: u64 = 512;
const MAGIC: u64 = 27_022_010;
/// Deepest tree: of 2^64 keys with at least 84 in each node.
const MAX_DEPTH: u32 = 11;
/// Nodes that are kept.
const MAX_CACHED: usize = 1024;

/// A thin volume.
pub struct Thin {
    metadata: Arc<dyn Volume>,
    data: Arc<dyn Volume>,
    /// What is read where nothing was written; zeroes if there is none.
    origin: Option<Arc<dyn Volume>>,
    root: u64,
    /// Bytes of a pool's block.
    block: u64,
    length: u64,
    nodes: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
}

impl Thin {
    /// The volume with this number in the pool, `length` bytes long.
    pub fn open(
        metadata: Arc<dyn Volume>,
        data: Arc<dyn Volume>,
        device: u64,
        length: u64,
        origin: Option<Arc<dyn Volume>>,
    ) -> Result<Self> {
        let superblock = read(&*metadata, 0, BLOCK)?;
        let word = |place| at::le64(&superblock, place).unwrap_or(0);
        let block = u64::from(at::le32(&superblock, 336).unwrap_or(0)) * SECTOR;
        if word(32) != MAGIC || !(64 << 10..=1 << 30).contains(&block) || length == 0 {
            return Err(damaged("its superblock"));
        }
        let nodes = Mutex::default();
        let mut thin = Self { metadata, data, origin, root: 0, block, length, nodes };
        thin.root = thin
            .find(word(320), device)?
            .ok_or_else(|| Error::unsupported("thin pool", format!("it has no volume {device}")))?;
        Ok(thin)
    }

    /// The value of a key in a tree of 64-bit values.
    fn find(&self, root: u64, key: u64) -> Result<Option<u64>> {
        const HEADER: usize = 32;
        const INTERNAL: u32 = 1;
        let bad = || damaged("a tree");
        let mut place = root;
        for _ in 0..MAX_DEPTH {
            let node = self.node(place)?;
            let word = |place| at::le32(&node, place).unwrap_or(0);
            let (count, most) = (word(16) as usize, word(20) as usize);
            if at::le64(&node, 8) != Some(place)
                || word(24) != 8
                || count > most
                || most > (BLOCK - HEADER) / 16
            {
                return Err(bad());
            }
            let key_at = |index: usize| at::le64(&node, HEADER + index * 8).unwrap_or(0);
            // The last key that is not larger.
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = usize::midpoint(low, high);
                if key_at(middle) <= key { low = middle + 1 } else { high = middle }
            }
            let Some(index) = low.checked_sub(1) else { return Ok(None) };
            let value = at::le64(&node, HEADER + most * 8 + index * 8).ok_or_else(bad)?;
            if word(4) & INTERNAL == 0 {
                return Ok((key_at(index) == key).then_some(value));
            }
            place = value;
        }
        Err(bad())
    }

    fn node(&self, place: u64) -> Result<Arc<Vec<u8>>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.get(&place) {
            return Ok(Arc::clone(known));
        }
        let start = place.checked_mul(BLOCK as u64).ok_or_else(|| damaged("a tree"))?;
        let node = Arc::new(read(&*self.metadata, start, BLOCK)?);
        if nodes.len() == MAX_CACHED {
            nodes.clear();
        }
        nodes.insert(place, Arc::clone(&node));
        Ok(node)
    }
}

impl Volume for Thin {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        /// Below the block's number, a value has the time when it was mapped.
        const TIME_BITS: u32 = 24;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(Error::damaged("volume", format!("something leads to {offset:#x}")));
        }
        let mut done = 0;
        while done < buffer.len() {
            let place = offset + done as u64;
            let into = place % self.block;
            let step = (self.block - into).min((buffer.len() - done) as u64) as usize;
            let target = &mut buffer[done..done + step];
            match self.find(self.root, place / self.block)? {
                Some(value) => {
                    let start = (value >> TIME_BITS).checked_mul(self.block);
                    let start = start.and_then(|start| start.checked_add(into));
                    self.data.read_at(target, start.ok_or_else(|| damaged("a block"))?)?;
                }
                None => {
                    target.fill(0);
                    if let Some(origin) = &self.origin {
                        let there = origin.len().saturating_sub(place).min(step as u64) as usize;
                        if there > 0 {
                            origin.read_at(&mut target[..there], place)?;
                        }
                    }
                }
            }
            done += step;
        }
        Ok(())
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("thin pool", why)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::volume::Memory;

    /// What the metadata says, in the form of thin-provisioning-tools.
    const POOL: &str = r#"<superblock uuid="" time="1" transaction="2" flags="0" version="2" data_block_size="128" nr_data_blocks="1024">
  <device dev_id="1" mapped_blocks="702" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="1" length="2" time="0"/>
    RANGES
  </device>
  <device dev_id="7" mapped_blocks="2" transaction="1" creation_time="1" snap_time="1">
    <single_mapping origin_block="0" data_block="1" time="0"/>
    <single_mapping origin_block="5" data_block="9" time="1"/>
  </device>
</superblock>"#;

    #[test]
    fn blocks_are_where_thin_provisioning_tools_put_them() {
        let folder = tempfile::tempdir().unwrap();
        let (xml, image) = (folder.path().join("xml"), folder.path().join("image"));
        // Every second block, in an order of its own, so that the tree has more than one level.
        let ranges = (0..700).map(|index| {
            let (from, to) = (10 + index * 2, 20 + (index * 37) % 700);
            format!("<single_mapping origin_block=\"{from}\" data_block=\"{to}\" time=\"0\"/>")
        });
        let text = POOL.replace("RANGES", &ranges.collect::<Vec<_>>().join("\n"));
        std::fs::write(&xml, text).unwrap();
        std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let status =
            Command::new("thin_restore").arg("-i").arg(&xml).arg("-o").arg(&image).output();
        if !status.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: thin_restore does not run here");
            return;
        }
        let metadata: Arc<dyn Volume> = Arc::new(Memory(std::fs::read(&image).unwrap()));
        // Each of the pool's blocks has its number in it.
        let block = 64 << 10;
        let mut data = vec![0; 1024 * block];
        for (number, block) in data.chunks_mut(block).enumerate() {
            let [low, high, ..] = number.to_le_bytes();
            block[..6].copy_from_slice(&[low, high, low, high, low, high]);
        }
        let data: Arc<dyn Volume> = Arc::new(Memory(data));
        let origin: Arc<dyn Volume> = Arc::new(Memory(vec![0xee; 6 * block]));
        let open = |device, origin| {
            let length = 1500 * block as u64;
            Thin::open(Arc::clone(&metadata), Arc::clone(&data), device, length, origin)
        };
        let number = |thin: &Thin, at: u64| {
            let bytes = read(thin, at * block as u64 + 4, 2).unwrap();
            at::le16(&bytes, 0).unwrap()
        };
        let first = open(1, None).unwrap();
        assert_eq!([0, 1, 2, 3, 11].map(|at| number(&first, at)), [1, 2, 0, 0, 0]);
        for index in 0..700 {
            assert_eq!(u64::from(number(&first, 10 + index * 2)), 20 + (index * 37) % 700);
        }
        // Across the border of two blocks.
        assert_eq!(read(&first, block as u64 - 2, 4).unwrap(), [0, 0, 2, 0]);
        let snapshot = open(7, Some(origin)).unwrap();
        assert_eq!([0, 1, 5, 6, 9].map(|at| number(&snapshot, at)), [1, 0xeeee, 9, 0, 0]);
        assert!(open(2, None).is_err());
        assert!(read(&first, 1500 * block as u64 - 1, 2).is_err());
    }
}
