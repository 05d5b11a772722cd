//! The neutral state of a processor: after a reset, saved, restored.

use std::sync::Arc;

use engine::cpuid::CpuidTable;
use engine::state::{
    Activity, DebugRegisters, DescriptorTable, Exception, Interrupt, PendingEvents, Registers,
    Segment, SystemRegisters, VcpuState,
};
use engine::{Error, Result, Statistics};

use crate::cpu::{
    CR0_ET, CR0_PE, CR0_PG, CS, Cpu, DS, EFER_LMA, EFER_LME, ES, FS, Fault, GS, Mode, Msrs, SS,
};
use crate::flags::Flags;
use crate::host::{Regs, Tlb};
use crate::vcpu::SoftVcpu;
use crate::vm::{CpuShared, VmShared};
use crate::xsave::XSAVE;

/// Longest area of another engine that is looked at.
const LONGEST_XSAVE: usize = 64 << 10;

/// Model-specific registers of a saved state.
pub const MSRS: &[u32] = &[
    0x10,
    0x174,
    0x175,
    0x176,
    0x1a0,
    0x277,
    0x2ff,
    0x6e0,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
    crate::clock::WALL_CLOCK,
    crate::clock::SYSTEM_TIME,
];

impl Cpu {
    /// After a reset.
    pub fn new(vm: Arc<VmShared>, shared: Arc<CpuShared>, cpuid: CpuidTable) -> Self {
        let mut cpu = Self {
            r: Regs::default(),
            rip: 0,
            flags: Flags::default(),
            rflags: 2,
            user: 0,
            cpl: 0,
            mode: Mode::Bits16,
            linear_mask: 0,
            stack_mask: 0,
            base: [0; 8],
            reads: Tlb::default(),
            writes: Tlb::default(),
            fetches: Box::default(),
            translated: Default::default(),
            large: [0; 2],
            fetched_global: false,
            generation: 0,
            code_changed: false,
            fault: Fault::default(),
            impossible: None,
            segments: [Segment::default(); 6],
            tr: Segment::default(),
            ldt: Segment::default(),
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            debug: DebugRegisters::default(),
            breakpoints_met: 0,
            msrs: Msrs::default(),
            fpu: Box::default(),
            tsc_offset: 0,
            cpuid,
            activity: Activity::Running,
            shadow: 0,
            nmi_masked: false,
            check_interrupts: true,
            ram: vm.ram(),
            bus: None,
            vm,
            shared,
            statistics: Statistics::default(),
            journal: None,
        };
        cpu.msrs.pat = 0x0007_0406_0007_0406;
        cpu.msrs.misc_enable = 1;
        cpu.reset();
        cpu
    }

    /// Registers as after INIT (SDM volume 3, table 10-1).
    pub fn reset(&mut self) {
        const SIGNATURE: u64 = 0x600;
        self.r = Regs::default();
        self.r.set(crate::cpu::RDX, SIGNATURE);
        self.rip = 0xfff0;
        self.set_rflags(2);
        let data = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93, unusable: false };
        self.segments = [data; 6];
        self.segments[CS] = Segment { selector: 0xf000, base: 0xffff_0000, access: 0x9b, ..data };
        self.tr = Segment { access: 0x8b, ..data };
        self.ldt = Segment { access: 0x82, ..data };
        (self.gdt, self.idt) = (
            DescriptorTable { base: 0, limit: 0xffff },
            DescriptorTable { base: 0, limit: 0xffff },
        );
        self.cr0 = 0x6000_0000 | CR0_ET;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.debug = DebugRegisters::default();
        self.xcr0 = 1;
        self.cpl = 0;
        self.shadow = 0;
        self.nmi_masked = false;
        self.flush_tlb();
        self.refresh();
    }
}

/// What the processor is.
pub fn save(vcpu: &mut SoftVcpu) -> VcpuState {
    let list = vcpu.msrs.clone();
    let cpu = &mut vcpu.cpu;
    let r = |number| cpu.r.r(number);
    let registers = Registers {
        rax: r(0),
        rcx: r(1),
        rdx: r(2),
        rbx: r(3),
        rsp: r(4),
        rbp: r(5),
        rsi: r(6),
        rdi: r(7),
        r8: r(8),
        r9: r(9),
        r10: r(10),
        r11: r(11),
        r12: r(12),
        r13: r(13),
        r14: r(14),
        r15: r(15),
        rip: cpu.rip,
        rflags: cpu.get_rflags(),
    };
    let apic = cpu.shared.lock();
    let lapic = apic.state(cpu.vm.now());
    let system = SystemRegisters {
        cs: cpu.segments[CS],
        ds: cpu.segments[DS],
        es: cpu.segments[ES],
        fs: cpu.segments[FS],
        gs: cpu.segments[GS],
        ss: cpu.segments[SS],
        tr: cpu.tr,
        ldt: cpu.ldt,
        gdt: cpu.gdt,
        idt: cpu.idt,
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        cr8: u64::from(apic.task_priority() >> 4),
        efer: cpu.efer,
        apic_base: apic.base(),
    };
    drop(apic);
    let xsave = crate::xsave::whole(&cpu.fpu);
    let msrs = list.into_iter().filter_map(|index| Some((index, cpu.read_msr(index)?))).collect();
    let (debug, xcr0) = (cpu.debug, cpu.xcr0);
    let (activity, shadow, nmi_masked) = (cpu.activity, cpu.shadow, cpu.nmi_masked);
    VcpuState {
        registers,
        system,
        debug,
        xcr0: Some(xcr0),
        xsave,
        msrs,
        lapic,
        activity,
        events: PendingEvents {
            exception: vcpu
                .exception
                .map(|fault| Exception { vector: fault.vector, error_code: fault.code }),
            interrupt: vcpu.interrupt.map(|(vector, software)| Interrupt { vector, software }),
            interrupt_shadow: shadow,
            nmi_injected: vcpu.nmi_injected,
            nmi_pending: vcpu.nmi_pending,
            nmi_masked,
        },
    }
}

