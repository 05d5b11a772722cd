//! The MC146818 real-time clock.
//!
//! It shows the host's clock in UTC, plus what the guest has set it to; after a restore it shows the time of
//! day then, not the time of the save. It raises no interrupts: the alarm and rate registers keep what is
//! written, and the update flag of register C is there for those who poll. Guests take their timers
//! elsewhere. Source: Motorola MC146818A data sheet; the century is at [`CENTURY`], as the FADT says.

#![forbid(unsafe_code)]

mod calendar;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Device, Error, Registers, Result, State};
use calendar::Format;

/// The first port of the clock in a PC: the index, and the data after it.
pub const BASE: u16 = 0x70;
/// How many ports it has.
pub const LENGTH: u16 = 2;
/// Where the century is, for the FADT's `CENTURY`.
pub const CENTURY: u8 = 0x32;

/// The time since 1970-01-01 00:00:00 UTC.
pub type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A clock with 128 bytes of memory.
pub struct Rtc {
    name: String,
    clock: WallClock,
    chip: Mutex<Chip>,
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new(name: impl Into<String>) -> Self {
        // A host that lives before 1970 shows 1970.
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::with_clock(name, Arc::new(clock))
    }

    /// A clock that shows the time of `clock`.
    pub fn with_clock(name: impl Into<String>, clock: WallClock) -> Self {
        Self { name: name.into(), clock, chip: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host_time(&self) -> i128 {
        // 2^64 seconds are less than 2^94 nanoseconds.
        (self.clock)().as_nanos() as i128
    }
}

impl Registers for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let host = self.host_time();
        let mut chip = self.lock();
        for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = if offset == DATA { chip.read(host) } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let host = self.host_time();
        let mut chip = self.lock();
        for (&byte, offset) in data.iter().zip(offset..=u64::MAX) {
            match offset {
                INDEX => chip.index = byte & INDEX_BITS,
                DATA => chip.write(byte, host),
                _ => {}
            }
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        &self.name
    }

    /// A battery keeps the time and the memory; a reset only disables the interrupts.
    fn reset(&self) -> Result<()> {
        let mut chip = self.lock();
        chip.index = 0;
        chip.memory[REGISTER_B] &= !INTERRUPTS_ENABLED;
        Ok(())
    }

    fn save(&self) -> Result<State> {
        let chip = self.lock();
        State::new(&Saved {
            index: chip.index,
            memory: chip.memory.to_vec(),
            held: chip.held,
            skew_seconds: i64::try_from(chip.skew.div_euclid(SECOND)).unwrap_or(0),
            skew_nanoseconds: chip.skew.rem_euclid(SECOND) as u32,
        })
    }

    fn restore(&self, state: &State) -> Result<()> {
        let saved: Saved = state.get()?;
        let memory = saved
            .memory
            .try_into()
            .map_err(|_| Error::InvalidState("the clock's memory has another size"))?;
        let chip = Chip {
            index: saved.index & INDEX_BITS,
            memory,
            held: saved.held,
            skew: i128::from(saved.skew_seconds) * SECOND + i128::from(saved.skew_nanoseconds),
            seen: None,
        };
        if chip.stopped() != chip.held.is_some() {
            return Err(Error::InvalidState("the clock both runs and stands still"));
        }
        *self.lock() = chip;
        Ok(())
    }
}

const INDEX: u64 = 0;
const DATA: u64 = 1;
/// Bit 7 of the index port masks the NMI, of which there is none.
const INDEX_BITS: u8 = 0x7f;

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REGISTER_A: usize = 0x0a;
const REGISTER_B: usize = 0x0b;
const REGISTER_C: usize = 0x0c;
const REGISTER_D: usize = 0x0d;
const CENTURY_AT: usize = CENTURY as usize;

/// Register A: an update is in progress or less than 244 us away.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A: 32768 Hz and a rate of 1024 Hz, as a PC's firmware leaves it.
const REGISTER_A_DEFAULT: u8 = 0x26;
/// Register A: with these two bits the divider is held in reset.
const DIVIDER_RESET: u8 = 0b110 << 4;
/// Register B: the guest sets the clock, updates are inhibited.
const SET: u8 = 1 << 7;
/// Register B: the update-ended interrupt is enabled.
const UPDATE_INTERRUPT: u8 = 1 << 4;
/// Register B: periodic, alarm and update-ended interrupts and the square wave.
const INTERRUPTS_ENABLED: u8 = 0x78;
const BINARY: u8 = 1 << 2;
const WHOLE_DAY: u8 = 1 << 1;
/// Register C: an update ended; an interrupt was requested.
const UPDATE_ENDED: u8 = 1 << 4;
const INTERRUPT_REQUEST: u8 = 1 << 7;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// In nanoseconds.
const SECOND: i128 = 1_000_000_000;
/// How long before an update its flag is set, in nanoseconds.
const UPDATE_WARNING: i128 = 244_000;
/// From the release of the divider to the first update, in nanoseconds.
const DIVIDER_RELEASE: i128 = 500_000_000;

#[derive(Serialize, Deserialize)]
struct Saved {
    index: u8,
    memory: Vec<u8>,
    held: Option<[u8; 8]>,
    skew_seconds: i64,
    skew_nanoseconds: u32,
}

#[derive(Clone, Debug)]
struct Chip {
    index: u8,
    /// Time, date and registers C and D are not kept here.
    memory: [u8; 128],
    /// Time and date while the clock stands still.
    held: Option<[u8; 8]>,
    /// What the guest's time is ahead of the host's, in nanoseconds.
    skew: i128,
    /// The second at which register C was last read.
    seen: Option<i128>,
}

impl Default for Chip {
    fn default() -> Self {
        let mut memory = [0; 128];
        memory[REGISTER_A] = REGISTER_A_DEFAULT;
        memory[REGISTER_B] = WHOLE_DAY;
        Self { index: 0, memory, held: None, skew: 0, seen: None }
    }
}

impl Chip {
    fn read(&mut self, host: i128) -> u8 {
        let index = usize::from(self.index);
        let now = host + self.skew;
        if let Some(position) = position(index) {
            return self.held.unwrap_or_else(|| self.registers(now))[position];
        }
        match index {
            REGISTER_A => {
                let about_to = now.rem_euclid(SECOND) >= SECOND - UPDATE_WARNING;
                let update = if about_to && !self.stopped() { UPDATE_IN_PROGRESS } else { 0 };
                self.memory[REGISTER_A] | update
            }
            REGISTER_C => self.flags(now.div_euclid(SECOND)),
            REGISTER_D => VALID,
            _ => self.memory[index],
        }
    }

