//! What platforms answer, and names of platforms and VMs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| platform::fuzz(bytes));
