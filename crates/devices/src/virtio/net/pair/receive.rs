//! From the port into the guest.

use std::sync::Arc;

use virtio_queue::{Error, Queue, QueueT};

use super::super::header::{HEADER_SIZE, MOST_FRAME};
use super::super::port::PortError;
use super::super::{rings, sys};
use super::buffers::{Buffers, Found};
use super::{Active, BATCH, Common, Counters, Flow, News, PairState};

/// Collected at least for each frame: one of the usual size.
const USUAL: usize = HEADER_SIZE + 1526;

impl PairState {
    /// Receives frames until the port has no more, or the driver no room, or the limit is reached.
    pub(super) fn receive(&mut self, common: &Common, news: &mut News) {
        let Self { port, rest, active: Some(active), .. } = self else { return };
        if active.broken || !active.enabled {
            return;
        }
        let rx = Arc::clone(&active.rx);
        let memory = Arc::clone(&active.memory);
        let mut queue = rx.lock();
        let before = queue.next_used();
        let mut batch = Batch {
            active,
            port: &mut **port,
            rest,
            common,
            news,
            memory: &memory,
            buffers: Buffers::default(),
        };
        let flow = batch.run(&mut queue);
        let Batch { buffers, .. } = batch;
        buffers.put_back(&mut queue);
        let wanted = rings::wants_interrupt(&queue, &memory, before);
        // Where the ring cannot be read any more the driver is told, so that it notices.
        if wanted.unwrap_or(true) {
            rx.interrupt().signal();
        }
        match flow {
            Ok(Some(flow)) => active.receiving = flow,
            Ok(None) => {
                active.receiving = Flow::Port;
                rx.ring();
            }
            Err(error) => {
                tracing::debug!(%error, "the driver broke a receive queue");
                news.needs_reset = true;
            }
        }
    }
}

struct Batch<'a, 'm> {
    active: &'a mut Active,
    port: &'a mut dyn super::Port,
    rest: &'a mut [u8],
    common: &'a Common,
    news: &'a mut News,
    memory: &'m super::GuestMemory,
    buffers: Buffers<'m>,
}

impl Batch<'_, '_> {
    /// What is waited for now; `None` if there is more to do at once.
    fn run(&mut self, queue: &mut Queue) -> Result<Option<Flow>, Error> {
        queue.disable_notification(self.memory)?;
        for _ in 0..BATCH {
            if let Err(wait) = self.common.limit_rx.take(0, 0) {
                self.active.set_timer(0, wait);
                return Ok(Some(Flow::Limit));
            }
            let known = match self.port.next_frame() {
                Ok(known) => known,
                Err(error) => return Ok(Some(self.failed(error))),
            };
            let expected = known.unwrap_or(self.active.expected.max(USUAL));
            let found = self.collect(queue, expected)?;
            if let Found::Useless(Some(head)) = found {
                rings::publish(queue, self.memory, std::iter::once((head, 0)))?;
                continue;
            }
            // A frame that is known not to fit yet waits for more buffers, unless all are here already.
            let waits = known.is_some_and(|size| size > self.buffers.capacity)
                && found == Found::Nothing
                && self.active.mergeable()
                && self.buffers.chains() < usize::from(queue.size());
            if self.buffers.is_empty() || waits {
                if queue.enable_notification(self.memory)? {
                    queue.disable_notification(self.memory)?;
                    continue;
                }
                return Ok(Some(Flow::Driver));
            }
            match self.port.receive(&self.buffers.slices, self.rest) {
                Ok(size) => self.deliver(queue, size)?,
                Err(PortError::Refused) => Counters::add(&self.common.counters.receive_dropped),
                Err(error) => return Ok(Some(self.failed(error))),
            }
        }
        Ok(None)
    }

    /// Collects room for `size` bytes, or all that a frame may use if that is less.
    fn collect(&mut self, queue: &mut Queue, size: usize) -> Result<Found, Error> {
        while self.buffers.capacity < size {
            if !self.active.mergeable() && !self.buffers.is_empty() {
                break;
            }
            let found = self.buffers.collect(queue, self.memory)?;
            if found != Found::Room {
                return Ok(found);
            }
        }
        Ok(Found::Room)
    }

    /// A frame of `size` bytes with its header was received: into the buffers, and what had no room there into
    /// `rest`.
    fn deliver(&mut self, queue: &mut Queue, size: usize) -> Result<(), Error> {
        let counters = &self.common.counters;
        let had = self.buffers.capacity;
        // One that filled `rest` to the end was larger still.
        let whole = size < had.saturating_add(self.rest.len());
        if !(HEADER_SIZE..=HEADER_SIZE + MOST_FRAME).contains(&size) || !whole {
            Counters::add(&counters.receive_dropped);
            return Ok(());
        }
        self.active.expected = size;
        if size > had {
            self.collect(queue, size)?;
            if self.buffers.capacity < size {
                Counters::add(&counters.receive_dropped);
                return Ok(());
            }
            sys::copy_at(&self.buffers.slices, had, &self.rest[..size - had]);
        }
        let used = self.buffers.complete(size);
        rings::publish(queue, self.memory, used.into_iter())?;
        let bytes = size - HEADER_SIZE;
        counters.received(bytes);
        self.common.limit_rx.charge(1, bytes as u64);
        Ok(())
    }

    fn failed(&mut self, error: PortError) -> Flow {
        match error {
            PortError::NotReady => {}
            PortError::Refused => Counters::add(&self.common.counters.receive_dropped),
            PortError::Gone(error) => {
                tracing::warn!(%error, "the network is gone");
                self.news.link_down = true;
            }
        }
        Flow::Port
    }
}
