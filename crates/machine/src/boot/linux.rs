//! The Linux 64-bit boot protocol: `boot_params` and the page tables that its entry wants
//! (Documentation/arch/x86/{boot,zero-page}.rst of the kernel).

use engine::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::Initrd;
use super::bzimage::HEADER;
use crate::Result;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_SIZE, PAGE_TABLES, ZERO_PAGE};
use crate::memory::{RangeKind, map_of};

const PAGE: usize = 4096;
/// Entries of the memory map within the zero page.
const E820_MAX: usize = 128;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Writes `boot_params` and identity-mapping page tables. `header` is the setup header of a bzImage that
/// is entered itself.
pub(super) fn write_boot_params(
    memory: &GuestMemory,
    rsdp: u64,
    initrd: Option<Initrd>,
    header: Option<&[u8]>,
) -> Result<()> {
    let mut page = [0; PAGE];
    if let Some(header) = header {
        let length = header.len().min(0x2d0 - HEADER);
        page[HEADER..HEADER + length].copy_from_slice(&header[..length]);
    } else {
        put(&mut page, 0x1fe, &0xaa55_u16.to_le_bytes());
        put(&mut page, 0x202, b"HdrS");
        put(&mut page, 0x206, &0x020f_u16.to_le_bytes());
        put(&mut page, 0x230, &0x20_0000_u32.to_le_bytes());
        put(&mut page, 0x238, &(COMMAND_LINE_SIZE as u32 - 1).to_le_bytes());
    }
    put(&mut page, 0x070, &rsdp.to_le_bytes());
    // No boot loader that has a number.
    put(&mut page, 0x210, &[0xff]);
    put(&mut page, 0x228, &(COMMAND_LINE as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        put(&mut page, 0x218, &(initrd.address as u32).to_le_bytes());
        put(&mut page, 0x21c, &(initrd.size as u32).to_le_bytes());
        put(&mut page, 0x0c0, &((initrd.address >> 32) as u32).to_le_bytes());
        put(&mut page, 0x0c4, &((initrd.size >> 32) as u32).to_le_bytes());
    }
    let map = map_of(memory);
    let count = map.len().min(E820_MAX);
    page[0x1e8] = count as u8;
    for (index, range) in map[..count].iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(&mut page, at, &range.start.to_le_bytes());
        put(&mut page, at + 8, &range.size.to_le_bytes());
        put(&mut page, at + 16, &e820_kind(range.kind).to_le_bytes());
    }
    memory.write_slice(&page, GuestAddress(ZERO_PAGE))?;
    write_page_tables(memory)
}

/// Type of a range in an E820 map (ACPI 6.5 table 15.4), which PVH uses as well.
pub(super) fn e820_kind(kind: RangeKind) -> u32 {
    match kind {
        RangeKind::Ram => 1,
        RangeKind::Reserved => 2,
        RangeKind::AcpiTables => 3,
    }
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) -> Result<()> {
    let page = PAGE as u64;
    let (directory_pointers, directories) = (PAGE_TABLES + page, PAGE_TABLES + 2 * page);
    memory.write_obj(directory_pointers | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..4 {
        let directory = directories + gib * page;
        memory
            .write_obj(directory | PRESENT_WRITABLE, GuestAddress(directory_pointers + 8 * gib))?;
        for entry in 0..512 {
            let target = (gib << 30) | (entry << 21);
            memory.write_obj(
                target | PRESENT_WRITABLE | LARGE,
                GuestAddress(directory + 8 * entry),
            )?;
        }
    }
    Ok(())
}

fn put(page: &mut [u8; PAGE], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}
