//! The root of the one PCI bus: configuration by ECAM and, if the board has them, by ports 0xCF8 and
//! 0xCFC, and the window in which BARs lie.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::{Bar, ClassCode, ConfigSpace, Function, Identity};
use crate::{Device, Error, Registers, Result, State};

/// Slots of a bus.
pub const SLOTS: usize = 32;
/// Bytes of the ECAM range of one bus (PCI Express 5.0 section 7.2.2).
pub const ECAM_SIZE: u64 = 1 << 20;
/// Enable bit of CONFIG_ADDRESS (PCI 3.0 section 3.2.2.3.2).
const CONFIG_ENABLE: u32 = 1 << 31;

/// Where the root's ranges lie.
#[derive(Clone, Copy, Debug)]
pub struct RootAddresses {
    /// First byte of the window for BARs.
    pub window: u64,
    /// Bytes of the window.
    pub window_size: u64,
}

/// The PCI bus with its host bridge in slot 0.
pub struct Root {
    addresses: RootAddresses,
    bridge: ConfigSpace,
    slots: RwLock<Vec<Option<Arc<dyn Function>>>>,
    /// What is decoded where, kept so that an access need not ask every function.
    decoded: RwLock<Vec<(Bar, u8)>>,
    next_address: Mutex<u64>,
    config_address: Mutex<u32>,
}

/// ECAM registers of a [`Root`].
pub struct Ecam(Arc<Root>);

/// CONFIG_ADDRESS and CONFIG_DATA, ports 0xCF8 to 0xCFF, of a [`Root`].
pub struct ConfigPorts(Arc<Root>);

/// The BAR window of a [`Root`].
pub struct Window(Arc<Root>);

#[derive(Serialize, Deserialize)]
struct SavedRoot {
    config_address: u32,
}

impl Root {
    /// A bus with nothing but its host bridge.
    pub fn new(addresses: RootAddresses) -> Arc<Self> {
        // A host bridge of no vendor's driver: Linux binds none and asks no quirks for it.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: ClassCode(6, 0, 0),
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut slots = Vec::new();
        slots.resize_with(SLOTS, || None);
        Arc::new(Self {
            addresses,
            bridge: ConfigSpace::new(identity),
            slots: RwLock::new(slots),
            decoded: RwLock::default(),
            next_address: Mutex::new(addresses.window),
            config_address: Mutex::new(0),
        })
    }

    /// An address in the window for a BAR of `size` bytes, a power of two.
    pub fn allocate(&self, size: u64) -> Result<u64> {
        let mut next = self.next_address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = next.checked_next_multiple_of(size);
        let end = self.addresses.window + self.addresses.window_size;
        match address.and_then(|start| Some((start, start.checked_add(size)?))) {
            Some((start, after)) if after <= end => {
                *next = after;
                Ok(start)
            }
            _ => Err(Error::Configuration(
                "The PCI window is full: the machine has too many devices".into(),
            )),
        }
    }

    /// Puts `function` into the first free slot and returns its number.
    pub fn plug(&self, function: Arc<dyn Function>) -> Result<u8> {
        let slot = {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            let slot = (1..SLOTS)
                .find(|&slot| slots[slot].is_none())
                .ok_or_else(|| Error::Configuration("All 31 PCI slots are taken".into()))?;
            slots[slot] = Some(function);
            slot
        };
        self.refresh();
        Ok(slot as u8)
    }

    /// ECAM registers; bus 0 only.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn Registers> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// Ports 0xCF8 to 0xCFF.
    pub fn config_ports(self: &Arc<Self>) -> Arc<dyn Registers> {
        Arc::new(ConfigPorts(Arc::clone(self)))
    }

    /// The BAR window; offsets are relative to its start.
    pub fn window(self: &Arc<Self>) -> Arc<dyn Registers> {
        Arc::new(Window(Arc::clone(self)))
    }

