//! Guest memory as a disk finds it: rings, descriptors, request headers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| devices::virtio::block::fuzz_requests(bytes));
