//! The table that tells the kernel where each GSI goes.

use std::collections::BTreeMap;

use engine::{Error, MsiMessage, Result};
use kvm_bindings::*;
use kvm_ioctls::VmFd;

use crate::vm::LINES;

/// Inputs of the two 8259A.
const PIC_LINES: u32 = 16;
const LINES_OF_ONE_PIC: u32 = 8;

/// GSIs 0 to 23 are the controllers' inputs, as after KVM_CREATE_IRQCHIP; those above carry one message
/// each.
pub struct Routing {
    messages: BTreeMap<u32, MsiMessage>,
    /// One more than the highest GSI.
    end: u32,
}

impl Routing {
    /// A table of at most `routes` entries (KVM_CAP_IRQ_ROUTING).
    pub fn new(routes: usize) -> Self {
        // Each 8259A input takes a second entry.
        let messages = u32::try_from(routes).unwrap_or(0).saturating_sub(LINES + PIC_LINES);
        Self { messages: BTreeMap::new(), end: LINES + messages }
    }

    /// Gives `message` a GSI.
    pub fn add(&mut self, vm: &VmFd, message: MsiMessage) -> Result<u32> {
        let gsi = self.free().ok_or_else(|| {
            Error::Invalid("There is no interrupt route left for another message".into())
        })?;
        self.messages.insert(gsi, message);
        self.install(vm).inspect_err(|_| {
            self.messages.remove(&gsi);
        })?;
        Ok(gsi)
    }

    /// Sends another message from `gsi` on.
    pub fn update(&mut self, vm: &VmFd, gsi: u32, message: MsiMessage) -> Result<()> {
        let old = self.messages.insert(gsi, message);
        if old == Some(message) {
            return Ok(());
        }
        self.install(vm).inspect_err(|_| {
            if let Some(old) = old {
                self.messages.insert(gsi, old);
            }
        })
    }

    /// Frees `gsi`. The kernel is not told: nothing raises that GSI any more, and the next change
    /// installs the table without it.
    pub fn remove(&mut self, gsi: u32) {
        self.messages.remove(&gsi);
    }

    fn free(&self) -> Option<u32> {
        (LINES..self.end).find(|gsi| !self.messages.contains_key(gsi))
    }

    fn install(&self, vm: &VmFd) -> Result<()> {
        let table = KvmIrqRouting::from_entries(&self.entries())
            .map_err(|_| Error::Invalid("The table of interrupt routes is full".into()))?;
        vm.set_gsi_routing(&table).map_err(Error::backend("route interrupts"))
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pics = (0..PIC_LINES).map(|gsi| {
            let second = gsi >= LINES_OF_ONE_PIC;
            let chip = if second { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER };
            input(gsi, chip, gsi % LINES_OF_ONE_PIC)
        });
        let ioapic = (0..LINES).map(|gsi| input(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        let messages = self.messages.iter().map(|(&gsi, &message)| msi(gsi, message));
        pics.chain(ioapic).chain(messages).collect()
    }
}

fn input(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let u =
        kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_reaches_the_io_apic_and_the_first_sixteen_an_8259a() {
        let entries = Routing::new(4096).entries();
        assert_eq!(entries.len(), 40);
        for gsi in 0..24 {
            let count = entries.iter().filter(|entry| entry.gsi == gsi).count();
            assert_eq!(count, if gsi < 16 { 2 } else { 1 }, "GSI {gsi}");
        }
    }

    #[test]
    fn messages_get_gsis_above_the_inputs_and_reuse_freed_ones() {
        let mut routing = Routing::new(42);
        assert_eq!(routing.free(), Some(24));
        routing.messages.insert(24, MsiMessage::default());
        routing.messages.insert(25, MsiMessage::default());
        assert_eq!(routing.free(), None);
        routing.remove(24);
        assert_eq!(routing.free(), Some(24));
    }
}
