//! The 16550A serial port.
//!
//! Written here rather than taken from `vm-superio`: that one writes every byte to the host while the
//! processor waits, so a terminal that stands still stops the machine, and it accepts input before the
//! guest listens, which Linux throws away when it opens the port.
//!
//! Output is collected and written by a thread of its own, since a terminal or a pipe may block for as
//! long as it likes. When it has taken nothing for [`OUTPUT_LIMIT`] bytes the transmitter is no longer empty,
//! which a driver waits for: flow control as with a real line.

#![forbid(unsafe_code)]

mod uart;

#[cfg(test)]
mod tests;

use std::io::{ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Device, Error, Interrupt, Registers, Result, State};
use uart::Uart;

/// The first port of COM1.
pub const COM1: u16 = 0x3f8;
/// The ISA interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// How many ports the device has.
pub const LENGTH: u16 = 8;
/// How much output waits for the host before the transmitter stalls.
pub const OUTPUT_LIMIT: usize = 16 << 10;

/// A 16550A with the host's input and output behind it.
pub struct Serial {
    name: String,
    shared: Arc<Shared>,
    /// Taken by the writing thread when it starts.
    output: Mutex<Option<Box<dyn Write + Send>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Serial {
    /// A port that sends to `output`, from [`Device::start`] on, and raises `interrupt`.
    pub fn new(
        name: impl Into<String>,
        interrupt: Arc<dyn Interrupt>,
        output: Box<dyn Write + Send>,
    ) -> Self {
        let shared = Shared {
            interrupt,
            port: Mutex::default(),
            output_waits: Condvar::new(),
            writer_ended: Condvar::new(),
        };
        Self {
            name: name.into(),
            shared: Arc::new(shared),
            output: Mutex::new(Some(output)),
            writer: Mutex::default(),
        }
    }

    /// Gives the guest input and returns how many of `bytes` it took. When that is not all, the callback
    /// of [`set_input_ready_callback`](Self::set_input_ready_callback) says when to go on.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut port = self.shared.lock();
        let before = port.uart.pending();
        let count = port.uart.receive(bytes);
        if count < bytes.len() {
            port.input_waits = true;
            port.uart.knock();
        }
        let pending = port.uart.pending();
        drop(port);
        if (count > 0 && pending != 0) || pending & !before != 0 {
            self.shared.interrupt.signal();
        }
        count
    }

    /// Sets what is called, on a processor's thread, when input is wanted again after some was refused. It
    /// must not block.
    pub fn set_input_ready_callback(&self, callback: Arc<dyn Fn() + Send + Sync>) {
        self.shared.lock().input_ready = Some(callback);
    }

    /// Does `access` to the chip, and afterwards what follows from it.
    fn access(&self, access: impl FnOnce(&mut Port)) {
        let mut port = self.shared.lock();
        let before = port.uart.pending();
        access(&mut port);
        if port.input_waits {
            port.uart.knock();
        }
        let raised = port.uart.pending() & !before != 0;
        let ready = port.input_waits && port.uart.drained() && port.uart.room() > 0;
        let callback = if ready {
            port.input_waits = false;
            port.input_ready.clone()
        } else {
            None
        };
        let output_begun = port.output_begun();
        drop(port);
        if output_begun {
            self.shared.output_waits.notify_one();
        }
        if raised {
            self.shared.interrupt.signal();
        }
        if let Some(callback) = callback {
            callback();
        }
    }

    /// An interrupt may have been lost while the guest stood still; one too many does no harm.
    fn signal_again(&self) {
        if self.shared.lock().uart.pending() != 0 {
            self.shared.interrupt.signal();
        }
    }
}

