//! ACPI power management: power-off, reset and the power button.
//!
//! The fixed hardware of ACPI 6.5, section 4.8.3, in one block of [`LENGTH`] ports. The machine's tables
//! must say where they are:
//!
//! | FADT field | offset in the block | length |
//! |---|---|---|
//! | `PM1a_EVT_BLK` | [`PM1A_EVENT`] | 4 |
//! | `PM1a_CNT_BLK` | [`PM1A_CONTROL`] | 2 |
//! | `PM_TMR_BLK` (may be left out) | [`PM_TIMER`] | 4, with `TMR_VAL_EXT` |
//! | `RESET_REG`, with `RESET_REG_SUP` | [`RESET`], value [`RESET_VALUE`] | 1 |
//!
//! `SMI_CMD` is 0, for the block is always in ACPI mode; the `PWR_BUTTON` flag is 0, which says that the
//! power button is this fixed one, and `SLP_BUTTON` is 1, for there is no sleep button. The DSDT's `\_S5`
//! starts with [`SLEEP_TYPE_S5`]. The SCI is level-triggered and active high.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{Device, InterruptLine, Registers, Result, State};

/// How many ports the block has.
pub const LENGTH: u16 = 16;
/// Offset of the event block: status in 2 bytes, then enable in 2.
pub const PM1A_EVENT: u16 = 0;
/// Offset of the control block, 2 bytes.
pub const PM1A_CONTROL: u16 = 4;
/// Offset of the 32-bit timer, which counts at 3.579545 MHz.
pub const PM_TIMER: u16 = 8;
/// Offset of the reset register.
pub const RESET: u16 = 12;
/// What the guest writes to the reset register to reset the machine.
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type that powers off, for the DSDT's `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;

/// What the machine does when the guest asks for it. Called on the processor's thread.
#[derive(Clone)]
pub struct Actions {
    /// The guest entered S5.
    pub power_off: Arc<dyn Fn() + Send + Sync>,
    /// The guest wrote the reset register.
    pub reset: Arc<dyn Fn() + Send + Sync>,
}

/// The time since some moment, which never goes back.
pub type MonotonicClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The power management block.
pub struct Power {
    name: String,
    sci: Arc<dyn InterruptLine>,
    actions: Actions,
    clock: MonotonicClock,
    block: Mutex<Block>,
}

impl Power {
    /// A block that raises events by `sci` and carries out what the guest asks by `actions`.
    pub fn new(name: impl Into<String>, sci: Arc<dyn InterruptLine>, actions: Actions) -> Self {
        let start = Instant::now();
        Self::with_clock(name, sci, actions, Arc::new(move || start.elapsed()))
    }

    /// Like [`new`](Self::new), with another clock behind the timer.
    pub fn with_clock(
        name: impl Into<String>,
        sci: Arc<dyn InterruptLine>,
        actions: Actions,
        clock: MonotonicClock,
    ) -> Self {
        Self { name: name.into(), sci, actions, clock, block: Mutex::default() }
    }

    /// Presses the power button: a guest that listens shuts down. One that does not listen notices
    /// nothing; see [`listens`](Self::listens).
    pub fn press_power_button(&self) {
        let mut block = self.lock();
        block.status |= POWER_BUTTON;
        self.drive(&block);
    }

    /// Whether the guest has enabled the power button's event.
    pub fn listens(&self) -> bool {
        self.lock().enable & POWER_BUTTON != 0
    }

    fn lock(&self) -> MutexGuard<'_, Block> {
        self.block.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the block's lock, so that levels reach the line in the order of their causes.
    fn drive(&self, block: &Block) {
        self.sci.set_level(block.status & block.enable != 0);
    }

    fn ticks(&self) -> u32 {
        let ticks = (self.clock)().as_nanos() * TIMER_HERTZ / 1_000_000_000;
        // The counter is what is left after 2^32.
        ticks as u32
    }
}

impl Registers for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let image = {
            let block = self.lock();
            block.image(self.ticks().wrapping_add(block.timer_offset))
        };
        for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = usize::try_from(offset).ok().and_then(|at| image.get(at)).map_or(0xff, |b| *b);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut request = None;
        let mut block = self.lock();
        for (&byte, offset) in data.iter().zip(offset..=u64::MAX) {
            request = block.write(offset, byte).or(request);
        }
        self.drive(&block);
        drop(block);
        match request {
            Some(Request::PowerOff) => (self.actions.power_off)(),
            Some(Request::Reset) => (self.actions.reset)(),
            None => {}
        }
    }
}

