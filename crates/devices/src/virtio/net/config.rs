//! How a network card is configured.

use spec::{Forward, MacAddress};

use crate::rate_limiter::RateLimit;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What the card is connected to.
    pub backend: Backend,
    /// Its address; made from the card's name if absent, see [`MacAddress::of_name`].
    pub mac: Option<MacAddress>,
    /// Pairs of queues, so that several processors can send and receive at once; 1 to 128.
    pub queue_pairs: u16,
    /// Descriptors of each queue, a power of two.
    pub queue_size: u16,
    /// Largest payload of a frame, told to the guest; 68 to 65535. If absent, the guest chooses on a tap, and
    /// it is 65520 on a user-mode network, where large frames cost no more than small ones.
    pub mtu: Option<u16>,
    /// Limits what the guest receives.
    pub rate_rx: RateLimit,
    /// Limits what the guest sends.
    pub rate_tx: RateLimit,
}

/// What a network card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// An existing tap interface of the host.
    Tap {
        /// The interface's name.
        name: String,
        /// Whether the kernel carries the frames.
        vhost: Vhost,
    },
    /// The host's network without privileges, by the program `passt`. The guest has the host's own address, and, as is
    /// passt's custom, the address of its gateway leads to the host's loopback interface.
    /// Where the host has no default route, the guest has 10.0.2.15 and its gateway 10.0.2.2.
    User {
        /// Ports of the host that lead into the guest.
        forward: Vec<Forward>,
    },
}

/// Whether the kernel carries the frames of a tap interface (vhost-net).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vhost {
    /// Where it can: `/dev/vhost-net` opens, the engine has interrupts by eventfd, and nothing is
    /// rate-limited.
    #[default]
    Auto,
    /// Never.
    Off,
    /// A failure to open `/dev/vhost-net` is an error.
    Required,
}

impl NetConfig {
    /// A card with one pair of queues, connected to `backend`.
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            mac: None,
            queue_pairs: 1,
            queue_size: 256,
            mtu: None,
            rate_rx: RateLimit::default(),
            rate_tx: RateLimit::default(),
        }
    }
}
