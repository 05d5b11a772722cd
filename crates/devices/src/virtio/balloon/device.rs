//! The balloon device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::{GuestMemory, PAGE_SIZE};
use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::Statistics;
use crate::virtio::buffer::GuestBuffer;
use crate::virtio::serve::{Outcome, Served, serve};
use crate::virtio::{
    Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtioDevice, read_config_bytes, sys,
};
use crate::{EventHandler, EventLoopHandle, Result, State as Saved};

const DEVICE_TYPE: u16 = 5;
/// Linux reports only with room for 32 ranges.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Offset of `actual` in the configuration.
const ACTUAL: u64 = 4;
/// Page numbers taken from one chain; Linux sends 256.
const MOST_PAGES: usize = 4096;
/// Ranges taken from one chain; Linux sends 32.
const MOST_RANGES: usize = 1024;

/// What a balloon may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Bytes that the guest is asked to give up from the beginning.
    pub target: u64,
    /// The guest may take memory back by itself before it ends programs for lack of memory.
    pub deflate_on_oom: bool,
    /// The guest reports memory that it does not use.
    pub reporting: bool,
}

/// Gives memory of the guest back to the host.
pub struct Balloon {
    name: String,
    config: BalloonConfig,
    shared: Arc<Shared>,
}

struct Shared {
    this: Weak<Shared>,
    events: EventLoopHandle,
    state: Mutex<State>,
}

struct State {
    known: Known,
    /// New statistics are wanted.
    refresh: bool,
    active: Option<Served>,
}

/// What outlives the driver and a snapshot.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// Pages that the guest is asked to give up.
    target: u32,
    /// Pages that it gave up.
    actual: u32,
    statistics: Option<Statistics>,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { target: 0, deflate_on_oom: true, reporting: true }
    }
}