fn check(state: &VcpuState) -> Result<()> {
    let invalid = |text: &str| Err(Error::Invalid(text.into()));
    if !(XSAVE..=LONGEST_XSAVE).contains(&state.xsave.len()) {
        return invalid("The saved XSAVE area has an impossible length");
    }
    if state.lapic.registers.len() != crate::apic::REGISTERS {
        return invalid("The saved local APIC has not 64 registers");
    }
    let system = &state.system;
    let long = system.efer & EFER_LMA != 0;
    let paging = system.cr0 & CR0_PG != 0;
    if paging && system.cr0 & CR0_PE == 0 {
        return invalid("The saved CR0 has paging without protection");
    }
    if long != (paging && system.efer & EFER_LME != 0) {
        return invalid("The saved EFER does not fit CR0");
    }
    if state.xcr0.is_some_and(|xcr0| !crate::xsave::allowed(xcr0)) {
        return invalid("The saved XCR0 has components that this processor has not");
    }
    if let Some((index, _)) = state.msrs.iter().find(|(index, _)| !known_msr(*index)) {
        return Err(Error::Invalid(format!("There is no model-specific register {index:#x}")));
    }
    Ok(())
}

/// Registers that another engine may have saved as well.
fn known_msr(index: u32) -> bool {
    MSRS.contains(&index)
}

/// Makes the processor what `state` says.
pub fn restore(vcpu: &mut SoftVcpu, state: &VcpuState) -> Result<()> {
    check(state)?;
    let cpu = &mut vcpu.cpu;
    let now = cpu.vm.now();
    {
        let mut apic = cpu.shared.lock();
        apic.force_base(state.system.apic_base);
        apic.set_state(&state.lapic, now)?;
        let low = apic.task_priority() & 15;
        apic.set_task_priority((state.system.cr8 as u32 & 15) << 4 | low);
    }
    let r = &state.registers;
    let values = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    for (number, value) in values.into_iter().enumerate() {
        cpu.r.set(number, value);
    }
    cpu.rip = r.rip;
    cpu.set_rflags(r.rflags);
    let s = &state.system;
    for (register, segment) in
        [(CS, s.cs), (DS, s.ds), (ES, s.es), (FS, s.fs), (GS, s.gs), (SS, s.ss)]
    {
        cpu.segments[register] = segment;
    }
    (cpu.tr, cpu.ldt, cpu.gdt, cpu.idt) = (s.tr, s.ldt, s.gdt, s.idt);
    (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) = (s.cr0 | CR0_ET, s.cr2, s.cr3, s.cr4, s.efer);
    cpu.cpl = (s.ss.access >> 5 & 3) as u8;
    cpu.debug = state.debug;
    cpu.xcr0 = state.xcr0.unwrap_or(1);
    *cpu.fpu = crate::xsave::from_whole(&state.xsave);
    cpu.flush_tlb();
    cpu.refresh();
    for (index, value) in &state.msrs {
        match *index {
            // Neither writes to guest memory now: the virtual machine's clock may be set after this.
            crate::clock::WALL_CLOCK => cpu.msrs.wall_clock = *value,
            crate::clock::SYSTEM_TIME => cpu.msrs.system_time = *value,
            0x10 => cpu.tsc_offset = cpu.vm.restore_tsc(cpu.shared.index, *value),
            // After the counter that it is compared with.
            0x6e0 => {}
            index => {
                if !cpu.write_msr(index, *value) {
                    return Err(Error::Invalid(format!(
                        "Model-specific register {index:#x} cannot hold {value:#x}"
                    )));
                }
            }
        }
    }
    if let Some((_, deadline)) = state.msrs.iter().find(|(index, _)| *index == 0x6e0) {
        cpu.set_deadline(*deadline);
    }
    cpu.activity = state.activity;
    cpu.shadow = state.events.interrupt_shadow & 3;
    cpu.nmi_masked = state.events.nmi_masked;
    cpu.check_interrupts = true;
    cpu.vm.timer_changed();
    vcpu.exception = state
        .events
        .exception
        .map(|exception| Fault { vector: exception.vector, code: exception.error_code });
    vcpu.interrupt = state.events.interrupt.map(|interrupt| (interrupt.vector, interrupt.software));
    vcpu.nmi_injected = state.events.nmi_injected;
    vcpu.nmi_pending = state.events.nmi_pending;
    vcpu.is_clock_stale = true;
    Ok(())
}
