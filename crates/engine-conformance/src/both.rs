//! Two engines that take turns: every virtual machine is the other one's, so that a test which moves a
//! guest moves it between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::state::{VcpuState, VmState};
use engine::{
    Bus, Capabilities, DirtyTracking, Doorbells, Engine, Exit, FastInterrupts, Kicker,
    MemoryRegion, MsiMessage, Result, Statistics, Vcpu, VcpuConfig, Vm, VmConfig,
};

/// See the module.
pub struct Both {
    engines: [Box<dyn Engine>; 2],
    common: Capabilities,
    turn: AtomicUsize,
}

impl Both {
    /// Offers what both have; `first` makes the first virtual machine.
    pub fn new(first: Box<dyn Engine>, second: Box<dyn Engine>) -> Self {
        let mut common = first.capabilities().common(second.capabilities());
        // Only x87 and SSE are moved, since one of the processors may be the lab's, whose XSETBV passes KVM by.
        if let Some(leaf) = common.cpuid.get_mut(1, 0) {
            leaf.ecx &= !AVX;
        }
        Self { engines: [first, second], common, turn: AtomicUsize::new(0) }
    }
}

impl Engine for Both {
    fn name(&self) -> &'static str {
        "both"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.common
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        let turn = self.turn.fetch_add(1, Ordering::SeqCst);
        let vm = self.engines[turn % 2].create_vm(config)?;
        Ok(Arc::new(OneVm { vm, msrs: self.common.msrs.clone() }))
    }
}

/// A virtual machine of one of them.
struct OneVm {
    vm: Arc<dyn Vm>,
    msrs: Vec<u32>,
}

impl Vm for OneVm {
    fn map(&self, region: MemoryRegion) -> Result<()> {
        self.vm.map(region)
    }
    fn unmap(&self, slot: u32) -> Result<()> {
        self.vm.unmap(slot)
    }
    fn create_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn Vcpu>> {
        let vcpu = self.vm.create_vcpu(config)?;
        Ok(Box::new(OneVcpu { vcpu, msrs: self.msrs.clone() }))
    }
    fn set_line(&self, gsi: u32, level: bool) -> Result<()> {
        self.vm.set_line(gsi, level)
    }
    fn signal_msi(&self, message: MsiMessage) -> Result<()> {
        self.vm.signal_msi(message)
    }
    fn fast_interrupts(&self) -> Option<&dyn FastInterrupts> {
        None
    }
    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }
    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        self.vm.dirty_tracking()
    }
    fn state(&self) -> Result<VmState> {
        self.vm.state()
    }
    fn set_state(&self, state: &VmState) -> Result<()> {
        self.vm.set_state(state)
    }
}

/// Leaf 1 ECX.
const AVX: u32 = 1 << 28;

/// Bytes of the legacy region and the header of an XSAVE area, and places in it (SDM volume 1, 13.4).
const XSAVE: usize = 576;
const XSTATE_BV: usize = 512;
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
const UNUSED: std::ops::Range<usize> = 416..512;

/// A processor that saves only the registers which both have.
struct OneVcpu {
    vcpu: Box<dyn Vcpu>,
    msrs: Vec<u32>,
}

impl Vcpu for OneVcpu {
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit> {
        self.vcpu.run(bus)
    }
    fn state(&mut self) -> Result<VcpuState> {
        let mut state = self.vcpu.state()?;
        state.msrs.retain(|(index, _)| self.msrs.contains(index));
        state.msrs.sort_unstable();
        // x87 and SSE; whether a component is there or as after a reset does not matter, nor the bits that
        // MXCSR could hold.
        state.xsave.truncate(XSAVE);
        state.xsave[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&3_u64.to_le_bytes());
        state.xsave[MXCSR_MASK].fill(0);
        state.xsave[UNUSED].fill(0);
        Ok(state)
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        self.vcpu.set_state(state)
    }
    fn kicker(&self) -> Kicker {
        self.vcpu.kicker()
    }
    fn statistics(&self) -> Statistics {
        self.vcpu.statistics()
    }
}
