//! A driver's way through the registers, by the book and against it.

use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::pci::RootAddresses;
use crate::pci::test_support::Recorders;
use crate::virtio::read_config_bytes;

/// A device that uses every chain at once when it is looked at.
#[derive(Default)]
struct Echo {
    active: Mutex<Option<Activation>>,
    deactivations: AtomicUsize,
    served: AtomicUsize,
}

impl Echo {
    fn serve(&self) {
        let active = self.active.lock().unwrap();
        let Some(activation) = active.as_ref() else { return };
        for queue in activation.queues.iter().flatten() {
            let _ = queue.doorbell().read();
            let mut rings = queue.lock();
            while let Some(chain) = rings.pop_descriptor_chain(&activation.memory) {
                self.served.fetch_add(1, Ordering::SeqCst);
                let _ = rings.add_used(&activation.memory, chain.head_index(), 0);
            }
            queue.notify_driver(&mut rings, &activation.memory);
        }
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u16 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn features(&self) -> u64 {
        VIRTIO_F_EVENT_IDX
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(b"configuration", offset, data);
    }
    fn activate(&self, activation: Activation) -> Result<()> {
        *self.active.lock().unwrap() = Some(activation);
        Ok(())
    }
    fn deactivate(&self) {
        self.deactivations.fetch_add(1, Ordering::SeqCst);
        *self.active.lock().unwrap() = None;
    }
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.serve();
        Ok(())
    }
    fn save(&self) -> Result<State> {
        State::new(&())
    }
    fn restore(&self, _: &State) -> Result<()> {
        Ok(())
    }
}

struct Rig {
    memory: GuestMemory,
    device: Arc<Echo>,
    function: Arc<VirtioPci>,
    vectors: Recorders,
}

impl Rig {
    fn new(memory: GuestMemory) -> Self {
        let root = Root::new(RootAddresses { window: 0xe000_0000, window_size: 0x1000_0000 });
        let vectors = Recorders::default();
        let device = Arc::new(Echo::default());
        let function = VirtioPci::new(
            "echo",
            Arc::clone(&device) as Arc<dyn VirtioDevice>,
            memory.clone(),
            &root,
            &vectors,
            None,
        )
        .unwrap();
        Self { memory, device, function, vectors }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }

    fn read8(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.function.bar_read(0, offset, &mut data);
        data[0]
    }

