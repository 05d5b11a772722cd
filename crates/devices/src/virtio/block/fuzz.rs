//! The request parser fed with arbitrary bytes.

use disk::SECTOR_SIZE;
use engine::GuestMemory;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::request::{Limits, Operation, Parsed, parse};

/// Bytes of guest memory that are looked at: what lies beyond reads as zeroes.
const MEMORY: usize = 64 << 10;
const QUEUE_SIZE: u16 = 16;
const AVAILABLE_RING: u32 = 0x100;
const USED_RING: u32 = 0x200;
const DISK_SECTORS: u64 = 1 << 16;

/// For a fuzzer: takes `bytes` for the guest's memory, with the rings of a queue at its beginning, parses
/// every request in it, and panics if one is accepted that the disk does not have.
pub fn fuzz_requests(bytes: &[u8]) {
    let Ok(memory) = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]) else { return };
    let bytes = &bytes[..bytes.len().min(MEMORY)];
    if memory.write_slice(bytes, GuestAddress(0)).is_err() {
        return;
    }
    let Ok(mut queue) = Queue::new(QUEUE_SIZE) else { return };
    queue.set_avail_ring_address(Some(AVAILABLE_RING), None);
    queue.set_used_ring_address(Some(USED_RING), None);
    queue.set_ready(true);
    for read_only in [false, true] {
        let limits = Limits { length: DISK_SECTORS * SECTOR_SIZE, read_only };
        queue.set_next_avail(0);
        let Ok(chains) = queue.iter(&memory) else { return };
        for chain in chains {
            let head = chain.head_index();
            if let Parsed::Request(request) = parse(&memory, head, chain, limits) {
                check(&request.operation, request.length, limits);
            }
        }
    }
}

fn check(operation: &Operation, length: u64, limits: Limits) {
    let inside = |start: u64, end: u64| assert!(start <= end && end <= limits.length);
    let changes = match operation {
        Operation::Read { offset } => {
            inside(*offset, offset + length);
            false
        }
        Operation::Write { offset } => {
            inside(*offset, offset + length);
            true
        }
        Operation::Flush | Operation::GetId => false,
        Operation::Discard(ranges) => {
            ranges.iter().for_each(|range| inside(range.start, range.end));
            true
        }
        Operation::WriteZeroes(ranges) => {
            ranges.iter().for_each(|zero| inside(zero.range.start, zero.range.end));
            true
        }
    };
    assert!(!(changes && limits.read_only), "a change was accepted for a read-only disk");
}
