//! Indexes of what gzip has compressed, as the cache keeps them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| disk::fuzz_gzip_index(input));
