//! Kernels from anywhere: ELF, bzImage and its payload.

#![no_main]

use engine::GuestMemory;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("there is memory");
    let _ = machine::boot::load_kernel_bytes(&memory, bytes);
});
