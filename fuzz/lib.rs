//! What several fuzz targets need: accesses to registers, and hosts that do nothing.

#![forbid(unsafe_code)]

use std::sync::Arc;

use devices::i8042::I8042;
use devices::power::{Actions, Power};
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::{Device, Interrupt, InterruptLine, MsiController, MsiVector, Registers};
use engine::MsiMessage;
use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// An access of the guest to registers.
#[derive(Arbitrary, Debug)]
pub enum Access {
    /// Reads so many bytes.
    Read(u16, Width),
    /// Writes the first bytes of this.
    Write(u16, Width, u64),
}

/// The widths of accesses.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Width {
    /// A byte.
    One,
    /// A word.
    Two,
    /// A double word.
    Four,
    /// A quad word.
    Eight,
}

impl Width {
    /// In bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

impl Access {
    /// Does the access, `base` bytes into `registers`.
    pub fn perform(&self, registers: &dyn Registers, base: u64) {
        match self {
            Self::Read(offset, width) => {
                registers.read(base + u64::from(*offset), &mut vec![0; width.bytes()]);
            }
            Self::Write(offset, width, value) => {
                let value = value.to_le_bytes();
                registers.write(base + u64::from(*offset), &value[..width.bytes()]);
            }
        }
    }
}

/// The devices of a PC's ports, with a host that does nothing.
pub struct Legacy {
    /// COM1.
    pub serial: Serial,
    /// The keyboard controller.
    pub i8042: I8042,
    /// The clock.
    pub rtc: Rtc,
    /// Power management.
    pub power: Power,
}

impl Legacy {
    /// New devices; the serial port is not started.
    pub fn new() -> Self {
        let nothing: Arc<dyn Fn() + Send + Sync> = Arc::new(|| ());
        let actions = Actions { power_off: Arc::clone(&nothing), reset: Arc::clone(&nothing) };
        Self {
            serial: Serial::new("serial", Arc::new(Nobody), Box::new(std::io::sink())),
            i8042: I8042::new("i8042", nothing),
            rtc: Rtc::new("rtc"),
            power: Power::new("power", Arc::new(Nobody), actions),
        }
    }

    /// Each device as both of what it is.
    pub fn all(&self) -> [(&dyn Device, &dyn Registers); 4] {
        [
            (&self.serial, &self.serial),
            (&self.i8042, &self.i8042),
            (&self.rtc, &self.rtc),
            (&self.power, &self.power),
        ]
    }
}

impl Default for Legacy {
    fn default() -> Self {
        Self::new()
    }
}

/// An interrupt controller that nobody listens to.
pub struct Nobody;

impl Interrupt for Nobody {
    fn signal(&self) {}
}

impl InterruptLine for Nobody {
    fn set_level(&self, _high: bool) {}
}

impl MsiVector for Nobody {
    fn configure(&self, _message: Option<MsiMessage>) {}
}

impl MsiController for Nobody {
    fn vector(&self) -> devices::Result<Arc<dyn MsiVector>> {
        Ok(Arc::new(Self))
    }
}
