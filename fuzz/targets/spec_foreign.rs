//! Descriptions of other platforms, of any form.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| spec::foreign::fuzz(bytes));
