//! Entropy (VIRTIO 1.2 section 5.4): the guest offers buffers, and gets them back filled with the host's
//! random bytes.
//!
//! There is no configuration, no feature and no state: requests that wait while the device is paused
//! are in the queue, which the transport saves.

#![forbid(unsafe_code)]

mod device;

pub use device::Rng;
