//! The driver's side of a virtqueue, for the tests of devices.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Activation, DeviceSignal, VIRTIO_F_VERSION_1, VirtQueue};
use crate::Interrupt;

/// Bytes of guest memory that a [`TestDriver`] has.
pub(crate) const MEMORY_SIZE: u64 = 16 << 20;
const QUEUE_SIZE: u16 = 64;
const QUEUE_SPACING: u64 = 0x4000;
/// Buffers are handed out from here upwards; below lie the rings.
const BUFFERS: u64 = 0x10_0000;

/// A descriptor as the driver writes it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawDescriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Counts interrupts.
#[derive(Default)]
pub(crate) struct CountingInterrupt(pub AtomicUsize);

impl Interrupt for CountingInterrupt {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts what a device tells its driver.
#[derive(Default)]
pub(crate) struct CountingSignal {
    pub config_changes: AtomicUsize,
    pub resets_needed: AtomicUsize,
}

impl DeviceSignal for CountingSignal {
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::SeqCst);
    }
    fn needs_reset(&self) {
        self.resets_needed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A driver with guest memory and a number of queues.
pub(crate) struct TestDriver {
    pub memory: GuestMemory,
    pub queues: Vec<TestQueue>,
    pub signal: Arc<CountingSignal>,
    next_buffer: Mutex<u64>,
}

/// One queue seen by the driver.
pub(crate) struct TestQueue {
    pub queue: Arc<VirtQueue>,
    pub interrupt: Arc<CountingInterrupt>,
    base: u64,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A chain in a queue: its head, and the device-writable buffers in it.
pub(crate) struct Chain {
    pub head: u16,
    pub writable: Vec<(u64, u32)>,
}

impl TestDriver {
    /// A driver with `count` queues.
    pub(crate) fn new(count: usize) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).unwrap();
        let queues = (0..count).map(|index| TestQueue::new(index as u16)).collect();
        Self { memory, queues, signal: Arc::default(), next_buffer: Mutex::new(BUFFERS) }
    }

    /// What the transport hands to the device.
    pub(crate) fn activation(&self, features: u64) -> Activation {
        Activation {
            memory: self.memory.clone(),
            features: features | VIRTIO_F_VERSION_1,
            queues: self.queues.iter().map(|queue| Some(Arc::clone(&queue.queue))).collect(),
            signal: Arc::clone(&self.signal) as Arc<dyn DeviceSignal>,
        }
    }

    /// Fresh guest memory of `length` bytes.
    pub(crate) fn allocate(&self, length: u32) -> u64 {
        let mut next = self.next_buffer.lock().unwrap();
        let address = *next;
        *next += u64::from(length).next_multiple_of(16);
        assert!(*next <= MEMORY_SIZE, "the test's memory is used up");
        address
    }

    /// Puts a chain of device-readable and then device-writable buffers into queue `index`, without
    /// ringing the doorbell.
    pub(crate) fn push(&mut self, index: usize, readable: &[&[u8]], writable: &[u32]) -> Chain {
        let mut descriptors = Vec::new();
        for bytes in readable {
            let address = self.allocate(bytes.len() as u32);
            self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            descriptors.push(RawDescriptor {
                address,
                length: bytes.len() as u32,
                ..Default::default()
            });
        }
        let mut buffers = Vec::new();
        for &length in writable {
            let address = self.allocate(length);
            buffers.push((address, length));
            descriptors.push(RawDescriptor { address, length, flags: WRITE, next: 0 });
        }
        let head = self.push_raw(index, &descriptors);
        Chain { head, writable: buffers }
    }

    /// Puts descriptors into queue `index` as they are, but for linking each to the following one.
    pub(crate) fn push_raw(&mut self, index: usize, descriptors: &[RawDescriptor]) -> u16 {
        let queue = &mut self.queues[index];
        let head = queue.next_descriptor;
        for (position, descriptor) in descriptors.iter().enumerate() {
            let slot = queue.next_descriptor;
            queue.next_descriptor = (slot + 1) % QUEUE_SIZE;
            let mut descriptor = *descriptor;
            if position + 1 < descriptors.len() {
                descriptor.flags |= NEXT;
                descriptor.next = queue.next_descriptor;
            }
            let at = queue.base + 16 * u64::from(slot);
            self.memory.write_obj(descriptor.address, GuestAddress(at)).unwrap();
            self.memory.write_obj(descriptor.length, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(descriptor.flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(descriptor.next, GuestAddress(at + 14)).unwrap();
        }
        queue.offer(&self.memory, head);
        head
    }

    /// Claims more available chains in queue `index` than it has places.
    pub(crate) fn break_ring(&mut self, index: usize) {
        let ring = self.queues[index].base + 0x1000;
        self.memory.write_obj(QUEUE_SIZE + 1, GuestAddress(ring + 2)).unwrap();
    }

    /// Rings the doorbell of queue `index`.
    pub(crate) fn kick(&self, index: usize) {
        self.queues[index].queue.ring();
    }

    /// The next used element of queue `index` as (head, bytes written), if there is one.
    pub(crate) fn used(&mut self, index: usize) -> Option<(u16, u32)> {
        self.queues[index].take_used(&self.memory)
    }

    /// Waits until the device has used a chain of queue `index`.
    pub(crate) fn wait_used(&mut self, index: usize) -> (u16, u32) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            if let Some(used) = self.used(index) {
                return used;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "the device used no buffer of queue {index}"
            );
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Guest memory at `address`.
    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

impl TestQueue {
    fn new(index: u16) -> Self {
        let base = u64::from(index) * QUEUE_SPACING;
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_size(QUEUE_SIZE);
        queue.set_desc_table_address(Some(base as u32), Some(0));
        queue.set_avail_ring_address(Some((base + 0x1000) as u32), Some(0));
        queue.set_used_ring_address(Some((base + 0x2000) as u32), Some(0));
        queue.set_ready(true);
        let interrupt = Arc::new(CountingInterrupt::default());
        let queue =
            VirtQueue::new(index, queue, Arc::clone(&interrupt) as Arc<dyn Interrupt>).unwrap();
        Self { queue: Arc::new(queue), interrupt, base, next_descriptor: 0, available: 0, used: 0 }
    }

    fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let ring = self.base + 0x1000;
        let slot = u64::from(self.available % QUEUE_SIZE);
        memory.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        memory.store(self.available, GuestAddress(ring + 2), Ordering::Release).unwrap();
    }

    fn take_used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        let ring = self.base + 0x2000;
        let index: u16 = memory.load(GuestAddress(ring + 2), Ordering::Acquire).unwrap();
        if index == self.used {
            return None;
        }
        let at = ring + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
        let length: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head as u16, length))
    }
}

#[test]
fn the_test_driver_speaks_to_a_device_that_echoes() {
    let mut driver = TestDriver::new(1);
    let chain = driver.push(0, &[b"ping"], &[16]);
    let queue = Arc::clone(&driver.queues[0].queue);
    let mut rings = queue.lock();
    let descriptors = rings.pop_descriptor_chain(&driver.memory).unwrap();
    assert_eq!(descriptors.head_index(), chain.head);
    driver.memory.write_slice(b"pong", GuestAddress(chain.writable[0].0)).unwrap();
    rings.add_used(&driver.memory, chain.head, 4).unwrap();
    queue.notify_driver(&mut rings, &driver.memory);
    drop(rings);
    assert_eq!(driver.wait_used(0), (chain.head, 4));
    assert_eq!(driver.read(chain.writable[0].0, 4), b"pong");
    assert_eq!(driver.queues[0].interrupt.0.load(Ordering::SeqCst), 1);
}
