//! Guest memory as every crate of the house shares it.

use std::sync::Arc;

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use crate::DeviceWrites;

/// Bytes in the smallest page of x86-64, the unit of dirty tracking.
pub const PAGE_SIZE: u64 = 4096;

/// All RAM of one guest, mapped into this process.
///
/// The bitmap records the pages that *devices* wrote; what processors wrote is asked of the engine
/// ([`crate::DirtyTracking`]). A pre-copy or a differential snapshot needs the union of both.
pub type GuestMemory = GuestMemoryMmap<DeviceWrites>;

/// One contiguous part of [`GuestMemory`].
pub type GuestRegion = GuestRegionMmap<DeviceWrites>;

/// A part of host memory that the guest sees at a guest-physical address.
#[derive(Clone, Debug)]
pub struct MemoryRegion {
    /// Number chosen by the caller, unique within the virtual machine, by which it is unmapped.
    pub slot: u32,
    /// The mapped host memory and the guest-physical address of its first byte; both page-aligned.
    /// The engine keeps the region alive for as long as the guest can reach it.
    pub region: Arc<GuestRegion>,
    /// Guest writes go to [`crate::Bus::mmio_write`] instead of memory.
    pub read_only: bool,
}
