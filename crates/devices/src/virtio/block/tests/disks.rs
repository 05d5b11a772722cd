//! Disks that misbehave or keep a record.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use disk::{Content, DirectFile, Disk, Error, Extent, Result};

/// A disk in memory that counts flushes, fails and waits as it is told to.
#[derive(Default)]
pub(super) struct MemoryDisk {
    pub bytes: Mutex<Vec<u8>>,
    pub flushes: AtomicUsize,
    /// Writes fail.
    pub broken: Mutex<bool>,
    /// Writes wait until this is not set any more.
    pub gate: Mutex<bool>,
    pub gate_changed: Condvar,
    /// In the place of its file: a pipe, where a read waits for bytes.
    pub pipe: Option<OwnedFd>,
    /// Writes that have begun.
    pub writes: AtomicUsize,
}

impl MemoryDisk {
    pub(super) fn new(length: usize) -> Self {
        Self { bytes: Mutex::new(vec![0; length]), ..Self::default() }
    }

    pub(super) fn set_gate(&self, closed: bool) {
        *self.gate.lock().unwrap() = closed;
        self.gate_changed.notify_all();
    }

    fn part(range: Range<u64>) -> Range<usize> {
        range.start as usize..range.end as usize
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let part = Self::part(offset..offset + buffer.len() as u64);
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[part]);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.lock().unwrap();
        drop(self.gate_changed.wait_while(gate, |closed| *closed).unwrap());
        if *self.broken.lock().unwrap() {
            return Err(Error::ReadOnly);
        }
        let part = Self::part(offset..offset + buffer.len() as u64);
        self.bytes.lock().unwrap()[part].copy_from_slice(buffer);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.write_zeroes(range, true)
    }

    fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> Result<()> {
        self.bytes.lock().unwrap()[Self::part(range)].fill(0);
        Ok(())
    }

    fn map(&self, range: Range<u64>) -> Result<Extent<'_>> {
        Ok(Extent { range, content: Content::Data(None) })
    }

    fn direct_file(&self) -> Option<&dyn DirectFile> {
        self.pipe.is_some().then_some(self)
    }
}

impl DirectFile for MemoryDisk {
    fn file(&self) -> BorrowedFd<'_> {
        self.pipe.as_ref().unwrap().as_fd()
    }

    fn memory_alignment(&self) -> u32 {
        1
    }

    fn offset_alignment(&self) -> u32 {
        1
    }

    fn punches_holes(&self) -> bool {
        false
    }
}
