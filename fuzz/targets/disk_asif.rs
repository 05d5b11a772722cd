//! Disk images that somebody gave us, read and changed.

#![no_main]

use disk::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| disk::fuzz(Format::Asif, input));
