//! Control messages of multiport consoles (VIRTIO 1.2 section 5.3.6.2).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Guest: it is ready for ports, or not.
pub const DEVICE_READY: u16 = 0;
/// Host: a port exists.
pub const DEVICE_ADD: u16 = 1;
/// Guest: it is ready for a port, or not.
pub const PORT_READY: u16 = 3;
/// Host: a port is a console.
pub const CONSOLE_PORT: u16 = 4;
/// Host: a console has a new size, which follows as columns and rows.
pub const RESIZE: u16 = 5;
/// Either: its side of a port is open, or not.
pub const PORT_OPEN: u16 = 6;
/// Host: a port has a name, which follows.
pub const PORT_NAME: u16 = 7;

/// `struct virtio_console_control`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Message {
    /// The port.
    pub id: U32,
    /// What it is about.
    pub event: U16,
    /// 1 for yes, 0 for no.
    pub value: U16,
}

const _: () = assert!(size_of::<Message>() == Message::SIZE);

impl Message {
    /// Bytes without what follows.
    pub const SIZE: usize = 8;

    /// A message of the host.
    pub fn new(id: u32, event: u16, value: u16) -> Self {
        Self { id: id.into(), event: event.into(), value: value.into() }
    }

    /// The message that `bytes` begin with.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(message, _)| message)
    }

    /// As it lies in the queue.
    pub fn bytes(&self, following: &[u8]) -> Vec<u8> {
        [self.as_bytes(), following].concat()
    }
}
