//! What the guest's processors are: the CPUID they answer and the state they start in.

use engine::cpuid::{CpuidLeaf, CpuidTable};
use engine::state::{DescriptorTable, Segment, VcpuState};
use engine::{Capabilities, GuestMemory};
use spec::Topology;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::layout::{BOOT_GDT, PAGE_TABLES, START_INFO, ZERO_PAGE};
use crate::{Result, topology};

/// Leaf 1 ECX: the guest runs on a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: the local APIC's timer has the TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Highest function of the hypervisor's own leaves.
const HYPERVISOR_LAST: u32 = 0x4000_0010;

/// The CPUID table of processor `index`, chosen from what the engine offers.
pub(crate) fn cpuid(capabilities: &Capabilities, topology: Topology, index: u32) -> CpuidTable {
    let mut table = capabilities.cpuid.clone();
    if let Some(leaf) = table.get_mut(1, 0) {
        leaf.ecx |= HYPERVISOR | TSC_DEADLINE;
    }
    // The guest's, not the host's.
    topology::describe(&mut table, topology, index);
    hypervisor_leaves(&mut table, capabilities.tsc_khz);
    table
}

/// Tells the frequency of the TSC where it is known, so that the guest need not measure it: leaf 0x40000010, as
/// VMware defined it and Linux reads it on KVM.
fn hypervisor_leaves(table: &mut CpuidTable, tsc_khz: Option<u32>) {
    let Some(tsc_khz) = tsc_khz else { return };
    if let Some(leaf) = table.get_mut(0x4000_0000, 0) {
        leaf.eax = HYPERVISOR_LAST;
        // The local APIC's timer counts nanoseconds: a bus of 1 GHz.
        let bus_khz = 1_000_000;
        table.set(CpuidLeaf {
            function: HYPERVISOR_LAST,
            eax: tsc_khz,
            ebx: bus_khz,
            ..CpuidLeaf::default()
        });
    }
}

/// Changes the reset state of the first processor to what `entry` asks for.
pub(crate) fn enter(state: &mut VcpuState, memory: &GuestMemory, entry: Entry) -> Result<()> {
    state.registers = Default::default();
    state.registers.rflags = 2;
    let (long, address) = match entry {
        Entry::Pvh { address } => {
            state.registers.rbx = START_INFO;
            (false, address)
        }
        Entry::Linux64 { address } => {
            state.registers.rsi = ZERO_PAGE;
            (true, address)
        }
    };
    state.registers.rip = address;
    // Selectors 0x10 and 0x18 are what the Linux protocol wants; PVH wants flat segments of any selector.
    let code = segment(0x10, if long { 0xa09b } else { 0xc09b });
    let data = segment(0x18, 0xc093);
    let task = Segment { limit: 0x67, ..segment(0x20, 0x008b) };
    let table: [u64; 5] = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (entry, position) in table.iter().zip(0..) {
        memory.write_obj(*entry, GuestAddress(BOOT_GDT + 8 * position))?;
    }
    let system = &mut state.system;
    system.cs = code;
    for register in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss]
    {
        *register = data;
    }
    system.tr = task;
    system.gdt = DescriptorTable { base: BOOT_GDT, limit: 8 * table.len() as u16 - 1 };
    system.idt = DescriptorTable { base: 0, limit: 0 };
    const PE: u64 = 1;
    const ET: u64 = 1 << 4;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;
    system.cr0 = PE | ET;
    if long {
        system.cr0 |= PG;
        system.cr3 = PAGE_TABLES;
        system.cr4 = PAE;
        system.efer = LME_LMA;
    }
    Ok(())
}

/// A flat segment with these access rights.
fn segment(selector: u16, access: u16) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, access, unusable: false }
}

/// The descriptor that would load `segment` (SDM volume 3, section 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let granular = segment.access & 0x8000 != 0;
    let limit = u64::from(if granular { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.access);
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | (access & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (access >> 12 & 0xf) << 52
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Capabilities {
        let leaf = |function, index| CpuidLeaf { function, index, ..CpuidLeaf::default() };
        let table = CpuidTable(vec![
            leaf(1, None),
            CpuidLeaf { eax: 0x4000_0001, ..leaf(0x4000_0000, None) },
        ]);
        Capabilities { cpuid: table, tsc_khz: Some(2_500_000), ..Capabilities::default() }
    }

    #[test]
    fn the_frequency_of_the_tsc_is_told() {
        let table = cpuid(&offered(), Topology::cores(1), 0);
        assert_eq!(table.get(0x4000_0000, 0).unwrap().eax, 0x4000_0010);
        assert_eq!(table.get(0x4000_0010, 0).unwrap().eax, 2_500_000);
    }

    #[test]
    fn descriptors_say_what_the_segments_say() {
        assert_eq!(descriptor(&segment(0x10, 0xa09b)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(0x18, 0xc093)), 0x00cf_9300_0000_ffff);
    }
}
