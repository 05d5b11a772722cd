//! Used buffers that appear to the driver all at once.
//!
//! A received frame may span several buffers, which a polling driver must never see one by one, so the
//! used ring is written here rather than by `virtio_queue`, which shows each element at once.

use std::sync::atomic::{Ordering, fence};

use engine::GuestMemory;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of `flags` and `idx` of both rings (VIRTIO 1.2 sections 2.7.6 and 2.7.8).
const RING_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// Adds chains, as (head, bytes written), to the used ring and then shows them to the driver.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemory,
    chains: impl Iterator<Item = (u16, u32)>,
) -> Result<(), Error> {
    let ring = GuestAddress(queue.used_ring());
    let mut next = queue.next_used();
    for (head, written) in chains {
        let slot = u64::from(next.checked_rem(queue.size()).ok_or(Error::InvalidSize)?);
        let at = at(ring, RING_HEADER + slot * USED_ELEMENT)?;
        // `le32 id` and `le32 len`.
        let element = u64::from(head) | u64::from(written) << 32;
        memory.write_obj(element.to_le(), at).map_err(Error::GuestMemory)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory.store(next.to_le(), at(ring, 2)?, Ordering::Release).map_err(Error::GuestMemory)
}

/// Whether the driver wants an interrupt for what was shown since `next_used` was `before` (section 2.7.7).
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &GuestMemory,
    before: u16,
) -> Result<bool, Error> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    // What was shown must be visible before the driver's wish is read.
    fence(Ordering::SeqCst);
    let ring = GuestAddress(queue.avail_ring());
    let read = |offset| -> Result<u16, Error> {
        let value: u16 =
            memory.load(at(ring, offset)?, Ordering::Relaxed).map_err(Error::GuestMemory)?;
        Ok(u16::from_le(value))
    };
    if queue.event_idx_enabled() {
        let event = read(RING_HEADER + u64::from(queue.size()) * AVAILABLE_ELEMENT)?;
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
    } else {
        Ok(read(0)? & NO_INTERRUPT == 0)
    }
}

/// The used index that lies in the ring, where somebody else (vhost) writes it.
pub(super) fn used_index(queue: &Queue, memory: &GuestMemory) -> Result<u16, Error> {
    let at = at(GuestAddress(queue.used_ring()), 2)?;
    memory.load(at, Ordering::Acquire).map(u16::from_le).map_err(Error::GuestMemory)
}

fn at(base: GuestAddress, offset: u64) -> Result<GuestAddress, Error> {
    base.0.checked_add(offset).map(GuestAddress).ok_or(Error::AddressOverflow)
}
