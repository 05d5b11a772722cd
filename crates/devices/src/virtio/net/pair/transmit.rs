//! From the guest to the port.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};

use super::super::header::{HEADER_SIZE, LEAST_FRAME, MOST_FRAME};
use super::super::port::PortError;
use super::super::rings;
use super::buffers::gather;
use super::{Active, BATCH, Common, Counters, Flow, News, PairState};
use crate::virtio::sys::Slice;

impl PairState {
    /// Sends what the driver has put into its queue, until the port is full or the limit is reached.
    pub(super) fn transmit(&mut self, common: &Common, news: &mut News) {
        let Self { port, active: Some(active), .. } = self else { return };
        if active.broken {
            return;
        }
        let tx = Arc::clone(&active.tx);
        let memory = Arc::clone(&active.memory);
        let mut queue = tx.lock();
        let before = queue.next_used();
        let mut used = Vec::new();
        let mut batch = Batch { active, port: &mut **port, common, news, used: &mut used };
        let flow = batch.run(&mut queue, &memory);
        let shown = match used.is_empty() {
            true => Ok(()),
            false => rings::publish(&mut queue, &memory, used.into_iter().map(|head| (head, 0))),
        };
        let wanted = rings::wants_interrupt(&queue, &memory, before);
        if wanted.unwrap_or(true) {
            tx.interrupt().signal();
        }
        match shown.and(flow) {
            Ok(Some(flow)) => active.sending = flow,
            Ok(None) => {
                active.sending = Flow::Driver;
                tx.ring();
            }
            Err(error) => {
                tracing::debug!(%error, "the driver broke a transmit queue");
                news.needs_reset = true;
            }
        }
    }
}

struct Batch<'a> {
    active: &'a mut Active,
    port: &'a mut dyn super::Port,
    common: &'a Common,
    news: &'a mut News,
    /// Heads of the chains that are done with.
    used: &'a mut Vec<u16>,
}

impl Batch<'_> {
    /// What is waited for now; `None` if there is more to do at once.
    fn run(
        &mut self,
        queue: &mut Queue,
        memory: &super::GuestMemory,
    ) -> Result<Option<Flow>, Error> {
        queue.disable_notification(memory)?;
        let mut slices = Vec::new();
        for _ in 0..BATCH {
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    queue.disable_notification(memory)?;
                    continue;
                }
                return Ok(Some(Flow::Driver));
            };
            let head = chain.head_index();
            slices.clear();
            let size = gather(chain, memory, &mut slices, |piece| !piece.is_write_only());
            if let Some(flow) = self.send(&slices, size) {
                queue.go_to_previous_position();
                return Ok(Some(flow));
            }
            self.used.push(head);
        }
        Ok(None)
    }

    /// Sends or drops a frame; what must be waited for instead, if that is so.
    fn send(&mut self, slices: &[Slice<'_>], size: Option<usize>) -> Option<Flow> {
        let counters = &self.common.counters;
        let possible = HEADER_SIZE + LEAST_FRAME..=HEADER_SIZE + MOST_FRAME;
        let plugged = self.active.enabled
            && !self.news.link_down
            && self.common.link_up.load(Ordering::Acquire);
        let Some(size) = size.filter(|size| plugged && possible.contains(size)) else {
            Counters::add(&counters.send_dropped);
            return None;
        };
        let bytes = size - HEADER_SIZE;
        if !self.active.paid {
            if let Err(wait) = self.common.limit_tx.take(1, bytes as u64) {
                self.active.set_timer(1, wait);
                return Some(Flow::Limit);
            }
            self.active.paid = true;
        }
        match self.port.send(slices) {
            Ok(()) => counters.sent(bytes),
            Err(PortError::NotReady) => return Some(Flow::Port),
            Err(PortError::Refused) => Counters::add(&counters.send_dropped),
            Err(PortError::Gone(error)) => {
                tracing::warn!(%error, "the network is gone");
                self.news.link_down = true;
                Counters::add(&counters.send_dropped);
            }
        }
        self.active.paid = false;
        None
    }
}