impl Device for Power {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self) -> Result<()> {
        self.resume()
    }

    fn resume(&self) -> Result<()> {
        // After a restore the line may not have the level that the block drives.
        self.drive(&self.lock());
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        let mut block = self.lock();
        *block = Block { timer_offset: block.timer_offset, ..Block::default() };
        self.drive(&block);
        Ok(())
    }

    fn save(&self) -> Result<State> {
        let block = self.lock();
        State::new(&Saved {
            status: block.status,
            enable: block.enable,
            control: block.control,
            timer: self.ticks().wrapping_add(block.timer_offset),
        })
    }

    fn restore(&self, state: &State) -> Result<()> {
        let saved: Saved = state.get()?;
        let mut block = self.lock();
        *block = Block {
            status: saved.status & STATUS_BITS,
            enable: saved.enable & ENABLE_BITS,
            control: saved.control & CONTROL_BITS,
            timer_offset: saved.timer.wrapping_sub(self.ticks()),
        };
        Ok(())
    }
}

const TIMER_HERTZ: u128 = 3_579_545;

/// PM1 status and enable, bit 8.
const POWER_BUTTON: u16 = 1 << 8;
/// Timer, bus master, global, power button, sleep button, RTC, PCIe wake, wake.
const STATUS_BITS: u16 = 1 << 0 | 1 << 4 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10 | 3 << 14;
/// Timer, global, power button, sleep button, RTC, PCIe wake.
const ENABLE_BITS: u16 = 1 << 0 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10 | 1 << 14;

/// PM1 control: events raise the SCI. Always set, for there is no other mode.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
/// What control keeps: BM_RLD and the sleep type. GBL_RLS and SLP_EN read as zero.
const CONTROL_BITS: u16 = 1 << 1 | SLEEP_TYPE;

const STATUS_AT: u64 = PM1A_EVENT as u64;
const ENABLE_AT: u64 = STATUS_AT + 2;
const CONTROL_AT: u64 = PM1A_CONTROL as u64;
const RESET_AT: u64 = RESET as u64;

#[derive(Clone, Debug, Default, PartialEq)]
struct Block {
    status: u16,
    enable: u16,
    control: u16,
    /// Added to the clock's ticks.
    timer_offset: u32,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    status: u16,
    enable: u16,
    control: u16,
    timer: u32,
}

enum Request {
    PowerOff,
    Reset,
}

impl Block {
    /// The block as the guest reads it.
    fn image(&self, timer: u32) -> [u8; LENGTH as usize] {
        let mut image = [0; LENGTH as usize];
        image[0..2].copy_from_slice(&self.status.to_le_bytes());
        image[2..4].copy_from_slice(&self.enable.to_le_bytes());
        image[4..6].copy_from_slice(&(self.control | SCI_ENABLE).to_le_bytes());
        image[8..12].copy_from_slice(&timer.to_le_bytes());
        image
    }

