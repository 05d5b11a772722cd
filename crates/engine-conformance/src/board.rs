//! A board that remembers every access, answers with known values and lets a test act on a write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::{Bus, Kicker};

/// A write to this port ends the guest's work.
pub const DONE: u8 = 0xf4;

/// Accesses to these ports run the test's hook; writes are not remembered.
pub const HOOKS: std::ops::Range<u16> = 0x80..0x90;

/// Loads from these two pages are answered with [`pattern`]; elsewhere with all ones.
pub const PATTERN: std::ops::Range<u64> = 0xd000_0000..0xd000_2000;

/// One access that reached the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// IN of so many bytes.
    In { port: u16, size: usize },
    /// OUT.
    Out { port: u16, size: usize, value: u64 },
    /// A load.
    Load { address: u64, size: usize },
    /// A store.
    Store { address: u64, size: usize, value: u64 },
}

type Hook = Box<dyn Fn(u16) + Send + Sync>;

/// See the module.
#[derive(Default)]
pub struct Board {
    accesses: Mutex<Vec<Access>>,
    kickers: Mutex<Vec<Kicker>>,
    hook: Mutex<Option<Hook>>,
    answers: Mutex<Vec<u8>>,
    done: AtomicBool,
}

impl Board {
    /// Makes this processor stop when the guest is done.
    pub fn stop_when_done(&self, kicker: Kicker) {
        lock(&self.kickers).push(kicker);
    }

    /// What to do when the guest accesses a port of [`HOOKS`].
    pub fn set_hook(&self, hook: impl Fn(u16) + Send + Sync + 'static) {
        *lock(&self.hook) = Some(Box::new(hook));
    }

    /// Forgets the hook and what it holds.
    pub fn clear_hook(&self) {
        *lock(&self.hook) = None;
    }

    /// Bytes that coming IN instructions read, in order; then all ones.
    pub fn answer(&self, bytes: &[u8]) {
        lock(&self.answers).extend_from_slice(bytes);
    }

    /// Everything that reached the board since the last call, but for hooks and [`DONE`].
    pub fn take_accesses(&self) -> Vec<Access> {
        std::mem::take(&mut lock(&self.accesses))
    }

    /// Whether the guest wrote to [`DONE`] since the last call.
    pub fn take_done(&self) -> bool {
        self.done.swap(false, Ordering::SeqCst)
    }

    fn run_hook(&self, port: u16) {
        if HOOKS.contains(&port)
            && let Some(hook) = &*lock(&self.hook)
        {
            hook(port);
        }
    }

    fn remember(&self, access: Access) {
        let mut accesses = lock(&self.accesses);
        // A guest gone wild must not fill the host's memory.
        if accesses.len() < 1 << 20 {
            accesses.push(access);
        }
    }
}

/// The byte at each address of [`PATTERN`].
pub fn pattern(address: u64) -> u8 {
    0x11_u8.wrapping_mul((address % 8) as u8 + 1)
}

impl Bus for Board {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.run_hook(port);
        let mut answers = lock(&self.answers);
        for byte in &mut *data {
            *byte = if answers.is_empty() { 0xff } else { answers.remove(0) };
        }
        self.remember(Access::In { port, size: data.len() });
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == u16::from(DONE) {
            self.done.store(true, Ordering::SeqCst);
            lock(&self.kickers).iter().for_each(|kicker| kicker.kick());
        } else if HOOKS.contains(&port) {
            self.run_hook(port);
        } else {
            self.remember(Access::Out { port, size: data.len(), value: number(data) });
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        for (place, address) in data.iter_mut().zip(address..) {
            *place = if PATTERN.contains(&address) { pattern(address) } else { 0xff };
        }
        self.remember(Access::Load { address, size: data.len() });
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.remember(Access::Store { address, size: data.len(), value: number(data) });
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
