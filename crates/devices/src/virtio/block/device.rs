//! The device as its transport and its machine see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use disk::{Disk, SECTOR_SIZE};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::control::{Control, Wanted};
use super::request::{ID_LENGTH, Limits, MAX_DISCARD, MAX_SEGMENTS, MAX_WRITE_ZEROES};
use super::worker::{Shared, Worker};
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::threads;
use crate::virtio::{
    Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtQueue, VirtioDevice,
    read_config_bytes,
};
use crate::{Error, Result, State};

const DEVICE_TYPE: u16 = 2;

// Feature bits (section 5.2.3).
const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
const VIRTIO_BLK_F_RO: u64 = 1 << 5;
const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;

/// Offset of `writeback` in the configuration, all of it that the driver may write.
const WRITE_BACK_OFFSET: u64 = 32;

const MAX_QUEUES: u16 = 64;
/// A request takes up to three descriptors, and a ring of more is of no use to one thread.
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 4..=1024;
/// Workers call nothing deeper than a format's tables and its decompression.
const STACK_SIZE: usize = 512 << 10;

/// What a disk device is made of.
pub struct BlockConfig {
    /// The disk's content.
    pub disk: Arc<dyn Disk>,
    /// The guest cannot write, even if the disk could.
    pub read_only: bool,
    /// Name that the guest can ask for, of at most 20 bytes.
    pub serial: Option<String>,
    /// Number of queues, of which each has its own thread.
    pub queues: u16,
    /// Descriptors of each queue, a power of two.
    pub queue_size: u16,
    /// Bytes and operations per second, of all queues together.
    pub rate: RateLimit,
    /// Never uses io_uring, even where it works.
    pub synchronous: bool,
}

impl BlockConfig {
    /// One queue of 256 descriptors, writable if the disk is, without name and limit.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            read_only: disk.is_read_only(),
            disk,
            serial: None,
            queues: 1,
            queue_size: 256,
            rate: RateLimit::default(),
            synchronous: false,
        }
    }
}

/// A disk (VIRTIO 1.2 section 5.2).
pub struct Block {
    queue_sizes: Vec<u16>,
    features: u64,
    config: Config,
    shared: Arc<Shared>,
    workers: Mutex<Vec<Handle>>,
}

/// Device configuration (section 5.2.4), up to what the offered features need.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const _: () = assert!(size_of::<Config>() == 60);

/// What a snapshot keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// The driver wants a write-back cache.
    #[serde(default = "yes")]
    write_back: bool,
    /// Length of the disk, which must not have changed.
    length: u64,
}

fn yes() -> bool {
    true
}

