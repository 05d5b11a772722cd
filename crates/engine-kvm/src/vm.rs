//! One virtual machine.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use engine::state::VmState;
use engine::{
    DirtyTracking, Doorbells, Error, FastInterrupts, MemoryRegion, MsiMessage, PAGE_SIZE, Result,
    Vcpu, VcpuConfig, Vm,
};
use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_msi,
    kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryRegion};

use crate::routing::Routing;
use crate::vcpu::KvmVcpu;
use crate::{sys, vm_state};

/// Guest-physical addresses that no memory may be mapped to and no device may claim: on Intel
/// processors KVM keeps a page table (one page) and a task-state segment (three) for guests in real mode
/// there, just below where firmware is mapped at the end of the first 4 GiB.
pub const RESERVED: Range<u64> = 0xfffb_c000..0xfffc_0000;

const IDENTITY_MAP: u64 = RESERVED.start;
const TASK_STATE_SEGMENT: u64 = RESERVED.start + PAGE_SIZE;

/// Inputs of the I/O APIC.
pub(crate) const LINES: u32 = 24;

/// What processors and interrupt routes hold on to as well: the kernel can reach guest memory for as
/// long as one file descriptor of the virtual machine is open, so they must keep it mapped.
pub(crate) struct VmShared {
    pub fd: VmFd,
    pub routing: Mutex<Routing>,
    pub memory: Mutex<BTreeMap<u32, Mapped>>,
    pub xsave_size: usize,
    pub msrs: Vec<u32>,
}

/// A region that the guest sees.
pub(crate) struct Mapped {
    pub region: MemoryRegion,
    /// The processors' writes are recorded.
    pub recorded: bool,
}

impl Mapped {
    /// Flags of KVM_SET_USER_MEMORY_REGION.
    pub fn flags(&self) -> u32 {
        (if self.region.read_only { KVM_MEM_READONLY } else { 0 })
            | (if self.recorded { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }
}

pub(crate) struct KvmVm {
    pub shared: Arc<VmShared>,
    vcpus: u32,
    slots: u32,
    run_size: usize,
}

impl KvmVm {
    pub fn new(kvm: &Kvm, fd: VmFd, vcpus: u32, msrs: Vec<u32>) -> Result<Self> {
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(Error::backend("place the identity map"))?;
        fd.set_tss_address(TASK_STATE_SEGMENT as usize)
            .map_err(Error::backend("place the task-state segment"))?;
        // 32-bit destinations in MSIs and in the saved local APIC; without the broadcast quirk, 0xff
        // is an x2APIC ID like any other.
        fd.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            args: [
                u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK),
                0,
                0,
                0,
            ],
            ..Default::default()
        })
        .map_err(Error::backend("enable 32-bit APIC IDs"))?;
        fd.create_irq_chip().map_err(Error::backend("create the interrupt controllers"))?;
        // Port 0x61 belongs to the kernel as well: calibration loops of old guests poll it.
        fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
            .map_err(Error::backend("create the 8254 timer"))?;
        // The size depends on what was permitted to this process, so the virtual machine is asked.
        let xsave_size = usize::try_from(fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let routes = usize::try_from(kvm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        let slots = u32::try_from(kvm.get_nr_memslots()).unwrap_or(32);
        let run_size = fd.run_size();
        let shared = VmShared {
            fd,
            routing: Mutex::new(Routing::new(routes)),
            memory: Mutex::default(),
            xsave_size: xsave_size.max(sys::XSAVE_SIZE),
            msrs,
        };
        Ok(Self { shared: Arc::new(shared), vcpus, slots, run_size })
    }
}

impl Vm for KvmVm {
    fn map(&self, region: MemoryRegion) -> Result<()> {
        check_region(&region, self.slots)?;
        let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.contains_key(&region.slot) {
            return Err(Error::Invalid(format!("Memory slot {} is taken", region.slot)));
        }
        if memory.values().any(|mapped| overlap(&range(&mapped.region), &range(&region))) {
            return Err(Error::Invalid(format!(
                "The memory at {:#x} overlaps what is already mapped",
                range(&region).start
            )));
        }
        let mapped = Mapped { region, recorded: false };
        sys::set_memory(&self.shared.fd, &mapped.region, mapped.flags())
            .map_err(Error::backend("map guest memory"))?;
        memory.insert(mapped.region.slot, mapped);
        Ok(())
    }

    fn unmap(&self, slot: u32) -> Result<()> {
        let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if !memory.contains_key(&slot) {
            return Err(Error::Invalid(format!("Memory slot {slot} is empty")));
        }
        sys::remove_memory(&self.shared.fd, slot).map_err(Error::backend("unmap guest memory"))?;
        memory.remove(&slot);
        Ok(())
    }

    fn create_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn Vcpu>> {
        if config.index >= self.vcpus {
            return Err(Error::Invalid(format!(
                "Processor {} of a virtual machine with {}",
                config.index, self.vcpus
            )));
        }
        Ok(Box::new(KvmVcpu::new(Arc::clone(&self.shared), config, self.run_size)?))
    }

    fn set_line(&self, gsi: u32, level: bool) -> Result<()> {
        check_line(gsi)?;
        self.shared.fd.set_irq_line(gsi, level).map_err(Error::backend("drive an interrupt line"))
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<()> {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        match self.shared.fd.signal_msi(msi) {
            Ok(_) => Ok(()),
            // Nobody has that APIC ID: on the bus such a message is lost as well.
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(error) => Err(Error::backend("deliver a message-signalled interrupt")(error)),
        }
    }

    fn fast_interrupts(&self) -> Option<&dyn FastInterrupts> {
        Some(self)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(self)
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        Some(self)
    }

    fn state(&self) -> Result<VmState> {
        vm_state::save(&self.shared.fd)
    }

    fn set_state(&self, state: &VmState) -> Result<()> {
        vm_state::restore(&self.shared.fd, state)
    }
}

/// Refuses numbers that no input has.
pub(crate) fn check_line(gsi: u32) -> Result<()> {
    if gsi < LINES {
        return Ok(());
    }
    Err(Error::Invalid(format!("There is no interrupt line {gsi}: they are 0 to {}", LINES - 1)))
}

fn check_region(region: &MemoryRegion, slots: u32) -> Result<()> {
    let guest = range(region);
    let host = region.region.get_mmap().as_ptr() as u64;
    if region.slot >= slots {
        return Err(Error::Invalid(format!("Memory slot {} of {slots}", region.slot)));
    }
    if [guest.start, region.region.len(), host].iter().any(|value| value % PAGE_SIZE != 0) {
        return Err(Error::Invalid(format!("The memory at {:#x} is not whole pages", guest.start)));
    }
    if overlap(&guest, &RESERVED) {
        return Err(Error::Invalid(format!(
            "The memory at {:#x} overlaps {:#x} to {:#x}, which KVM needs",
            guest.start,
            RESERVED.start,
            RESERVED.end - 1
        )));
    }
    Ok(())
}

fn range(region: &MemoryRegion) -> Range<u64> {
    let start = region.region.start_addr().raw_value();
    start..start.saturating_add(region.region.len())
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
