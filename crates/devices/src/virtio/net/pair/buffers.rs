//! Buffers of the driver, collected for a frame of unknown size.

use engine::GuestMemory;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemory as _, Permissions};

use super::super::header::{HEADER_SIZE, NUM_BUFFERS};
use super::super::sys::{MOST_SLICES, copy_at};
use crate::virtio::sys::Slice;

/// Chains taken from a receive queue that hold no frame yet.
#[derive(Default)]
pub(super) struct Buffers<'m> {
    pub slices: Vec<Slice<'m>>,
    chains: Vec<Chain>,
    /// Bytes of all slices.
    pub capacity: usize,
}

struct Chain {
    head: u16,
    slices: usize,
    capacity: usize,
}

/// What [`Buffers::collect`] found at the front of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A chain with room, which was taken.
    Room,
    /// Nothing.
    Nothing,
    /// A chain that can hold no frame: it has no room, or is outside of memory, or its pieces are too many. It
    /// was left where it is unless there are no other chains; then it is returned.
    Useless(Option<u16>),
}

impl<'m> Buffers<'m> {
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Takes one more chain from the queue.
    pub(super) fn collect(
        &mut self,
        queue: &mut Queue,
        memory: &'m GuestMemory,
    ) -> Result<Found, Error> {
        let Some(chain) = queue.iter(memory)?.next() else { return Ok(Found::Nothing) };
        let head = chain.head_index();
        let before = self.slices.len();
        let capacity = gather(chain, memory, &mut self.slices, |piece| piece.is_write_only());
        match capacity {
            Some(capacity) if capacity >= HEADER_SIZE => {
                let slices = self.slices.len() - before;
                self.chains.push(Chain { head, slices, capacity });
                self.capacity += capacity;
                Ok(Found::Room)
            }
            _ => {
                self.slices.truncate(before);
                if self.chains.is_empty() {
                    return Ok(Found::Useless(Some(head)));
                }
                queue.go_to_previous_position();
                Ok(Found::Useless(None))
            }
        }
    }

    /// Completes the chains that the first `size` bytes, a frame with its header, lie in: says in the header how
    /// many they are, and returns each with its bytes.
    pub(super) fn complete(&mut self, size: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        let mut left = size;
        let mut slices = 0;
        for chain in &self.chains {
            let here = left.min(chain.capacity);
            // A chain has less than 4 GiB.
            used.push((chain.head, here as u32));
            slices += chain.slices;
            left -= here;
            if left == 0 {
                break;
            }
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        copy_at(&self.slices, NUM_BUFFERS, &count.to_le_bytes());
        let capacity: usize = self.chains.drain(..used.len()).map(|chain| chain.capacity).sum();
        self.capacity -= capacity;
        self.slices.drain(..slices);
        used
    }

    /// Puts the chains that are left back into the queue.
    pub(super) fn put_back(self, queue: &mut Queue) {
        let count = self.chains.len() as u16;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }
}

/// Adds the pieces of `chain` that `wanted` picks to `slices` and returns their bytes; `None` where they are
/// outside of memory, or too many for a system call.
pub(super) fn gather<'m>(
    chain: DescriptorChain<&'m GuestMemory>,
    memory: &'m GuestMemory,
    slices: &mut Vec<Slice<'m>>,
    wanted: impl Fn(&virtio_queue::desc::split::Descriptor) -> bool,
) -> Option<usize> {
    let mut bytes = 0_usize;
    for piece in chain.filter(wanted) {
        let length = piece.len() as usize;
        for slice in memory.get_slices(piece.addr(), length, Permissions::ReadWrite).ok()? {
            if slices.len() == MOST_SLICES {
                return None;
            }
            slices.push(slice.ok()?);
        }
        bytes = bytes.checked_add(length)?;
    }
    Some(bytes)
}
