//! The guest's memory: allocated, laid out around the hole below 4 GiB, shown to the engine.

use std::fs::File;
use std::io;
use std::sync::Arc;

use engine::{GuestMemory, GuestRegion, MemoryRegion, PAGE_SIZE, Vm};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    MmapRegion,
};

use crate::layout::{
    ACPI_TABLES, ACPI_TABLES_END, HIGH_MEMORY, HIGH_RAM, LOW_MEMORY_END, LOW_RAM_END,
};
use crate::{Error, Result};

/// How much memory the guest has, and how the host backs it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// From the host's pool of 2 MiB pages.
    pub hugepages: bool,
    /// Allocated now instead of when the guest first touches it.
    pub prealloc: bool,
    /// A memfd that other processes may map; otherwise anonymous memory.
    pub shared: bool,
}

/// Kind of a range of guest-physical memory in the map that the guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// RAM for any use.
    Ram,
    /// Holds ACPI tables.
    AcpiTables,
    /// Not RAM, or not for the guest.
    Reserved,
}

/// A range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// Smallest guest: below, no kernel fits.
const MINIMUM: u64 = 16 << 20;
const HUGE_PAGE: u64 = 2 << 20;

/// Allocates the memory of a guest.
pub fn allocate(config: &MemoryConfig) -> Result<GuestMemory> {
    let unit = if config.hugepages { HUGE_PAGE } else { PAGE_SIZE };
    if config.size < MINIMUM || !config.size.is_multiple_of(unit) {
        return Err(Error::MemorySize { size: config.size, minimum: MINIMUM, unit });
    }
    let allocation = |source| Error::MemoryAllocation { size: config.size, source };
    let file = backing(config).map_err(allocation)?;
    let low = config.size.min(LOW_RAM_END);
    let mut ranges = vec![(GuestAddress(0), low, 0)];
    if config.size > low {
        ranges.push((GuestAddress(HIGH_RAM), config.size - low, low));
    }
    let regions = ranges
        .into_iter()
        .map(|(start, size, offset)| {
            let file = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
            aligned(start, size as usize, file).map_err(io::Error::other)
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(allocation)?;
    let memory =
        GuestMemory::from_regions(regions).map_err(|error| allocation(io::Error::other(error)))?;
    if config.prealloc {
        preallocate(&memory, file.as_deref(), config.size).map_err(allocation)?;
    }
    Ok(memory)
}

/// Allocates a region whose huge pages are the guest's as well: KVM maps one at once only where guest-physical and
/// host address are congruent. Linux sees to that itself from 6.7 on; before, it puts a mapping right below the last
/// one, so that one of the surplus moves the next to where it should be.
fn aligned(
    start: GuestAddress,
    size: usize,
    file: Option<FileOffset>,
) -> std::result::Result<GuestRegion, FromRangesError> {
    let region = GuestRegion::from_range(start, size, file.clone())?;
    let surplus = region.as_ptr() as usize % HUGE_PAGE as usize;
    if surplus == 0 {
        return Ok(region);
    }
    drop(region);
    let _pad = MmapRegion::<()>::new(surplus);
    GuestRegion::from_range(start, size, file)
}

/// Shows all of `memory` to the guest of `vm`; slots are numbered from 0.
pub fn map(memory: &GuestMemory, vm: &dyn Vm) -> Result<()> {
    for (slot, region) in (0..).zip(regions(memory)) {
        vm.map(MemoryRegion { slot, region, read_only: false })?;
    }
    Ok(())
}

/// The regions of `memory`, each usable on its own.
fn regions(memory: &GuestMemory) -> Vec<Arc<GuestRegion>> {
    memory
        .iter()
        .filter_map(|region| GuestRegion::with_arc(region.get_mmap(), region.start_addr()))
        .map(Arc::new)
        .collect()
}

/// The memory map that boot protocols hand to the guest.
pub fn map_of(memory: &GuestMemory) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, size: LOW_MEMORY_END, kind: RangeKind::Ram },
        Range {
            start: ACPI_TABLES,
            size: ACPI_TABLES_END - ACPI_TABLES,
            kind: RangeKind::AcpiTables,
        },
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(HIGH_MEMORY);
        let end = region.start_addr().0 + region.len();
        map.push(Range { start, size: end - start, kind: RangeKind::Ram });
    }
    map.push(Range {
        start: crate::layout::ECAM,
        size: devices::pci::ECAM_SIZE,
        kind: RangeKind::Reserved,
    });
    map.sort_by_key(|range| range.start);
    map
}

/// The file behind the memory, where it is not anonymous.
fn backing(config: &MemoryConfig) -> io::Result<Option<Arc<File>>> {
    if !config.shared && !config.hugepages {
        return Ok(None);
    }
    let huge = if config.hugepages {
        MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB
    } else {
        MemfdFlags::empty()
    };
    let file = File::from(memfd_create("guest-memory", MemfdFlags::CLOEXEC | huge)?);
    file.set_len(config.size)?;
    Ok(Some(Arc::new(file)))
}

/// Has the host allocate every page now.
fn preallocate(memory: &GuestMemory, file: Option<&File>, size: u64) -> io::Result<()> {
    if let Some(file) = file {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size)?;
        return Ok(());
    }
    for region in memory.iter() {
        for page in (0..region.len()).step_by(PAGE_SIZE as usize) {
            region.write_obj(0_u8, MemoryRegionAddress(page)).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(size: u64) -> MemoryConfig {
        MemoryConfig { size, hugepages: false, prealloc: false, shared: false }
    }

    #[test]
    fn memory_beyond_the_hole_lies_above_4_gib() {
        let memory = allocate(&config(4 << 30)).unwrap();
        let last = memory.iter().last().unwrap();
        assert_eq!((last.start_addr().0, last.len()), (HIGH_RAM, (4 << 30) - LOW_RAM_END));
        let ram: u64 = map_of(&memory)
            .iter()
            .filter(|range| range.kind == RangeKind::Ram)
            .map(|range| range.size)
            .sum();
        assert_eq!(ram, (4 << 30) - (HIGH_MEMORY - LOW_MEMORY_END));
    }

    #[test]
    fn the_map_is_sorted_and_nothing_in_it_overlaps() {
        let memory = allocate(&config(5 << 30)).unwrap();
        let map = map_of(&memory);
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].size <= pair[1].start));
    }

    #[test]
    fn shared_memory_has_a_file_that_holds_what_the_guest_wrote() {
        let memory =
            allocate(&MemoryConfig { shared: true, prealloc: true, ..config(16 << 20) }).unwrap();
        memory.write_obj(0x1234_5678_u32, GuestAddress(0x5000)).unwrap();
        let file = memory.iter().next().unwrap().file_offset().unwrap().file();
        let mut bytes = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0x5000).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
    }

    #[test]
    fn too_little_and_crooked_sizes_are_refused() {
        assert!(matches!(allocate(&config(8 << 20)), Err(Error::MemorySize { .. })));
        assert!(matches!(allocate(&config((32 << 20) + 1)), Err(Error::MemorySize { .. })));
    }
}
