//! Snapshots that keep what they differ in from their origin (drivers/md/dm-snap-persistent.c). All numbers are
//! little-endian.

use std::collections::HashMap;
use std::sync::Arc;

use crate::volume::{Volume, at, read};
use crate::{Error, Result};

const MAGIC: u32 = 0x7041_6e53;
const SECTOR: u64 = 512;
/// Most chunks that differ.
const MAX_EXCEPTIONS: usize = 1 << 22;

/// A snapshot of a volume.
pub struct Snapshot {
    origin: Arc<dyn Volume>,
    store: Arc<dyn Volume>,
    chunk: u64,
    /// Where in the store a chunk of the origin is.
    exceptions: HashMap<u64, u64>,
}

impl Snapshot {
    /// The snapshot of `origin` whose differences are in `store`.
    pub fn open(origin: Arc<dyn Volume>, store: Arc<dyn Volume>) -> Result<Self> {
        const HEADER: u64 = 1;
        const ENTRY: u64 = 16;
        let header = read(&*store, 0, SECTOR as usize)?;
        let word = |place| at::le32(&header, place).unwrap_or(0);
        let chunk = u64::from(word(12)) * SECTOR;
        if word(0) != MAGIC || word(8) != 1 || !chunk.is_power_of_two() || chunk > 64 << 20 {
            return Err(damaged("its header"));
        }
        if word(4) == 0 {
            return Err(Error::unsupported("snapshot", "it is not valid any more: it was full"));
        }
        let each = chunk / ENTRY;
        let mut exceptions = HashMap::new();
        let mut area = HEADER;
        // An area is a chunk of entries, and the chunks that they are about.
        'areas: while (area + 1) * chunk <= store.len() {
            let entries = read(&*store, area * chunk, chunk as usize)?;
            for entry in entries.chunks_exact(ENTRY as usize) {
                let (old, new) = (at::le64(entry, 0).unwrap_or(0), at::le64(entry, 8).unwrap_or(0));
                if new == 0 {
                    break 'areas;
                }
                if exceptions.len() == MAX_EXCEPTIONS {
                    return Err(damaged("its list of chunks"));
                }
                exceptions.insert(old, new);
            }
            area += each + 1;
        }
        Ok(Self { origin, store, chunk, exceptions })
    }
}

impl Volume for Snapshot {
    fn len(&self) -> u64 {
        self.origin.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let place = offset.checked_add(done as u64).ok_or_else(|| damaged("a place"))?;
            let into = place % self.chunk;
            let step = (self.chunk - into).min((buffer.len() - done) as u64) as usize;
            let target = &mut buffer[done..done + step];
            match self.exceptions.get(&(place / self.chunk)) {
                Some(new) => {
                    let start =
                        new.checked_mul(self.chunk).and_then(|start| start.checked_add(into));
                    self.store.read_at(target, start.ok_or_else(|| damaged("a chunk"))?)?;
                }
                None => self.origin.read_at(target, place)?,
            }
            done += step;
        }
        Ok(())
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("snapshot", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Memory;

    #[test]
    fn what_has_changed_is_read_from_the_store() {
        let mut store = vec![0; 512 * 40];
        for (place, number) in [(0, MAGIC), (4, 1), (8, 1), (12, 1)] {
            store[place..place + 4].copy_from_slice(&number.to_le_bytes());
        }
        // Chunks of 512 bytes: 32 entries in each area, so that the last two are in the second one.
        for index in 0..34_u64 {
            let area = if index < 32 { 1 } else { 34 };
            let place = (area * 512 + (index % 32) * 16) as usize;
            let new = area + 1 + index % 32;
            store[place..place + 8].copy_from_slice(&(index * 2).to_le_bytes());
            store[place + 8..place + 16].copy_from_slice(&new.to_le_bytes());
            store[new as usize * 512..][..512].fill(index as u8 + 1);
        }
        let origin: Arc<dyn Volume> = Arc::new(Memory(vec![0xee; 512 * 100]));
        let open =
            |store: &[u8]| Snapshot::open(Arc::clone(&origin), Arc::new(Memory(store.to_vec())));
        let snapshot = open(&store).unwrap();
        let all = read(&snapshot, 0, 512 * 100).unwrap();
        for (index, chunk) in all.chunks(512).enumerate() {
            let expected = if index % 2 == 0 && index < 68 { index as u8 / 2 + 1 } else { 0xee };
            assert_eq!(chunk, [expected; 512], "{index}");
        }
        assert_eq!(read(&snapshot, 511, 2).unwrap(), [1, 0xee]);
        store[4] = 0;
        assert!(open(&store).is_err() && open(&store[..600]).is_err());
    }
}
