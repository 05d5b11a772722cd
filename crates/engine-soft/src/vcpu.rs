//! One virtual processor: the loop that executes blocks, and what comes in between.

use std::sync::Arc;

use engine::state::{Activity, Segment, VcpuState};
use engine::{Bus, Error, Exit, Kicker, Result, Statistics, Vcpu, VcpuConfig};

use crate::block::Cache;
use crate::cpu::{
    CS, Cpu, DB, DF, FLAG_IF, FLAG_RF, FLAG_TF, Fault, GP, NP, PF, SS_FAULT, Stop, TS,
};
use crate::host::BusHandle;
use crate::translate::Translation;
use crate::translate::context::Frame;
use crate::vm::{
    CODE, CpuShared, FORGET_WRITES, INIT, INTERRUPT, KICK, MEMORY, NEW_CODE_PAGE, NMI, STARTUP,
    VmShared,
};

/// See the module.
pub struct SoftVcpu {
    pub cpu: Box<Frame>,
    cache: Cache,
    /// An exception that a saved state was about to deliver.
    pub exception: Option<Fault>,
    /// Likewise an interrupt: its vector, and whether it comes from an INT instruction.
    pub interrupt: Option<(u8, bool)>,
    pub nmi_injected: bool,
    pub nmi_pending: bool,
    /// kvm-clock's page is still that of the computer which saved the guest.
    pub is_clock_stale: bool,
    pub msrs: Vec<u32>,
}

/// DR6: the exception is that of the trap flag.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// The part of the interrupt shadow that holds off debug exceptions as well.
const MOV_SS: u8 = 2;

/// What the loop does next.
enum Next {
    Run,
    Leave(Exit),
}

impl SoftVcpu {
    /// In its reset state.
    pub fn new(
        vm: Arc<VmShared>,
        shared: Arc<CpuShared>,
        config: &VcpuConfig,
        msrs: Vec<u32>,
    ) -> Result<Self> {
        let activity = if config.index == 0 { Activity::Running } else { Activity::Uninitialized };
        let translation = vm.translation();
        let mut cpu = Frame::new(|| Cpu::new(vm, shared, config.cpuid.clone()))
            .map_err(Error::backend("allocate a processor"))?;
        cpu.activity = activity;
        cpu.tsc_offset = cpu.vm.tsc_offset();
        Ok(Self {
            cpu,
            cache: Cache::new(translation),
            exception: None,
            interrupt: None,
            nmi_injected: false,
            nmi_pending: false,
            is_clock_stale: false,
            msrs,
        })
    }

    fn execute(&mut self) -> Exit {
        loop {
            match self.events() {
                Next::Run => {}
                Next::Leave(exit) => return exit,
            }
            let stepping = self.cpu.rflags & FLAG_TF != 0;
            let watching = self.cpu.has_breakpoints();
            let one = self.cpu.shadow != 0 || stepping || watching;
            let resumed = self.cpu.rflags & FLAG_RF != 0;
            if watching && self.cpu.shadow & MOV_SS == 0 {
                let met = self.cpu.execution_breakpoints();
                if met != 0 {
                    if let Some(exit) = self.debug_exception(met) {
                        return exit;
                    }
                    continue;
                }
            }
            let mut shadow = MOV_SS;
            let mut last = None;
            loop {
                let known = if one { None } else { self.cache.run_known(&mut self.cpu) };
                let result = if let Some(result) = known {
                    last = None;
                    result
                } else {
                    let found = match last {
                        Some(block) => self.cache.follow(block, &mut self.cpu),
                        None => self.cache.find(&mut self.cpu),
                    };
                    match found {
                        Ok(block) => {
                            shadow = std::mem::take(&mut self.cpu.shadow);
                            last = Some(block);
                            self.cache.run(block, one, &mut self.cpu)
                        }
                        Err(stop) => Err(stop),
                    }
                };
                if let Some(difference) = self.cache.difference() {
                    return Exit::Failed(format!(
                        "Translator and interpreter differ: {difference}"
                    ));
                }
                if result == Err(Stop::Fault)
                    && let Some(exit) = self.exception_at_rip()
                {
                    return exit;
                }
                if one {
                    let mut met = std::mem::take(&mut self.cpu.breakpoints_met);
                    if resumed && matches!(result, Ok(()) | Err(Stop::Branch)) {
                        self.cpu.rflags &= !FLAG_RF;
                    }
                    if stepping && shadow & MOV_SS == 0 {
                        met |= DR6_SINGLE_STEP;
                    }
                    if met != 0
                        && result != Err(Stop::Fault)
                        && let Some(exit) = self.debug_exception(met)
                    {
                        return exit;
                    }
                }
                let cpu = &mut self.cpu;
                let wanted = cpu.shared.attention() != 0
                    || cpu.check_interrupts && cpu.rflags & FLAG_IF != 0
                    || cpu.shadow != 0
                    || cpu.rflags & FLAG_TF != 0
                    || cpu.has_breakpoints()
                    || cpu.activity != Activity::Running;
                if wanted || one {
                    break;
                }
            }
        }
    }

