//! Disks (VIRTIO 1.2 section 5.2).
//!
//! Each queue has a thread, which takes requests out of the ring, checks them against the disk, and
//! carries them out at the same time by io_uring, right between the file and guest memory. Of a disk
//! that is not one file, reads of what no write can move go this way too. All else, and everything where there
//! is no io_uring, the same thread does one after the other through [`disk::Disk`].
//!
//! A chain that has no room for a status, or no whole header, is used with length 0; a ring that
//! contradicts itself makes the device need a reset; every other mistake of the driver is answered in
//! the request's status.

mod backend;
mod control;
mod device;

mod fuzz;
mod request;
#[allow(unsafe_code)]
mod ring;
#[cfg(test)]
mod tests;
mod uring;
mod worker;

pub use device::{Block, BlockConfig};
pub use fuzz::fuzz_requests;
