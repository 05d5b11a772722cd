//! Network cards (VIRTIO 1.2 section 5.1).
//!
//! [`Net`] is the card; what is on the other end of its cable is a [`Backend`]: a tap interface of the
//! host, served by the kernel (vhost-net) where that is possible, or `passt`, which gives the guest the
//! host's network without privileges. Frames go between guest memory and the host's descriptors
//! without being copied on the way.

mod config;
mod control;
mod device;
mod fuzz;
mod header;
mod pair;
mod passt;
mod port;
mod rings;
mod stream;
mod sys;
mod tap;
mod vhost;

#[cfg(test)]
mod tests;

pub use config::{Backend, NetConfig, Vhost};
pub use control::Command;
pub use device::Net;
#[doc(hidden)]
pub use fuzz::fuzz;
pub use pair::Statistics;
