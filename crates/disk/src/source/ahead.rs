//! What is read from afar: in blocks that are kept for a while, and more at once for who reads in order.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::window::Window;
use super::{Source, truncated};
use crate::Result;

pub(super) use super::window::BLOCK;

/// Keeps at most 16 MiB of what was read lately of a source whose every request costs a round trip. Who reads on from
/// where it last read gets more and more at once, up to 4 MiB.
#[derive(Default)]
pub struct ReadAhead {
    state: Mutex<Window>,
    arrived: Condvar,
}

/// Fetches blocks by their numbers, in order, and gives each away as it comes.
type Fetch<'a> = &'a dyn Fn(Range<u64>, &mut dyn FnMut(u64, Arc<[u8]>)) -> Result<()>;

impl ReadAhead {
    /// Bytes in a block; the last one of a source may be shorter.
    pub const BLOCK: u64 = BLOCK;

    /// Fills `buffer` from `offset`; what is not kept is fetched. Readers who want the same at the same time share it.
    ///
    /// # Errors
    /// It passes the end of the source, or `fetch` fails.
    pub fn read_at(
        &self,
        source: &dyn Source,
        buffer: &mut [u8],
        offset: u64,
        fetch: Fetch<'_>,
    ) -> Result<()> {
        let length = source.len();
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= length);
        let end = end.ok_or_else(|| truncated(source, offset, buffer.len()))?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let block = self.block(at / BLOCK, (end - 1) / BLOCK, length, fetch)?;
            let part = block.get((at % BLOCK) as usize..).unwrap_or_default();
            let count = part.len().min(buffer.len() - done);
            if count == 0 {
                return Err(truncated(source, at, buffer.len() - done));
            }
            buffer[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        Ok(())
    }

    /// Keeps a block that came on its own.
    pub(super) fn insert(&self, number: u64, block: Arc<[u8]>) {
        self.lock().insert(number, block);
    }

    /// The block of this number; reads on to the block `last` where nothing is kept of it.
    fn block(&self, number: u64, last: u64, length: u64, fetch: Fetch<'_>) -> Result<Arc<[u8]>> {
        let run = {
            let mut state = self.lock();
            loop {
                if let Some(found) = state.get(number) {
                    return Ok(found);
                }
                if !state.is_coming(number) {
                    break;
                }
                state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.begin(number, last, length.div_ceil(BLOCK))
        };
        let landing = Landing { ahead: self, first: run.start };
        let mut first: Option<Arc<[u8]>> = None;
        let fetched = fetch(run, &mut |at, block| {
            if at == number {
                first = Some(Arc::clone(&block));
            }
            self.lock().insert(at, block);
            self.arrived.notify_all();
        });
        drop(landing);
        fetched?;
        Ok(first.unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ReadAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAhead").finish_non_exhaustive()
    }
}

/// Takes back what was said to be coming, whether it came or not.
struct Landing<'a> {
    ahead: &'a ReadAhead,
    first: u64,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.ahead.lock().end(self.first);
        self.ahead.arrived.notify_all();
    }
}
