//! Requests by io_uring.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use disk::Disk;
use engine::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Ended, Executor, Wait, WakeUps, outside_memory};
use super::request::{Operation, Request};
use super::ring::{Allocation, Direction, Event, OutsideMemory, Ring};
use crate::fd::event_fd;

/// Larger requests that are not aligned for O_DIRECT go through [`Executor`], piece by piece.
const MAX_BOUNCE: u64 = 256 << 10;
/// How often an operation that should be tried again is.
const MAX_RETRIES: u32 = 16;

const WATCHED: [usize; 2] = [0, 1];

/// Carries out the requests of a queue at the same time, right between the file and guest memory.
pub(super) struct UringBackend {
    ring: Ring,
    /// For what the ring cannot do.
    executor: Executor,
    disk: Arc<dyn Disk>,
    requests: Vec<Option<Active>>,
    free: Vec<usize>,
    ended: Vec<Ended>,
    wake_ups: [EventFd; 2],
    watching: [bool; 2],
    timer_runs: bool,
}

/// A request in a slot.
struct Active {
    request: Request,
    durable: bool,
    /// Where the data lies in its file, if not where it lies on the disk.
    file_offset: Option<u64>,
    /// Bytes moved, or ranges done.
    done: u64,
    retries: u32,
}

/// What became of an operation.
enum Step {
    /// The request goes on with another one, which was begun.
    Continued,
    Done,
}

impl UringBackend {
    /// Fails where io_uring is missing.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        memory: GuestMemory,
        wake_ups: &WakeUps,
        depth: usize,
    ) -> io::Result<Self> {
        let wake_ups = [wake_ups.doorbell.try_clone()?, wake_ups.control.try_clone()?];
        let watched = wake_ups
            .iter()
            .map(|event| event_fd(event).as_fd().try_clone_to_owned())
            .collect::<io::Result<Vec<OwnedFd>>>()?;
        Ok(Self {
            ring: Ring::new(depth, memory, Arc::clone(&disk), watched)?,
            executor: Executor::new(Arc::clone(&disk)),
            disk,
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            ended: Vec::new(),
            wake_ups,
            watching: [false; 2],
            timer_runs: false,
        })
    }

    /// Begins the request in `slot`, or does it at once.
    fn start(&mut self, slot: usize, active: &mut Active) -> io::Result<Step> {
        let operation = match &active.request.operation {
            Operation::Read { .. } | Operation::Write { .. } => {
                return self.start_transfer(slot, active);
            }
            Operation::Flush if self.disk.direct_file().is_none() => return self.execute(active),
            Operation::Flush => {
                self.ring.sync(slot)?;
                return Ok(Step::Continued);
            }
            Operation::GetId => return Ok(Step::Done),
            operation => operation,
        };
        let punches = self.disk.direct_file().is_some_and(|file| file.punches_holes());
        if !punches || active.durable {
            return self.execute(active);
        }
        let next = usize::try_from(active.done).unwrap_or(usize::MAX);
        let (range, allocation) = match operation {
            Operation::Discard(ranges) => match ranges.get(next) {
                Some(range) => (range, Allocation::PunchHole),
                None => return Ok(Step::Done),
            },
            Operation::WriteZeroes(ranges) => match ranges.get(next) {
                Some(zero) if zero.unmap => (&zero.range, Allocation::PunchHole),
                Some(zero) => (&zero.range, Allocation::ZeroRange),
                None => return Ok(Step::Done),
            },
            _ => return Ok(Step::Done),
        };
        if range.is_empty() {
            active.done += 1;
            return self.start(slot, active);
        }
        self.ring.allocate(slot, allocation, range.start, range.end - range.start)?;
        Ok(Step::Continued)
    }

    fn start_transfer(&mut self, slot: usize, active: &mut Active) -> io::Result<Step> {
        let Some((direction, offset)) = transfer_of(active) else { return Ok(Step::Done) };
        let length = active.request.length;
        if length == 0 {
            return Ok(Step::Done);
        }
        let (memory_alignment, offset_alignment) = match self.disk.direct_file() {
            Some(file) => (file.memory_alignment(), file.offset_alignment()),
            None if direction == Direction::FromFile => {
                return self.start_mapped_read(slot, active, offset..offset + length);
            }
            None => return self.execute(active),
        };
        if !offset.is_multiple_of(offset_alignment.into())
            || !length.is_multiple_of(offset_alignment.into())
        {
            return self.execute(active);
        }
        let data = &active.request.data;
        self.ring.load(slot, data)?;
        if !self.ring.is_aligned(slot, memory_alignment, offset_alignment) {
            match usize::try_from(length) {
                Ok(length) if length as u64 <= MAX_BOUNCE => {
                    let alignment = memory_alignment.max(offset_alignment);
                    self.ring.load_bounce(slot, data, length, alignment, direction)?;
                }
                _ => return self.execute(active),
            }
        }
        self.ring.transfer(slot, direction, offset)?;
        Ok(Step::Continued)
    }

    /// Reads right from where the disk's format has the data, if that is one piece.
    fn start_mapped_read(
        &mut self,
        slot: usize,
        active: &mut Active,
        range: Range<u64>,
    ) -> io::Result<Step> {
        self.ring.load(slot, &active.request.data)?;
        let Some(offset) = self.ring.aim(slot, range) else { return self.execute(active) };
        active.file_offset = Some(offset);
        self.ring.transfer(slot, Direction::FromFile, offset)?;
        Ok(Step::Continued)
    }

    fn execute(&mut self, active: &mut Active) -> io::Result<Step> {
        self.executor.execute(self.ring.memory(), &mut active.request, active.durable)?;
        Ok(Step::Done)
    }

    /// Goes on with the request in `slot`, one operation of which completed with `result`.
    fn go_on(&mut self, slot: usize, active: &mut Active, result: i32) -> io::Result<Step> {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        let again = error.as_ref().and_then(io::Error::raw_os_error);
        if matches!(again, Some(libc::EAGAIN | libc::EINTR)) && active.retries < MAX_RETRIES {
            active.retries += 1;
            return match transfer_of(active) {
                Some((direction, offset)) => {
                    self.ring.transfer(slot, direction, offset + active.done)?;
                    Ok(Step::Continued)
                }
                None => self.start(slot, active),
            };
        }
        match &active.request.operation {
            Operation::Read { .. } | Operation::Write { .. } => {
                self.go_on_transfer(slot, active, result, error)
            }
            Operation::Discard(_) | Operation::WriteZeroes(_) => match error {
                // What the file system cannot do at once, the disk does by other means.
                Some(_) => self.execute(active),
                None => {
                    active.done += 1;
                    self.start(slot, active)
                }
            },
            Operation::Flush | Operation::GetId => error.map_or(Ok(Step::Done), Err),
        }
    }

    fn go_on_transfer(
        &mut self,
        slot: usize,
        active: &mut Active,
        result: i32,
        error: Option<io::Error>,
    ) -> io::Result<Step> {
        let Some((direction, offset)) = transfer_of(active) else { return Ok(Step::Done) };
        let moved = match error {
            Some(error) => {
                self.finish(slot, active, direction)?;
                return Err(error);
            }
            None => result.unsigned_abs() as usize,
        };
        active.done += moved as u64;
        if moved > 0 && self.ring.advance(slot, moved) {
            self.ring.transfer(slot, direction, offset + active.done)?;
            return Ok(Step::Continued);
        }
        self.finish(slot, active, direction)?;
        if moved == 0 {
            // The file is shorter than it was.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Step::Done)
    }

    fn finish(&mut self, slot: usize, active: &Active, direction: Direction) -> io::Result<()> {
        if direction == Direction::FromFile {
            self.ring.finish_read(slot, &active.request.data)?;
        }
        Ok(())
    }

    /// Keeps the request if it goes on, and hands it out if it has ended.
    fn settle(&mut self, slot: usize, active: Active, step: io::Result<Step>) {
        let result = match step {
            Ok(Step::Continued) => {
                self.requests[slot] = Some(active);
                return;
            }
            Ok(Step::Done) => Ok(()),
            Err(error) => Err(error),
        };
        self.free.push(slot);
        self.ended.push(Ended { request: active.request, result });
    }

    fn prepare_wait(&mut self, wait: Wait) -> io::Result<bool> {
        for index in WATCHED {
            if !self.watching[index] {
                self.ring.watch(index)?;
                self.watching[index] = true;
            }
        }
        match wait {
            Wait::No => return Ok(false),
            Wait::AtMost(duration) if !self.timer_runs => {
                self.ring.set_timer(duration)?;
                self.timer_runs = true;
            }
            // A timer that runs was set for the same request, which still is the queue's first.
            Wait::AtMost(_) | Wait::Forever => {}
        }
        Ok(self.ended.is_empty())
    }
}

