//! Saved states from anywhere: refused, or taken by devices that go on.

#![no_main]

use devices::State;
use libfuzzer_sys::fuzz_target;
use omnivisor_fuzz::{Access, Legacy, Width};

fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = serde_json::from_slice(bytes) else { return };
    let state = State(state);
    let legacy = Legacy::new();
    for (device, registers) in legacy.all() {
        if device.restore(&state).is_err() {
            continue;
        }
        device.resume().expect("it goes on");
        for offset in 0..16 {
            Access::Read(offset, Width::One).perform(registers, 0);
            Access::Write(offset, Width::One, 0xff).perform(registers, 0);
        }
        device.save().expect("it can be saved");
    }
});
