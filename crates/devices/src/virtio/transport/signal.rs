//! Status, ISR and the vectors by which a device speaks to its driver.
//!
//! They are atomics of their own: a device raises interrupts while the transport, under its lock, waits
//! for the device to come to rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::super::DeviceSignal;
use super::status;
use crate::Interrupt;
use crate::pci::Msix;

/// "No vector" (VIRTIO 1.2 section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

pub(super) struct Signals {
    pub(super) status: AtomicU8,
    pub(super) isr: AtomicU8,
    pub(super) generation: AtomicU8,
    config_vector: AtomicU16,
    msix: Arc<Msix>,
}

impl Signals {
    pub(super) fn new(msix: Arc<Msix>) -> Self {
        Self {
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            msix,
        }
    }

    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Takes a vector, or none if the table has no such entry.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.valid(vector), Ordering::Release);
    }

    pub(super) fn valid(&self, vector: u16) -> u16 {
        if u64::from(vector) < self.msix.table_size() / 16 { vector } else { NO_VECTOR }
    }

    fn raise_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.signal(self.config_vector());
    }
}

impl DeviceSignal for Signals {
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status.load(Ordering::Acquire) & status::DRIVER_OK != 0 {
            self.raise_config();
        }
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        if before & status::DRIVER_OK != 0 {
            self.raise_config();
        }
    }
}

/// The interrupt of one queue.
pub(super) struct VectorInterrupt {
    signals: Arc<Signals>,
    vector: u16,
}

impl VectorInterrupt {
    pub(super) fn new(signals: Arc<Signals>, vector: u16) -> Self {
        Self { signals, vector }
    }
}

impl Interrupt for VectorInterrupt {
    fn signal(&self) {
        self.signals.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.signals.msix.signal(self.vector);
    }

    fn event(&self) -> Option<EventFd> {
        self.signals.msix.event(self.vector)
    }
}