    fn write(&mut self, offset: u64, byte: u8) -> Option<Request> {
        // Registers of two bytes may be written one at a time: which half this is.
        let shift = (offset & 1) * 8;
        let bits = u16::from(byte) << shift;
        let mask = 0xff_u16 << shift;
        match offset & !1 {
            // Writing one clears.
            STATUS_AT => self.status &= !bits,
            ENABLE_AT => self.enable = (self.enable & !mask) | (bits & ENABLE_BITS),
            CONTROL_AT => {
                self.control = (self.control & !mask) | (bits & CONTROL_BITS);
                let sleep_type = (self.control & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
                if bits & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
                    return Some(Request::PowerOff);
                }
            }
            RESET_AT if offset == RESET_AT && byte == RESET_VALUE => return Some(Request::Reset),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl InterruptLine for Line {
        fn set_level(&self, high: bool) {
            self.0.store(high, Ordering::SeqCst);
        }
    }

    #[derive(Default)]
    struct Bench {
        line: Arc<Line>,
        powered_off: Arc<AtomicU32>,
        resets: Arc<AtomicU32>,
        nanoseconds: Arc<AtomicU64>,
    }

    impl Bench {
        fn power(&self) -> Power {
            let count = |counter: &Arc<AtomicU32>| -> Arc<dyn Fn() + Send + Sync> {
                let counter = Arc::clone(counter);
                Arc::new(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                })
            };
            let actions =
                Actions { power_off: count(&self.powered_off), reset: count(&self.resets) };
            let nanoseconds = Arc::clone(&self.nanoseconds);
            let clock: MonotonicClock =
                Arc::new(move || Duration::from_nanos(nanoseconds.load(Ordering::SeqCst)));
            Power::with_clock("power", Arc::clone(&self.line) as _, actions, clock)
        }

        fn line(&self) -> bool {
            self.line.0.load(Ordering::SeqCst)
        }
    }

    fn read_u16(power: &Power, offset: u64) -> u16 {
        let mut data = [0; 2];
        power.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn read_timer(power: &Power) -> u32 {
        let mut data = [0; 4];
        power.read(PM_TIMER.into(), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn entering_s5_powers_off() {
        let bench = Bench::default();
        let power = bench.power();
        let s5 = u16::from(SLEEP_TYPE_S5) << SLEEP_TYPE_SHIFT;
        // The way of ACPICA: first the type, then the type with the enable bit.
        power.write(CONTROL_AT, &(s5 | SCI_ENABLE).to_le_bytes());
        assert_eq!(bench.powered_off.load(Ordering::SeqCst), 0);
        power.write(CONTROL_AT, &(s5 | SCI_ENABLE | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(bench.powered_off.load(Ordering::SeqCst), 1);
        assert_eq!(read_u16(&power, CONTROL_AT), s5 | SCI_ENABLE);
    }

    #[test]
    fn other_sleep_states_are_not_entered() {
        let bench = Bench::default();
        let power = bench.power();
        for sleep_type in (0..8).filter(|sleep_type| *sleep_type != u16::from(SLEEP_TYPE_S5)) {
            let value = sleep_type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
            power.write(CONTROL_AT, &value.to_le_bytes());
        }
        assert_eq!(bench.powered_off.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_reset_register_wants_its_value() {
        let bench = Bench::default();
        let power = bench.power();
        power.write(RESET_AT, &[0]);
        power.write(RESET_AT + 1, &[RESET_VALUE]);
        assert_eq!(bench.resets.load(Ordering::SeqCst), 0);
        power.write(RESET_AT, &[RESET_VALUE]);
        assert_eq!(bench.resets.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_power_button_interrupts_until_it_is_acknowledged() {
        let bench = Bench::default();
        let power = bench.power();
        power.press_power_button();
        assert!(!bench.line() && !power.listens());
        power.write(ENABLE_AT, &POWER_BUTTON.to_le_bytes());
        assert!(bench.line() && power.listens());
        assert_eq!(read_u16(&power, STATUS_AT), POWER_BUTTON);
        power.write(STATUS_AT, &(!POWER_BUTTON).to_le_bytes());
        assert!(bench.line());
        power.write(STATUS_AT, &POWER_BUTTON.to_le_bytes());
        assert!(!bench.line());
        power.press_power_button();
        assert!(bench.line());
    }

    #[test]
    fn registers_can_be_written_by_halves() {
        let bench = Bench::default();
        let power = bench.power();
        power.write(ENABLE_AT, &[0x20]);
        power.write(ENABLE_AT + 1, &[0x01]);
        assert_eq!(read_u16(&power, ENABLE_AT), 0x0120);
        power.write(CONTROL_AT + 1, &[SLEEP_TYPE_S5 << 2 | 0x20]);
        assert_eq!(bench.powered_off.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps() {
        let bench = Bench::default();
        let power = bench.power();
        assert_eq!(read_timer(&power), 0);
        bench.nanoseconds.store(1_000_000_000, Ordering::SeqCst);
        assert_eq!(read_timer(&power), 3_579_545);
        bench.nanoseconds.store(1_200_000_000_000, Ordering::SeqCst);
        assert_eq!(u64::from(read_timer(&power)), 1200 * 3_579_545 - (1 << 32));
    }

    #[test]
    fn a_pressed_button_and_the_timer_survive_a_restore() {
        let bench = Bench::default();
        let power = bench.power();
        bench.nanoseconds.store(5_000_000_000, Ordering::SeqCst);
        power.write(ENABLE_AT, &POWER_BUTTON.to_le_bytes());
        power.press_power_button();
        let state = power.save().unwrap();

        let elsewhere = Bench::default();
        let restored = elsewhere.power();
        restored.restore(&state).unwrap();
        restored.start().unwrap();
        restored.resume().unwrap();
        assert!(elsewhere.line());
        assert_eq!(read_timer(&restored), 5 * 3_579_545);
        assert_eq!(restored.save().unwrap(), state);
        restored.reset().unwrap();
        assert!(!elsewhere.line() && !restored.listens());
    }

    proptest! {
        #[test]
        fn any_sequence_of_accesses_is_survived_and_saved(
            accesses in prop::collection::vec(
                (prop_oneof![0..20u64, any::<u64>(), Just(u64::MAX)], any::<bool>(), prop::collection::vec(any::<u8>(), 1..9)),
                0..64,
            ),
        ) {
            let bench = Bench::default();
            let power = bench.power();
            for (offset, write, mut data) in accesses {
                if write {
                    power.write(offset, &data);
                } else {
                    power.read(offset, &mut data);
                }
            }
            let state = power.save().unwrap();
            let restored = bench.power();
            restored.restore(&state).unwrap();
            prop_assert_eq!(restored.save().unwrap(), state);
        }

        #[test]
        fn any_saved_numbers_are_taken_or_refused(values in prop::array::uniform4(any::<u32>())) {
            let [status, enable, control, timer] = values;
            let state = State(serde_json::json!({
                "status": status, "enable": enable, "control": control, "timer": timer
            }));
            let power = Bench::default().power();
            if power.restore(&state).is_ok() {
                prop_assert_eq!(power.lock().status & !STATUS_BITS, 0);
            }
        }
    }
}
