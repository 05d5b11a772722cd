//! What devices ask of the interrupt controllers.

use std::sync::Arc;

use engine::MsiMessage;
use vmm_sys_util::eventfd::EventFd;

use crate::Result;

/// One interrupt that a device raises: an edge on an ISA line, or an MSI-X vector.
pub trait Interrupt: Send + Sync {
    /// Raises it. Never blocks; calls that come together may count as one.
    fn signal(&self);

    /// An eventfd whose writes raise the interrupt, for kernel devices such as vhost; `None` where the
    /// engine has no such way.
    fn event(&self) -> Option<EventFd> {
        None
    }
}

/// Hands out MSI vectors.
pub trait MsiController: Send + Sync {
    /// A new vector, which delivers nothing until it is configured.
    fn vector(&self) -> Result<Arc<dyn MsiVector>>;
}

/// An MSI vector whose message the guest chooses.
pub trait MsiVector: Interrupt {
    /// The message to deliver from now on; `None` while the vector is masked.
    fn configure(&self, message: Option<MsiMessage>);
}

/// A level-triggered line, such as ACPI's SCI: it interrupts for as long as it is high.
pub trait InterruptLine: Send + Sync {
    /// Drives the line. Never blocks; setting the level that it has changes nothing.
    fn set_level(&self, high: bool);
}
