//! Anything as the code of a guest on the software processor, in every mode, interpreted and translated.

#![no_main]

#[path = "../../crates/engine-soft/tests/hostile/guest.rs"]
mod guest;

use std::sync::LazyLock;

use engine_soft::{SoftEngine, Translation};
use libfuzzer_sys::fuzz_target;

static ENGINES: LazyLock<[SoftEngine; 2]> =
    LazyLock::new(|| [Translation::Off, Translation::Eager].map(SoftEngine::with));

fuzz_target!(|input: &[u8]| {
    let Some((mode, code)) = input.split_first() else { return };
    let engine = &ENGINES[usize::from(mode >> 7)];
    guest::run(engine, *mode, code);
});
