//! Requests of a guest for a shared folder, this one's seeds.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");

fuzz_target!(|request: &[u8]| devices::virtio::fs::fuzz(Path::new(FOLDER), request));
