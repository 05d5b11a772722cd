//! System calls that `kvm-ioctls` does not wrap, or wraps in unsafe functions.

use std::time::Duration;

use engine::MemoryRegion;
use kvm_bindings::{Xsave, kvm_ioeventfd, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::fam::FamStruct;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

const KVMIO: u32 = kvm_bindings::KVMIO;

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// Executes guest instructions until `kvm_run` says why not, or a signal interrupts it.
pub fn run(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    // SAFETY: KVM_RUN takes no argument. What the kernel writes is the vCPU's own kvm_run page, of
    // which `RunPage` hands out no reference while this call lasts (it takes `&mut`).
    match unsafe { ioctl(vcpu, KVM_RUN()) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

/// Frequency of the time-stamp counter that new virtual processors get, in kHz; 0 if unknown.
pub fn vm_tsc_khz(vm: &VmFd) -> Result<u32, errno::Error> {
    // SAFETY: KVM_GET_TSC_KHZ takes no argument and answers with its return value.
    let khz = unsafe { ioctl(vm, KVM_GET_TSC_KHZ()) };
    u32::try_from(khz).map_err(|_| errno::Error::last())
}

/// Attaches or detaches an ioeventfd.
pub fn ioeventfd(vm: &VmFd, argument: &kvm_ioeventfd) -> Result<(), errno::Error> {
    // SAFETY: the kernel reads one kvm_ioeventfd and nothing else.
    match unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), argument) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

/// Shows `region` to the guest, or changes the flags of a region that it already sees.
///
/// The caller must keep a clone of `region` for as long as any file descriptor of the virtual machine
/// is open or until [`remove_memory`].
pub fn set_memory(vm: &VmFd, region: &MemoryRegion, flags: u32) -> Result<(), errno::Error> {
    let memory = &region.region;
    let argument = kvm_userspace_memory_region {
        slot: region.slot,
        flags,
        guest_phys_addr: memory.start_addr().raw_value(),
        memory_size: memory.len(),
        userspace_addr: memory.get_mmap().as_ptr() as u64,
    };
    // SAFETY: the address range is a mapping that `region` owns; `VmShared` keeps it for as long as the
    // kernel may reach it. The guest may write it at any time, which volatile access (vm-memory) allows.
    unsafe { vm.set_user_memory_region(argument) }
}

/// Takes the memory of `slot` away from the guest.
pub fn remove_memory(vm: &VmFd, slot: u32) -> Result<(), errno::Error> {
    let argument = kvm_userspace_memory_region { slot, ..Default::default() };
    // SAFETY: a size of 0 deletes the slot; no memory is named.
    unsafe { vm.set_user_memory_region(argument) }
}

/// Reads the XSAVE area; `size` is what KVM_CAP_XSAVE2 says, or 4096 where that is unknown.
pub fn get_xsave(
    vcpu: &VcpuFd,
    size: usize,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut words: Vec<u32>;
    if size <= XSAVE_SIZE {
        words = vcpu.get_xsave()?.region.to_vec();
    } else {
        let mut area = Xsave::new((size - XSAVE_SIZE).div_ceil(4))?;
        // SAFETY: `area` has the size that KVM_CAP_XSAVE2 told, and nothing in this process enables
        // further dynamic features (arch_prctl) after the engine was opened.
        unsafe { vcpu.get_xsave2(&mut area)? };
        let fam = area.as_fam_struct_ref();
        words = fam.xsave.region.to_vec();
        words.extend_from_slice(fam.as_slice());
    }
    words.shrink_to_fit();
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// Loads the XSAVE area from `bytes`, which are padded with zeroes; at most `size` bytes (see
/// [`get_xsave`]) are used.
pub fn set_xsave(
    vcpu: &VcpuFd,
    size: usize,
    bytes: &[u8],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut area = Xsave::new(size.saturating_sub(XSAVE_SIZE).div_ceil(4))?;
    let words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    });
    // SAFETY: only words of the area are written below, never its length field.
    let fam = unsafe { area.as_mut_fam_struct() };
    for (index, word) in words.enumerate() {
        match index.checked_sub(fam.xsave.region.len()) {
            None => fam.xsave.region[index] = word,
            Some(extra) => {
                if let Some(place) = fam.as_mut_slice().get_mut(extra) {
                    *place = word;
                }
            }
        }
    }
    // SAFETY: `area` is at least as long as what the kernel reads, which is what KVM_CAP_XSAVE2 told.
    unsafe { vcpu.set_xsave2(&area)? };
    Ok(())
}

/// Bytes of `struct kvm_xsave` before Linux 5.17 let it grow.
pub const XSAVE_SIZE: usize = 4096;

/// The clock by which the kernel's 8254 counts.
pub fn monotonic_clock() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place to write a timespec to; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
