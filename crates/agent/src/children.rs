//! Who waits for which child process. In an ordinary process each command's owner does. PID 1 inherits every orphan
//! of the guest as well: there [`reap`] takes whatever ends and keeps the exit statuses that somebody will ask for.
//!
//! Every thread of PID 1 keeps the signals that it waits for blocked: a thread that does not would be chosen to take
//! them, and drop them.

use crate::wire::Exit;
use nix::sys::signal::SigSet;
use rustix::process::{WaitOptions, WaitStatus, wait};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct State {
    /// The signals that are blocked in this process, if [`reap`] does the waiting.
    reaping: Option<SigSet>,
    /// Children whose exit status somebody will collect.
    awaited: BTreeSet<u32>,
    /// Exit statuses that the reaper holds for them.
    ended: BTreeMap<u32, Exit>,
}

static STATE: Mutex<State> =
    Mutex::new(State { reaping: None, awaited: BTreeSet::new(), ended: BTreeMap::new() });
static CHANGED: Condvar = Condvar::new();

/// Starts a child whose exit status the caller will [`collect`].
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // Held across the spawn, so that the reaper never sees a child before it is entered here.
    let mut state = lock();
    let Some(signals) = state.reaping else {
        drop(state);
        return command.spawn();
    };
    // A child inherits the mask. What ends in the meantime ends unnoticed, so that is looked for.
    signals.thread_unblock()?;
    let child = command.spawn();
    signals.thread_block()?;
    if let Ok(child) = &child {
        state.awaited.insert(child.id());
    }
    drop(state);
    reap();
    child
}

/// How the child ended: waits for it, or with `block` false looks whether it has.
pub fn collect(child: &mut Child, block: bool) -> io::Result<Option<Exit>> {
    let mut state = lock();
    if !state.awaited.contains(&child.id()) && !state.ended.contains_key(&child.id()) {
        drop(state);
        let status = if block { Some(child.wait()?) } else { child.try_wait()? };
        return Ok(status.map(exit_of));
    }
    loop {
        if let Some(exit) = state.ended.remove(&child.id()) {
            return Ok(Some(exit));
        }
        if !block {
            return Ok(None);
        }
        state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Makes this process wait for whatever ends in it, by calling [`reap`] at every SIGCHLD: what PID 1 has to do.
/// `signals` are what it waits for; all threads to come have them blocked. To be called before the first [`spawn`].
pub fn take_over(signals: SigSet) -> io::Result<()> {
    signals.thread_block()?;
    lock().reaping = Some(signals);
    Ok(())
}

/// Reaps what has ended, without waiting.
pub fn reap() {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let pid = pid.as_raw_nonzero().get().cast_unsigned();
        let mut state = lock();
        if state.awaited.remove(&pid) {
            state.ended.insert(pid, exit_of_wait(status));
            CHANGED.notify_all();
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(signal) => Exit::Signal(signal as u8),
        None => Exit::Code(status.code().unwrap_or_default() as u8),
    }
}

fn exit_of_wait(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal as u8),
        None => Exit::Code(status.exit_status().unwrap_or_default() as u8),
    }
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}
