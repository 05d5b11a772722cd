//! One virtual processor and its run loop.

use std::sync::Arc;

use engine::state::VcpuState;
use engine::{Bus, Error, Exit, Kicker, Result, Statistics, Vcpu, VcpuConfig};
use kvm_bindings::{CpuId, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestMemoryRegion, MemoryRegionAddress};

use crate::kick::{Kick, Running};
use crate::run_page::{RunPage, Stop};
use crate::vm::VmShared;
use crate::{convert, sys};

pub(crate) struct KvmVcpu {
    pub fd: VcpuFd,
    page: RunPage,
    kick: Arc<Kick>,
    statistics: Statistics,
    /// The bus answered an access that the kernel has not been told of yet.
    unfinished: bool,
    /// Its CPUID offers XSAVE.
    pub has_xsave: bool,
    /// Model-specific registers that this processor has, once it was asked.
    pub msrs: Option<Vec<u32>>,
    // Last, so that guest memory outlives the file descriptor.
    pub shared: Arc<VmShared>,
}

/// What comes after one return of `KVM_RUN`.
enum Next {
    /// Straight back into the guest.
    Resume,
    /// Look for a kick first.
    Interrupted,
    Leave(Exit),
}

impl KvmVcpu {
    pub fn new(shared: Arc<VmShared>, config: &VcpuConfig, run_size: usize) -> Result<Self> {
        let mut fd = shared
            .fd
            .create_vcpu(config.apic_id.into())
            .map_err(Error::backend("create a virtual processor"))?;
        let cpuid = CpuId::from_entries(&convert::cpuid_to_kvm(&config.cpuid))
            .map_err(|_| Error::Invalid("The CPUID table is too long".into()))?;
        fd.set_cpuid2(&cpuid).map_err(Error::backend("set the CPUID table"))?;
        // SAFETY: `page` and `fd` are dropped together, and `fd` is never asked for the page again.
        let page = unsafe { RunPage::new(&mut fd, run_size) };
        Ok(Self {
            fd,
            page,
            kick: Arc::default(),
            statistics: Statistics::default(),
            unfinished: false,
            has_xsave: config.cpuid.get(1, 0).is_some_and(|leaf| leaf.ecx & CPUID_1_ECX_XSAVE != 0),
            msrs: None,
            shared,
        })
    }

    /// Makes the kernel complete an instruction whose I/O was answered but that was not re-entered, which
    /// happens only if a device panicked: [`KvmVcpu::run`] never returns in between.
    fn finish_instruction(&mut self) -> Result<()> {
        if !self.unfinished {
            return Ok(());
        }
        let kick = Arc::clone(&self.kick);
        engine::Kick::kick(&*kick);
        match self.run(&Silence)? {
            Exit::Kicked => Ok(()),
            other => Err(Error::Invalid(format!("The processor cannot be stopped: {other:?}"))),
        }
    }