    /// #DB for what these bits of DR6 say.
    fn debug_exception(&mut self, met: u64) -> Option<Exit> {
        self.cpu.debug.dr6 |= met;
        self.cpu.raise(DB);
        self.exception_at_rip()
    }

    /// Delivers `Cpu::fault`; an exit if that ends in a triple fault.
    fn exception_at_rip(&mut self) -> Option<Exit> {
        let mut current = self.cpu.fault;
        loop {
            let rip = self.cpu.rip;
            match self.cpu.deliver(current.vector, current.code, false, rip) {
                Ok(()) => return None,
                Err(_) => {
                    let second = self.cpu.fault;
                    let contributory = |vector| matches!(vector, 0 | TS | NP | SS_FAULT | GP);
                    if current.vector == DF {
                        return Some(Exit::Shutdown);
                    }
                    let double = contributory(current.vector) && contributory(second.vector)
                        || current.vector == PF
                            && (second.vector == PF || contributory(second.vector));
                    current = if double { Fault { vector: DF, code: Some(0) } } else { second };
                }
            }
        }
    }

    /// An interrupt; its own faults are exceptions at the same place.
    fn enter_interrupt(&mut self, vector: u8, software: bool) -> Option<Exit> {
        let rip = self.cpu.rip;
        match self.cpu.deliver(vector, None, software, rip) {
            Ok(()) => None,
            Err(_) => self.exception_at_rip(),
        }
    }

    /// Everything that comes between instructions.
    fn events(&mut self) -> Next {
        loop {
            let reasons = self.cpu.shared.attention();
            if reasons != 0
                && let Some(exit) = self.attend(reasons)
            {
                return Next::Leave(exit);
            }
            if matches!(self.cpu.activity, Activity::Uninitialized | Activity::WaitForStartup) {
                self.cpu.shared.wait();
                continue;
            }
            if let Some(exit) = self.deliver_events() {
                return Next::Leave(exit);
            }
            if self.cpu.activity != Activity::Halted {
                return Next::Run;
            }
            self.cpu.shared.wait();
        }
    }

    /// Serves what others asked of this processor.
    fn attend(&mut self, reasons: u32) -> Option<Exit> {
        let shared = Arc::clone(&self.cpu.shared);
        if reasons & KICK != 0 {
            shared.take(KICK);
            return Some(Exit::Kicked);
        }
        let reasons = shared.take(reasons);
        let cpu = &mut self.cpu;
        if reasons & INTERRUPT != 0 {
            cpu.check_interrupts = true;
        }
        if reasons & MEMORY != 0 {
            cpu.flush_tlb();
            cpu.ram = cpu.vm.ram();
        }
        if reasons & (FORGET_WRITES | NEW_CODE_PAGE) != 0 {
            cpu.writes.clear();
        }
        if reasons & NEW_CODE_PAGE != 0 {
            // It may have written there before it heard of it.
            cpu.vm.bump_code_version();
        }
        if reasons & CODE != 0 {
            cpu.generation += 1;
            cpu.translated.pages.clear();
        }
        if reasons & NMI != 0 {
            self.nmi_pending = true;
        }
        if reasons & INIT != 0 {
            self.initialize();
        }
        if reasons & STARTUP != 0 && self.cpu.activity == Activity::WaitForStartup {
            let vector = shared.startup();
            self.start_at(vector);
        }
        None
    }

