//! Growing.

use std::sync::Arc;

use super::header::{Checked, unsupported};
use super::map::Map;
use super::refcount::Refcounts;
use super::write::{Writer, commit};
use crate::create::writable;
use crate::layer::Place;
use crate::resize::zero;
use crate::source::Source;
use crate::{MAX_LENGTH, Result};

/// Where the header has size, encryption, size and offset of the table of the first level: one sector, so that they change
/// at once.
pub(super) const SIZES: u64 = 24;

/// Makes the image's disk longer; whatever a longer parent has there shows through.
pub(crate) fn grow(source: Arc<dyn Source>, length: u64) -> Result<()> {
    let checked = Checked::read(&*source)?;
    // It refuses what cannot be changed.
    drop(Writer::new(&checked, &*source)?);
    let mut refcounts = Refcounts::new(&checked, source.len());
    let map = Map::new(&checked, source.clone(), None);
    let entries = length.div_ceil(map.covered());
    if length > MAX_LENGTH || entries * 8 > 32 << 20 {
        return Err(unsupported("its disk would be too long for clusters of this size"));
    }
    let (old, size) = (checked.header.size.get(), map.cluster_size());
    if !old.is_multiple_of(size)
        && let Place::Stored { source: 0, offset } = map.locate(old - 1..old)?.place
    {
        // What the last cluster has behind the disk's end becomes a part of the disk.
        zero(&*source, offset + 1..offset + 1 + size - old % size)?;
    }
    let (mut l1_size, mut l1_offset) = (map.l1_size, map.l1_offset);
    if entries > map.l1_size {
        // Far less than usize::MAX, as was checked.
        let mut content = vec![0; (entries * 8).next_multiple_of(size) as usize];
        map.tables.read_at(&mut content[..(map.l1_size * 8) as usize], map.l1_offset)?;
        let clusters = content.len() as u64 / size;
        l1_offset = refcounts.allocate(&map.tables, clusters)?;
        for (number, part) in content.chunks(size as usize).enumerate() {
            map.tables.begin(l1_offset + number as u64 * size, part.to_vec());
        }
        l1_size = entries;
    }
    // The new table is on the disk before the header leads to it, and the old one is given up only afterwards.
    commit(&map, &mut refcounts)?;
    let mut sizes = length.to_be_bytes().to_vec();
    sizes.extend_from_slice(&checked.header.crypt_method.get().to_be_bytes());
    sizes.extend_from_slice(&(l1_size as u32).to_be_bytes());
    sizes.extend_from_slice(&l1_offset.to_be_bytes());
    let target = writable(&*source)?;
    target.write_at(&sizes, SIZES)?;
    target.flush()?;
    map.tables.forget(0);
    if l1_offset != map.l1_offset {
        let used = (map.l1_size * 8).div_ceil(size);
        for number in 0..used {
            refcounts.release(map.l1_offset + number * size);
        }
    }
    commit(&map, &mut refcounts)?;
    commit(&map, &mut refcounts)
}
