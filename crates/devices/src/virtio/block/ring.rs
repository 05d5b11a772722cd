//! An io_uring that moves data between a file and guest memory: the unsafe code of this device.
//!
//! The kernel holds pointers into the slots and into guest memory until an operation has completed, so
//! both belong to the [`Ring`], a slot cannot be changed while its operation is under way, and
//! dropping waits for all operations.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use disk::{Content, Disk};
use engine::GuestMemory;
use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, opcode, squeue};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemory as _, Permissions};

use super::request::{Segment, gather, scatter};

/// `RWF_DSYNC` of preadv2(2): the write is durable when it completes.
const RWF_DSYNC: i32 = 2;
/// Vectors that the kernel takes at once (UIO_MAXIOV).
const MAX_VECTORS: usize = 1024;
const TIMER: u64 = u64::MAX;
/// Numbers from here on are watched descriptors, below are slots.
const WATCHES: u64 = 1 << 32;
/// Entries beside one per slot: the watched descriptors and the timer.
const SPARE_ENTRIES: u32 = 4;

/// A ring with one operation at most per slot.
pub(super) struct Ring {
    ring: IoUring,
    memory: GuestMemory,
    /// Keeps the file open.
    disk: Arc<dyn Disk>,
    slots: Vec<Slot>,
    watched: Vec<OwnedFd>,
    in_flight: usize,
    /// Boxed, because the kernel may look at it up to the submission.
    timer: Box<Timespec>,
}

/// What the ring tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The slot's operation completed with this result, a negative one being an error number.
    Completed { slot: usize, result: i32 },
    /// The watched descriptor can be read; it is watched no more.
    Readable(usize),
    /// The timer ran out.
    Timer,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromFile,
    /// Durable when it completes if `durable`.
    ToFile {
        durable: bool,
    },
}

/// A change of the file's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocation {
    /// Gives the space back; it reads as zeroes.
    PunchHole,
    /// Keeps the space; it reads as zeroes.
    ZeroRange,
}

/// The guest memory lies outside of the guest's memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutsideMemory;

#[derive(Default)]
struct Slot {
    vectors: Vec<libc::iovec>,
    /// Vectors before this one are done.
    first: usize,
    /// The file that has the data, in the place of the disk's direct file.
    file: Option<Fd>,
    /// In the place of guest memory where that is not aligned as O_DIRECT wants it.
    bounce: Option<Bounce>,
    in_flight: bool,
}

