//! What VMware's servers answer, of any form.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| platform::fuzz_soap(bytes));
