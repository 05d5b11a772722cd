//! Which device answers an address.

use std::sync::Arc;

use devices::Registers;
use engine::Bus;

/// The address spaces of a machine: who answers where. Built once, then shared by all processors without
/// a lock.
#[derive(Default)]
pub struct AddressSpaces {
    ports: Vec<Claim>,
    memory: Vec<Claim>,
}

struct Claim {
    start: u64,
    end: u64,
    registers: Arc<dyn Registers>,
}

impl AddressSpaces {
    /// Gives `registers` the ports from `start` on.
    ///
    /// # Panics
    /// When the range overlaps another: the board's own mistake.
    pub fn claim_ports(&mut self, start: u16, count: u16, registers: Arc<dyn Registers>) {
        claim(&mut self.ports, start.into(), count.into(), registers);
    }

    /// Gives `registers` the guest-physical addresses from `start` on.
    ///
    /// # Panics
    /// When the range overlaps another: the board's own mistake.
    pub fn claim_memory(&mut self, start: u64, size: u64, registers: Arc<dyn Registers>) {
        claim(&mut self.memory, start, size, registers);
    }
}

impl Bus for AddressSpaces {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        read(&self.ports, port.into(), data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        write(&self.ports, port.into(), data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        read(&self.memory, address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        write(&self.memory, address, data);
    }
}

fn claim(claims: &mut Vec<Claim>, start: u64, size: u64, registers: Arc<dyn Registers>) {
    let claim = Claim { start, end: start + size, registers };
    let position = claims.partition_point(|other| other.start < start);
    let overlaps = claims.get(position).is_some_and(|next| next.start < claim.end)
        || position.checked_sub(1).is_some_and(|before| claims[before].end > start);
    assert!(!overlaps, "two devices claim address {start:#x}");
    claims.insert(position, claim);
}

fn find(claims: &[Claim], address: u64) -> Option<(&dyn Registers, u64)> {
    let position = claims.partition_point(|claim| claim.end <= address);
    let claim = claims.get(position)?;
    Some((&*claim.registers, address.checked_sub(claim.start)?))
}

fn read(claims: &[Claim], address: u64, data: &mut [u8]) {
    match find(claims, address) {
        Some((registers, offset)) => registers.read(offset, data),
        None => data.fill(0xff),
    }
}

fn write(claims: &[Claim], address: u64, data: &[u8]) {
    if let Some((registers, offset)) = find(claims, address) {
        registers.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own number plus the offset.
    struct Number(u8);

    impl Registers for Number {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn an_access_reaches_the_device_that_claimed_it() {
        let mut spaces = AddressSpaces::default();
        spaces.claim_ports(0x3f8, 8, Arc::new(Number(10)));
        spaces.claim_ports(0x60, 1, Arc::new(Number(20)));
        spaces.claim_memory(0x1000, 0x1000, Arc::new(Number(30)));
        let port = |port| {
            let mut data = [0];
            spaces.pio_read(port, &mut data);
            data[0]
        };
        assert_eq!([port(0x3f7), port(0x3f8), port(0x3ff), port(0x400)], [0xff, 10, 17, 0xff]);
        assert_eq!([port(0x5f), port(0x60), port(0x61)], [0xff, 20, 0xff]);
        let mut data = [0; 4];
        spaces.mmio_read(0x1002, &mut data);
        assert_eq!(data, [32; 4]);
        spaces.mmio_read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    #[should_panic(expected = "two devices claim address 0x1800")]
    fn two_devices_cannot_claim_the_same_address() {
        let mut spaces = AddressSpaces::default();
        spaces.claim_memory(0x1000, 0x1000, Arc::new(Number(1)));
        spaces.claim_memory(0x1800, 0x1000, Arc::new(Number(2)));
    }
}