/// Host memory with a stricter alignment than `Vec` gives.
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Ring {
    /// A ring of `slots`, whose operations are on the files of `disk`. Fails where the kernel has no
    /// io_uring or does not let us use it.
    pub(super) fn new(
        slots: usize,
        memory: GuestMemory,
        disk: Arc<dyn Disk>,
        watched: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let entries = u32::try_from(slots).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entries = (entries + SPARE_ENTRIES).next_power_of_two();
        // Completions are handled when the thread asks for them, as it does all the time: fewer
        // interruptions than by default. Linux 6.1.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => IoUring::new(entries),
                _ => Err(error),
            })?;
        // The file is not registered with the ring: the kernel lets go of registered ones some time after
        // a process has been killed, and the disk would stay locked for the next one until then.
        let slots = (0..slots).map(|_| Slot::default()).collect();
        let timer = Box::new(Timespec::new());
        Ok(Self { ring, memory, disk, slots, watched, in_flight: 0, timer })
    }

    /// Makes `data` what the slot reads into or writes from.
    pub(super) fn load(&mut self, slot: usize, data: &[Segment]) -> Result<(), OutsideMemory> {
        let slot = idle(&mut self.slots, slot);
        slot.vectors.clear();
        slot.first = 0;
        slot.file = None;
        slot.bounce = None;
        for segment in data {
            let slices = self
                .memory
                .get_slices(segment.address, segment.length as usize, Permissions::ReadWrite)
                .map_err(|_| OutsideMemory)?;
            for slice in slices {
                let slice = slice.map_err(|_| OutsideMemory)?;
                let base = slice.ptr_guard_mut().as_ptr();
                slot.vectors.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        Ok(())
    }

    /// Where the disk has what is to be read into the slot for as long as it is open, if that is one piece of a
    /// file; the slot then reads from that file.
    pub(super) fn aim(&mut self, slot: usize, range: Range<u64>) -> Option<u64> {
        let extent = self.disk.map(range.clone()).ok()?;
        let Content::Data(Some(location)) = extent.content else { return None };
        if extent.range != range || !location.is_lasting {
            return None;
        }
        idle(&mut self.slots, slot).file = Some(Fd(location.file.as_raw_fd()));
        Some(location.offset)
    }

    /// Whether all addresses and lengths of what was loaded are multiples of these powers of two.
    pub(super) fn is_aligned(&self, slot: usize, memory: u32, length: u32) -> bool {
        self.slots[slot].vectors.iter().all(|vector| {
            vector.iov_base.addr().is_multiple_of(memory as usize)
                && vector.iov_len.is_multiple_of(length as usize)
        })
    }

    /// Puts aligned host memory into the place of guest memory, with the content of `data` if it is to
    /// be written.
    pub(super) fn load_bounce(
        &mut self,
        slot: usize,
        data: &[Segment],
        length: usize,
        alignment: u32,
        direction: Direction,
    ) -> Result<(), OutsideMemory> {
        let slot = idle(&mut self.slots, slot);
        let mut bounce = Bounce::new(length, alignment as usize);
        if direction != Direction::FromFile {
            gather(&self.memory, data, bounce.as_mut()).ok_or(OutsideMemory)?;
        }
        let base = bounce.as_mut().as_mut_ptr();
        slot.vectors.clear();
        slot.first = 0;
        slot.vectors.push(libc::iovec { iov_base: base.cast(), iov_len: length });
        slot.bounce = Some(bounce);
        Ok(())
    }

    /// Completes a read into `data`: copies what was bounced, and records the pages as written by a
    /// device.
    pub(super) fn finish_read(
        &mut self,
        slot: usize,
        data: &[Segment],
    ) -> Result<(), OutsideMemory> {
        if let Some(bounce) = idle(&mut self.slots, slot).bounce.take() {
            return scatter(&self.memory, data, bounce.as_ref()).ok_or(OutsideMemory);
        }
        mark_dirty(&self.memory, data);
        Ok(())
    }

    /// Begins to move the loaded data, or what is left of it, from or to `offset` of the file.
    pub(super) fn transfer(
        &mut self,
        slot: usize,
        direction: Direction,
        offset: u64,
    ) -> io::Result<()> {
        let loaded = idle(&mut self.slots, slot);
        let fd = match loaded.file {
            Some(file) => file,
            None => direct_file(&*self.disk)?,
        };
        let vectors = &loaded.vectors[loaded.first..];
        let count = vectors.len().min(MAX_VECTORS) as u32;
        let entry = match direction {
            Direction::FromFile => {
                opcode::Readv::new(fd, vectors.as_ptr(), count).offset(offset).build()
            }
            Direction::ToFile { durable } => opcode::Writev::new(fd, vectors.as_ptr(), count)
                .offset(offset)
                .rw_flags(if durable { RWF_DSYNC } else { 0 })
                .build(),
        };
        self.push(slot, entry)
    }

    /// Takes `count` bytes off the loaded data and says whether some are left.
    pub(super) fn advance(&mut self, slot: usize, mut count: usize) -> bool {
        let slot = idle(&mut self.slots, slot);
        while let Some(vector) = slot.vectors.get_mut(slot.first) {
            if count < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(count);
                vector.iov_len -= count;
                return true;
            }
            count -= vector.iov_len;
            slot.first += 1;
        }
        false
    }

    /// Begins to make the file's data durable.
    pub(super) fn sync(&mut self, slot: usize) -> io::Result<()> {
        let entry =
            opcode::Fsync::new(direct_file(&*self.disk)?).flags(FsyncFlags::DATASYNC).build();
        self.push(slot, entry)
    }

    /// Begins a change of the file's space.
    pub(super) fn allocate(
        &mut self,
        slot: usize,
        allocation: Allocation,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mode = match allocation {
            Allocation::PunchHole => libc::FALLOC_FL_PUNCH_HOLE,
            Allocation::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
        } | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(direct_file(&*self.disk)?, length)
            .offset(offset)
            .mode(mode)
            .build();
        self.push(slot, entry)
    }

    /// Tells once when the watched descriptor of this index can be read.
    pub(super) fn watch(&mut self, index: usize) -> io::Result<()> {
        let fd = Fd(self.watched[index].as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        let entry = entry.user_data(WATCHES + index as u64);
        // SAFETY: the operation has no pointers.
        unsafe { push(&mut self.ring, &entry) }
    }

    /// Tells once when `duration` is over. Only one timer at a time.
    pub(super) fn set_timer(&mut self, duration: Duration) -> io::Result<()> {
        *self.timer = Timespec::from(duration);
        let entry = opcode::Timeout::new(&raw const *self.timer).build().user_data(TIMER);
        // SAFETY: the time lies in a box that lives as long as the ring and changes only here; the
        // kernel copies it at the submission.
        unsafe { push(&mut self.ring, &entry) }
    }

    /// Submits what was begun; waits for an event if `block`. May return without one.
    pub(super) fn submit(&mut self, block: bool) -> io::Result<()> {
        match self.ring.submit_and_wait(block.into()) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, or to be tried again once some completions have been taken.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next event, without waiting.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let entry = self.ring.completion().next()?;
        Some(match entry.user_data() {
            TIMER => Event::Timer,
            number if number >= WATCHES => Event::Readable((number - WATCHES) as usize),
            number => {
                let slot = number as usize;
                self.slots[slot].in_flight = false;
                self.in_flight -= 1;
                Event::Completed { slot, result: entry.result() }
            }
        })
    }

    /// Guest memory, for those who handle an operation without the ring.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn push(&mut self, slot: usize, entry: squeue::Entry) -> io::Result<()> {
        assert!(!self.slots[slot].in_flight, "one operation per slot");
        // SAFETY: vectors and bounce memory belong to the slot, which nothing changes while `in_flight`
        // is set; the vectors lead into guest memory, which `self.memory` keeps mapped, or into the
        // bounce memory. `drop` waits for the operation.
        unsafe { push(&mut self.ring, &entry.user_data(slot as u64)) }?;
        self.slots[slot].in_flight = true;
        self.in_flight += 1;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.submit(true).is_err() {
                // What the kernel may still write to must never be used for anything else.
                std::mem::forget(std::mem::take(&mut self.slots));
                std::mem::forget(self.memory.clone());
                return;
            }
            while self.next_event().is_some() {}
        }
    }
}