    fn write(&mut self, byte: u8, host: i128) {
        let index = usize::from(self.index);
        if let Some(position) = position(index) {
            let now = host + self.skew;
            match &mut self.held {
                Some(held) => held[position] = byte,
                None => {
                    let mut registers = self.registers(now);
                    registers[position] = byte;
                    self.set(registers, now.rem_euclid(SECOND), host);
                }
            }
            return;
        }
        match index {
            REGISTER_A => self.control(REGISTER_A, byte & !UPDATE_IN_PROGRESS, host),
            REGISTER_B if byte & SET != 0 => {
                self.control(REGISTER_B, byte & !UPDATE_INTERRUPT, host);
            }
            REGISTER_B => self.control(REGISTER_B, byte, host),
            REGISTER_C | REGISTER_D => {}
            _ => self.memory[index] = byte,
        }
    }

    /// Writes register A or B, which stop the clock and let it go.
    fn control(&mut self, index: usize, byte: u8, host: i128) {
        let shown = self.registers(host + self.skew);
        self.memory[index] = byte;
        if self.stopped() {
            self.held.get_or_insert(shown);
        } else if let Some(held) = self.held.take() {
            let fraction = if index == REGISTER_A { SECOND - DIVIDER_RELEASE } else { 0 };
            self.set(held, fraction, host);
        }
    }

    fn set(&mut self, registers: [u8; 8], fraction: i128, host: i128) {
        let [second, minute, hour, weekday, day, month, year, century] = registers;
        let registers =
            calendar::Registers { second, minute, hour, weekday, day, month, year, century };
        self.skew = registers.seconds(self.format()) * SECOND + fraction - host;
    }

    /// Time and date in the order of [`position`].
    fn registers(&self, now: i128) -> [u8; 8] {
        let shown = calendar::Registers::at(now.div_euclid(SECOND), self.format());
        let calendar::Registers { second, minute, hour, weekday, day, month, year, century } =
            shown;
        [second, minute, hour, weekday, day, month, year, century]
    }

    fn flags(&mut self, second: i128) -> u8 {
        if self.stopped() {
            return 0;
        }
        let ended = self.seen.replace(second).is_some_and(|seen| seen != second);
        match (ended, self.memory[REGISTER_B] & UPDATE_INTERRUPT != 0) {
            (true, true) => UPDATE_ENDED | INTERRUPT_REQUEST,
            (true, false) => UPDATE_ENDED,
            (false, _) => 0,
        }
    }

    fn stopped(&self) -> bool {
        self.memory[REGISTER_B] & SET != 0
            || self.memory[REGISTER_A] & DIVIDER_RESET == DIVIDER_RESET
    }

    fn format(&self) -> Format {
        let register = self.memory[REGISTER_B];
        Format { binary: register & BINARY != 0, whole_day: register & WHOLE_DAY != 0 }
    }
}

/// Which register of time and date is at `index`, if one is.
fn position(index: usize) -> Option<usize> {
    [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY_AT]
        .iter()
        .position(|register| *register == index)
}

#[cfg(test)]
mod tests;
