//! The PVH boot ABI (xen/include/public/arch-x86/hvm/start_info.h).

use engine::GuestMemory;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::Initrd;
use super::linux::e820_kind;
use crate::Result;
use crate::layout::{COMMAND_LINE, START_INFO};
use crate::memory::map_of;

/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336e_c578;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist_paddr: U64,
    cmdline_paddr: U64,
    rsdp_paddr: U64,
    memmap_paddr: U64,
    memmap_entries: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    paddr: U64,
    size: U64,
    cmdline_paddr: U64,
    reserved: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryMapEntry {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}

const _: () = assert!(
    size_of::<StartInfo>() == 56 && size_of::<Module>() == 32 && size_of::<MemoryMapEntry>() == 24
);

/// Writes `hvm_start_info` with the module list and the memory map behind it.
pub(super) fn write_start_info(
    memory: &GuestMemory,
    rsdp: u64,
    initrd: Option<Initrd>,
) -> Result<()> {
    let modules = START_INFO + size_of::<StartInfo>() as u64;
    let map_address = modules + size_of::<Module>() as u64;
    let map = map_of(memory);
    let info = StartInfo {
        magic: MAGIC.into(),
        version: 1.into(),
        flags: 0.into(),
        nr_modules: u32::from(initrd.is_some()).into(),
        modlist_paddr: initrd.map_or(0, |_| modules).into(),
        cmdline_paddr: COMMAND_LINE.into(),
        rsdp_paddr: rsdp.into(),
        memmap_paddr: map_address.into(),
        memmap_entries: (map.len() as u32).into(),
        reserved: 0.into(),
    };
    memory.write_slice(info.as_bytes(), GuestAddress(START_INFO))?;
    if let Some(initrd) = initrd {
        let module = Module {
            paddr: initrd.address.into(),
            size: initrd.size.into(),
            cmdline_paddr: 0.into(),
            reserved: 0.into(),
        };
        memory.write_slice(module.as_bytes(), GuestAddress(modules))?;
    }
    for (range, index) in map.iter().zip(0..) {
        let entry = MemoryMapEntry {
            addr: range.start.into(),
            size: range.size.into(),
            kind: e820_kind(range.kind).into(),
            reserved: 0.into(),
        };
        let address = map_address + index * size_of::<MemoryMapEntry>() as u64;
        memory.write_slice(entry.as_bytes(), GuestAddress(address))?;
    }
    Ok(())
}
