//! What a machine asks of an engine and an engine of a machine.

use std::any::Any;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::MemoryRegion;
use crate::cpuid::CpuidTable;
use crate::state::{VcpuState, VmState};

/// Runs guest instructions in this process.
pub trait Engine: Send + Sync {
    /// The word for it on the command line: `kvm`, `soft`.
    fn name(&self) -> &'static str;

    /// What it can do on this computer.
    fn capabilities(&self) -> &Capabilities;

    /// A virtual machine without memory and processors, with its interrupt controllers: two 8259A, an
    /// I/O APIC with 24 inputs at 0xfec0_0000, an 8254, and a local APIC in each processor to come.
    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>>;
}

/// What an engine offers on this computer.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// Every CPUID leaf that a guest may be given; `machine` chooses from it.
    pub cpuid: CpuidTable,
    /// Model-specific registers that [`VcpuState::msrs`] holds.
    pub msrs: Vec<u32>,
    /// Most processors of one virtual machine.
    pub max_vcpus: u32,
    /// Bits of a guest-physical address.
    pub physical_address_bits: u8,
    /// Frequency of the guest's time-stamp counter, where it is known and does not change.
    pub tsc_khz: Option<u32>,
}

/// What must be known when a virtual machine is created.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// Processors it will have, at most.
    pub vcpus: u32,
}

/// What must be known when a processor is created.
#[derive(Clone, Debug)]
pub struct VcpuConfig {
    /// Its number; processor 0 is the bootstrap processor and the others wait for its start-up IPI.
    pub index: u32,
    /// Its initial APIC ID; that of processor 0 is 0.
    pub apic_id: u32,
    /// What its CPUID instruction answers.
    pub cpuid: CpuidTable,
}

/// One virtual machine: memory, interrupt controllers, processors.
pub trait Vm: Send + Sync {
    /// Shows `region` to the guest. The address range must not overlap another mapped region.
    fn map(&self, region: MemoryRegion) -> Result<()>;

    /// Takes the region of `slot` away again.
    fn unmap(&self, slot: u32) -> Result<()>;

    /// A processor, in its reset state.
    fn create_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn Vcpu>>;

    /// Drives input `gsi` of the interrupt controllers (0 to 23; below 16 the 8259As' as well).
    fn set_line(&self, gsi: u32, level: bool) -> Result<()>;

    /// Delivers a message-signalled interrupt.
    fn signal_msi(&self, message: MsiMessage) -> Result<()>;

    /// Interrupts raised by an eventfd, without a call into this process.
    fn fast_interrupts(&self) -> Option<&dyn FastInterrupts>;

    /// Guest writes that signal an eventfd, without an exit to this process.
    fn doorbells(&self) -> Option<&dyn Doorbells>;

    /// Which pages the processors wrote.
    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking>;

    /// State shared by the processors; none of them may be running.
    fn state(&self) -> Result<VmState>;

    /// Restores what [`Vm::state`] returned, of this or another engine.
    fn set_state(&self, state: &VmState) -> Result<()>;
}

/// One virtual processor, owned by the thread that runs it.
pub trait Vcpu: Send {
    /// Executes guest instructions until there is a reason to stop. Port and memory-mapped I/O is
    /// served through `bus` on the way; HLT waits inside.
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit>;

    /// Takes rights from the calling thread that the processor does not need; the thread will do nothing but
    /// run it. An engine whose guest executes elsewhere has nothing to take.
    fn confine(&mut self) -> Result<()> {
        Ok(())
    }

    /// The processor's state. Any I/O instruction that an exit interrupted has been completed.
    fn state(&mut self) -> Result<VcpuState>;

    /// Restores what [`Vcpu::state`] returned, of this or another engine.
    fn set_state(&mut self, state: &VcpuState) -> Result<()>;

    /// Makes [`Vcpu::run`] return from another thread.
    fn kicker(&self) -> Kicker;

