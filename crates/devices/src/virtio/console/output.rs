//! Output that a thread writes, so that the host may be slow.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::threads;
use crate::virtio::VirtQueue;

/// Bytes of output that wait for the host at most; then the guest waits.
pub const OUTPUT_LIMIT: usize = 64 << 10;

/// How long what is left may take when the device ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The way out of one port.
pub(super) struct Output {
    shared: Arc<Shared>,
    /// Taken by the thread, which begins with the first output.
    writer: Option<Box<dyn Write + Send>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The thread is writing what it took.
    writing: bool,
    /// The host takes no more; everything is thrown away.
    broken: bool,
    ended: bool,
    /// A queue that waits for room.
    waiting: Option<Arc<VirtQueue>>,
}

impl Output {
    pub(super) fn new(writer: Box<dyn Write + Send>) -> Self {
        Self { shared: Arc::default(), writer: Some(writer) }
    }

    /// Bytes that there is room for, until the next [`write`](Self::write) at least. If there are none,
    /// `queue` is rung when there are.
    pub(super) fn room(&self, queue: &Arc<VirtQueue>) -> usize {
        let mut state = self.shared.lock();
        let room = OUTPUT_LIMIT.saturating_sub(state.bytes.len());
        if room == 0 {
            state.waiting = Some(Arc::clone(queue));
        }
        room
    }

    /// Hands `bytes` to the thread, as many as there is room for.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let room = OUTPUT_LIMIT.saturating_sub(state.bytes.len());
        if !state.broken {
            state.bytes.extend(&bytes[..bytes.len().min(room)]);
        }
        drop(state);
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("console-output".into());
            if let Err(error) = threads::spawn(thread, move || shared.run(writer)) {
                tracing::warn!(%error, "the console has no output");
                self.shared.lock().give_up();
            }
        }
    }

    /// What waits for the host.
    pub(super) fn waiting(&self) -> Vec<u8> {
        self.shared.lock().bytes.iter().copied().collect()
    }

    /// Waits for no queue any more.
    pub(super) fn forget_queue(&self) {
        self.shared.lock().waiting = None;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        self.shared.changed.notify_all();
        // A host that takes nothing keeps its thread, and not the machine.
        if self.writer.is_none() {
            let _ = self.shared.changed.wait_timeout_while(state, LAST_WORDS, |state| {
                !state.broken && (state.writing || !state.bytes.is_empty())
            });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut writer: Box<dyn Write + Send>) {
        loop {
            let mut state = self
                .changed
                .wait_while(self.lock(), |state| state.bytes.is_empty() && !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.bytes.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut state.bytes);
            state.writing = true;
            let waiting = state.waiting.take();
            drop(state);
            if let Some(queue) = waiting {
                queue.ring();
            }
            let (first, second) = bytes.as_slices();
            let written = writer
                .write_all(first)
                .and_then(|()| writer.write_all(second))
                .and_then(|()| writer.flush());
            let mut state = self.lock();
            state.writing = false;
            if let Err(error) = written {
                tracing::debug!(%error, "nobody reads the console");
                state.give_up();
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

impl State {
    fn give_up(&mut self) {
        self.broken = true;
        self.bytes.clear();
        if let Some(queue) = self.waiting.take() {
            queue.ring();
        }
    }
}