impl Bounce {
    fn new(length: usize, alignment: usize) -> Self {
        let bytes = vec![0; length + alignment];
        let start = bytes.as_ptr().align_offset(alignment);
        Self { bytes, start, length }
    }

    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

fn direct_file(disk: &dyn Disk) -> io::Result<Fd> {
    let direct = disk.direct_file().ok_or(io::ErrorKind::Unsupported)?;
    Ok(Fd(direct.file().as_raw_fd()))
}

/// Records that a device wrote to `data`.
fn mark_dirty(memory: &GuestMemory, data: &[Segment]) {
    for segment in data {
        let (address, length) = (segment.address, segment.length as usize);
        let Ok(slices) = memory.get_slices(address, length, Permissions::Write) else { continue };
        for slice in slices.flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}

fn idle(slots: &mut [Slot], slot: usize) -> &mut Slot {
    let slot = &mut slots[slot];
    assert!(!slot.in_flight, "the kernel still uses the slot");
    slot
}

/// # Safety
///
/// What the entry's pointers lead to must stay valid and unchanged until the operation has completed.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller's promise.
    if unsafe { ring.submission().push(entry) }.is_ok() {
        return Ok(());
    }
    // There is an entry for every slot, so a full queue has only not been submitted yet.
    ring.submit()?;
    // SAFETY: the caller's promise.
    unsafe { ring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
}