    /// Counters since the processor was created.
    fn statistics(&self) -> Statistics;
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`Kick::kick`] was called since the last return.
    Kicked,
    /// A triple fault: the processor shut down and the board would be reset.
    Shutdown,
    /// The engine cannot go on with this guest; the text says why, with the instruction if known.
    Failed(String),
}

/// Counters of one processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Times that guest execution stopped for the virtual machine monitor's sake.
    pub exits: u64,
    /// Of these, for port I/O.
    pub pio: u64,
    /// Of these, for memory-mapped I/O.
    pub mmio: u64,
}

/// Serves guest I/O. Called from processor threads, several at once.
///
/// `data` is 1, 2, 4 or 8 bytes. What no device claims reads as all ones and ignores writes.
pub trait Bus: Sync {
    /// IN from `port`.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// OUT to `port`.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// A load from guest-physical `address` where no memory is mapped.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A store to guest-physical `address` where no writable memory is mapped.
    fn mmio_write(&self, address: u64, data: &[u8]);
}

/// Makes one processor's [`Vcpu::run`] return.
pub trait Kick: Send + Sync {
    /// The running or the next `run` returns [`Exit::Kicked`] soon; kicks that come together count
    /// as one.
    fn kick(&self);
}

/// A shared [`Kick`].
pub type Kicker = Arc<dyn Kick>;

/// A message-signalled interrupt: a 32-bit store of `data` to `address` (SDM volume 3, section 11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiMessage {
    /// Where: the local APICs' range.
    pub address: u64,
    /// What: vector and delivery mode.
    pub data: u32,
}

/// Interrupts raised by whoever writes an eventfd.
pub trait FastInterrupts: Send + Sync {
    /// Each write to `event` delivers `message`, until the route is dropped.
    fn connect_msi(&self, event: &EventFd, message: MsiMessage) -> Result<Box<dyn InterruptRoute>>;

    /// Each write to `event` pulses input `gsi` (an edge), until the route is dropped.
    fn connect_line(&self, event: &EventFd, gsi: u32) -> Result<Box<dyn InterruptRoute>>;
}

/// A connection between an eventfd and an interrupt; dropping it disconnects.
pub trait InterruptRoute: Send + Sync + Any {
    /// Delivers another message from now on; only for routes of [`FastInterrupts::connect_msi`].
    fn update(&self, message: MsiMessage) -> Result<()>;
}

/// A guest write that rings an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Guest-physical address of a memory-mapped register.
    pub address: u64,
    /// Bytes of the write: 2 or 4; `None` for any width.
    pub width: Option<u8>,
    /// Only writes of this value ring; `None` for any value (which is then not told).
    pub value: Option<u64>,
}

/// Guest writes that signal an eventfd.
pub trait Doorbells: Send + Sync {
    /// Rings `event` at each matching write; the write no longer reaches the bus.
    fn attach(&self, doorbell: Doorbell, event: &EventFd) -> Result<()>;

    /// Undoes [`Doorbells::attach`] with the same arguments.
    fn detach(&self, doorbell: Doorbell, event: &EventFd) -> Result<()>;
}

/// Which pages of a memory region the processors wrote.
pub trait DirtyTracking: Send + Sync {
    /// Starts (all clean) or stops recording writes to the region of `slot`.
    fn record(&self, slot: u32, on: bool) -> Result<()>;

    /// The pages written since the last call, one bit a page from the region's start, and all clean
    /// again.
    fn take(&self, slot: u32) -> Result<Vec<u64>>;
}

/// Result of an engine's work.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in an engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine's own backend refused.
    #[error("Cannot {action}")]
    Backend {
        /// What was tried, after "cannot".
        action: &'static str,
        /// What the backend said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine cannot do it on this computer.
    #[error("The {engine} engine has no {ability} on this computer")]
    Unsupported {
        /// The engine.
        engine: &'static str,
        /// What is missing.
        ability: &'static str,
    },
    /// The caller's fault: an argument that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// For `map_err`: wraps what a backend said while doing `action`.
    pub fn backend<E>(action: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Backend { action, source: source.into() }
    }
}
