//! The keyboard controller, as far as it resets the machine.
//!
//! There is no keyboard and no mouse. A guest that looks for them gets quick answers that say so, and
//! one that pulses the reset line (command FEh, which Linux's `reboot=k` sends) resets the machine.
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{Device, Registers, Result, State};

/// The first port of the controller in a PC.
pub const BASE: u16 = 0x60;
/// How many ports it decodes: data at 0, system control port B at 1, command and status at 4.
pub const LENGTH: u16 = 5;

/// An i8042 without devices.
pub struct I8042 {
    name: String,
    reset: Arc<dyn Fn() + Send + Sync>,
    controller: Mutex<Controller>,
}

impl I8042 {
    /// A controller that calls `reset`, on the processor's thread, when the guest asks for a reset.
    pub fn new(name: impl Into<String>, reset: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { name: name.into(), reset, controller: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut controller = self.lock();
        for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = match offset {
                DATA => controller.output.take().unwrap_or(0),
                PORT_B => TIMER_2_OUTPUT,
                COMMAND => controller.status(),
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut reset = false;
        let mut controller = self.lock();
        for (&byte, offset) in data.iter().zip(offset..=u64::MAX) {
            reset |= match offset {
                DATA => controller.data(byte),
                COMMAND => controller.command(byte),
                _ => false,
            };
        }
        drop(controller);
        if reset {
            (self.reset)();
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&self) -> Result<()> {
        *self.lock() = Controller::default();
        Ok(())
    }

    fn save(&self) -> Result<State> {
        State::new(&*self.lock())
    }

    fn restore(&self, state: &State) -> Result<()> {
        *self.lock() = state.get()?;
        Ok(())
    }
}

const DATA: u64 = 0;
const PORT_B: u64 = 1;
const COMMAND: u64 = 4;

/// Port B: guests that calibrate against timer 2 wait for its output, and there is no such timer.
const TIMER_2_OUTPUT: u8 = 1 << 5;

/// Status: the output buffer holds a byte for the guest.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status and command byte: the controller passed its self test.
const SYSTEM_FLAG: u8 = 1 << 2;
/// Status: the keyboard is not locked.
const NOT_INHIBITED: u8 = 1 << 4;

const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const DISABLE_AUXILIARY: u8 = 0xa7;
const ENABLE_AUXILIARY: u8 = 0xa8;
const TEST_AUXILIARY: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
const WRITE_AUXILIARY_BUFFER: u8 = 0xd3;
const WRITE_AUXILIARY: u8 = 0xd4;
/// F0h to FFh pulse the lines of the output port whose bits are clear; line 0 is the reset.
const PULSE: std::ops::RangeInclusive<u8> = 0xf0..=0xff;

const SELF_TEST_PASSED: u8 = 0x55;
/// Answer of the interface tests: the clock line is stuck low, so nothing is plugged in.
const CLOCK_STUCK_LOW: u8 = 0x01;

const COMMAND_AUXILIARY_DISABLED: u8 = 1 << 5;
const COMMAND_KEYBOARD_DISABLED: u8 = 1 << 4;

/// Output port: reset (active low) and A20 are high.
const OUTPUT_PORT: u8 = 0b11;
const OUTPUT_PORT_RESET: u8 = 1 << 0;

/// The controller's registers, which are its saved state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Controller {
    command_byte: u8,
    /// What the guest reads next at the data port.
    output: Option<u8>,
    /// The command that waits for its byte at the data port.
    pending: Option<u8>,
}

impl Default for Controller {
    fn default() -> Self {
        let command_byte = SYSTEM_FLAG | COMMAND_AUXILIARY_DISABLED | COMMAND_KEYBOARD_DISABLED;
        Self { command_byte, output: None, pending: None }
    }
}

impl Controller {
    fn status(&self) -> u8 {
        let output_full = if self.output.is_some() { OUTPUT_FULL } else { 0 };
        NOT_INHIBITED | (self.command_byte & SYSTEM_FLAG) | output_full
    }

    /// Carries out a command; whether it resets the machine.
    fn command(&mut self, command: u8) -> bool {
        self.pending = None;
        match command {
            READ_COMMAND_BYTE => self.output = Some(self.command_byte),
            DISABLE_AUXILIARY => self.command_byte |= COMMAND_AUXILIARY_DISABLED,
            ENABLE_AUXILIARY => self.command_byte &= !COMMAND_AUXILIARY_DISABLED,
            DISABLE_KEYBOARD => self.command_byte |= COMMAND_KEYBOARD_DISABLED,
            ENABLE_KEYBOARD => self.command_byte &= !COMMAND_KEYBOARD_DISABLED,
            SELF_TEST => self.output = Some(SELF_TEST_PASSED),
            TEST_KEYBOARD | TEST_AUXILIARY => self.output = Some(CLOCK_STUCK_LOW),
            READ_OUTPUT_PORT => self.output = Some(OUTPUT_PORT),
            WRITE_COMMAND_BYTE
            | WRITE_OUTPUT_PORT
            | WRITE_KEYBOARD_BUFFER
            | WRITE_AUXILIARY_BUFFER
            | WRITE_AUXILIARY => self.pending = Some(command),
            _ if PULSE.contains(&command) => return command & OUTPUT_PORT_RESET == 0,
            _ => {}
        }
        false
    }

    /// Takes a byte written to the data port; whether it resets the machine.
    fn data(&mut self, byte: u8) -> bool {
        match self.pending.take() {
            Some(WRITE_COMMAND_BYTE) => self.command_byte = byte,
            Some(WRITE_OUTPUT_PORT) => return byte & OUTPUT_PORT_RESET == 0,
            // An echo that does not come from the auxiliary side tells Linux at once that there is no
            // mouse; without one it waits half a second.
            Some(WRITE_KEYBOARD_BUFFER | WRITE_AUXILIARY_BUFFER) => self.output = Some(byte),
            // For a keyboard or a mouse, of which there is none.
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn controller() -> (I8042, Arc<AtomicU32>) {
        let resets = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&resets);
        let reset = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (I8042::new("i8042", reset), resets)
    }

    fn read(device: &I8042, offset: u64) -> u8 {
        let mut data = [0];
        device.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn the_reset_command_resets_and_its_neighbours_do_not() {
        let (device, resets) = controller();
        for command in 0..=0xff {
            let before = resets.load(Ordering::SeqCst);
            device.write(COMMAND, &[command]);
            let after = resets.load(Ordering::SeqCst);
            assert_eq!(after != before, command >= 0xf0 && command & 1 == 0, "{command:#x}");
        }
    }

    #[test]
    fn the_output_port_resets_when_its_line_goes_low() {
        let (device, resets) = controller();
        device.write(COMMAND, &[WRITE_OUTPUT_PORT]);
        device.write(DATA, &[0b11]);
        assert_eq!(resets.load(Ordering::SeqCst), 0);
        device.write(COMMAND, &[WRITE_OUTPUT_PORT]);
        device.write(DATA, &[0b10]);
        assert_eq!(resets.load(Ordering::SeqCst), 1);
        device.write(DATA, &[0]);
        assert_eq!(resets.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_probe_of_linux_finds_every_answer_waiting() {
        let (device, _) = controller();
        let ask = |command, argument: Option<u8>| {
            assert_eq!(read(&device, COMMAND) & 0b11, 0, "neither buffer is full");
            device.write(COMMAND, &[command]);
            if let Some(argument) = argument {
                device.write(DATA, &[argument]);
            }
            assert_eq!(read(&device, COMMAND) & OUTPUT_FULL, OUTPUT_FULL);
            read(&device, DATA)
        };
        assert_eq!(ask(SELF_TEST, None), SELF_TEST_PASSED);
        assert_eq!(ask(READ_COMMAND_BYTE, None), 0x34);
        assert_eq!(ask(WRITE_AUXILIARY_BUFFER, Some(0x5a)), 0x5a);
        assert_eq!(ask(TEST_AUXILIARY, None), CLOCK_STUCK_LOW);
        device.write(COMMAND, &[WRITE_COMMAND_BYTE]);
        device.write(DATA, &[0x47]);
        assert_eq!(ask(READ_COMMAND_BYTE, None), 0x47);
    }

    #[test]
    fn a_reset_forgets_what_was_asked() {
        let (device, _) = controller();
        device.write(COMMAND, &[SELF_TEST]);
        device.reset().unwrap();
        assert_eq!(read(&device, COMMAND), NOT_INHIBITED | SYSTEM_FLAG);
    }

    proptest! {
        #[test]
        fn any_sequence_of_accesses_is_survived_and_saved(
            accesses in prop::collection::vec(
                (prop_oneof![0..8u64, any::<u64>(), Just(u64::MAX)], any::<bool>(), prop::collection::vec(any::<u8>(), 1..9)),
                0..64,
            ),
        ) {
            let (device, _) = controller();
            for (offset, write, mut data) in accesses {
                if write {
                    device.write(offset, &data);
                } else {
                    device.read(offset, &mut data);
                }
            }
            let (restored, _) = controller();
            restored.restore(&device.save().unwrap()).unwrap();
            prop_assert_eq!(&*restored.lock(), &*device.lock());
        }
    }

    #[test]
    fn a_foreign_state_is_refused() {
        let (device, _) = controller();
        assert!(device.restore(&State(serde_json::json!({"command_byte": 300}))).is_err());
    }
}
