//! Virtio devices (OASIS "Virtual I/O Device (VIRTIO) Version 1.2").
//!
//! Each device is a folder; [`VirtioDevice`] is what the PCI transport asks of it.

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod net;
pub mod rng;
pub mod vsock;

pub(crate) mod buffer;
#[cfg(test)]
pub(crate) mod hostile;
mod queue;
pub(crate) mod serve;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod testing;
mod transport;

use std::sync::Arc;

use engine::GuestMemory;

pub use queue::{SavedQueue, VirtQueue};
pub use transport::VirtioPci;

use crate::{Interrupt, Result, State};

/// Feature bit of every device here: no legacy interface (VIRTIO 1.2 section 6).
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Feature bit: descriptors may point to tables of descriptors.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: either side may say at which index it wants to be told.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;

/// A virtio device behind a transport.
///
/// The transport keeps the status register, negotiates features and owns the queues; the device owns
/// what happens in them. The calls of one device never overlap, except `read_config`, `write_config`.
pub trait VirtioDevice: Send + Sync {
    /// Device type (VIRTIO 1.2 section 5): 1 network, 2 block, 3 console, 4 entropy, 5 balloon, 19 vsock, 26 file system.
    fn device_type(&self) -> u16;

    /// Largest size of each queue, a power of two of at most 32768; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Features offered beyond [`VIRTIO_F_VERSION_1`], which the transport adds.
    fn features(&self) -> u64;

    /// Reads device configuration; what lies past its end reads as zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; most devices ignore it.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (DRIVER_OK): begins to serve `activation.queues`. Never called while active. An
    /// error makes the transport call [`deactivate`](Self::deactivate) and set DEVICE_NEEDS_RESET.
    fn activate(&self, activation: Activation) -> Result<()>;

    /// The driver reset the device, or power went away: forgets the activation. On return nothing
    /// touches guest memory any more. Called also when the device is not active.
    fn deactivate(&self);

    /// As [`crate::Device::pause`]; called only when active.
    fn pause(&self) -> Result<()>;

    /// As [`crate::Device::resume`]; called only when active. Looks at every queue, since the guest may have filled
    /// them meanwhile.
    fn resume(&self) -> Result<()>;

    /// What the device knows beyond its configuration and the transport's registers; paused or not
    /// active.
    fn save(&self) -> Result<State>;

    /// Takes over what `save` returned, before `activate`.
    fn restore(&self, state: &State) -> Result<()>;
}

/// What a device needs to serve its driver.
pub struct Activation {
    /// The guest's memory; what addresses point outside of it is the guest's mistake.
    pub memory: GuestMemory,
    /// Features that the driver accepted.
    pub features: u64,
    /// The queues in their order; one that the driver left disabled is `None`.
    pub queues: Vec<Option<Arc<VirtQueue>>>,
    /// Tells the driver about the device as a whole.
    pub signal: Arc<dyn DeviceSignal>,
}

/// What a device tells its driver outside of its queues.
pub trait DeviceSignal: Send + Sync {
    /// The device configuration changed.
    fn config_changed(&self);

    /// The driver broke the rules so that the device cannot go on: sets DEVICE_NEEDS_RESET (section 2.1).
    fn needs_reset(&self);
}

/// The interrupt of one queue.
pub type QueueInterrupt = Arc<dyn Interrupt>;

/// Copies the part of `config` that starts at `offset` into `data`, and zeroes past its end.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    let count = data.len().min(config.len() - start);
    data[..count].copy_from_slice(&config[start..start + count]);
}
