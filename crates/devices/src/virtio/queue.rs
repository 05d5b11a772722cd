//! One virtqueue, shared by the transport and the device.

use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::QueueInterrupt;
use crate::{Error, Result};

/// A split virtqueue (VIRTIO 1.2 section 2.7) with its doorbell and its interrupt.
pub struct VirtQueue {
    index: u16,
    queue: Mutex<Queue>,
    doorbell: EventFd,
    interrupt: QueueInterrupt,
}

/// Registers and positions of a virtqueue, as a snapshot keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedQueue {
    /// Most descriptors.
    pub max_size: u16,
    /// Descriptors chosen by the driver.
    pub size: u16,
    /// The driver enabled it.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the driver area.
    pub available_ring: u64,
    /// Guest-physical address of the device area.
    pub used_ring: u64,
    /// Next entry of the available ring to be looked at.
    pub next_available: u16,
    /// Next entry of the used ring to be written.
    pub next_used: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_index: bool,
}

impl VirtQueue {
    /// Queue `index` of a device, as `queue` was set up, telling its driver by `interrupt`.
    pub fn new(index: u16, queue: Queue, interrupt: QueueInterrupt) -> Result<Self> {
        let doorbell =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::io("create a doorbell"))?;
        Ok(Self { index, queue: Mutex::new(queue), doorbell, interrupt })
    }

    /// Its number within the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Exclusive use of the rings.
    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rung when the driver has put something into the queue. Non-blocking.
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Rings the doorbell from the host's side, so that the device looks at the queue.
    pub fn ring(&self) {
        // The counter cannot overflow with ones, and a full one rings all the same.
        let _ = self.doorbell.write(1);
    }

    /// The interrupt that tells the driver of used buffers.
    pub fn interrupt(&self) -> &QueueInterrupt {
        &self.interrupt
    }

    /// Raises the interrupt if the driver wants one for what was added to the used ring of `queue`, this
    /// queue's own lock.
    pub fn notify_driver(&self, queue: &mut Queue, memory: &GuestMemory) {
        // Where the ring cannot be read any more the driver is told, so that it notices.
        if queue.needs_notification(memory).unwrap_or(true) {
            self.interrupt.signal();
        }
    }

    /// Registers and positions, of a device that is paused.
    pub fn save(&self) -> SavedQueue {
        SavedQueue::of(&self.lock())
    }
}

impl SavedQueue {
    /// The state of `queue`.
    pub fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            descriptor_table: state.desc_table,
            available_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
            event_index: state.event_idx_enabled,
        }
    }

    /// The queue that goes on where this state was taken.
    pub fn queue(&self) -> Result<Queue> {
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: self.event_index,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptor_table,
            avail_ring: self.available_ring,
            used_ring: self.used_ring,
        })
        .map_err(|_| Error::InvalidState("a virtqueue's size or addresses cannot be"))
    }
}
