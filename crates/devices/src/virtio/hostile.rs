//! Drivers that obey no rule, for the property tests of devices.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::testing::{INDIRECT, MEMORY_SIZE, NEXT, RawDescriptor, TestDriver, WRITE};
use crate::{EventLoop, EventLoopHandle};

/// An event loop on its own thread, which ends with the value.
pub(crate) struct Loop {
    handle: EventLoopHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a hostile driver puts into a queue: descriptors, and bytes that lie where they point.
#[derive(Clone, Debug)]
pub(crate) struct HostileChain {
    pub queue: usize,
    pub descriptors: Vec<RawDescriptor>,
    pub bytes: Vec<u8>,
}

impl Loop {
    pub(crate) fn start() -> Self {
        let events = EventLoop::new().unwrap();
        let handle = events.handle();
        let thread = std::thread::spawn(move || events.run().unwrap());
        // Until the loop is known to run, a barrier would not wait for it.
        let started = Self { handle, thread: Some(thread) };
        started.settle();
        started
    }

    pub(crate) fn handle(&self) -> EventLoopHandle {
        self.handle.clone()
    }

    /// Waits until the loop has served what was rung before.
    pub(crate) fn settle(&self) {
        let event =
            vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let seen = std::sync::Arc::new(Seen { sender, event: event.try_clone().unwrap() });
        let watch = self.handle.watch_event(&event, 0, seen).unwrap();
        event.write(1).unwrap();
        receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("the event loop hangs");
        drop(watch);
        self.handle.barrier();
    }
}

struct Seen {
    sender: std::sync::mpsc::SyncSender<()>,
    event: vmm_sys_util::eventfd::EventFd,
}

impl crate::EventHandler for Seen {
    fn ready(&self, _token: u64) {
        let _ = self.event.read();
        let _ = self.sender.try_send(());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the event loop panicked");
        }
    }
}

/// Chains for a device with `queues` queues: addresses in and out of memory, any length, loops,
/// indirect tables.
pub(crate) fn chains(queues: usize) -> impl Strategy<Value = Vec<HostileChain>> {
    prop::collection::vec(chain(queues, prop::collection::vec(any::<u8>(), 0..256)), 1..12)
}

/// Like [`chains`], with `bytes` where the descriptors point.
pub(crate) fn chain(
    queues: usize,
    bytes: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = HostileChain> {
    let address = prop_oneof![
        8 => 0x10_0000..MEMORY_SIZE,
        1 => MEMORY_SIZE - 64..MEMORY_SIZE + 64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![6 => 0u32..512, 2 => 0u32..0x2_0000, 1 => any::<u32>()];
    let flags = prop_oneof![
        8 => prop::sample::select(vec![0, WRITE]),
        1 => prop::sample::select(vec![NEXT, INDIRECT, INDIRECT | WRITE, NEXT | INDIRECT]),
        1 => any::<u16>(),
    ];
    let descriptor = (address, length, flags, any::<u16>())
        .prop_map(|(address, length, flags, next)| RawDescriptor { address, length, flags, next });
    (0..queues, prop::collection::vec(descriptor, 1..6), bytes)
        .prop_map(|(queue, descriptors, bytes)| HostileChain { queue, descriptors, bytes })
}

/// Gives `chains` to `device`, then pauses, saves, resumes and resets it: it must neither panic nor hang.
pub(crate) fn attack(device: &dyn VirtioDevice, events: &Loop, chains: Vec<HostileChain>) {
    let mut driver = TestDriver::new(device.queue_sizes().len());
    device.activate(driver.activation(device.features())).unwrap();
    for chain in chains {
        for descriptor in &chain.descriptors {
            // Where it does not fit, there is nothing to place.
            let _ = driver.memory.write(&chain.bytes, GuestAddress(descriptor.address));
        }
        driver.push_raw(chain.queue, &chain.descriptors);
        driver.kick(chain.queue);
    }
    events.settle();
    device.pause().unwrap();
    let state = device.save().unwrap();
    device.resume().unwrap();
    events.settle();
    device.deactivate();
    device.restore(&state).unwrap();
    // A ring that claims more chains than it has places is refused, not followed.
    let mut broken = TestDriver::new(device.queue_sizes().len());
    device.activate(broken.activation(device.features())).unwrap();
    for index in 0..broken.queues.len() {
        broken.break_ring(index);
        broken.kick(index);
    }
    events.settle();
    assert!(broken.signal.resets_needed.load(Ordering::SeqCst) <= 2 * broken.queues.len());
    device.deactivate();
    assert_eq!(broken.used(0), None);
}
