//! Any bytes as a registry hive and its log.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| guest::fuzz_hive(bytes));
