//! Between KVM's structures and the neutral ones. Plain functions without system calls.

use engine::cpuid::{CpuidLeaf, CpuidTable};
use engine::state::{
    Activity, DescriptorTable, Exception, Interrupt, LocalApicState, PendingEvents, Registers,
    Segment, SystemRegisters,
};
use engine::{Error, Result};
use kvm_bindings::*;

/// The supported CPUID table.
pub fn cpuid_from_kvm(entries: &[kvm_cpuid_entry2]) -> CpuidTable {
    let leaf = |entry: &kvm_cpuid_entry2| CpuidLeaf {
        function: entry.function,
        index: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    CpuidTable(entries.iter().map(leaf).collect())
}

/// The CPUID table of a processor.
pub fn cpuid_to_kvm(table: &CpuidTable) -> Vec<kvm_cpuid_entry2> {
    let entry = |leaf: &CpuidLeaf| kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or(0),
        flags: leaf.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    };
    table.0.iter().map(entry).collect()
}

/// Which of the registers that KVM lists belong to a processor's saved state, and those that it knows
/// but does not list.
pub fn portable_msrs(listed: &[u32]) -> Vec<u32> {
    let left_out = |msr: u32| {
        matches!(msr,
            // Intel's VMX capabilities describe the host's processor; nested state is not saved.
            0x480..=0x493
            // Hyper-V's: offered only by enlightenments that this engine does not enable.
            | 0x4000_0000..=0x4000_10ff
            // kvm-clock's first numbers: aliases of 0x4b564d00 and 0x4b564d01.
            | 0x11 | 0x12
            // kvm-clock's wall clock: restoring it would write guest memory; guests read it only
            // directly after they wrote the register themselves.
            | 0x4b56_4d00)
    };
    let mut msrs: Vec<u32> =
        listed.iter().copied().filter(|&msr| !left_out(msr)).chain(unlisted_msrs()).collect();
    msrs.sort_unstable();
    msrs.dedup();
    msrs
}

/// Memory types (SDM volume 3, section 12.11) and machine-check control: KVM_GET_MSR_INDEX_LIST leaves
/// them out in most versions of Linux.
fn unlisted_msrs() -> impl Iterator<Item = u32> {
    const MACHINE_CHECK_BANKS: u32 = 32;
    (0x200..=0x20f)
        .chain([0x250, 0x258, 0x259])
        .chain(0x268..=0x26f)
        .chain([0x2ff])
        .chain((0..MACHINE_CHECK_BANKS).map(|bank| 0x400 + 4 * bank))
}

/// The general registers in another struct, whose fields have the same names.
macro_rules! registers {
    ($to:ident, $from:ident) => {
        $to {
            rax: $from.rax,
            rbx: $from.rbx,
            rcx: $from.rcx,
            rdx: $from.rdx,
            rsi: $from.rsi,
            rdi: $from.rdi,
            rsp: $from.rsp,
            rbp: $from.rbp,
            r8: $from.r8,
            r9: $from.r9,
            r10: $from.r10,
            r11: $from.r11,
            r12: $from.r12,
            r13: $from.r13,
            r14: $from.r14,
            r15: $from.r15,
            rip: $from.rip,
            rflags: $from.rflags,
        }
    };
}

pub fn registers_from_kvm(from: &kvm_regs) -> Registers {
    registers!(Registers, from)
}

pub fn registers_to_kvm(from: &Registers) -> kvm_regs {
    registers!(kvm_regs, from)
}

pub fn system_from_kvm(from: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cs: segment_from_kvm(&from.cs),
        ds: segment_from_kvm(&from.ds),
        es: segment_from_kvm(&from.es),
        fs: segment_from_kvm(&from.fs),
        gs: segment_from_kvm(&from.gs),
        ss: segment_from_kvm(&from.ss),
        tr: segment_from_kvm(&from.tr),
        ldt: segment_from_kvm(&from.ldt),
        gdt: DescriptorTable { base: from.gdt.base, limit: from.gdt.limit },
        idt: DescriptorTable { base: from.idt.base, limit: from.idt.limit },
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: from.apic_base,
    }
}