impl Registers for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.access(|port| {
            for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
                *byte = port.uart.read(offset);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.access(|port| {
            for (&byte, offset) in data.iter().zip(offset..=u64::MAX) {
                if let Some(byte) = port.uart.write(offset, byte) {
                    port.transmit(byte);
                }
            }
        });
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self) -> Result<()> {
        if let Some(output) = lock(&self.output).take() {
            let shared = Arc::clone(&self.shared);
            let writer = std::thread::Builder::new()
                .name(self.name.clone())
                .stack_size(WRITER_STACK)
                .spawn(move || shared.write_output(output))
                .map_err(Error::io("start the thread that writes the serial port's output"))?;
            *lock(&self.writer) = Some(writer);
        }
        self.signal_again();
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.signal_again();
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        self.access(|port| port.uart = Uart::default());
        Ok(())
    }

    fn save(&self) -> Result<State> {
        State::new(&self.shared.lock().uart.saved())
    }

    fn restore(&self, state: &State) -> Result<()> {
        let uart = state
            .get::<Uart>()?
            .checked()
            .ok_or(Error::InvalidState("the serial port holds more than it can"))?;
        self.shared.lock().uart = uart;
        Ok(())
    }

    /// Writes what was sent, for as long as [`PATIENCE`] at most.
    fn stop(&self) {
        let mut port = self.shared.lock();
        port.stop_by.get_or_insert_with(|| Instant::now() + PATIENCE);
        drop(port);
        self.shared.output_waits.notify_one();
        if let Some(output) = lock(&self.output).take() {
            // It was never started.
            self.shared.write_output(output);
        }
        if let Some(writer) = lock(&self.writer).take() {
            let port = self.shared.lock();
            let waited =
                self.shared.writer_ended.wait_timeout_while(port, PATIENCE, |port| !port.ended);
            let ended = waited.unwrap_or_else(PoisonError::into_inner).0.ended;
            if ended {
                let _ = writer.join();
            }
        }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How long [`Device::stop`] waits for an output that does not move.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long output is collected before it is written: short to the eye, long against a byte.
const LINGER: Duration = Duration::from_millis(2);
/// How long an output that would block is left alone.
const RETRY: Duration = Duration::from_millis(5);
const WRITER_STACK: usize = 64 << 10;

struct Shared {
    interrupt: Arc<dyn Interrupt>,
    port: Mutex<Port>,
    output_waits: Condvar,
    writer_ended: Condvar,
}

#[derive(Default)]
struct Port {
    uart: Uart,
    /// What the guest sent and the writer has not taken.
    output: Vec<u8>,
    /// The output failed for good; what is sent goes nowhere.
    failed: bool,
    /// The writer sleeps until it is woken.
    idle: bool,
    /// The writer ends when everything is written, or at this time.
    stop_by: Option<Instant>,
    ended: bool,
    /// Input was refused and the callback is owed.
    input_waits: bool,
    input_ready: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Port {
    fn transmit(&mut self, byte: u8) {
        // A byte sent to a transmitter that is not empty is lost, as it is on the chip.
        if self.failed || self.uart.stalled() {
            return;
        }
        if self.output.len() < OUTPUT_LIMIT {
            self.output.push(byte);
        }
        if self.output.len() == OUTPUT_LIMIT {
            self.uart.set_stalled(true);
        }
    }

    /// Whether the writer has to be woken; says so once.
    fn output_begun(&mut self) -> bool {
        !self.output.is_empty() && std::mem::take(&mut self.idle)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Port> {
        lock(&self.port)
    }

    /// The writer's thread.
    fn write_output(&self, mut output: Box<dyn Write + Send>) {
        let mut chunk = Vec::new();
        while self.next_chunk(&mut chunk) {
            let failed = self.write_chunk(&mut *output, &chunk).is_err();
            chunk.clear();
            let mut port = self.lock();
            port.failed |= failed;
            let before = port.uart.pending();
            if port.output.len() < OUTPUT_LIMIT {
                port.uart.set_stalled(false);
            }
            let raised = port.uart.pending() & !before != 0;
            drop(port);
            if raised {
                self.interrupt.signal();
            }
        }
        self.lock().ended = true;
        self.writer_ended.notify_all();
    }

    /// Waits for output and takes it; false when there will be none.
    fn next_chunk(&self, chunk: &mut Vec<u8>) -> bool {
        let mut port = self.lock();
        while port.output.is_empty() && port.stop_by.is_none() {
            port.idle = true;
            port = self.output_waits.wait(port).unwrap_or_else(PoisonError::into_inner);
        }
        port.idle = false;
        if port.stop_by.is_none() {
            port = self
                .output_waits
                .wait_timeout_while(port, LINGER, |port| port.stop_by.is_none())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::swap(chunk, &mut port.output);
        !chunk.is_empty()
    }

    fn write_chunk(&self, output: &mut dyn Write, mut chunk: &[u8]) -> std::io::Result<()> {
        while !chunk.is_empty() {
            match output.write(chunk) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => chunk = &chunk[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Whoever gave us the output may have made it non-blocking, or does so later.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.lock().stop_by.is_some_and(|time| Instant::now() >= time) {
                        return Err(error);
                    }
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(error),
            }
        }
        match output.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
