//! Which pages the processors wrote (KVM_MEM_LOG_DIRTY_PAGES).

use std::sync::PoisonError;

use engine::{DirtyTracking, Error, Result};
use vm_memory::GuestMemoryRegion;

use crate::sys;
use crate::vm::{KvmVm, Mapped};

impl DirtyTracking for KvmVm {
    fn record(&self, slot: u32, on: bool) -> Result<()> {
        let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = memory.get_mut(&slot).ok_or_else(|| empty(slot))?;
        if mapped.recorded == on {
            // All clean again.
            return if on { self.take_log(mapped).map(drop) } else { Ok(()) };
        }
        let changed = Mapped { region: mapped.region.clone(), recorded: on };
        sys::set_memory(&self.shared.fd, &changed.region, changed.flags())
            .map_err(Error::backend("record writes to guest memory"))?;
        *mapped = changed;
        Ok(())
    }

    fn take(&self, slot: u32) -> Result<Vec<u64>> {
        let memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = memory.get(&slot).ok_or_else(|| empty(slot))?;
        if !mapped.recorded {
            return Err(Error::Invalid(format!("Writes to memory slot {slot} are not recorded")));
        }
        self.take_log(mapped)
    }
}

impl KvmVm {
    fn take_log(&self, mapped: &Mapped) -> Result<Vec<u64>> {
        let region = &mapped.region;
        let length = usize::try_from(region.region.len())
            .map_err(|_| Error::Invalid("The memory region is too long".into()))?;
        self.shared
            .fd
            .get_dirty_log(region.slot, length)
            .map_err(Error::backend("read which pages were written"))
    }
}

fn empty(slot: u32) -> Error {
    Error::Invalid(format!("Memory slot {slot} is empty"))
}