/// A running worker.
struct Handle {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl Block {
    /// A disk called `name` in messages.
    pub fn new(name: &str, config: BlockConfig) -> Result<Arc<Self>> {
        let BlockConfig { disk, read_only, serial, queues, queue_size, rate, synchronous } = config;
        if queues == 0 || queues > MAX_QUEUES {
            return Err(Error::Configuration(format!(
                "The disk {name} cannot have {queues} queues, only 1 to {MAX_QUEUES}"
            )));
        }
        if !queue_size.is_power_of_two() || !QUEUE_SIZES.contains(&queue_size) {
            return Err(Error::Configuration(format!(
                "The disk {name} cannot have queues of {queue_size}, only of a power of two from {} to {}",
                QUEUE_SIZES.start(),
                QUEUE_SIZES.end()
            )));
        }
        let serial = serial_bytes(name, serial.as_deref().unwrap_or_default())?;
        let limits = Limits { length: disk.len(), read_only: read_only || disk.is_read_only() };
        Ok(Arc::new(Self {
            queue_sizes: vec![queue_size; queues.into()],
            features: features(limits.read_only, queues),
            config: Config::new(disk.as_ref(), queues, queue_size),
            shared: Arc::new(Shared {
                name: name.to_owned(),
                disk,
                limits,
                serial,
                limiter: RateLimiter::new(&rate),
                write_back: AtomicBool::new(true),
                synchronous,
            }),
            workers: Mutex::default(),
        }))
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_worker(&self, activation: &Activation, queue: &Arc<VirtQueue>) -> Result<Handle> {
        let control = Arc::new(Control::new()?);
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            depth: queue.lock().size().into(),
            queue: Arc::clone(queue),
            memory: activation.memory.clone(),
            signal: Arc::clone(&activation.signal),
            control: Arc::clone(&control),
            can_flush: activation.features & VIRTIO_BLK_F_FLUSH != 0,
            broken: false,
            complained: false,
        };
        let builder = std::thread::Builder::new()
            .name(format!("{}-queue{}", self.shared.name, queue.index()))
            .stack_size(STACK_SIZE);
        let thread = threads::spawn(builder, move || worker.run())
            .map_err(Error::io("start the thread of a disk"))?;
        Ok(Handle { control, thread })
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let writeback = self.shared.write_back.load(Ordering::Relaxed).into();
        let config = Config { writeback, ..self.config };
        read_config_bytes(config.as_bytes(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (WRITE_BACK_OFFSET, &[value]) = (offset, data) {
            self.shared.write_back.store(value & 1 != 0, Ordering::Relaxed);
        }
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        let mut workers = self.workers();
        for queue in activation.queues.iter().flatten() {
            workers.push(self.start_worker(&activation, queue)?);
        }
        Ok(())
    }

    fn deactivate(&self) {
        let workers: Vec<_> = self.workers().drain(..).collect();
        let was_active = !workers.is_empty();
        stop(workers);
        self.shared.write_back.store(true, Ordering::Relaxed);
        if was_active && !self.shared.limits.read_only {
            // A guest that was killed or reset did not flush; what it wrote should still be there.
            if let Err(error) = self.shared.disk.flush() {
                tracing::warn!(disk = self.shared.name, %error, "Cannot flush the disk at its end");
            }
        }
    }

    fn pause(&self) -> Result<()> {
        let workers = self.workers();
        workers.iter().for_each(|worker| worker.control.ask(Wanted::Pause));
        workers.iter().for_each(|worker| worker.control.wait_quiet());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.workers().iter().for_each(|worker| worker.control.ask(Wanted::Run));
        Ok(())
    }

    fn save(&self) -> Result<State> {
        State::new(&Saved {
            write_back: self.shared.write_back.load(Ordering::Relaxed),
            length: self.shared.limits.length,
        })
    }

    fn restore(&self, state: &State) -> Result<()> {
        let saved: Saved = state.get()?;
        if saved.length != self.shared.limits.length {
            return Err(Error::InvalidState("the disk had another length"));
        }
        self.shared.write_back.store(saved.write_back, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.deactivate();
    }
}

/// Lets the workers finish what they began, and waits for their end.
fn stop(workers: Vec<Handle>) {
    workers.iter().for_each(|worker| worker.control.ask(Wanted::Stop));
    for worker in workers {
        // A worker that panicked has told so itself.
        let _ = worker.thread.join();
    }
}

fn serial_bytes(name: &str, serial: &str) -> Result<[u8; ID_LENGTH]> {
    let mut bytes = [0; ID_LENGTH];
    match bytes.get_mut(..serial.len()) {
        Some(part) => part.copy_from_slice(serial.as_bytes()),
        None => {
            return Err(Error::Configuration(format!(
                "The serial name of the disk {name} has {} bytes, more than {ID_LENGTH}",
                serial.len()
            )));
        }
    }
    Ok(bytes)
}

fn features(read_only: bool, queues: u16) -> u64 {
    let mut features = VIRTIO_F_EVENT_IDX
        | VIRTIO_F_INDIRECT_DESC
        | VIRTIO_BLK_F_SEG_MAX
        | VIRTIO_BLK_F_BLK_SIZE
        | VIRTIO_BLK_F_FLUSH
        | VIRTIO_BLK_F_TOPOLOGY
        | VIRTIO_BLK_F_CONFIG_WCE;
    features |=
        if read_only { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES };
    if queues > 1 {
        features |= VIRTIO_BLK_F_MQ;
    }
    features
}

impl Config {
    fn new(disk: &dyn Disk, queues: u16, queue_size: u16) -> Self {
        let geometry = disk.geometry();
        let sectors = |bytes: u32| U32::new(bytes / SECTOR_SIZE as u32);
        let blocks = geometry.physical_block / geometry.logical_block.max(1);
        Self {
            capacity: U64::new(disk.len() / SECTOR_SIZE),
            size_max: U32::ZERO,
            // Beside the header and the status.
            seg_max: U32::new(u32::from(queue_size - 2).min(MAX_SEGMENTS as u32)),
            cylinders: U16::ZERO,
            heads: 0,
            sectors: 0,
            blk_size: U32::new(geometry.logical_block),
            physical_block_exp: blocks.checked_ilog2().unwrap_or(0) as u8,
            alignment_offset: 0,
            min_io_size: U16::new(u16::try_from(blocks).unwrap_or(0)),
            opt_io_size: U32::ZERO,
            writeback: 1,
            unused0: 0,
            num_queues: U16::new(queues),
            max_discard_sectors: U32::new(MAX_DISCARD.sectors),
            max_discard_seg: U32::new(MAX_DISCARD.ranges),
            discard_sector_alignment: sectors(geometry.discard_granularity),
            max_write_zeroes_sectors: U32::new(MAX_WRITE_ZEROES.sectors),
            max_write_zeroes_seg: U32::new(MAX_WRITE_ZEROES.ranges),
            write_zeroes_may_unmap: 1,
            unused1: [0; 3],
        }
    }
}
