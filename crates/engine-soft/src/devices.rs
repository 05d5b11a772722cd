//! How a processor reaches what is not memory.

use std::sync::Arc;

use crate::apic::Effect;
use crate::cpu::{Cpu, number};
use crate::host::PAGE;
use crate::vm::CODE;

impl Cpu {
    /// What happens now cannot be taken back.
    fn act(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.lasting = true;
        }
    }

    /// A device had its turn. What it wrote over code, this and the other processors execute anew.
    pub fn note_device(&mut self) {
        self.code_changed |= self.shared.attention() & CODE != 0;
    }

    /// IN.
    pub fn port_in(&mut self, port: u16, bytes: u64) -> u64 {
        self.act();
        self.statistics.exits += 1;
        self.statistics.pio += 1;
        if let Some(value) = self.vm.chip_port_read(port) {
            return value.into();
        }
        let mut buffer = [0xff; 8];
        if let Some(bus) = self.bus {
            bus.get().pio_read(port, &mut buffer[..bytes as usize]);
            self.note_device();
        }
        number(&buffer[..bytes as usize])
    }

    /// OUT.
    pub fn port_out(&mut self, port: u16, bytes: u64, value: u64) {
        self.act();
        self.statistics.exits += 1;
        self.statistics.pio += 1;
        let vm = Arc::clone(&self.vm);
        if vm.chip_port_write(port, value as u8) {
            return;
        }
        if let Some(bus) = self.bus {
            bus.get().pio_write(port, &value.to_le_bytes()[..bytes as usize]);
            self.note_device();
        }
    }

    /// A load where no memory is.
    #[cold]
    pub fn device_read(&mut self, physical: u64, bytes: &mut [u8]) {
        self.act();
        if self.shared.lock().maps(physical) {
            let register = (physical % PAGE / 16) as usize;
            let value = if bytes.len() > 4 || physical % 16 > 3 {
                0
            } else {
                self.shared.lock().read(register, self.vm.now()) >> (8 * (physical % 16))
            };
            fill(bytes, &value.to_le_bytes());
            return;
        }
        if physical & !(PAGE - 1) == crate::chips::IO_APIC {
            let value = self.vm.chips().ioapic_read(physical);
            fill(bytes, &value.to_le_bytes());
            return;
        }
        let bus = self.bus;
        for (offset, unit) in units(bytes.len()) {
            self.statistics.exits += 1;
            self.statistics.mmio += 1;
            let part = &mut bytes[offset..offset + unit];
            match &bus {
                Some(bus) => bus.get().mmio_read(physical + offset as u64, part),
                None => part.fill(0xff),
            }
        }
        self.note_device();
    }

    /// A store where no writable memory is.
    #[cold]
    pub fn device_write(&mut self, physical: u64, bytes: &[u8]) {
        self.act();
        if self.shared.lock().maps(physical) {
            if physical.is_multiple_of(16) && bytes.len() >= 4 {
                let register = (physical % PAGE / 16) as usize;
                let value = number(&bytes[..4]) as u32;
                let effect = self.shared.lock().write(register, value, self.vm.now());
                self.apply(effect);
            }
            return;
        }
        if physical & !(PAGE - 1) == crate::chips::IO_APIC {
            let delivery =
                self.vm.chips().ioapic_write(physical, number(&bytes[..bytes.len().min(4)]) as u32);
            self.vm.deliver_all(delivery);
            self.check_interrupts = true;
            return;
        }
        let bus = self.bus;
        for (offset, unit) in units(bytes.len()) {
            let (address, part) = (physical + offset as u64, &bytes[offset..offset + unit]);
            self.statistics.exits += 1;
            if self.vm.ring(address, part) {
                continue;
            }
            self.statistics.mmio += 1;
            if let Some(bus) = &bus {
                bus.get().mmio_write(address, part);
            }
        }
        self.note_device();
    }

    /// Carries out what a register of the local APIC was asked for.
    pub fn apply(&mut self, effect: Effect) {
        let vm = Arc::clone(&self.vm);
        match effect {
            Effect::None => {}
            Effect::Send { low, destination } => vm.send(&self.shared, low, destination),
            Effect::EndOfLevel(vector) => {
                let again = vm.chips().end_of_interrupt(vector);
                vm.deliver_all(again);
            }
            Effect::Timer => vm.timer_changed(),
        }
        self.check_interrupts = true;
    }

    /// WRMSR of an x2APIC register.
    pub fn write_x2apic(&mut self, index: u32, value: u64) -> bool {
        let effect = {
            let mut apic = self.shared.lock();
            if !apic.x2apic() {
                return false;
            }
            apic.write_msr(index, value, self.vm.now())
        };
        match effect {
            Some(effect) => self.apply(effect),
            None => return false,
        }
        true
    }

    /// IA32_TSC_DEADLINE.
    pub fn set_deadline(&mut self, value: u64) {
        let left = value.saturating_sub(self.tsc());
        let nanoseconds = u128::from(left) * 1_000_000 / u128::from(self.vm.tsc_khz().max(1));
        let at = self.vm.now().saturating_add(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.shared.lock().set_deadline(value, at);
        self.vm.timer_changed();
    }

    /// Stores at a guest-physical address, if memory is there.
    pub fn write_physical(&mut self, physical: u64, bytes: &[u8]) {
        for (byte, offset) in bytes.iter().zip(0_u64..) {
            let address = physical.wrapping_add(offset);
            if let Some(page) = self.ram.page(address).filter(|page| !page.read_only()) {
                page.host().plus(address % PAGE).store::<u8>((*byte).into());
                page.set_dirty();
            }
        }
    }
}

fn fill(bytes: &mut [u8], value: &[u8]) {
    bytes.fill(0);
    for (byte, value) in bytes.iter_mut().zip(value) {
        *byte = *value;
    }
}

/// Cuts an access into units of 1, 2, 4 or 8 bytes.
fn units(length: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let unit = 1 << (length - start).checked_ilog2()?.min(3);
        let at = start;
        start += unit;
        Some((at, unit))
    })
}
