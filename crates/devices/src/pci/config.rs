//! The type 0 configuration header (PCI 3.0 section 6.1) with its base address registers.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes of conventional configuration space.
const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// Command register: respond to memory accesses.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Command bits that software may set: I/O, memory, bus master, SERR#, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0507;
/// Status register: a capability list exists.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What identifies a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// What kind of device it is.
    pub class: ClassCode,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Base class, sub-class and programming interface (PCI Code and ID Assignment).
#[derive(Clone, Copy, Debug)]
pub struct ClassCode(pub u8, pub u8, pub u8);

/// Width of a memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64,
}

/// A memory range that a function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Number of its first register, 0 to 5.
    pub index: u8,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Registers of one function, with the bits that software may change.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Vec<(u8, BarKind, u64)>,
    last_capability: Option<usize>,
    next_free: usize,
}

/// The bytes of a configuration space, as a snapshot keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedConfig(Vec<u8>);

impl ConfigSpace {
    /// The header of a function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: Vec::new(),
            last_capability: None,
            next_free: FIRST_CAPABILITY,
        };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        let ClassCode(base, sub, interface) = identity.class;
        config.put(0x08, &[identity.revision, interface, sub, base]);
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        // Cache line size and interrupt line: storage for software.
        config.writable[0x0c] = 0xff;
        config.writable[0x3c] = 0xff;
        config
    }

    /// Adds a memory BAR of `size` bytes, a power of two of at least 16, in register `index`.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) {
        debug_assert!(size.is_power_of_two() && size >= 16 && index < 6);
        let at = BAR0 + 4 * usize::from(index);
        let mask = !(size - 1);
        self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
        if kind == BarKind::Memory64 {
            self.bytes[at] = 0b100;
            self.writable[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
        }
        self.bars.push((index, kind, size));
    }

    /// Writes the address of BAR `index` and lets the function decode memory, as firmware would.
    pub fn assign_bar(&mut self, index: u8, address: u64) {
        let at = BAR0 + 4 * usize::from(index);
        let bytes = address.to_le_bytes();
        let wide = self.bars.iter().any(|bar| bar.0 == index && bar.1 == BarKind::Memory64);
        self.write(at as u16, &bytes[..4]);
        if wide {
            self.write(at as u16 + 4, &bytes[4..]);
        }
        let command = self.bytes[COMMAND] | COMMAND_MEMORY;
        self.bytes[COMMAND] = command;
    }

    /// Adds a capability with `id` and `body` (what follows the ID and the next pointer); returns its
    /// offset, or `None` when configuration space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Option<u16> {
        let at = self.next_free;
        let end = at.checked_add(2 + body.len())?.next_multiple_of(4);
        if end > SIZE {
            return None;
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        let link = self.last_capability.map_or(CAPABILITIES_POINTER, |last| last + 1);
        self.bytes[link] = at as u8;
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_capability = Some(at);
        self.next_free = end;
        Some(at as u16)
    }

    /// Lets software change the bits of `mask` in the doubleword at `offset`.
    pub fn allow_writes(&mut self, offset: u16, mask: u32) {
        let at = usize::from(offset);
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }

    /// Reads registers; past the end of the space they are zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (position, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + position).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits of registers.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (position, &value) in data.iter().enumerate() {
            let at = usize::from(offset) + position;
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// Ranges decoded just now: none while the command register forbids memory accesses.
    pub fn decoded(&self) -> Vec<Bar> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        self.bars
            .iter()
            .map(|&(index, kind, size)| Bar { index, address: self.address(index, kind), size })
            .collect()
    }

    pub(crate) fn save(&self) -> SavedConfig {
        SavedConfig(self.bytes.to_vec())
    }

    /// Takes over the bits that software may have changed; the rest must be as it is here.
    pub(crate) fn restore(&mut self, saved: &SavedConfig) -> Result<()> {
        let bytes: &[u8; SIZE] = saved
            .0
            .as_slice()
            .try_into()
            .map_err(|_| Error::InvalidState("configuration space has 256 bytes"))?;
        let fixed_differs = (0..SIZE)
            .any(|at| (bytes[at] ^ self.bytes[at]) & !self.writable[at] & !runtime_bits(at) != 0);
        if fixed_differs {
            return Err(Error::InvalidState("configuration space is another device's"));
        }
        self.bytes = *bytes;
        Ok(())
    }

    fn address(&self, index: u8, kind: BarKind) -> u64 {
        let at = BAR0 + 4 * usize::from(index);
        let mut bytes = [0; 8];
        let width = if kind == BarKind::Memory64 { 8 } else { 4 };
        bytes[..width].copy_from_slice(&self.bytes[at..at + width]);
        u64::from_le_bytes(bytes) & !0xf
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Bits that the device itself sets although software may not: memory decoding as firmware left it.
fn runtime_bits(at: usize) -> u8 {
    if at == COMMAND { COMMAND_MEMORY } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: ClassCode(1, 0x80, 0),
            subsystem_vendor: 0x1af4,
            subsystem: 0x42,
        };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(0, BarKind::Memory32, 0x8000);
        config.add_bar(2, BarKind::Memory64, 0x2_0000_0000);
        config
    }

    fn read32(config: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn sizing_a_bar_shows_its_size() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        assert_eq!(read32(&config, 0x10), 0xffff_8000);
        config.write(0x18, &[0xff; 8]);
        assert_eq!(read32(&config, 0x18), 0b100);
        assert_eq!(read32(&config, 0x1c), 0xffff_fffe);
    }

    #[test]
    fn a_bar_is_decoded_only_while_memory_is_enabled() {
        let mut config = config();
        assert!(config.decoded().is_empty());
        config.assign_bar(0, 0xe000_0000);
        config.assign_bar(2, 0x8_0000_0000);
        assert_eq!(config.decoded()[0], Bar { index: 0, address: 0xe000_0000, size: 0x8000 });
        assert_eq!(
            config.decoded()[1],
            Bar { index: 2, address: 0x8_0000_0000, size: 0x2_0000_0000 }
        );
        config.write(0x04, &[0, 0]);
        assert!(config.decoded().is_empty());
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = config();
        let first = config.add_capability(0x11, &[0; 10]).unwrap();
        let second = config.add_capability(0x09, &[0; 14]).unwrap();
        assert_eq!(read32(&config, 0x34) & 0xff, u32::from(first));
        assert_eq!(read32(&config, first) >> 8 & 0xff, u32::from(second));
        assert_eq!(read32(&config, second) >> 8 & 0xff, 0);
        assert!(config.add_capability(0x09, &[0; 250]).is_none());
    }

    #[test]
    fn read_only_registers_stay_as_they_are() {
        let mut config = config();
        config.write(0, &[0; 64]);
        config.write(250, &[0xff; 16]);
        assert_eq!(read32(&config, 0), 0x1042_1af4);
    }

    #[test]
    fn a_saved_space_of_another_device_is_refused() {
        let mut config = config();
        config.assign_bar(0, 0xe000_0000);
        let mut saved = config.save();
        let mut fresh = self::config();
        fresh.restore(&saved).unwrap();
        assert_eq!(fresh.decoded(), config.decoded());
        saved.0[2] ^= 1;
        assert!(fresh.restore(&saved).is_err());
        assert!(fresh.restore(&SavedConfig(vec![0; 3])).is_err());
    }
}
