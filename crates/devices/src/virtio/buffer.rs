//! The bytes of a descriptor chain.

use std::io;
use std::os::fd::BorrowedFd;

use engine::GuestMemory;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, Permissions};

use super::sys::{self, Slice};

/// Guest memory in pieces, read or written as one run of bytes.
pub(crate) struct GuestBuffer<'m> {
    slices: Vec<Slice<'m>>,
}

impl<'m> GuestBuffer<'m> {
    /// What the driver put into `chain` for the device; `None` where some of it is outside of memory.
    pub(crate) fn readable(
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Option<Self> {
        let pieces = chain.readable().map(|piece| (piece.addr(), piece.len()));
        Self::collect(memory, pieces, Permissions::Read)
    }

    /// Where the device may write in `chain`; `None` where some of it is outside of memory.
    pub(crate) fn writable(
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Option<Self> {
        let pieces = chain.writable().map(|piece| (piece.addr(), piece.len()));
        Self::collect(memory, pieces, Permissions::Write)
    }

    /// `length` bytes at `address`.
    pub(crate) fn of_range(memory: &'m GuestMemory, address: u64, length: u32) -> Option<Self> {
        Self::collect(memory, std::iter::once((GuestAddress(address), length)), Permissions::Write)
    }

    fn collect(
        memory: &'m GuestMemory,
        pieces: impl Iterator<Item = (GuestAddress, u32)>,
        access: Permissions,
    ) -> Option<Self> {
        let mut slices = Vec::new();
        for (address, length) in pieces {
            for slice in memory.get_slices(address, length as usize, access).ok()? {
                slices.push(slice.ok()?);
            }
        }
        Some(Self { slices })
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        // A chain has at most 4 GiB, so this cannot overflow.
        self.slices.iter().map(|slice| slice.len()).sum()
    }

    /// Takes the first `count` bytes, or all if there are fewer, off this buffer.
    pub(crate) fn take(&mut self, mut count: usize) -> Self {
        let mut whole = 0;
        while let Some(slice) = self.slices.get(whole).filter(|slice| slice.len() <= count) {
            count -= slice.len();
            whole += 1;
        }
        let mut taken: Vec<_> = self.slices.drain(..whole).collect();
        if count > 0
            && let Some(first) = self.slices.first_mut()
            && let (Ok(head), Ok(tail)) = (first.subslice(0, count), first.offset(count))
        {
            taken.push(head);
            *first = tail;
        }
        Self { slices: taken }
    }

    /// The first `count` bytes, or all if there are fewer.
    pub(crate) fn first(&self, count: usize) -> Self {
        Self { slices: self.slices.clone() }.take(count)
    }

    /// Copies its first bytes to `bytes` and returns how many there were.
    pub(crate) fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.read(&mut bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Copies `bytes` to its beginning and returns how many had room.
    pub(crate) fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.write(&bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Takes the first `N` bytes off as a copy, or nothing if there are fewer.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.take(N).copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Reads from a file at `offset`; fewer bytes than there is room for are possible.
    pub(crate) fn read_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        sys::read_at(fd, &self.slices, offset)
    }

    /// Writes to a file at `offset`; fewer bytes than there are are possible.
    pub(crate) fn write_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        sys::write_at(fd, &self.slices, offset)
    }

    /// Receives from a socket without waiting; 0 is the end of the stream, if there was room.
    pub(crate) fn receive(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::receive(fd, &self.slices)
    }

    /// Sends to a socket without waiting.
    pub(crate) fn send(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::send(fd, &self.slices)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn memory() -> GuestMemory {
        let half = 0x1000;
        GuestMemory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)])
            .unwrap()
    }

    fn buffer(memory: &GuestMemory, pieces: &[(u64, u32)]) -> Option<GuestBuffer<'static>> {
        // The tests keep their memory for ever.
        let memory: &'static GuestMemory = Box::leak(Box::new(memory.clone()));
        let pieces = pieces.iter().map(|&(address, length)| (GuestAddress(address), length));
        GuestBuffer::collect(memory, pieces, Permissions::Write)
    }

    #[test]
    fn pieces_and_regions_are_one_run_of_bytes() {
        let memory = memory();
        let mut all = buffer(&memory, &[(0xffe, 4), (0x20, 0), (0x10, 3)]).unwrap();
        assert_eq!(all.len(), 7);
        assert_eq!(all.copy_from(b"abcdefgh"), 7);
        assert_eq!(&all.take_array::<3>().unwrap(), b"abc");
        let middle = all.take(2);
        let mut bytes = [0; 8];
        assert_eq!(middle.copy_to(&mut bytes), 2);
        assert_eq!(&bytes[..2], b"de");
        assert_eq!(all.len(), 2);
        assert_eq!(all.take_array::<3>(), None);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x12)).unwrap(), b'g');
    }

    #[test]
    fn what_lies_outside_of_memory_is_refused() {
        assert!(buffer(&memory(), &[(0x1ffe, 4)]).is_none());
        assert!(buffer(&memory(), &[(u64::MAX, 4)]).is_none());
    }

    #[test]
    fn files_and_sockets_are_read_and_written_at_once() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        let from = buffer(&memory, &[(0, 3), (8, 3)]).unwrap();
        from.copy_from(b"abcdef");
        assert_eq!(from.write_at(file.as_fd(), 5).unwrap(), 6);
        let into = buffer(&memory, &[(0x100, 1), (0x200, 9)]).unwrap();
        assert_eq!(into.read_at(file.as_fd(), 6).unwrap(), 5);
        let mut bytes = [0; 5];
        into.copy_to(&mut bytes);
        assert_eq!(&bytes, b"bcdef");
        assert!(into.read_at(file.as_fd(), u64::MAX).is_err());

        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(from.send(ours.as_fd()).unwrap(), 6);
        assert_eq!(into.receive(theirs.as_fd()).unwrap(), 6);
        assert_eq!(into.receive(theirs.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(from.send(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(into.receive(ours.as_fd()).unwrap(), 0);
    }
}
