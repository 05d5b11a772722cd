//! The registers of a 16550A, without the host behind them.
//!
//! Source: National Semiconductor PC16550D data sheet; section numbers below are its.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How many bytes wait for the guest at most. More than the chip's 16, so that a paste costs fewer
/// interrupts; a driver reads until the line status says that there is no more.
pub(super) const RECEIVE_FIFO: usize = 64;
/// In loopback the FIFO has the chip's own size, by which Linux tells the 16550A from its relatives.
const LOOPBACK_FIFO: usize = 16;
/// After so many looks at the line status in a row a driver is taken to poll for input.
const POLLS: u8 = 16;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
/// Interrupt identification when read, FIFO control when written.
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

/// Interrupt enable and [`Uart::pending`]: received data (8.6.7).
pub(super) const RECEIVED: u8 = 1 << 0;
/// Interrupt enable and [`Uart::pending`]: the transmitter is empty.
pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
/// Interrupt enable and [`Uart::pending`]: an error in the line status.
const ERROR: u8 = 1 << 2;
const INTERRUPT_ENABLE_BITS: u8 = 0x0f;

/// Interrupt identification (8.6.5).
const ID_NONE: u8 = 0x01;
const ID_TRANSMITTER_EMPTY: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;
const ID_ERROR: u8 = 0x06;
const ID_FIFOS: u8 = 0xc0;

/// FIFO control (8.6.4).
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVED: u8 = 1 << 1;

/// Line control: the first two registers are the divisor (8.6.1).
const DIVISOR_LATCH: u8 = 1 << 7;

/// Modem control (8.6.8).
const MODEM_DTR: u8 = 1 << 0;
const MODEM_RTS: u8 = 1 << 1;
const MODEM_OUT1: u8 = 1 << 2;
const MODEM_OUT2: u8 = 1 << 3;
const MODEM_LOOPBACK: u8 = 1 << 4;
const MODEM_CONTROL_BITS: u8 = 0x1f;

/// Line status (8.6.3).
pub(super) const LINE_DATA_READY: u8 = 1 << 0;
const LINE_OVERRUN: u8 = 1 << 1;
pub(super) const LINE_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Modem status (8.6.9).
const STATUS_CTS: u8 = 1 << 4;
const STATUS_DSR: u8 = 1 << 5;
const STATUS_RI: u8 = 1 << 6;
const STATUS_DCD: u8 = 1 << 7;

/// The chip. Its serialised form is the device's saved state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Uart {
    interrupt_enable: u8,
    fifos: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter became empty and the guest has not been told.
    transmitter_emptied: bool,
    received: VecDeque<u8>,
    /// The guest asked what it was interrupted for since it enabled received data, so it listens.
    #[serde(skip)]
    listens: bool,
    /// The host has input for a guest that has enabled received data and is not known to listen yet.
    #[serde(skip)]
    knocks: bool,
    /// How often in a row the guest looked at the line status and found nothing.
    #[serde(skip)]
    polls: u8,
    /// The host takes no more output for now, so the transmitter is not empty.
    #[serde(skip)]
    stalled: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            interrupt_enable: 0,
            fifos: false,
            line_control: 0b11,
            modem_control: MODEM_OUT2,
            scratch: 0,
            // 9600 baud.
            divisor: 12,
            overrun: false,
            transmitter_emptied: false,
            received: VecDeque::new(),
            listens: false,
            knocks: false,
            polls: 0,
            stalled: false,
        }
    }
}

