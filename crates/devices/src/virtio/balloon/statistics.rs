//! The guest's view of its memory (VIRTIO 1.2 section 5.5.6.4).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What a guest says of its memory; what it did not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Bytes swapped in since its boot.
    pub swap_in: Option<u64>,
    /// Bytes swapped out since its boot.
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that hold nothing.
    pub free: Option<u64>,
    /// Bytes that it has.
    pub total: Option<u64>,
    /// Bytes that programs could get without swapping.
    pub available: Option<u64>,
    /// Bytes that cache files.
    pub caches: Option<u64>,
    /// Huge pages allocated.
    pub huge_pages_allocated: Option<u64>,
    /// Huge pages that could not be allocated.
    pub huge_pages_failed: Option<u64>,
}

/// `struct virtio_balloon_stat`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    tag: U16,
    value: U64,
}

impl Statistics {
    /// Bytes of a buffer that are looked at: more than all entries that are known.
    pub(super) const SIZE: usize = 64 * size_of::<Entry>();

    /// The statistics in a buffer of the guest; entries that are not known are left out.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for bytes in bytes.chunks_exact(size_of::<Entry>()) {
            let Ok(Entry { tag, value }) = Entry::read_from_bytes(bytes) else { break };
            let field = match tag.get() {
                0 => &mut statistics.swap_in,
                1 => &mut statistics.swap_out,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.caches,
                8 => &mut statistics.huge_pages_allocated,
                9 => &mut statistics.huge_pages_failed,
                _ => continue,
            };
            *field = Some(value.get());
        }
        statistics
    }
}
