//! What gzip has compressed, read here and there.

#![no_main]

use std::sync::Arc;

use disk::{GzipSource, MemorySource, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let packed = Arc::new(MemorySource::read_only(input.to_vec()));
    let Ok(source) = GzipSource::open(packed, None) else { return };
    let length = source.len();
    let mut bytes = vec![0; length.min(4096) as usize];
    for offset in [0, length / 2, length - bytes.len() as u64] {
        let end = (offset + bytes.len() as u64).min(length);
        let part = &mut bytes[..(end - offset) as usize];
        source.read_at(part, offset).expect("what was unpacked once is unpacked again");
    }
});
