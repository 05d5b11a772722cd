//! Any bytes as a disk: partition tables, volumes and file systems.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| guest::fuzz_storage(bytes));