impl Backend for UringBackend {
    fn begin(&mut self, request: Request, durable: bool) {
        let mut active = Active { request, durable, file_offset: None, done: 0, retries: 0 };
        let Some(slot) = self.free.pop() else {
            let result = self.executor.execute(self.ring.memory(), &mut active.request, durable);
            self.ended.push(Ended { request: active.request, result });
            return;
        };
        let step = self.start(slot, &mut active);
        self.settle(slot, active, step);
    }

    fn wait(&mut self, wait: Wait, ended: &mut Vec<Ended>) -> io::Result<()> {
        let block = self.prepare_wait(wait)?;
        self.ring.submit(block)?;
        while let Some(event) = self.ring.next_event() {
            match event {
                Event::Completed { slot, result } => {
                    if let Some(mut active) = self.requests[slot].take() {
                        let step = self.go_on(slot, &mut active, result);
                        self.settle(slot, active, step);
                    }
                }
                Event::Readable(index) => {
                    self.watching[index] = false;
                    // Does not block; nothing to read is as good as read.
                    let _ = self.wake_ups[index].read();
                }
                Event::Timer => self.timer_runs = false,
            }
        }
        ended.append(&mut self.ended);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len() + self.ended.len()
    }
}

/// Direction of a transfer and its offset in the file; `None` for other requests.
fn transfer_of(active: &Active) -> Option<(Direction, u64)> {
    match active.request.operation {
        Operation::Read { offset } => {
            Some((Direction::FromFile, active.file_offset.unwrap_or(offset)))
        }
        Operation::Write { offset } => {
            Some((Direction::ToFile { durable: active.durable }, offset))
        }
        _ => None,
    }
}

impl From<OutsideMemory> for io::Error {
    fn from(_: OutsideMemory) -> Self {
        outside_memory()
    }
}