    /// Looks anew at what functions decode, after a restore.
    pub fn refresh(&self) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let decoded =
            slots.iter().zip(0..).filter_map(|(function, slot)| Some((function.as_ref()?, slot)));
        let decoded = decoded
            .flat_map(|(function, slot)| function.bars().into_iter().map(move |bar| (bar, slot)));
        *self.decoded.write().unwrap_or_else(PoisonError::into_inner) = decoded.collect();
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn Function>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(slot)?.clone()
    }

    fn config_read(&self, slot: usize, function: usize, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if function != 0 || usize::from(offset % 4) + data.len() > 4 {
            return;
        }
        if slot == 0 {
            self.bridge.read(offset, data);
        } else if let Some(found) = self.function(slot) {
            found.config_read(offset, data);
        }
    }

    fn config_write(&self, slot: usize, function: usize, offset: u16, data: &[u8]) {
        if function != 0 || slot == 0 || usize::from(offset % 4) + data.len() > 4 {
            return;
        }
        if let Some(found) = self.function(slot) {
            found.config_write(offset, data);
            // Command register and BARs decide what is decoded.
            if offset < 0x28 {
                self.refresh();
            }
        }
    }

    /// The function, BAR and offset that an access of `length` bytes at `address` reaches.
    fn target(&self, address: u64, length: usize) -> Option<(Arc<dyn Function>, u8, u64)> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let &(bar, slot) = decoded.iter().find(|(bar, _)| {
            address
                .checked_sub(bar.address)
                .is_some_and(|offset| offset < bar.size && bar.size - offset >= length as u64)
        })?;
        drop(decoded);
        Some((self.function(usize::from(slot))?, bar.index, address - bar.address))
    }
}

impl Device for Root {
    fn name(&self) -> &str {
        "pci"
    }

    fn reset(&self) -> Result<()> {
        *self.config_address.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        self.refresh();
        Ok(())
    }

    fn save(&self) -> Result<State> {
        State::new(&SavedRoot {
            config_address: *self.config_address.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    fn restore(&self, state: &State) -> Result<()> {
        let saved: SavedRoot = state.get()?;
        *self.config_address.lock().unwrap_or_else(PoisonError::into_inner) = saved.config_address;
        self.refresh();
        Ok(())
    }
}

impl Registers for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (slot, function, register) = ecam_address(offset);
        self.0.config_read(slot, function, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (slot, function, register) = ecam_address(offset);
        self.0.config_write(slot, function, register, data);
    }
}

impl Registers for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = *self.0.config_address.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&address.to_le_bytes()),
            (4..8, _) => match port_address(address, offset) {
                Some((slot, function, register)) => {
                    self.0.config_read(slot, function, register, data)
                }
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut address = self.0.config_address.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            (0, &[a, b, c, d]) => *address = u32::from_le_bytes([a, b, c, d]),
            (4..8, _) => {
                let target = port_address(*address, offset);
                drop(address);
                if let Some((slot, function, register)) = target {
                    self.0.config_write(slot, function, register, data);
                }
            }
            _ => {}
        }
    }
}

impl Registers for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.target(self.0.addresses.window.saturating_add(offset), data.len()) {
            Some((function, bar, within)) => function.bar_read(bar, within, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, within)) =
            self.0.target(self.0.addresses.window.saturating_add(offset), data.len())
        {
            function.bar_write(bar, within, data);
        }
    }
}

/// Slot, function and register of an offset into the ECAM range.
fn ecam_address(offset: u64) -> (usize, usize, u16) {
    ((offset >> 15 & 0x1f) as usize, (offset >> 12 & 7) as usize, (offset & 0xfff) as u16)
}

/// Slot, function and register that CONFIG_ADDRESS names, for an access at port `0xCF8 + offset`.
fn port_address(address: u32, offset: u64) -> Option<(usize, usize, u16)> {
    let on_bus_0 = address & CONFIG_ENABLE != 0 && address >> 16 & 0xff == 0;
    let register = (address & 0xfc) as u16 + (offset & 3) as u16;
    on_bus_0.then_some(((address >> 11 & 0x1f) as usize, (address >> 8 & 7) as usize, register))
}