/// The interrupt bitmap stays empty: [`PendingEvents`] holds what is being injected.
pub fn system_to_kvm(from: &SystemRegisters) -> kvm_sregs {
    let table = |table: &DescriptorTable| kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    };
    kvm_sregs {
        cs: segment_to_kvm(&from.cs),
        ds: segment_to_kvm(&from.ds),
        es: segment_to_kvm(&from.es),
        fs: segment_to_kvm(&from.fs),
        gs: segment_to_kvm(&from.gs),
        ss: segment_to_kvm(&from.ss),
        tr: segment_to_kvm(&from.tr),
        ldt: segment_to_kvm(&from.ldt),
        gdt: table(&from.gdt),
        idt: table(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: from.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn segment_from_kvm(from: &kvm_segment) -> Segment {
    let bit = |value: u8, shift: u32| u16::from(value & 1) << shift;
    Segment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        access: u16::from(from.type_ & 0xf)
            | bit(from.s, 4)
            | u16::from(from.dpl & 3) << 5
            | bit(from.present, 7)
            | bit(from.avl, 12)
            | bit(from.l, 13)
            | bit(from.db, 14)
            | bit(from.g, 15),
        unusable: from.unusable != 0,
    }
}

fn segment_to_kvm(from: &Segment) -> kvm_segment {
    let bit = |shift: u32| (from.access >> shift & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.access & 0xf) as u8,
        present: bit(7),
        dpl: (from.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: from.unusable.into(),
        padding: 0,
    }
}

/// Registers of the local APIC, 16 bytes apart.
pub fn lapic_from_kvm(from: &kvm_lapic_state) -> LocalApicState {
    let bytes = from.regs.map(|byte| byte as u8);
    let (chunks, _) = bytes.as_chunks::<LAPIC_STRIDE>();
    let register =
        |chunk: &[u8; LAPIC_STRIDE]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    LocalApicState { registers: chunks.iter().map(register).collect() }
}

pub fn lapic_to_kvm(from: &LocalApicState) -> Result<kvm_lapic_state> {
    let mut to = kvm_lapic_state::default();
    let count = to.regs.len() / LAPIC_STRIDE;
    if from.registers.len() != count {
        return Err(Error::Invalid(format!(
            "A local APIC has {count} registers, not {}",
            from.registers.len()
        )));
    }
    for (chunk, register) in to.regs.chunks_mut(LAPIC_STRIDE).zip(&from.registers) {
        for (place, byte) in chunk.iter_mut().zip(register.to_le_bytes()) {
            *place = byte as _;
        }
    }
    Ok(to)
}

const LAPIC_STRIDE: usize = 16;

pub fn events_from_kvm(from: &kvm_vcpu_events) -> PendingEvents {
    let exception = &from.exception;
    let interrupt = &from.interrupt;
    let shadow = u32::from(interrupt.shadow);
    PendingEvents {
        exception: (exception.injected | exception.pending != 0).then_some(Exception {
            vector: exception.nr,
            error_code: (exception.has_error_code != 0).then_some(exception.error_code),
        }),
        interrupt: (interrupt.injected != 0)
            .then_some(Interrupt { vector: interrupt.nr, software: interrupt.soft != 0 }),
        interrupt_shadow: u8::from(shadow & KVM_X86_SHADOW_INT_STI != 0)
            | u8::from(shadow & KVM_X86_SHADOW_INT_MOV_SS != 0) << 1,
        nmi_injected: from.nmi.injected != 0,
        nmi_pending: from.nmi.pending != 0,
        nmi_masked: from.nmi.masked != 0,
    }
}

/// `activity` holds the vector of a start-up IPI, which KVM keeps with the events.
pub fn events_to_kvm(from: &PendingEvents, activity: Activity) -> kvm_vcpu_events {
    let mut to = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some(exception) = from.exception {
        to.exception.injected = 1;
        to.exception.nr = exception.vector;
        to.exception.has_error_code = exception.error_code.is_some().into();
        to.exception.error_code = exception.error_code.unwrap_or(0);
    }
    if let Some(interrupt) = from.interrupt {
        to.interrupt.injected = 1;
        to.interrupt.nr = interrupt.vector;
        to.interrupt.soft = interrupt.software.into();
    }
    if from.interrupt_shadow & 1 != 0 {
        to.interrupt.shadow |= KVM_X86_SHADOW_INT_STI as u8;
    }
    if from.interrupt_shadow & 2 != 0 {
        to.interrupt.shadow |= KVM_X86_SHADOW_INT_MOV_SS as u8;
    }
    to.nmi.injected = from.nmi_injected.into();
    to.nmi.pending = from.nmi_pending.into();
    to.nmi.masked = from.nmi_masked.into();
    if let Activity::StartupReceived { vector } = activity {
        to.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        to.sipi_vector = vector.into();
    }
    to
}

pub fn activity_from_kvm(state: kvm_mp_state, events: &kvm_vcpu_events) -> Result<Activity> {
    match state.mp_state {
        KVM_MP_STATE_RUNNABLE => Ok(Activity::Running),
        KVM_MP_STATE_HALTED => Ok(Activity::Halted),
        KVM_MP_STATE_UNINITIALIZED => Ok(Activity::Uninitialized),
        KVM_MP_STATE_INIT_RECEIVED => Ok(Activity::WaitForStartup),
        KVM_MP_STATE_SIPI_RECEIVED => {
            Ok(Activity::StartupReceived { vector: events.sipi_vector as u8 })
        }
        other => Err(Error::Invalid(format!("The processor is in the unknown KVM state {other}"))),
    }
}

pub fn activity_to_kvm(activity: Activity) -> kvm_mp_state {
    let mp_state = match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        Activity::WaitForStartup => KVM_MP_STATE_INIT_RECEIVED,
        Activity::StartupReceived { .. } => KVM_MP_STATE_SIPI_RECEIVED,
    };
    kvm_mp_state { mp_state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_keeps_every_bit_on_the_way() {
        for access in (0..16).map(|bit| 1_u16 << bit).filter(|bit| bit & 0x0f00 == 0) {
            let segment =
                Segment { selector: 8, base: 1 << 40, limit: 0xfffff, access, unusable: false };
            assert_eq!(segment_from_kvm(&segment_to_kvm(&segment)), segment, "{access:#x}");
        }
        let code = segment_to_kvm(&Segment { access: 0xa09b, ..Segment::default() });
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.l, code.db, code.g), (1, 0, 1));
    }

    #[test]
    fn local_apic_registers_lie_sixteen_bytes_apart() {
        let apic = LocalApicState { registers: (0..64).map(|i| 0x8000_0000 + i).collect() };
        let kvm = lapic_to_kvm(&apic).unwrap();
        assert_eq!(kvm.regs[0x30] as u8, 3);
        assert_eq!(kvm.regs[0x33] as u8, 0x80);
        assert_eq!(lapic_from_kvm(&kvm), apic);
    }

    #[test]
    fn a_local_apic_of_the_wrong_length_is_refused() {
        for length in [0, 63, 65] {
            assert!(lapic_to_kvm(&LocalApicState { registers: vec![0; length] }).is_err());
        }
    }

    #[test]
    fn events_survive_the_way_there_and_back() {
        let events = PendingEvents {
            exception: Some(Exception { vector: 14, error_code: Some(2) }),
            interrupt: Some(Interrupt { vector: 0x80, software: true }),
            interrupt_shadow: 1,
            nmi_injected: false,
            nmi_pending: true,
            nmi_masked: true,
        };
        let kvm = events_to_kvm(&events, Activity::StartupReceived { vector: 9 });
        assert_eq!(events_from_kvm(&kvm), events);
        assert_eq!(kvm.sipi_vector, 9);
        assert_eq!(u32::from(kvm.interrupt.shadow), KVM_X86_SHADOW_INT_STI);
        let none = events_to_kvm(&PendingEvents::default(), Activity::Running);
        assert_eq!(events_from_kvm(&none), PendingEvents::default());
    }

    #[test]
    fn state_that_describes_the_host_is_left_out() {
        let msrs = portable_msrs(&[0x10, 0x11, 0x480, 0x4000_0001, 0x4b56_4d01, 0x2ff]);
        assert!(msrs.contains(&0x10) && msrs.contains(&0x4b56_4d01) && msrs.contains(&0x200));
        assert!(!msrs.iter().any(|msr| [0x11, 0x480, 0x4000_0001].contains(msr)));
        assert_eq!(msrs.iter().filter(|&&msr| msr == 0x2ff).count(), 1);
    }

    #[test]
    fn a_cpuid_table_survives_the_way_there_and_back() {
        let table = CpuidTable(vec![
            CpuidLeaf { function: 1, eax: 5, ..CpuidLeaf::default() },
            CpuidLeaf { function: 4, index: Some(2), edx: 7, ..CpuidLeaf::default() },
        ]);
        assert_eq!(cpuid_from_kvm(&cpuid_to_kvm(&table)), table);
    }
}
