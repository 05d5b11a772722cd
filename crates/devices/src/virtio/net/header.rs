//! What the card and its driver agree on: features, configuration, and the header of a frame.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Feature bits (VIRTIO 1.2 section 5.1.3).
pub(super) mod feature {
    /// The card completes checksums of what the guest sends.
    pub const CSUM: u64 = 1 << 0;
    /// The guest takes frames whose checksum is not complete.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The guest may change its offloads while running.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The card says what the largest payload is.
    pub const MTU: u64 = 1 << 3;
    /// The card says what its address is.
    pub const MAC: u64 = 1 << 5;
    /// The guest takes TCP over IPv4 in large segments.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The guest takes TCP over IPv6 in large segments.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The guest takes large segments with congestion marks.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The card cuts TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The card cuts TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The card cuts segments with congestion marks.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A received frame may span several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The card says whether the link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;

    /// What the guest may switch while running.
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
}

/// Bytes of the header before each frame.
pub(super) const HEADER_SIZE: usize = size_of::<Header>();
/// Where `num_buffers` lies in it.
pub(super) const NUM_BUFFERS: usize = 10;
/// Most bytes of a frame: a 64 KiB segment with its Ethernet header and a VLAN tag, rounded up as
/// the specification's 65562 of section 5.1.6.3.1 is.
pub(super) const MOST_FRAME: usize = 65562;
/// An Ethernet header.
pub(super) const LEAST_FRAME: usize = 14;

/// `struct virtio_net_hdr` (section 5.1.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: U16,
    pub gso_size: U16,
    pub csum_start: U16,
    pub csum_offset: U16,
    pub num_buffers: U16,
}

/// `struct virtio_net_config` (section 5.1.4), the part that these features uncover.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    pub mac: [u8; 6],
    pub status: U16,
    pub max_virtqueue_pairs: U16,
    pub mtu: U16,
}

/// VIRTIO_NET_S_LINK_UP of `status`.
pub(super) const LINK_UP: u16 = 1;

const _: () = assert!(HEADER_SIZE == 12 && size_of::<Config>() == 12);
const _: () = assert!(std::mem::offset_of!(Header, num_buffers) == NUM_BUFFERS);