    /// As a driver does, with one queue at `base`.
    fn bring_up(&self, base: u64) {
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        self.write(0x08, &1_u32.to_le_bytes());
        self.write(0x0c, &1_u32.to_le_bytes());
        self.write(0x14, &[11]);
        assert_eq!(self.read8(0x14), 11);
        self.write(0x16, &0_u16.to_le_bytes());
        self.write(0x18, &8_u16.to_le_bytes());
        self.write(0x1a, &1_u16.to_le_bytes());
        self.write(0x20, &base.to_le_bytes());
        self.write(0x28, &((base + 0x1000) as u32).to_le_bytes());
        self.write(0x30, &(base + 0x2000).to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
        // MSI-X vector 1: unmasked; MSI-X on.
        self.write(TABLE + 16, &0xfee0_0000_u64.to_le_bytes());
        self.write(TABLE + 24, &0x31_u64.to_le_bytes());
        let control = self.function.lock().msix_capability + 2;
        self.function.config_write(control, &0x8000_u16.to_le_bytes());
        self.write(0x14, &[15]);
    }

    /// Offers the descriptor at index 0 once more.
    fn offer(&self, base: u64, index: u16) {
        self.memory.write_obj(0x8000_u64, GuestAddress(base)).unwrap();
        self.memory.write_obj(16_u64, GuestAddress(base + 8)).unwrap();
        let slot = base + 0x1004 + 2 * u64::from(index % 8);
        self.memory.write_obj(0_u16, GuestAddress(slot)).unwrap();
        self.memory.write_obj(index + 1, GuestAddress(base + 0x1002)).unwrap();
    }
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

#[test]
fn a_driver_by_the_book_gets_its_buffers_back_and_an_interrupt() {
    let rig = Rig::new(memory());
    rig.bring_up(0);
    assert_eq!(rig.read8(0x14), 15);
    rig.offer(0, 0);
    rig.write(NOTIFY, &0_u16.to_le_bytes());
    rig.device.serve();
    assert_eq!(rig.device.served.load(Ordering::SeqCst), 1);
    assert_eq!(rig.vectors.signals(1), 1);
    assert_eq!(rig.read8(ISR), 1);
    assert_eq!(rig.read8(ISR), 0);
}

#[test]
fn a_saved_transport_goes_on_with_what_waits_in_its_queue() {
    let rig = Rig::new(memory());
    rig.bring_up(0);
    rig.offer(0, 0);
    rig.device.serve();
    rig.offer(0, 1);
    rig.function.pause().unwrap();
    let state = rig.function.save().unwrap();
    let json: serde_json::Value = serde_json::from_str(&state.0.to_string()).unwrap();

    let second = Rig::new(rig.memory.clone());
    second.function.restore(&State(json)).unwrap();
    assert_eq!(second.function.save().unwrap(), state);
    second.function.start().unwrap();
    assert_eq!(second.device.served.load(Ordering::SeqCst), 1);
    assert_eq!(second.memory.read_obj::<u16>(GuestAddress(0x2002)).unwrap(), 2);
    assert_eq!(second.vectors.signals(1), 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let rig = Rig::new(memory());
    rig.write(0x08, &0_u32.to_le_bytes());
    rig.write(0x0c, &u32::MAX.to_le_bytes());
    rig.write(0x14, &[11]);
    assert_eq!(rig.read8(0x14), 3);
}

#[test]
fn a_driver_cannot_go_on_with_features_that_were_refused() {
    let rig = Rig::new(memory());
    rig.write(0x08, &0_u32.to_le_bytes());
    rig.write(0x0c, &u32::MAX.to_le_bytes());
    rig.write(0x14, &[15]);
    assert_eq!(rig.read8(0x14), 3);
    assert!(rig.device.active.lock().unwrap().is_none());
}

#[test]
fn a_transport_saved_in_the_middle_of_a_negotiation_goes_on() {
    let rig = Rig::new(memory());
    rig.write(0x08, &0_u32.to_le_bytes());
    rig.write(0x0c, &u32::MAX.to_le_bytes());
    let state = rig.function.save().unwrap();
    let second = Rig::new(memory());
    second.function.restore(&state).unwrap();
    assert_eq!(second.function.save().unwrap(), state);

    let mut negotiated = state;
    negotiated.0["common"]["status"] = status::FEATURES_OK.into();
    assert!(second.function.restore(&negotiated).is_err());
}

#[test]
fn a_queue_outside_of_memory_asks_for_a_reset_and_a_reset_helps() {
    let rig = Rig::new(memory());
    rig.bring_up(0xffff_0000);
    assert_eq!(rig.read8(0x14), 15 | status::NEEDS_RESET);
    rig.write(0x14, &[0]);
    assert_eq!(rig.read8(0x14), 0);
    rig.bring_up(0);
    assert_eq!(rig.read8(0x14), 15);
}

#[test]
fn the_pci_access_capability_reaches_the_registers() {
    let rig = Rig::new(memory());
    let access = rig.function.lock().pci_access;
    rig.function.config_write(access + 8, &0x12_u32.to_le_bytes());
    rig.function.config_write(access + 12, &2_u32.to_le_bytes());
    let mut data = [0; 2];
    rig.function.config_read(access + 16, &mut data);
    assert_eq!(u16::from_le_bytes(data), 2);
    rig.function.config_write(access + 8, &0x14_u32.to_le_bytes());
    rig.function.config_write(access + 12, &1_u32.to_le_bytes());
    rig.function.config_write(access + 16, &[1]);
    assert_eq!(rig.read8(0x14), 1);
}

#[test]
fn power_on_state_comes_back_after_a_reset() {
    let rig = Rig::new(memory());
    let fresh = rig.function.save().unwrap();
    rig.bring_up(0);
    rig.function.config_write(0x10, &[0xff; 4]);
    rig.function.reset().unwrap();
    assert_eq!(rig.function.save().unwrap(), fresh);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in proptest::collection::vec((any::<bool>(), 0_u64..0x8010, 0_usize..4, any::<u64>()), 0..200)
    ) {
        let rig = Rig::new(memory());
        for (config, offset, width, value) in accesses {
            let bytes = &value.to_le_bytes()[..1 << width];
            let mut data = bytes.to_vec();
            if config && bytes.len() <= 4 {
                rig.function.config_write((offset % 256) as u16, bytes);
                rig.function.config_read((offset % 256) as u16, &mut data);
            } else {
                rig.write(offset, bytes);
                rig.function.bar_read(0, offset, &mut data);
            }
            rig.device.serve();
        }
    }
}
