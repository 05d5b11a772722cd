//! Any bytes as every kind of boot loader's configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| guest::loader::fuzz_loader(bytes));
