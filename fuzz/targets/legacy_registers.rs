//! The registers of serial port, keyboard controller, clock and power management.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use omnivisor_fuzz::{Access, Legacy};

#[derive(Arbitrary, Debug)]
enum Step {
    Access(u8, Access),
    Input(Vec<u8>),
    PowerButton,
    Reset,
}

fuzz_target!(|steps: Vec<Step>| {
    let legacy = Legacy::new();
    for step in &steps {
        match step {
            Step::Access(device, access) => {
                let devices = legacy.all();
                access.perform(devices[usize::from(*device) % devices.len()].1, 0);
            }
            Step::Input(bytes) => assert!(legacy.serial.receive(bytes) <= bytes.len()),
            Step::PowerButton => legacy.power.press_power_button(),
            Step::Reset => {
                legacy.all().iter().for_each(|(device, _)| device.reset().expect("it resets"))
            }
        }
    }
    let elsewhere = Legacy::new();
    for ((device, _), (other, _)) in legacy.all().iter().zip(elsewhere.all()) {
        let state = device.save().expect("it can be saved");
        other.restore(&state).expect("it can be restored");
    }
});
