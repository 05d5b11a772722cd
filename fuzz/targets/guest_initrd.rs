//! Any bytes as an initial RAM disk.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| guest::fuzz_initrd(bytes));