    /// INIT (SDM volume 3, table 10-1).
    fn initialize(&mut self) {
        self.cpu.reset();
        let mut apic = self.cpu.shared.lock();
        apic.reset();
        let first = apic.base() & 1 << 8 != 0;
        drop(apic);
        self.cpu.activity = if first { Activity::Running } else { Activity::WaitForStartup };
        (self.exception, self.interrupt) = (None, None);
        (self.nmi_pending, self.nmi_injected) = (false, false);
    }

    fn start_at(&mut self, vector: u8) {
        let cpu = &mut self.cpu;
        cpu.segments[CS] = Segment {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            ..cpu.segments[CS]
        };
        cpu.rip = 0;
        cpu.refresh();
        cpu.activity = Activity::Running;
    }

    fn deliver_events(&mut self) -> Option<Exit> {
        if let Activity::StartupReceived { vector } = self.cpu.activity {
            self.start_at(vector);
        }
        if let Some(fault) = self.exception.take() {
            self.cpu.fault = fault;
            return self.exception_at_rip();
        }
        if let Some((vector, software)) = self.interrupt.take() {
            return self.enter_interrupt(vector, software);
        }
        if self.cpu.shadow != 0 {
            return None;
        }
        if (self.nmi_pending || self.nmi_injected) && !self.cpu.nmi_masked {
            if !std::mem::take(&mut self.nmi_injected) {
                self.nmi_pending = false;
            }
            self.cpu.nmi_masked = true;
            self.cpu.activity = Activity::Running;
            return self.enter_interrupt(2, false);
        }
        if self.cpu.check_interrupts && self.cpu.rflags & FLAG_IF != 0 {
            let vector = self.next_interrupt()?;
            self.cpu.activity = Activity::Running;
            return self.enter_interrupt(vector, false);
        }
        None
    }

    fn next_interrupt(&mut self) -> Option<u8> {
        let mut apic = self.cpu.shared.lock();
        if let Some(vector) = apic.pending() {
            apic.acknowledge(vector);
            return Some(vector);
        }
        let legacy = apic.takes_legacy();
        drop(apic);
        if legacy {
            let mut chips = self.cpu.vm.chips();
            if chips.pic_pending() {
                return Some(chips.pic_acknowledge());
            }
        }
        self.cpu.check_interrupts = false;
        None
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit> {
        if std::mem::take(&mut self.is_clock_stale) {
            crate::clock::write_system_time(&mut self.cpu);
        }
        self.cpu.bus = Some(BusHandle::new(bus));
        let exit = self.execute();
        self.cpu.bus = None;
        self.cpu.statistics.exits += 1;
        if let Some(counts) = self.cache.counts() {
            tracing::debug!("{counts:?}");
        }
        // What is written next is recorded anew, should somebody take the record meanwhile.
        self.cpu.writes.clear();
        Ok(exit)
    }

    fn confine(&mut self) -> Result<()> {
        if self.cpu.vm.translation() == Translation::Off {
            return Ok(());
        }
        crate::confine::confine_thread().map_err(Error::backend("confine a processor's thread"))
    }

    fn state(&mut self) -> Result<VcpuState> {
        Ok(crate::state::save(self))
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        crate::state::restore(self, state)
    }

    fn kicker(&self) -> Kicker {
        Arc::clone(&self.cpu.shared) as Kicker
    }

    fn statistics(&self) -> Statistics {
        self.cpu.statistics
    }
}
