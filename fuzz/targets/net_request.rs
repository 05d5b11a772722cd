//! Rings and frames of a guest, and frames of its host, at a network card.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| devices::virtio::net::fuzz(bytes));
