//! How the device's owner talks to a queue's worker.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Error, Result};

/// What the owner wants of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Run,
    Pause,
    Stop,
}

/// Shared by one worker and the owner of its device.
pub(super) struct Control {
    /// Wakes the worker from its wait.
    event: EventFd,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    wanted: Wanted,
    /// The worker touches neither guest memory nor the queue, and will not before it is wanted to run.
    quiet: bool,
    ended: bool,
}

/// Says that the worker has ended, however that came.
pub(super) struct EndGuard<'a>(pub &'a Control);

impl Control {
    pub(super) fn new() -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(Error::io("create the control event of a disk"))?;
        let state = State { wanted: Wanted::Run, quiet: false, ended: false };
        Ok(Self { event, state: Mutex::new(state), changed: Condvar::new() })
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// For the owner: asks for something else, without waiting for it.
    pub(super) fn ask(&self, wanted: Wanted) {
        self.lock().wanted = wanted;
        self.changed.notify_all();
        // A full counter wakes as well.
        let _ = self.event.write(1);
    }

    /// For the owner, after asking for a pause: returns when the worker is quiet.
    pub(super) fn wait_quiet(&self) {
        let state = self.lock();
        let _state = self
            .changed
            .wait_while(state, |state| !state.quiet && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// For the worker.
    pub(super) fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// For the worker: is quiet until it is not to pause any more.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        state.quiet = true;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.wanted == Wanted::Pause)
            .unwrap_or_else(PoisonError::into_inner);
        state.quiet = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}
