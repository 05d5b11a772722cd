//! The control queue (VIRTIO 1.2 section 5.1.6.5).

use super::header::feature;

/// What a driver asks for on the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// To use so many pairs of queues (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET).
    SetQueuePairs(u16),
    /// To take frames with these features of the guest only (VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET).
    SetOffloads(u64),
}

/// Most bytes of a command that is understood: class, command and eight bytes.
pub(super) const MOST_BYTES: usize = 10;
/// VIRTIO_NET_OK
pub(super) const OK: u8 = 0;
/// VIRTIO_NET_ERR
pub(super) const ERROR: u8 = 1;

/// VIRTIO_NET_CTRL_MQ and its command
const MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS and its command
const GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;

impl Command {
    /// The command that a driver, which accepted `features`, put into a chain; `None` if there is none such.
    pub fn parse(bytes: &[u8], features: u64) -> Option<Self> {
        let [class, command, data @ ..] = bytes else { return None };
        match (*class, *command) {
            (MQ, MQ_VQ_PAIRS_SET) if features & feature::MQ != 0 => {
                Some(Self::SetQueuePairs(u16::from_le_bytes(*data.first_chunk()?)))
            }
            (GUEST_OFFLOADS, GUEST_OFFLOADS_SET)
                if features & feature::CTRL_GUEST_OFFLOADS != 0 =>
            {
                let offloads = u64::from_le_bytes(*data.first_chunk()?);
                let allowed = features & feature::GUEST_OFFLOADS;
                (offloads & !allowed == 0).then_some(Self::SetOffloads(offloads))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = feature::MQ | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_CSUM;

    #[test]
    fn commands_are_understood_where_their_feature_was_accepted() {
        assert_eq!(Command::parse(&[4, 0, 3, 1], ALL), Some(Command::SetQueuePairs(0x103)));
        assert_eq!(Command::parse(&[4, 0, 3, 1], 0), None);
        let offloads = [5, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Command::parse(&offloads, ALL), Some(Command::SetOffloads(2)));
        assert_eq!(Command::parse(&offloads, feature::MQ), None);
    }

    #[test]
    fn other_commands_are_not() {
        for bytes in [
            &[][..],
            &[4],
            &[4, 0],
            &[4, 0, 1],
            &[4, 1, 1, 0],
            &[0, 0, 1],
            &[5, 0, 2, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Command::parse(bytes, ALL), None, "{bytes:?}");
        }
        let not_accepted = [5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Command::parse(&not_accepted, ALL), None);
    }
}