impl Balloon {
    /// A balloon called `name` that works on the loop of `events`.
    pub fn new(name: impl Into<String>, config: BalloonConfig, events: EventLoopHandle) -> Self {
        let known = Known { target: pages(config.target), ..Known::default() };
        let state = State { known, refresh: false, active: None };
        let shared = Arc::new_cyclic(|this| Shared {
            this: Weak::clone(this),
            events,
            state: Mutex::new(state),
        });
        Self { name: name.into(), config, shared }
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the guest to give up `bytes` of its memory altogether, in whole pages.
    pub fn set_target(&self, bytes: u64) {
        let mut state = self.shared.lock();
        state.known.target = pages(bytes);
        let signal = state.active.as_ref().map(|active| Arc::clone(&active.signal));
        drop(state);
        signal.inspect(|signal| signal.config_changed());
    }

    /// Bytes that the guest is asked to give up.
    pub fn target(&self) -> u64 {
        u64::from(self.shared.lock().known.target) * PAGE_SIZE
    }

    /// Bytes that the guest says it has given up.
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.lock().known.actual) * PAGE_SIZE
    }

    /// What the guest last said of its memory, and asks it to say so anew for the next call.
    pub fn statistics(&self) -> Option<Statistics> {
        let mut state = self.shared.lock();
        state.refresh = true;
        let statistics = state.known.statistics;
        let queue = state.active.as_ref().and_then(|active| active.queue(STATISTICS)).cloned();
        drop(state);
        queue.inspect(|queue| queue.ring());
        statistics
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let chosen = |wanted: bool, feature: u64| if wanted { feature } else { 0 };
        VIRTIO_F_INDIRECT_DESC
            | VIRTIO_F_EVENT_IDX
            | F_STATS_VQ
            | chosen(self.config.deflate_on_oom, F_DEFLATE_ON_OOM)
            | chosen(self.config.reporting, F_REPORTING)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let known = self.shared.lock().known;
        let mut config = [0; 16];
        config[0..4].copy_from_slice(&known.target.to_le_bytes());
        config[4..8].copy_from_slice(&known.actual.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset == ACTUAL
            && let Some(bytes) = data.first_chunk()
        {
            self.shared.lock().known.actual = u32::from_le_bytes(*bytes);
        }
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        self.shared.lock().active = Some(Served::new(activation));
        self.shared.run()
    }

    fn deactivate(&self) {
        let mut state = self.shared.halt();
        state.active = None;
        // A new driver begins with all memory.
        state.known.actual = 0;
        state.known.statistics = None;
    }

    fn pause(&self) -> Result<()> {
        drop(self.shared.halt());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.shared.run()
    }

    fn save(&self) -> Result<Saved> {
        Saved::new(&self.shared.lock().known)
    }

    fn restore(&self, state: &Saved) -> Result<()> {
        self.shared.lock().known = state.get()?;
        Ok(())
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.deactivate();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins or goes on to serve the guest.
    fn run(&self) -> Result<()> {
        let Some(handler) = self.this.upgrade() else { return Ok(()) };
        let handler: Arc<dyn EventHandler> = handler;
        let mut state = self.lock();
        state.active.as_mut().map_or(Ok(()), |active| active.run(&self.events, &handler))
    }

    /// Stops serving the guest. All use of guest memory is under this lock, so none is under way then.
    fn halt(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if let Some(active) = &mut state.active {
            active.halt();
        }
        state
    }
}

impl EventHandler for Shared {
    fn ready(&self, token: u64) {
        let mut state = self.lock();
        let State { known, refresh, active } = &mut *state;
        let Some(active) = active.as_ref().filter(|active| active.is_running()) else { return };
        let Some(queue) = usize::try_from(token).ok().and_then(|index| active.queue(index)) else {
            return;
        };
        let _ = queue.doorbell().read();
        let memory = &active.memory;
        // The first queue for reports. Without statistics their number, too, is a report's, by the count of Linux.
        let reports = if active.features & F_STATS_VQ != 0 { STATISTICS + 1 } else { STATISTICS };
        serve(queue, memory, active.signal.as_ref(), |chain| {
            match token as usize {
                INFLATE => take_pages(chain, memory),
                // The memory is there again when the guest touches it.
                DEFLATE => {}
                index if index >= reports => take_reports(chain, memory),
                _ => {
                    let mut bytes = [0; Statistics::SIZE];
                    if let Some(buffer) = GuestBuffer::readable(chain, memory) {
                        let count = buffer.copy_to(&mut bytes);
                        known.statistics = Some(Statistics::parse(&bytes[..count]));
                    }
                    // The buffer stays with the device until it wants new ones.
                    if !std::mem::take(refresh) {
                        return Outcome::Later;
                    }
                }
            }
            Outcome::Used(0)
        });
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

/// Gives the pages whose numbers are in `chain` back to the host.
fn take_pages<'m>(chain: DescriptorChain<&'m GuestMemory>, memory: &'m GuestMemory) {
    let Some(buffer) = GuestBuffer::readable(chain, memory) else { return };
    let mut bytes = vec![0; buffer.len().min(4 * MOST_PAGES)];
    buffer.copy_to(&mut bytes);
    let mut numbers: Vec<u64> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|number: &[u8; 4]| u64::from(u32::from_le_bytes(*number)))
        .collect();
    // In order, since neighbours are given back with one call.
    numbers.sort_unstable();
    numbers.dedup();
    for run in numbers.chunk_by(|first, second| first + 1 == *second) {
        discard(memory, run[0] * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
    }
}

/// Gives the ranges that the descriptors of `chain` are back to the host.
fn take_reports(chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) {
    for range in chain.writable().take(MOST_RANGES) {
        let Some(end) = range.addr().0.checked_add(u64::from(range.len())) else { continue };
        let Some(start) = range.addr().0.checked_next_multiple_of(PAGE_SIZE) else { continue };
        let end = end - end % PAGE_SIZE;
        if start < end {
            discard(memory, start, end - start);
        }
    }
}

/// Gives guest memory back to the host. What is not there, and what the host does not take (such as a part
/// of a huge page), stays as it is: the guest has promised nothing about it, and neither have we.
fn discard(memory: &GuestMemory, mut start: u64, mut length: u64) {
    while length > 0 {
        let Some((region, offset)) = memory.to_region_addr(GuestAddress(start)) else { return };
        let here = length.min(region.len() - offset.0);
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let discarded = match GuestMemoryRegion::file_offset(region) {
            Some(file) if shared => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file.file(), flags, file.start() + offset.0, here)
                    .map_err(std::io::Error::from)
            }
            _ => discard_mapping(region, offset, here, shared),
        };
        if let Err(error) = discarded {
            tracing::debug!(start, length = here, %error, "guest memory was not given back");
        }
        start += here;
        length -= here;
    }
}

fn discard_mapping(
    region: &engine::GuestRegion,
    offset: MemoryRegionAddress,
    length: u64,
    shared: bool,
) -> std::io::Result<()> {
    let slice = usize::try_from(length)
        .ok()
        .and_then(|length| GuestMemoryRegion::get_slice(region, offset, length).ok())
        .ok_or(std::io::ErrorKind::InvalidInput)?;
    sys::discard(&slice, shared)
}
