//! The thread that serves one queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::Disk;
use engine::GuestMemory;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::backend::{Backend, Ended, Wait, WakeUps, new_backend};
use super::control::{Control, EndGuard, Wanted};
use super::request::{
    ID_LENGTH, Limits, Operation, Parsed, Request, STATUS_IO_ERROR, STATUS_OK, parse, scatter,
};
use crate::rate_limiter::RateLimiter;
use crate::virtio::{DeviceSignal, VirtQueue};

/// What all queues of a device share.
pub(super) struct Shared {
    pub name: String,
    pub disk: Arc<dyn Disk>,
    pub limits: Limits,
    pub serial: [u8; ID_LENGTH],
    pub limiter: RateLimiter,
    /// The driver wants a cache, which it flushes; without it every write is durable when it ends.
    pub write_back: AtomicBool,
    pub synchronous: bool,
}

/// Serves one queue until it is told to stop.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub queue: Arc<VirtQueue>,
    pub memory: GuestMemory,
    pub signal: Arc<dyn DeviceSignal>,
    pub control: Arc<Control>,
    /// The driver can flush. Otherwise there must be no cache (section 5.2.6.2).
    pub can_flush: bool,
    /// Most requests at once.
    pub depth: usize,
    /// The driver broke the queue; it is left alone until the reset.
    pub broken: bool,
    /// An error of the disk was already told.
    pub complained: bool,
}

/// What a look at the queue found.
struct Taken {
    requests: Vec<Request>,
    /// How long to wait before the next look.
    wait: Wait,
}

impl Worker {
    /// The thread's work.
    pub(super) fn run(mut self) {
        let control = Arc::clone(&self.control);
        let _end = EndGuard(&control);
        let signal = Arc::clone(&self.signal);
        if let Err(error) = self.serve() {
            tracing::error!(disk = self.shared.name, %error, "Cannot go on with a queue of this disk");
            signal.needs_reset();
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let wake_ups = WakeUps {
            doorbell: self.queue.doorbell().try_clone()?,
            control: self.control.event().try_clone()?,
        };
        let disk = Arc::clone(&self.shared.disk);
        let synchronous = self.shared.synchronous;
        let mut backend = new_backend(disk, &self.memory, wake_ups, self.depth, synchronous);
        let backend = backend.as_mut();
        let mut ended = Vec::with_capacity(self.depth);
        loop {
            match self.control.wanted() {
                Wanted::Run => {}
                wanted => {
                    while backend.in_flight() > 0 {
                        backend.wait(Wait::Forever, &mut ended)?;
                        self.complete(&mut ended);
                    }
                    if wanted == Wanted::Stop {
                        return Ok(());
                    }
                    self.control.rest();
                    continue;
                }
            }
            let wait = self.begin_what_waits(backend);
            backend.wait(wait, &mut ended)?;
            self.complete(&mut ended);
        }
    }

    /// Begins the requests in the queue, as far as there is room for them.
    fn begin_what_waits(&mut self, backend: &mut dyn Backend) -> Wait {
        if self.broken {
            return Wait::Forever;
        }
        let room = self.depth.saturating_sub(backend.in_flight());
        if room == 0 {
            return Wait::Forever;
        }
        let taken = self.take(room);
        let write_back = self.can_flush && self.shared.write_back.load(Ordering::Relaxed);
        for request in taken.requests {
            backend.begin(request, !write_back);
        }
        taken.wait
    }

    /// Takes at most `room` requests out of the queue, and answers what needs no disk.
    fn take(&mut self, room: usize) -> Taken {
        let queue = Arc::clone(&self.queue);
        let mut rings = queue.lock();
        let mut taken = Taken { requests: Vec::new(), wait: Wait::Forever };
        let mut answered = false;
        let looked = self.look(&mut rings, room, &mut taken, &mut answered);
        if answered {
            queue.notify_driver(&mut rings, &self.memory);
        }
        drop(rings);
        if let Err(error) = looked {
            self.give_up(&error);
        }
        // What was taken before the queue broke is still carried out.
        taken
    }

    fn look(
        &self,
        rings: &mut Queue,
        room: usize,
        taken: &mut Taken,
        answered: &mut bool,
    ) -> Result<(), QueueError> {
        let memory = &self.memory;
        rings.disable_notification(memory)?;
        let mut seen_empty = false;
        // Bounded, so that a driver that always adds another one cannot keep us from being paused.
        for _ in 0..self.depth {
            if taken.requests.len() == room {
                // Looked at again when a request has ended.
                return Ok(());
            }
            let Some(chain) = rings.iter(memory)?.next() else {
                if !rings.enable_notification(memory)? {
                    return Ok(());
                }
                if seen_empty {
                    // Something is available and yet cannot be taken.
                    return Err(QueueError::InvalidAvailRingIndex);
                }
                rings.disable_notification(memory)?;
                seen_empty = true;
                continue;
            };
            seen_empty = false;
            let head = chain.head_index();
            match parse(memory, head, chain, self.shared.limits) {
                Parsed::Request(request) if request.operation == Operation::GetId => {
                    self.tell_id(rings, &request)?;
                    *answered = true;
                }
                Parsed::Request(request) => {
                    if let Err(after) = self.shared.limiter.take(1, request.length) {
                        rings.go_to_previous_position();
                        taken.wait = Wait::AtMost(after);
                        return Ok(());
                    }
                    taken.requests.push(request);
                }
                Parsed::Refused { head, status, code } => {
                    self.answer(rings, head, status, code, 0)?;
                    *answered = true;
                }
                Parsed::Unanswerable { head } => {
                    rings.add_used(memory, head, 0)?;
                    *answered = true;
                }
            }
        }
        taken.wait = Wait::No;
        Ok(())
    }

    fn tell_id(&self, rings: &mut Queue, request: &Request) -> Result<(), QueueError> {
        let length = self.shared.serial.len().min(usize::try_from(request.length).unwrap_or(0));
        let told = scatter(&self.memory, &request.data, &self.shared.serial[..length]);
        let (code, written) = match told {
            Some(()) => (STATUS_OK, length as u64),
            None => (STATUS_IO_ERROR, 0),
        };
        self.answer(rings, request.head, request.status, code, written)
    }

    /// Gives a chain back with its status and so many bytes of data.
    fn answer(
        &self,
        rings: &mut Queue,
        head: u16,
        status: GuestAddress,
        code: u8,
        written: u64,
    ) -> Result<(), QueueError> {
        self.memory.write_obj(code, status).map_err(QueueError::GuestMemory)?;
        let written = u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1);
        rings.add_used(&self.memory, head, written)
    }

