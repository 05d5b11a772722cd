//! Making `KVM_RUN` return from another thread.
//!
//! A kick must not be lost, whether it comes before, during or after `KVM_RUN`. It sets `pending`, then,
//! if the processor is between [`Kick::enter`] and the drop of [`Running`], the `immediate_exit` flag,
//! then sends the signal. The flag makes a `KVM_RUN` that has not begun return at once; the signal ends
//! one that has. The runner clears the flag *before* it looks at `pending`, so that whichever order the
//! two threads take, either `pending` is seen or the flag stays set.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use engine::{Error, Result};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// The signal that interrupts a processor's thread; its handler does nothing.
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Shared by a processor and its kickers.
#[derive(Default)]
pub struct Kick {
    pending: AtomicBool,
    running: Mutex<Option<Target>>,
}

/// A thread inside of `run`, and the flag of its processor. Both are valid for as long as they can be
/// found under the lock.
struct Target {
    thread: libc::pthread_t,
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the thread handle may be used from any thread, and the flag is atomic.
unsafe impl Send for Target {}

impl Kick {
    /// Makes the calling thread the one to kick, until the returned value is dropped.
    ///
    /// # Safety
    ///
    /// `immediate_exit` must be valid until then.
    pub unsafe fn enter(&self, immediate_exit: NonNull<AtomicU8>) -> Result<Running<'_>> {
        prepare_thread().map_err(Error::backend("prepare the thread for kicks"))?;
        // SAFETY: promised by the caller.
        let flag = unsafe { immediate_exit.as_ref() };
        // SAFETY: it has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Target { thread, immediate_exit });
        Ok(Running { kick: self, flag })
    }
}

impl engine::Kick for Kick {
    fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*running {
            // SAFETY: `Running` removes the target under this lock before the flag can become invalid.
            unsafe { target.immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
            // SAFETY: the thread is alive: it removes itself under this lock before it leaves `run`.
            unsafe { libc::pthread_kill(target.thread, kick_signal()) };
        }
    }
}

/// The calling thread runs the processor.
pub struct Running<'a> {
    kick: &'a Kick,
    flag: &'a AtomicU8,
}

impl Running<'_> {
    /// Whether somebody kicked since the last time that this returned true. To be asked before the first
    /// `KVM_RUN` and after each that was interrupted.
    pub fn kicked(&self) -> bool {
        self.flag.store(0, Ordering::SeqCst);
        self.kick.pending.swap(false, Ordering::SeqCst)
    }

    /// Makes the next `KVM_RUN` return at once.
    pub fn interrupt(&self) {
        self.flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.kick.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Installs the handler once, and makes sure that this thread does not block the signal.
fn prepare_thread() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    static HANDLER: OnceLock<std::result::Result<(), errno::Error>> = OnceLock::new();
    thread_local!(static READY: Cell<bool> = const { Cell::new(false) });

    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

    if !READY.get() {
        (*HANDLER.get_or_init(|| register_signal_handler(kick_signal(), nothing)))?;
        unblock_signal(kick_signal()).map_err(|error| error.to_string())?;
        READY.set(true);
    }
    Ok(())
}
