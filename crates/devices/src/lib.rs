//! Device models of the virtual machine.
//!
//! A device knows guest memory, an event loop and interrupts as the small traits of this crate; it
//! knows nothing of the machine that holds it or of the engine that runs the guest. Every device has
//! one lifecycle, [`Device`].

mod event_loop;
mod fd;
mod interrupt;
mod lifecycle;

pub mod i8042;
pub mod memory;
pub mod pci;
pub mod power;
pub mod rate_limiter;
pub mod rtc;
pub mod serial;
pub mod threads;
pub mod virtio;

pub use event_loop::{EventHandler, EventLoop, EventLoopHandle, Interest, Registration};
pub use interrupt::{Interrupt, InterruptLine, MsiController, MsiVector};
pub use lifecycle::{Device, Error, Registers, Result, State};