impl Uart {
    pub(super) fn read(&mut self, offset: u64) -> u8 {
        if offset != LINE_STATUS {
            self.polls = 0;
        }
        if matches!(offset, INTERRUPT_ID | LINE_STATUS) && self.interrupt_enable & RECEIVED != 0 {
            self.listens = true;
            self.knocks = false;
        }
        let divisor_latch = self.line_control & DIVISOR_LATCH != 0;
        match offset {
            DATA if divisor_latch => self.divisor.to_le_bytes()[0],
            INTERRUPT_ENABLE if divisor_latch => self.divisor.to_le_bytes()[1],
            DATA => self.received.pop_front().unwrap_or(0),
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => self.identify(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => self.line_status(),
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// Takes a write; the byte to transmit, if it was one.
    pub(super) fn write(&mut self, offset: u64, byte: u8) -> Option<u8> {
        self.polls = 0;
        let divisor_latch = self.line_control & DIVISOR_LATCH != 0;
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            DATA if divisor_latch => self.divisor = u16::from_le_bytes([byte, high]),
            INTERRUPT_ENABLE if divisor_latch => self.divisor = u16::from_le_bytes([low, byte]),
            DATA => return self.transmit(byte),
            INTERRUPT_ENABLE => {
                let enabled = byte & !self.interrupt_enable;
                self.interrupt_enable = byte & INTERRUPT_ENABLE_BITS;
                if byte & RECEIVED == 0 {
                    self.listens = false;
                    self.knocks = false;
                }
                // Enabling this interrupt while the transmitter is empty raises it at once, which is how
                // drivers start to send.
                if enabled & TRANSMITTER_EMPTY != 0 && !self.stalled {
                    self.transmitter_emptied = true;
                }
            }
            INTERRUPT_ID => self.control_fifos(byte),
            LINE_CONTROL => self.line_control = byte,
            MODEM_CONTROL => self.modem_control = byte & MODEM_CONTROL_BITS,
            SCRATCH => self.scratch = byte,
            _ => {}
        }
        None
    }

    /// The interrupts that are enabled and have a cause, as bits of the interrupt enable register.
    pub(super) fn pending(&self) -> u8 {
        let received = if self.received.is_empty() && !self.knocks { 0 } else { RECEIVED };
        let emptied = if self.transmitter_emptied { TRANSMITTER_EMPTY } else { 0 };
        let error = if self.overrun { ERROR } else { 0 };
        (received | emptied | error) & self.interrupt_enable
    }

    /// How many bytes can be received now. None until the guest listens: what comes earlier it throws away
    /// when it opens the port. Linux does so up to the moment at which it sets up the FIFOs, which is after
    /// it enabled the interrupt, and it enables all interrupts for a moment when it looks for ports. So
    /// enabling is not enough: the guest must also come and look, for which it is interrupted.
    pub(super) fn room(&self) -> usize {
        let capacity = if self.modem_control & MODEM_LOOPBACK != 0 {
            0
        } else if self.interrupt_enable & RECEIVED != 0 && self.listens {
            if self.fifos { RECEIVE_FIFO } else { 1 }
        } else if self.polls >= POLLS {
            1
        } else {
            0
        };
        capacity.saturating_sub(self.received.len())
    }

    /// The host has input that was refused: interrupts a guest that should come and look.
    pub(super) fn knock(&mut self) {
        let enabled = self.interrupt_enable & RECEIVED != 0;
        let loopback = self.modem_control & MODEM_LOOPBACK != 0;
        self.knocks = enabled && !loopback && !self.listens;
    }

    /// Whether the guest has read all that it received.
    pub(super) fn drained(&self) -> bool {
        self.received.is_empty()
    }

    /// Receives as much of `bytes` as there is room for, and says how much.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.received.extend(&bytes[..count]);
        count
    }

    /// Whether the host takes no more output for now.
    pub(super) fn stalled(&self) -> bool {
        self.stalled
    }

    /// The host takes no more output for now, or again.
    pub(super) fn set_stalled(&mut self, stalled: bool) {
        if self.stalled && !stalled {
            self.transmitter_emptied = true;
        }
        self.stalled = stalled;
        if stalled {
            self.transmitter_emptied = false;
        }
    }

    /// The state to save: output belongs to the host, so elsewhere the transmitter is empty.
    pub(super) fn saved(&self) -> Self {
        let mut saved = self.clone();
        saved.set_stalled(false);
        saved.polls = 0;
        saved.listens = false;
        saved.knocks = false;
        saved
    }

    /// This state, if it is one that the chip can have.
    pub(super) fn checked(mut self) -> Option<Self> {
        self.interrupt_enable &= INTERRUPT_ENABLE_BITS;
        self.modem_control &= MODEM_CONTROL_BITS;
        (self.received.len() <= RECEIVE_FIFO).then_some(self)
    }

    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        let id = if pending & ERROR != 0 {
            ID_ERROR
        } else if pending & RECEIVED != 0 {
            ID_RECEIVED
        } else if pending & TRANSMITTER_EMPTY != 0 {
            // Being told is what clears this one.
            self.transmitter_emptied = false;
            ID_TRANSMITTER_EMPTY
        } else {
            ID_NONE
        };
        if self.fifos { id | ID_FIFOS } else { id }
    }

    fn line_status(&mut self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { LINE_DATA_READY };
        let overrun = if std::mem::take(&mut self.overrun) { LINE_OVERRUN } else { 0 };
        let empty = if self.stalled { 0 } else { LINE_TRANSMITTER_EMPTY };
        self.polls = if ready == 0 { self.polls.saturating_add(1) } else { 0 };
        ready | overrun | empty
    }

    fn modem_status(&self) -> u8 {
        if self.modem_control & MODEM_LOOPBACK == 0 {
            return STATUS_CTS | STATUS_DSR | STATUS_DCD;
        }
        // 8.6.8: the four outputs are connected to the four inputs.
        [
            (MODEM_DTR, STATUS_DSR),
            (MODEM_RTS, STATUS_CTS),
            (MODEM_OUT1, STATUS_RI),
            (MODEM_OUT2, STATUS_DCD),
        ]
        .iter()
        .filter(|(output, _)| self.modem_control & output != 0)
        .fold(0, |status, (_, input)| status | input)
    }

    fn control_fifos(&mut self, byte: u8) {
        let fifos = byte & FIFO_ENABLE != 0;
        if fifos != self.fifos || byte & FIFO_CLEAR_RECEIVED != 0 {
            self.received.clear();
        }
        self.fifos = fifos;
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        if self.modem_control & MODEM_LOOPBACK != 0 {
            let capacity = if self.fifos { LOOPBACK_FIFO } else { 1 };
            if self.received.len() < capacity {
                self.received.push_back(byte);
            } else {
                self.overrun = true;
            }
            self.transmitter_emptied = true;
            return None;
        }
        // The host takes a byte at once, so the transmitter is empty again.
        self.transmitter_emptied = !self.stalled;
        Some(byte)
    }
}
