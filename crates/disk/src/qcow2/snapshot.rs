//! Internal snapshots.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{Checked, check_table, damaged, text};
use crate::source::{Source, read_struct, read_vec};
use crate::{Result, Snapshot};

/// More than QEMU allows are not real.
const MAX_SNAPSHOTS: u32 = 65536;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SnapshotHeader {
    l1_table_offset: U64,
    l1_size: U32,
    id_str_size: U16,
    name_size: U16,
    date_sec: U32,
    date_nsec: U32,
    vm_clock_nsec: U64,
    vm_state_size: U32,
    extra_data_size: U32,
}

/// A snapshot and where its table of the first level lies.
pub(super) struct Saved {
    pub snapshot: Snapshot,
    pub l1_offset: u64,
    pub l1_size: u32,
    /// Its entry in the table, without what follows it up to the next multiple of 8.
    pub entry: Vec<u8>,
}

/// Bytes of the table.
pub(super) fn table_length(saved: &[Saved]) -> u64 {
    saved.iter().fold(0, |end: u64, saved| end.next_multiple_of(8) + saved.entry.len() as u64)
}

/// Reads the table of snapshots.
pub(super) fn read(checked: &Checked, source: &dyn Source) -> Result<Vec<Saved>> {
    let count = checked.header.nb_snapshots.get();
    if count > MAX_SNAPSHOTS {
        return Err(damaged("it has too many snapshots"));
    }
    let mut offset = checked.header.snapshots_offset.get();
    // Nothing is reserved: the count is the file's word.
    let mut found = Vec::new();
    for _ in 0..count {
        let start = offset;
        let header: SnapshotHeader = read_struct(source, start)?;
        let (id_length, name_length) = (header.id_str_size.get(), header.name_size.get());
        let extra_length = header.extra_data_size.get();
        if extra_length > 1024 {
            return Err(damaged("a snapshot's extra data is too long"));
        }
        let extra_offset = offset + size_of::<SnapshotHeader>() as u64;
        let extra = read_vec(source, extra_offset, extra_length as usize)?;
        let id_offset = extra_offset + u64::from(extra_length);
        let id = text(read_vec(source, id_offset, id_length.into())?);
        let name_offset = id_offset + u64::from(id_length);
        let name = text(read_vec(source, name_offset, name_length.into())?);
        let end = name_offset + u64::from(name_length);
        // Its parts were read just now.
        let entry = read_vec(source, start, (end - start) as usize)?;
        offset = end.next_multiple_of(8);

        let extra64 = |at: usize| {
            extra.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
        };
        let length = extra64(8).unwrap_or(checked.header.size.get());
        let l1_bytes = u64::from(header.l1_size.get()) * 8;
        check_table(header.l1_table_offset.get(), l1_bytes, checked.cluster_size(), source.len())?;
        if length > 1 << 62 {
            return Err(damaged("a snapshot's disk is longer than any can be"));
        }
        let snapshot = Snapshot {
            id,
            name,
            created: header.date_sec.get().into(),
            length,
            machine_state: extra64(0).unwrap_or(header.vm_state_size.get().into()),
        };
        let (l1_offset, l1_size) = (header.l1_table_offset.get(), header.l1_size.get());
        found.push(Saved { snapshot, l1_offset, l1_size, entry });
    }
    Ok(found)
}