    /// Enters the guest once.
    fn enter(&mut self, bus: &dyn Bus) -> Result<Next> {
        let result = sys::run(&self.fd);
        self.statistics.exits += 1;
        match result {
            Ok(()) => {}
            // EAGAIN: an application processor was woken up but may not run yet.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.unfinished = false;
                return Ok(Next::Interrupted);
            }
            Err(error) if matches!(error.errno(), libc::EFAULT | libc::EHWPOISON) => {
                let text = format!("the host cannot provide guest memory ({error})");
                return Ok(Next::Leave(self.failed(text)));
            }
            Err(error) => return Err(Error::backend("run the virtual processor")(error)),
        }
        let stop = self.page.stop();
        self.unfinished = stop.is_access();
        let failure = match stop {
            Stop::PortIn { port, size, data } => {
                self.statistics.pio += 1;
                data.chunks_mut(size).for_each(|unit| bus.pio_read(port, unit));
                return Ok(Next::Resume);
            }
            Stop::PortOut { port, size, data } => {
                self.statistics.pio += 1;
                data.chunks(size).for_each(|unit| bus.pio_write(port, unit));
                return Ok(Next::Resume);
            }
            Stop::MmioRead { address, data } => {
                self.statistics.mmio += 1;
                for part in parts(data.len()) {
                    bus.mmio_read(address.wrapping_add(part.start as u64), &mut data[part]);
                }
                return Ok(Next::Resume);
            }
            Stop::MmioWrite { address, data } => {
                self.statistics.mmio += 1;
                for part in parts(data.len()) {
                    bus.mmio_write(address.wrapping_add(part.start as u64), &data[part]);
                }
                return Ok(Next::Resume);
            }
            Stop::Interrupted => return Ok(Next::Interrupted),
            Stop::Shutdown
            | Stop::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET) => {
                return Ok(Next::Leave(Exit::Shutdown));
            }
            Stop::SystemEvent(event) => format!("the guest reported system event {event}"),
            Stop::FailEntry { reason } => {
                format!("the processor refused to enter the guest, with reason {reason:#x}")
            }
            Stop::EmulationFailure { instruction } => {
                format!("KVM cannot emulate the instruction {}", hexadecimal(&instruction))
            }
            Stop::InternalError { suberror, data } => {
                format!(
                    "KVM internal error {suberror} ({}), data {data:x?}",
                    name_suberror(suberror)
                )
            }
            Stop::Unknown { hardware_reason } => {
                format!("KVM does not know exit reason {hardware_reason:#x} of the processor")
            }
            Stop::Other(reason) => format!("KVM returned with the unexpected exit reason {reason}"),
        };
        Ok(Next::Leave(self.failed(failure)))
    }

    fn failed(&self, why: String) -> Exit {
        Exit::Failed(format!("{why}, {}", self.place()))
    }

    /// Where the guest is, for an error message.
    fn place(&self) -> String {
        let (Ok(registers), Ok(system)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return "at an unknown place".into();
        };
        let mut text = format!("at RIP {:#x}, CS base {:#x}", registers.rip, system.cs.base);
        if let Some(code) = self.code_at(system.cs.base.wrapping_add(registers.rip)) {
            text += &format!(", code {}", hexadecimal(&code));
        }
        text
    }

    /// The bytes of the instruction at a linear address, if it is mapped to memory.
    fn code_at(&self, linear: u64) -> Option<Vec<u8>> {
        let translation = self.fd.translate_gva(linear).ok().filter(|found| found.valid != 0)?;
        let memory = self.shared.memory.lock().ok()?;
        let (region, offset) = memory.values().find_map(|mapped| {
            let region = &mapped.region.region;
            let offset =
                translation.physical_address.checked_sub(region.start_addr().raw_value())?;
            (offset < region.len()).then_some((region, offset))
        })?;
        let mut code = vec![0; LONGEST_INSTRUCTION];
        let length = region.read(&mut code, MemoryRegionAddress(offset)).ok()?;
        code.truncate(length);
        Some(code)
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit> {
        let kick = Arc::clone(&self.kick);
        // SAFETY: the page is mapped as long as `self.fd` lives, and `running` is dropped before.
        let running: Running<'_> = unsafe { kick.enter(self.page.immediate_exit())? };
        loop {
            if self.unfinished {
                // `KVM_RUN` completes the access, then returns for the flag.
                running.interrupt();
            } else if running.kicked() {
                return Ok(Exit::Kicked);
            }
            loop {
                match self.enter(bus)? {
                    Next::Resume => {}
                    Next::Interrupted => break,
                    Next::Leave(exit) => return Ok(exit),
                }
            }
        }
    }

    fn state(&mut self) -> Result<VcpuState> {
        self.finish_instruction()?;
        self.save()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        self.finish_instruction()?;
        self.restore(state)
    }

    fn kicker(&self) -> Kicker {
        Arc::clone(&self.kick) as Kicker
    }

    fn statistics(&self) -> Statistics {
        self.statistics
    }
}

/// A board without devices.
struct Silence;

impl Bus for Silence {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

const CPUID_1_ECX_XSAVE: u32 = 1 << 26;

/// Bytes in the longest instruction of the architecture.
const LONGEST_INSTRUCTION: usize = 15;

/// Cuts an access into units of 1, 2, 4 or 8 bytes: one that crosses a page comes in parts of any length.
fn parts(length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let unit = 1 << (length - start).checked_ilog2()?.min(3);
        let part = start..start + unit;
        start += unit;
        Some(part)
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

/// KVM_INTERNAL_ERROR_... of the kernel's interface.
fn name_suberror(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction could not be emulated",
        2 => "simultaneous exceptions",
        3 => "an exit while an event was being delivered",
        4 => "an unexpected exit of the processor",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_of_odd_length_are_cut_into_units_that_a_bus_knows() {
        let cut = |length| parts(length).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(cut(8), [8]);
        assert_eq!(cut(7), [4, 2, 1]);
        assert_eq!(cut(3), [2, 1]);
        assert_eq!(cut(1), [1]);
        assert_eq!(cut(0), [0; 0]);
    }
}
