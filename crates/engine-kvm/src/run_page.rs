//! The page that a virtual processor shares with the kernel (`struct kvm_run`).

use std::ptr::{NonNull, addr_of_mut};
use std::sync::atomic::AtomicU8;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

/// Why `KVM_RUN` returned 0.
#[derive(Debug)]
pub enum Stop<'a> {
    /// IN or INS: `data` is to be filled, `size` bytes at a time.
    PortIn { port: u16, size: usize, data: &'a mut [u8] },
    /// OUT or OUTS.
    PortOut { port: u16, size: usize, data: &'a [u8] },
    /// A load to be answered.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// A store.
    MmioWrite { address: u64, data: &'a [u8] },
    /// A triple fault.
    Shutdown,
    /// The hardware refused to enter the guest.
    FailEntry { reason: u64 },
    /// KVM gave up.
    InternalError { suberror: u32, data: Vec<u64> },
    /// KVM could not emulate an instruction, and says which.
    EmulationFailure { instruction: Vec<u8> },
    /// The guest asked the hypervisor for a change of its life.
    SystemEvent(u32),
    /// A signal, told the old way.
    Interrupted,
    /// An exit that the hardware made and KVM does not know.
    Unknown { hardware_reason: u64 },
    /// Anything else, by its number.
    Other(u32),
}

impl Stop<'_> {
    /// An access that the next `KVM_RUN` completes with what was answered.
    pub fn is_access(&self) -> bool {
        matches!(
            self,
            Self::PortIn { .. }
                | Self::PortOut { .. }
                | Self::MmioRead { .. }
                | Self::MmioWrite { .. }
        )
    }
}

/// One processor's `kvm_run`.
pub struct RunPage {
    page: NonNull<kvm_run>,
    size: usize,
}

// SAFETY: the page is plain shared memory without ties to a thread.
unsafe impl Send for RunPage {}

impl RunPage {
    /// The page of `vcpu`, `size` bytes (KVM_GET_VCPU_MMAP_SIZE).
    ///
    /// # Safety
    ///
    /// It must not be used after `vcpu` is dropped, and `VcpuFd` must not be asked for the page (`run`,
    /// `get_kvm_run`, `set_kvm_immediate_exit`, `sync_regs`) as long as it exists.
    pub unsafe fn new(vcpu: &mut VcpuFd, size: usize) -> Self {
        Self { page: NonNull::from(vcpu.get_kvm_run()), size }
    }

    /// The flag that makes `KVM_RUN` return at once, with EINTR, after it has completed the I/O that the
    /// last exit asked for. Valid for as long as the page.
    pub fn immediate_exit(&self) -> NonNull<AtomicU8> {
        // SAFETY: the field is inside of the page, which is not null.
        unsafe { NonNull::new_unchecked(addr_of_mut!((*self.page.as_ptr()).immediate_exit).cast()) }
    }

    /// What the last `KVM_RUN` that returned 0 reported.
    pub fn stop(&mut self) -> Stop<'_> {
        let page = self.page.as_ptr();
        // SAFETY: the page is mapped as long as `self` (see `new`), the kernel does not write it outside
        // of KVM_RUN, and the exit reason tells which field of the union is valid. `immediate_exit`,
        // which other threads write, is not part of any reference made here.
        unsafe {
            let reason = (*page).exit_reason;
            let detail = addr_of_mut!((*page).__bindgen_anon_1);
            match reason {
                KVM_EXIT_IO => {
                    let io = (*detail).io;
                    match self.io_data(&io) {
                        Some(data) if u32::from(io.direction) == KVM_EXIT_IO_IN => {
                            Stop::PortIn { port: io.port, size: io.size.into(), data }
                        }
                        Some(data) => Stop::PortOut { port: io.port, size: io.size.into(), data },
                        None => Stop::Other(reason),
                    }
                }
                KVM_EXIT_MMIO => {
                    let mmio = &mut (*detail).mmio;
                    let length = (mmio.len as usize).min(mmio.data.len());
                    let address = mmio.phys_addr;
                    let data = &mut mmio.data[..length];
                    match mmio.is_write {
                        0 => Stop::MmioRead { address, data },
                        _ => Stop::MmioWrite { address, data },
                    }
                }
                KVM_EXIT_SHUTDOWN => Stop::Shutdown,
                KVM_EXIT_FAIL_ENTRY => {
                    Stop::FailEntry { reason: (*detail).fail_entry.hardware_entry_failure_reason }
                }
                KVM_EXIT_INTERNAL_ERROR => internal_error(&*detail),
                KVM_EXIT_SYSTEM_EVENT => Stop::SystemEvent((*detail).system_event.type_),
                KVM_EXIT_INTR => Stop::Interrupted,
                KVM_EXIT_UNKNOWN => {
                    Stop::Unknown { hardware_reason: (*detail).hw.hardware_exit_reason }
                }
                other => Stop::Other(other),
            }
        }
    }

    /// The data of a port access, if it lies inside of the page.
    fn io_data(&mut self, io: &kvm_run__bindgen_ty_1__bindgen_ty_4) -> Option<&mut [u8]> {
        let length = usize::try_from(io.count).ok()?.checked_mul(io.size.into())?;
        let offset = usize::try_from(io.data_offset).ok()?;
        let end = offset.checked_add(length)?;
        if io.size == 0 || offset < size_of::<kvm_run>() || end > self.size {
            return None;
        }
        // SAFETY: the range was checked to be inside of the mapping and behind the struct; the kernel
        // touches it only inside of KVM_RUN.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.page.as_ptr().cast::<u8>().add(offset), length)
        })
    }
}

/// # Safety
///
/// The exit reason must be KVM_EXIT_INTERNAL_ERROR.
unsafe fn internal_error<'a>(detail: &kvm_run__bindgen_ty_1) -> Stop<'a> {
    // SAFETY: promised by the caller; `emulation_failure` overlays `internal` by design of the ABI.
    let (internal, failure) = unsafe { (detail.internal, detail.emulation_failure) };
    let told = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    // SAFETY: the anonymous union of `emulation_failure` has this one member.
    let (size, bytes) = unsafe {
        let bytes = failure.__bindgen_anon_1.__bindgen_anon_1;
        (bytes.insn_size, bytes.insn_bytes)
    };
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 1
        && failure.flags & told != 0
        && size > 0
    {
        let length = usize::from(size).min(bytes.len());
        return Stop::EmulationFailure { instruction: bytes[..length].to_vec() };
    }
    let length = (internal.ndata as usize).min(internal.data.len());
    Stop::InternalError { suberror: internal.suberror, data: internal.data[..length].to_vec() }
}
