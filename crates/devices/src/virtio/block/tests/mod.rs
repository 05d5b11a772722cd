//! Tests with a driver that speaks to the device through a queue.

mod disks;
mod hostile;
mod lifecycle;
mod mapped;
mod requests;

use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::{Block, BlockConfig};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Chain, TestDriver};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What a status byte holds before the device answers.
const UNANSWERED: u8 = 0xee;

const SECTOR: usize = 512;
const DISK: usize = 1 << 20;

/// A disk in a file, a device that serves it, and its driver.
struct Setup {
    file: NamedTempFile,
    device: Arc<Block>,
    driver: TestDriver,
}

/// A request in a queue.
struct Pending {
    queue: usize,
    head: u16,
    data: Vec<(u64, u32)>,
    status: u64,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    status: u8,
    data: Vec<u8>,
    used: u32,
}

impl Setup {
    fn new(synchronous: bool) -> Self {
        Self::with(synchronous, false, |_| {})
    }

    fn with(synchronous: bool, direct: bool, change: impl FnOnce(&mut BlockConfig)) -> Self {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pattern(DISK, 1)).unwrap();
        let options = OpenOptions { read_only: false, direct };
        let disk = Arc::new(RawDisk::open(file.path(), &options).unwrap());
        let mut config = config(disk, synchronous);
        change(&mut config);
        let queues = config.queues;
        let device = Block::new("test", config).unwrap();
        let driver = TestDriver::new(queues.into());
        device.activate(driver.activation(device.features())).unwrap();
        Self { file, device, driver }
    }

    fn begin(&mut self, kind: u32, sector: u64, out: &[u8], room: u32) -> Pending {
        let pending = begin(&mut self.driver, 0, kind, sector, out, room);
        self.driver.kick(0);
        pending
    }

    fn request(&mut self, kind: u32, sector: u64, out: &[u8], room: u32) -> Done {
        let pending = self.begin(kind, sector, out, room);
        finish(&mut self.driver, &pending)
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }
}

fn config(disk: Arc<dyn Disk>, synchronous: bool) -> BlockConfig {
    BlockConfig { queue_size: 64, synchronous, ..BlockConfig::new(disk) }
}

/// Runs `test` with each way of carrying out requests.
fn both(test: impl Fn(bool)) {
    for synchronous in [false, true] {
        eprintln!("synchronous: {synchronous}");
        test(synchronous);
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Puts a request into a queue without ringing.
fn begin(
    driver: &mut TestDriver,
    queue: usize,
    kind: u32,
    sector: u64,
    out: &[u8],
    room: u32,
) -> Pending {
    let header = header(kind, sector);
    let readable: Vec<&[u8]> = if out.is_empty() { vec![&header] } else { vec![&header, out] };
    let writable = if room == 0 { vec![1] } else { vec![room, 1] };
    let chain = driver.push(queue, &readable, &writable);
    pending(driver, queue, chain)
}

/// The request that is a chain whose last writable byte is the status.
fn pending(driver: &TestDriver, queue: usize, mut chain: Chain) -> Pending {
    let last = chain.writable.last_mut().unwrap();
    last.1 -= 1;
    let status = last.0 + u64::from(last.1);
    driver.memory.write_obj(UNANSWERED, GuestAddress(status)).unwrap();
    Pending { queue, head: chain.head, data: chain.writable, status }
}

/// Waits for the next request of the queue, which must be this one.
fn finish(driver: &mut TestDriver, pending: &Pending) -> Done {
    let (head, used) = driver.wait_used(pending.queue);
    assert_eq!(head, pending.head);
    done(driver, pending, used)
}

fn done(driver: &TestDriver, pending: &Pending, used: u32) -> Done {
    let data = pending.data.iter().flat_map(|&(at, length)| driver.read(at, length as usize));
    Done { data: data.collect(), status: driver.read(pending.status, 1)[0], used }
}

/// Bytes that tell where they came from.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