    /// Answers requests that have ended.
    fn complete(&mut self, ended: &mut Vec<Ended>) {
        if ended.is_empty() {
            return;
        }
        let queue = Arc::clone(&self.queue);
        let mut rings = queue.lock();
        for Ended { request, result } in ended.drain(..) {
            if self.broken {
                continue;
            }
            let (code, written) = match result {
                Ok(()) if matches!(request.operation, Operation::Read { .. }) => {
                    (STATUS_OK, request.length)
                }
                Ok(()) => (STATUS_OK, 0),
                Err(error) => {
                    self.complain(&request, &error);
                    (STATUS_IO_ERROR, 0)
                }
            };
            if let Err(error) = self.answer(&mut rings, request.head, request.status, code, written)
            {
                self.give_up(&error);
            }
        }
        queue.notify_driver(&mut rings, &self.memory);
    }

    /// Says so once, since a guest can make as many errors as it likes.
    fn complain(&mut self, request: &Request, error: &io::Error) {
        let operation = match request.operation {
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Flush => "flush",
            Operation::GetId => "tell its name",
            Operation::Discard(_) => "discard",
            Operation::WriteZeroes(_) => "write zeroes",
        };
        let disk = &self.shared.name;
        if self.complained {
            tracing::debug!(disk, operation, %error, "a request failed");
        } else {
            self.complained = true;
            tracing::warn!(disk, operation, %error, "A request to the disk failed; the guest was told");
        }
    }

    fn give_up(&mut self, error: &QueueError) {
        let queue = self.queue.index();
        tracing::debug!(disk = self.shared.name, queue, %error, "the driver broke a virtqueue");
        self.broken = true;
        self.signal.needs_reset();
    }
}
