//! Memory given back to the host (VIRTIO 1.2 section 5.5).
//!
//! In two ways. *Free page reporting*: the guest tells of memory that it does not use, all the time and by
//! itself, and the host has it back until the guest touches it again. The *balloon*:
//! [`Balloon::set_target`] asks the guest to give up so many bytes, for which it may throw caches
//! away or swap. The guest's own view of its memory is [`Balloon::statistics`].
//!
//! Not offered: free page hinting, which only serves migration, and page poisoning. Without hinting
//! the specification's queue 3 does not exist and reports come in queue 4, but Linux until 6.10, and
//! QEMU, number the queues without the gap; so both are taken for reports.

#![forbid(unsafe_code)]

mod device;
mod statistics;
#[cfg(test)]
mod tests;

pub use device::{Balloon, BalloonConfig};
pub use statistics::Statistics;

/// For fuzzing: parses `bytes` as the statistics of a guest.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let _ = Statistics::parse(bytes);
}
