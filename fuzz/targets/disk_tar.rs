//! Archives that somebody gave us.

#![no_main]

use disk::{Members, MemorySource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = Members::of(&MemorySource::read_only(input.to_vec())).count();
});
