//! A card whose guest memory and host are arbitrary bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use engine::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::header::feature;
use super::port::Cable;
use super::stream::StreamPort;
use super::{Backend, Net, NetConfig};
use crate::virtio::{Activation, DeviceSignal, SavedQueue, VirtQueue, VirtioDevice};
use crate::{EventHandler, EventLoop, Interrupt};

/// Bytes of guest memory that are looked at: what lies beyond reads as zeroes.
const MEMORY: usize = 64 << 10;
const QUEUE_SIZE: u16 = 16;
const QUEUES: u64 = 3;
/// Bytes between the rings of neighbouring queues, and from their beginnings to the parts.
const RINGS: u64 = 0x200;
const AVAILABLE_RING: u64 = 0x100;
const USED_RING: u64 = 0x140;
/// How often each queue is looked at.
const ROUNDS: usize = 4;

/// For a fuzzer: takes the end of `bytes`, as the first two say, for what the host sends, and what is left for the
/// features and the memory of a guest with the rings of a receive, a transmit and a control queue at its beginning. What
/// the guest sends must be whole frames, and pausing, saving and resuming must work at any moment.
pub fn fuzz(bytes: &[u8]) {
    let Some((&[low, high, chosen], bytes)) = bytes.split_first_chunk() else { return };
    let host = usize::from(u16::from_le_bytes([low, high])).min(bytes.len());
    let (guest, host) = bytes.split_at(bytes.len() - host);
    let (Ok(memory), Ok(events), Ok((near, mut far))) = (
        GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]),
        EventLoop::new(),
        UnixStream::pair(),
    ) else {
        return;
    };
    let guest = &guest[..guest.len().min(MEMORY)];
    let ready = memory.write_slice(guest, GuestAddress(0)).is_ok()
        && far.set_nonblocking(true).is_ok()
        && far.write_all(host).is_ok();
    let Ok(port) = StreamPort::new(near) else { return };
    if !ready {
        return;
    }
    let cable = Cable {
        features: feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_OFFLOADS,
        mtu: None,
        ports: vec![(Box::new(port), None)],
        keep: None,
    };
    let config = NetConfig::new(Backend::User { forward: Vec::new() });
    let net = Net::with_cable("net".into(), &config, cable, None, events.handle());
    let Some(queues) = (0..QUEUES).map(queue).collect() else { return };
    // Which optional features the driver accepts.
    let features = (0..8).filter(|bit| chosen & 1 << bit != 0).map(|bit| OPTIONAL[bit]);
    let features = features.fold(feature::CTRL_VQ, |all, feature| all | feature) & net.features();
    let activation = Activation { memory, features, queues, signal: Arc::new(Nobody) };
    net.activate(activation).expect("a socket can be watched");
    for round in 0..ROUNDS {
        net.look();
        if round == ROUNDS / 2 {
            net.pause().expect("a card can be paused");
            let state = net.save().expect("a card can be saved");
            net.resume().expect("a card goes on");
            assert_eq!(net.save().expect("a card can be saved"), state);
        }
    }
    net.deactivate();
    check_frames(&mut far);
}

const OPTIONAL: [u64; 8] = [
    feature::MRG_RXBUF,
    feature::CTRL_GUEST_OFFLOADS,
    feature::GUEST_OFFLOADS,
    crate::virtio::VIRTIO_F_EVENT_IDX,
    crate::virtio::VIRTIO_F_INDIRECT_DESC,
    feature::MTU,
    feature::STATUS,
    feature::MAC,
];

fn queue(index: u64) -> Option<Option<Arc<VirtQueue>>> {
    let rings = index * RINGS;
    let saved = SavedQueue {
        max_size: QUEUE_SIZE,
        size: QUEUE_SIZE,
        ready: true,
        descriptor_table: rings,
        available_ring: rings + AVAILABLE_RING,
        used_ring: rings + USED_RING,
        ..SavedQueue::default()
    };
    let queue = VirtQueue::new(index as u16, saved.queue().ok()?, Arc::new(Nobody)).ok()?;
    Some(Some(Arc::new(queue)))
}

impl Net {
    /// Serves everything, as the event loop would if all doorbells rang and the port was ready.
    fn look(&self) {
        self.ready(0);
        for token in 0..3 {
            self.pairs().iter().for_each(|pair| pair.ready(token));
        }
    }
}

/// Each frame is there as a whole behind its size.
fn check_frames(far: &mut UnixStream) {
    let mut sent = Vec::new();
    // The card is still there, so this ends by an error when nothing is left.
    let _ = far.read_to_end(&mut sent);
    let mut rest = sent.as_slice();
    while let Some((size, behind)) = rest.split_first_chunk() {
        let size = u32::from_be_bytes(*size) as usize;
        assert!((14..=65535).contains(&size), "a frame of {size} bytes was sent");
        // What the socket had no room for waits in the port.
        let Some(next) = behind.get(size..) else { return };
        rest = next;
    }
}

struct Nobody;

impl DeviceSignal for Nobody {
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

impl Interrupt for Nobody {
    fn signal(&self) {}
}
