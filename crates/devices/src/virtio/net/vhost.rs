//! Frames carried by the kernel (vhost-net), between a tap and the guest's queues.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use engine::GuestMemory;
use rustix::fs::{Mode, OFlags};
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Vhost;
use super::header::feature;
use super::rings;
use super::sys::{RingEvent, VhostFile};
use crate::fd::event_fd;
use crate::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtQueue};
use crate::{Error, Result};

const VHOST_DEVICE: &str = "/dev/vhost-net";

/// The kernel's side of one pair of queues.
pub(super) struct VhostNet {
    file: VhostFile,
    tap: OwnedFd,
    features: u64,
    broken: EventFd,
    /// What the kernel may touch, while it serves the queues.
    serving: Option<GuestMemory>,
}

impl VhostNet {
    /// Features of the rings, which the kernel must know to serve them.
    pub(super) const RING_FEATURES: u64 =
        feature::MRG_RXBUF | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_VERSION_1;

    /// Opens the kernel's side for `tap`, if it is wanted and there.
    pub(super) fn open(wanted: Vhost, tap: &OwnedFd) -> Result<Option<Self>> {
        if wanted == Vhost::Off {
            return Ok(None);
        }
        match Self::new(tap) {
            Ok(vhost) => Ok(Some(vhost)),
            Err(source) if wanted == Vhost::Required => Err(Error::io(format!(
                "open {VHOST_DEVICE}; load the kernel module with `sudo modprobe vhost_net` and let this user open it"
            ))(source)),
            Err(error) => {
                tracing::debug!(%error, "frames are carried without {VHOST_DEVICE}");
                Ok(None)
            }
        }
    }

    fn new(tap: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = VhostFile::new(rustix::fs::open(VHOST_DEVICE, flags, Mode::empty())?)?;
        let features = file.features()?;
        if features & VIRTIO_F_VERSION_1 == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let tap = tap.try_clone()?;
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { file, tap, features, broken, serving: None })
    }

    /// What the kernel knows, of [`RING_FEATURES`](Self::RING_FEATURES) and others.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Is written when the kernel finds that the driver broke a ring.
    pub(super) fn broken(&self) -> &EventFd {
        &self.broken
    }

    /// Whether the kernel can tell the driver about `queues`.
    pub(super) fn can_serve(queues: [&VirtQueue; 2]) -> bool {
        queues.iter().all(|queue| queue.interrupt().event().is_some())
    }

    /// Lets the kernel serve the receive and the transmit queue until [`stop`](Self::stop).
    pub(super) fn start(
        &mut self,
        memory: &GuestMemory,
        features: u64,
        queues: [&VirtQueue; 2],
    ) -> io::Result<()> {
        self.stop(queues);
        self.file.set_features(features & Self::RING_FEATURES & self.features)?;
        let mut regions = Vec::new();
        for region in memory.iter() {
            let slice = region.as_volatile_slice().map_err(io::Error::other)?;
            regions.push((region.start_addr().0, slice));
        }
        // SAFETY: `serving` keeps the memory mapped until `stop`, which detaches the rings first; every access to
        // guest memory of this process is volatile.
        unsafe { self.file.set_memory(&regions)? };
        self.serving = Some(memory.clone());
        let started = self.start_rings(memory, queues);
        if started.is_err() {
            self.stop(queues);
        }
        started
    }

    fn start_rings(&self, memory: &GuestMemory, queues: [&VirtQueue; 2]) -> io::Result<()> {
        for (index, queue) in (0..).zip(queues) {
            let ring = queue.lock();
            self.set_ring(index, &ring, memory)?;
            self.file.set_ring_event(index, RingEvent::Kick, event_fd(queue.doorbell()))?;
            let call = queue.interrupt().event().ok_or(io::ErrorKind::Unsupported)?;
            self.file.set_ring_event(index, RingEvent::Call, event_fd(&call))?;
            self.file.set_ring_event(index, RingEvent::Error, event_fd(&self.broken))?;
        }
        for (index, queue) in (0..).zip(queues) {
            self.file.attach(index, self.tap.as_fd())?;
            // The driver may have filled it before.
            queue.ring();
        }
        Ok(())
    }

    fn set_ring(&self, index: u32, ring: &Queue, memory: &GuestMemory) -> io::Result<()> {
        let size = usize::from(ring.size());
        // The kernel goes by host addresses from here on: each part must lie in one region as a whole.
        let part = |address, length| {
            memory.get_slice(GuestAddress(address), length).map_err(io::Error::other)
        };
        let descriptors = part(ring.desc_table(), 16 * size)?;
        let available = part(ring.avail_ring(), 6 + 2 * size)?;
        let used = part(ring.used_ring(), 6 + 8 * size)?;
        self.file.set_ring_size(index, ring.size())?;
        self.file.set_ring_base(index, ring.next_avail())?;
        // SAFETY: as in `start`; each slice has the length of VIRTIO 1.2 section 2.7.
        unsafe { self.file.set_ring_address(index, &descriptors, &available, &used) }
    }

    /// Takes the queues back from the kernel; they know then where it stopped.
    pub(super) fn stop(&mut self, queues: [&VirtQueue; 2]) {
        let Some(memory) = self.detach() else { return };
        for (index, queue) in (0..).zip(queues) {
            let mut ring = queue.lock();
            if let Ok(base) = self.file.ring_base(index) {
                ring.set_next_avail(base);
            }
            if let Ok(used) = rings::used_index(&ring, &memory) {
                ring.set_next_used(used);
            }
        }
        // What the kernel wrote is recorded nowhere, so it may be anything.
        for region in memory.iter() {
            region.bitmap().mark_dirty(0, region.len() as usize);
        }
    }

    fn detach(&mut self) -> Option<GuestMemory> {
        let memory = self.serving.take()?;
        for index in 0..2 {
            if let Err(error) = self.file.detach(index) {
                tracing::error!(%error, "the kernel does not give a queue back");
            }
        }
        Some(memory)
    }
}

impl Drop for VhostNet {
    fn drop(&mut self) {
        self.detach();
    }
}
