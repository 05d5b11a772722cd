//! Serving queues from an event loop, as most devices do.

use std::ops::Deref;
use std::sync::Arc;

use engine::GuestMemory;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::{Activation, DeviceSignal, VirtQueue};
use crate::{EventHandler, EventLoopHandle, Registration, Result};

/// Chains served in one go; what remains is looked at after the other descriptors of the loop.
const BATCH: usize = 256;

/// What a driver activated, for a device that serves its queues under a lock of its own.
pub(crate) struct Served {
    activation: Activation,
    /// Guest memory may be used.
    running: bool,
    doorbells: Vec<Registration>,
}

impl Served {
    /// Nothing is served before [`run`](Self::run).
    pub(crate) fn new(activation: Activation) -> Self {
        Self { activation, running: false, doorbells: Vec::new() }
    }

    /// The driver's queue `index`, if it is enabled.
    pub(crate) fn queue(&self, index: usize) -> Option<&Arc<VirtQueue>> {
        self.activation.queues.get(index)?.as_ref()
    }

    /// Whether guest memory may be used.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Begins or goes on: `handler` is called with the index of each queue whose doorbell rings.
    pub(crate) fn run(
        &mut self,
        events: &EventLoopHandle,
        handler: &Arc<dyn EventHandler>,
    ) -> Result<()> {
        if !self.running {
            self.running = true;
            self.doorbells = watch_doorbells(events, &self.activation.queues, handler)?;
        }
        Ok(())
    }

    /// Stops. Since all use of guest memory is under the device's lock, none is under way when that is released.
    pub(crate) fn halt(&mut self) {
        self.running = false;
        self.doorbells.clear();
    }
}

impl Deref for Served {
    type Target = Activation;

    fn deref(&self) -> &Activation {
        &self.activation
    }
}

/// What became of a chain.
pub(crate) enum Outcome {
    /// It was used and so many bytes were written to it.
    Used(u32),
    /// It cannot be served now and stays in the queue.
    Later,
}

/// Calls `handler` with the index of each queue whose doorbell rings, and rings each once, since the driver
/// may have filled the queues before.
pub(crate) fn watch_doorbells(
    events: &EventLoopHandle,
    queues: &[Option<Arc<VirtQueue>>],
    handler: &Arc<dyn EventHandler>,
) -> Result<Vec<Registration>> {
    let watches = queues
        .iter()
        .enumerate()
        .filter_map(|(index, queue)| Some((index as u64, queue.as_ref()?)))
        .map(|(index, queue)| events.watch_event(queue.doorbell(), index, Arc::clone(handler)))
        .collect::<Result<Vec<_>>>()?;
    queues.iter().flatten().for_each(|queue| queue.ring());
    Ok(watches)
}

/// Ends `watches`; on return none of their handlers is being called any more.
pub(crate) fn unwatch(events: &EventLoopHandle, watches: Vec<Registration>) {
    if !watches.is_empty() {
        drop(watches);
        events.barrier();
    }
}

/// Hands each available chain of `queue` to `each` until it says [`Outcome::Later`], and tells the driver
/// of what was used. A queue that breaks the rules makes the device need a reset.
pub(crate) fn serve<'m>(
    queue: &VirtQueue,
    memory: &'m GuestMemory,
    signal: &dyn DeviceSignal,
    each: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Outcome,
) {
    let batch = Batch { queue, used: 0, full: false, prompt: false };
    batch.serve(memory, signal, each);
}

/// As [`serve`], telling the driver of each chain at once rather than of all together: for requests that
/// take longer than an interrupt.
pub(crate) fn serve_promptly<'m>(
    queue: &VirtQueue,
    memory: &'m GuestMemory,
    signal: &dyn DeviceSignal,
    each: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Outcome,
) {
    let batch = Batch { queue, used: 0, full: false, prompt: true };
    batch.serve(memory, signal, each);
}

struct Batch<'q> {
    queue: &'q VirtQueue,
    used: usize,
    full: bool,
    prompt: bool,
}

impl Batch<'_> {
    fn serve<'m>(
        mut self,
        memory: &'m GuestMemory,
        signal: &dyn DeviceSignal,
        each: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Outcome,
    ) {
        let queue = self.queue;
        let mut rings = queue.lock();
        let served = self.run(&mut rings, memory, each);
        if self.used > 0 && !self.prompt {
            queue.notify_driver(&mut rings, memory);
        }
        drop(rings);
        if self.full {
            queue.ring();
        }
        if let Err(error) = served {
            tracing::debug!(queue = queue.index(), %error, "the driver broke a virtqueue");
            signal.needs_reset();
        }
    }

    fn run<'m>(
        &mut self,
        rings: &mut Queue,
        memory: &'m GuestMemory,
        mut each: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Outcome,
    ) -> std::result::Result<(), QueueError> {
        loop {
            let before = self.used;
            rings.disable_notification(memory)?;
            // Not one iterator for all: the ring is asked anew, so that what comes meanwhile is served.
            while let Some(chain) = rings.iter(memory)?.next() {
                if self.used == BATCH {
                    self.full = true;
                    rings.go_to_previous_position();
                    return Ok(());
                }
                let head = chain.head_index();
                match each(chain) {
                    Outcome::Used(written) => rings.add_used(memory, head, written)?,
                    Outcome::Later => {
                        rings.go_to_previous_position();
                        rings.enable_notification(memory)?;
                        return Ok(());
                    }
                }
                self.used += 1;
                if self.prompt {
                    self.queue.notify_driver(rings, memory);
                }
            }
            if !rings.enable_notification(memory)? {
                return Ok(());
            }
            // Something is available and yet nothing could be taken.
            if self.used == before && rings.iter(memory)?.next().is_none() {
                return Err(QueueError::InvalidAvailRingIndex);
            } else if self.used == before {
                rings.go_to_previous_position();
            }
        }
    }
}
