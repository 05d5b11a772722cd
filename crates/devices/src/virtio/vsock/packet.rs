//! Packets as they lie in the queues (VIRTIO 1.2 section 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Context identifier of the host.
pub const HOST_CID: u64 = 2;

/// Bytes of data in one packet at most, both ways (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux).
pub const MOST_DATA: usize = 64 << 10;

/// The only type of socket offered.
pub const TYPE_STREAM: u16 = 1;

/// SHUTDOWN flag: the sender will not receive more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender will not send more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// Context identifier of the sender.
    pub src_cid: U64,
    /// Context identifier of the receiver.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of data that follow.
    pub len: U32,
    /// [`TYPE_STREAM`].
    pub socket_type: U16,
    /// An [`Operation`].
    pub op: U16,
    /// Of SHUTDOWN: what ends.
    pub flags: U32,
    /// Bytes that the sender can hold for this connection.
    pub buf_alloc: U32,
    /// Bytes that the sender has passed on so far, modulo 2^32.
    pub fwd_cnt: U32,
}

const _: () = assert!(size_of::<Header>() == Header::SIZE);

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Refuses or ends it.
    Reset = 3,
    /// Ends one or both directions.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Tells `buf_alloc` and `fwd_cnt`.
    CreditUpdate = 6,
    /// Asks for a CREDIT_UPDATE.
    CreditRequest = 7,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 44;

    /// The operation, if it is a known one.
    pub fn operation(&self) -> Option<Operation> {
        Some(match self.op.get() {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::ReadWrite,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }

    /// The RST that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: (Operation::Reset as u16).into(),
            ..Self::default()
        }
    }
}
