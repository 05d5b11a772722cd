//! How requests are carried out: by io_uring, or one after the other through [`Disk`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;
use engine::GuestMemory;
use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use super::request::{Operation, Request, gather, scatter, split_front};
use super::uring::UringBackend;
use crate::fd::event_fd;

/// Bytes that go through host memory at once where the kernel cannot use guest memory.
const CHUNK: usize = 256 << 10;

/// Carries out the requests of one queue, on the queue's own thread.
pub(super) trait Backend {
    /// Begins `request`. A write, discard or zeroing is durable when it ends if `durable`.
    fn begin(&mut self, request: Request, durable: bool);

    /// Moves requests that have ended to `ended`. If `wait` allows it, waits until there is one,
    /// the doorbell or the control event rings, or the time is over; it may also return for nothing.
    /// An error says that the backend cannot go on.
    fn wait(&mut self, wait: Wait, ended: &mut Vec<Ended>) -> io::Result<()>;

    /// Requests that were begun and not handed out by [`wait`](Backend::wait).
    fn in_flight(&self) -> usize;
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    Forever,
    AtMost(Duration),
}

/// A request that has ended.
pub(super) struct Ended {
    pub request: Request,
    pub result: io::Result<()>,
}

/// The events that end a wait.
pub(super) struct WakeUps {
    pub doorbell: EventFd,
    pub control: EventFd,
}

/// The best backend for `disk`, for at most `depth` requests at once; without io_uring if
/// `synchronous`.
pub(super) fn new_backend(
    disk: Arc<dyn Disk>,
    memory: &GuestMemory,
    wake_ups: WakeUps,
    depth: usize,
    synchronous: bool,
) -> Box<dyn Backend> {
    if !synchronous {
        match UringBackend::new(Arc::clone(&disk), memory.clone(), &wake_ups, depth) {
            Ok(backend) => return Box::new(backend),
            Err(error) => tracing::debug!(%error, "no io_uring for this disk"),
        }
    }
    Box::new(SyncBackend {
        executor: Executor::new(disk),
        memory: memory.clone(),
        wake_ups,
        ended: Vec::new(),
    })
}

/// Carries out each request when it is begun.
struct SyncBackend {
    executor: Executor,
    memory: GuestMemory,
    wake_ups: WakeUps,
    ended: Vec<Ended>,
}

impl Backend for SyncBackend {
    fn begin(&mut self, mut request: Request, durable: bool) {
        let result = self.executor.execute(&self.memory, &mut request, durable);
        self.ended.push(Ended { request, result });
    }

    fn wait(&mut self, wait: Wait, ended: &mut Vec<Ended>) -> io::Result<()> {
        let timeout = match wait {
            _ if !self.ended.is_empty() => Some(Duration::ZERO),
            Wait::No => Some(Duration::ZERO),
            Wait::Forever => None,
            Wait::AtMost(duration) => Some(duration),
        };
        ended.append(&mut self.ended);
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut fds = [&self.wake_ups.doorbell, &self.wake_ups.control]
            .map(|event| PollFd::from_borrowed_fd(event_fd(event), PollFlags::IN));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.wake_ups.clear();
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.ended.len()
    }
}

impl WakeUps {
    /// Takes back what was rung.
    pub(super) fn clear(&self) {
        // They do not block; nothing to read is as good as read.
        let _ = self.doorbell.read();
        let _ = self.control.read();
    }
}

/// Carries out requests through [`Disk`].
pub(super) struct Executor {
    disk: Arc<dyn Disk>,
    /// Of [`CHUNK`] bytes once it has been used.
    chunk: Vec<u8>,
}

impl Executor {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, chunk: Vec::new() }
    }

    /// Carries out `request`, whose data is consumed.
    pub(super) fn execute(
        &mut self,
        memory: &GuestMemory,
        request: &mut Request,
        durable: bool,
    ) -> io::Result<()> {
        let disk = Arc::clone(&self.disk);
        match &request.operation {
            &Operation::Read { offset } => self.chunks(request, offset, |data, chunk, offset| {
                disk.read_at(chunk, offset).map_err(io::Error::other)?;
                scatter(memory, data, chunk).ok_or_else(outside_memory)
            }),
            &Operation::Write { offset } => {
                self.chunks(request, offset, |data, chunk, offset| {
                    gather(memory, data, chunk).ok_or_else(outside_memory)?;
                    disk.write_at(chunk, offset).map_err(io::Error::other)
                })?;
                self.flush_if(durable)
            }
            Operation::Flush => self.flush_if(true),
            // It needs no disk, so the worker answers it.
            Operation::GetId => Ok(()),
            Operation::Discard(ranges) => {
                for range in ranges {
                    disk.discard(range.clone()).map_err(io::Error::other)?;
                }
                self.flush_if(durable)
            }
            Operation::WriteZeroes(ranges) => {
                for zero in ranges {
                    disk.write_zeroes(zero.range.clone(), zero.unmap).map_err(io::Error::other)?;
                }
                self.flush_if(durable)
            }
        }
    }

    fn flush_if(&self, needed: bool) -> io::Result<()> {
        if needed { self.disk.flush().map_err(io::Error::other) } else { Ok(()) }
    }

    /// Calls `each` with what is left of the data, host memory for the next part of it and its offset
    /// on the disk.
    fn chunks(
        &mut self,
        request: &mut Request,
        mut offset: u64,
        mut each: impl FnMut(&[super::request::Segment], &mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.chunk.resize(CHUNK, 0);
        let mut rest = request.length;
        while rest > 0 {
            let count = CHUNK.min(usize::try_from(rest).unwrap_or(CHUNK));
            each(&request.data, &mut self.chunk[..count], offset)?;
            split_front(&mut request.data, count as u64);
            offset += count as u64;
            rest -= count as u64;
        }
        Ok(())
    }
}

/// A request's buffer is not guest memory.
pub(super) fn outside_memory() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a buffer lies outside of guest memory")
}
