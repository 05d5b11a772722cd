//! Saving and restoring a virtual processor. What is restored is an outsider's word: the kernel checks
//! values, this module lengths.
//!
//! Not saved: system-management mode (no board here has it), a nested guest's state, and a triple fault
//! that was not yet reported.

use engine::state::{DebugRegisters, VcpuState};
use engine::{Error, Result};
use kvm_bindings::{Msrs, kvm_debugregs, kvm_msr_entry, kvm_xcr, kvm_xcrs};

use crate::vcpu::KvmVcpu;
use crate::{convert, sys};

/// Legacy region and header of an XSAVE area (SDM volume 1, section 13.4).
const XSAVE_SMALLEST: usize = 576;

/// The kernel takes this many registers at once.
const MSRS_AT_ONCE: usize = 256;

/// IA32_TSC_DEADLINE is accepted only when the local APIC's timer is in that mode.
const TSC_DEADLINE: u32 = 0x6e0;

impl KvmVcpu {
    pub(crate) fn save(&mut self) -> Result<VcpuState> {
        let failed = Error::backend;
        // First: reading it makes the kernel take an INIT or start-up IPI that has arrived.
        let activity = self.fd.get_mp_state().map_err(failed("read the activity state"))?;
        let events = self.fd.get_vcpu_events().map_err(failed("read the pending events"))?;
        let registers = self.fd.get_regs().map_err(failed("read the general registers"))?;
        let system = self.fd.get_sregs().map_err(failed("read the system registers"))?;
        let debug = self.fd.get_debug_regs().map_err(failed("read the debug registers"))?;
        let xsave = sys::get_xsave(&self.fd, self.shared.xsave_size)
            .map_err(|source| Error::Backend { action: "read the extended registers", source })?;
        let lapic = self.fd.get_lapic().map_err(failed("read the local APIC"))?;
        Ok(VcpuState {
            registers: convert::registers_from_kvm(&registers),
            system: convert::system_from_kvm(&system),
            debug: DebugRegisters { dr: debug.db, dr6: debug.dr6, dr7: debug.dr7 },
            xcr0: self.xcr0()?,
            xsave,
            msrs: self.read_msrs()?,
            lapic: convert::lapic_from_kvm(&lapic),
            activity: convert::activity_from_kvm(activity, &events)?,
            events: convert::events_from_kvm(&events),
        })
    }

    /// The order matters: the system registers put the local APIC into its mode, and setting the general
    /// registers drops a pending exception.
    pub(crate) fn restore(&mut self, state: &VcpuState) -> Result<()> {
        let failed = Error::backend;
        self.check_xsave(&state.xsave)?;
        let lapic = convert::lapic_to_kvm(&state.lapic)?;
        let (deadline, msrs): (Vec<_>, Vec<_>) =
            state.msrs.iter().partition(|(index, _)| *index == TSC_DEADLINE);

        self.fd
            .set_sregs(&convert::system_to_kvm(&state.system))
            .map_err(failed("set the system registers"))?;
        self.fd
            .set_regs(&convert::registers_to_kvm(&state.registers))
            .map_err(failed("set the general registers"))?;
        if let Some(value) = state.xcr0.filter(|_| self.has_xsave) {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value };
            self.fd.set_xcrs(&xcrs).map_err(failed("set XCR0"))?;
        }
        sys::set_xsave(&self.fd, self.shared.xsave_size, &state.xsave)
            .map_err(|source| Error::Backend { action: "set the extended registers", source })?;
        let debug = kvm_debugregs {
            db: state.debug.dr,
            dr6: state.debug.dr6,
            dr7: state.debug.dr7,
            ..Default::default()
        };
        self.fd.set_debug_regs(&debug).map_err(failed("set the debug registers"))?;
        self.write_msrs(&msrs)?;
        self.fd.set_lapic(&lapic).map_err(failed("set the local APIC"))?;
        self.write_msrs(&deadline)?;
        let events = convert::events_to_kvm(&state.events, state.activity);
        self.fd.set_vcpu_events(&events).map_err(failed("set the pending events"))?;
        self.fd
            .set_mp_state(convert::activity_to_kvm(state.activity))
            .map_err(failed("set the activity state"))?;
        // Tells the guest's watchdogs that time has passed; refused if it has no kvm-clock.
        let _ = self.fd.kvmclock_ctrl();
        Ok(())
    }

    fn xcr0(&self) -> Result<Option<u64>> {
        if !self.has_xsave {
            return Ok(None);
        }
        let xcrs = self.fd.get_xcrs().map_err(Error::backend("read XCR0"))?;
        let count = xcrs.nr_xcrs as usize;
        Ok(xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0).map(|xcr| xcr.value))
    }

    fn check_xsave(&self, area: &[u8]) -> Result<()> {
        if area.len() < XSAVE_SMALLEST {
            return Err(Error::Invalid(format!(
                "An XSAVE area has at least {XSAVE_SMALLEST} bytes, not {}",
                area.len()
            )));
        }
        let beyond = area.get(self.shared.xsave_size..).unwrap_or_default();
        if beyond.iter().any(|&byte| byte != 0) {
            return Err(Error::Invalid(format!(
                "The XSAVE area holds state beyond the {} bytes of this computer's processor",
                self.shared.xsave_size
            )));
        }
        Ok(())
    }

    /// Reads what this processor has of the engine's list. KVM stops at the first register that it
    /// refuses to read, so that one is left out and the rest asked for again.
    fn read_msrs(&mut self) -> Result<Vec<(u32, u64)>> {
        let wanted = self.msrs.as_deref().unwrap_or(&self.shared.msrs);
        let mut found = Vec::with_capacity(wanted.len());
        let mut rest = wanted;
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MSRS_AT_ONCE)];
            let entries: Vec<_> = batch.iter().map(|&index| entry(index, 0)).collect();
            let mut msrs = msr_list(&entries)?;
            let read = self
                .fd
                .get_msrs(&mut msrs)
                .map_err(Error::backend("read the model-specific registers"))?
                .min(batch.len());
            found.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
            rest = &rest[if read < batch.len() { read + 1 } else { read }..];
        }
        if self.msrs.is_none() {
            self.msrs = Some(found.iter().map(|(index, _)| *index).collect());
        }
        Ok(found)
    }

    /// Writes registers. One that KVM refuses is an error unless nothing is lost: it is to be zero, or
    /// already has the value.
    fn write_msrs(&self, msrs: &[(u32, u64)]) -> Result<()> {
        let mut rest = msrs;
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MSRS_AT_ONCE)];
            let entries: Vec<_> = batch.iter().map(|&(index, data)| entry(index, data)).collect();
            let written = self
                .fd
                .set_msrs(&msr_list(&entries)?)
                .map_err(Error::backend("set the model-specific registers"))?;
            if let Some(&(index, value)) = batch.get(written) {
                if value != 0 && self.read_msr(index) != Some(value) {
                    return Err(Error::Invalid(format!(
                        "Model-specific register {index:#x} of this processor cannot be {value:#x}"
                    )));
                }
                rest = &rest[written + 1..];
            } else {
                rest = &rest[batch.len()..];
            }
        }
        Ok(())
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        let mut msrs = msr_list(&[entry(index, 0)]).ok()?;
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => msrs.as_slice().first().map(|entry| entry.data),
            _ => None,
        }
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, reserved: 0 }
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries)
        .map_err(|_| Error::Invalid("There are too many model-specific registers".into()))
}
