//! System calls on guest memory: the only unsafe code of the virtio devices, beside their descriptors'.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use engine::DeviceWrites;
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{VolatileSlice, volatile_memory::PtrGuardMut};

/// A piece of guest memory; what is written there is recorded in the devices' dirty bitmap.
pub(crate) type Slice<'m> = VolatileSlice<'m, BS<'m, DeviceWrites>>;

/// Most pieces in one system call (IOV_MAX of Linux); of more, the first are served.
const MOST_PIECES: usize = 1024;

/// Reads from a file at `offset` into guest memory, as preadv(2).
pub(crate) fn read_at(fd: BorrowedFd<'_>, into: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let vectors = Vectors::new(into);
    // SAFETY: each vector covers memory that `into` keeps mapped, and the kernel writes nowhere else.
    let read =
        unsafe { libc::preadv(fd.as_raw_fd(), vectors.pieces.as_ptr(), vectors.count(), offset) };
    let read = checked(read)?;
    mark_written(into, read);
    Ok(read)
}

/// Writes guest memory to a file at `offset`, as pwritev(2).
pub(crate) fn write_at(fd: BorrowedFd<'_>, from: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let vectors = Vectors::new(from);
    // SAFETY: each vector covers memory that `from` keeps mapped; the kernel only reads it.
    checked(unsafe {
        libc::pwritev(fd.as_raw_fd(), vectors.pieces.as_ptr(), vectors.count(), offset)
    })
}

/// Receives from a socket into guest memory without waiting. 0 is the end of the stream.
pub(crate) fn receive(fd: BorrowedFd<'_>, into: &[Slice<'_>]) -> io::Result<usize> {
    let mut vectors = Vectors::new(into);
    let mut message = message(&mut vectors.pieces);
    // SAFETY: `message` points to vectors that outlive the call, and they cover memory that `into` keeps
    // mapped; no name and no control data are asked for.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let received = checked(received)?;
    mark_written(into, received);
    Ok(received)
}

/// Sends guest memory to a socket without waiting and without a signal where the peer is gone.
pub(crate) fn send(fd: BorrowedFd<'_>, from: &[Slice<'_>]) -> io::Result<usize> {
    let mut vectors = Vectors::new(from);
    let message = message(&mut vectors.pieces);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as in `receive`; the kernel only reads the memory.
    checked(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Gives the pages of `memory` back to the host, as madvise(2). Anonymous memory reads as zeroes then, a
/// private mapping of a file as the file. The pages of a `shared` mapping are taken from all who
/// map it.
pub(crate) fn discard(memory: &Slice<'_>, shared: bool) -> io::Result<()> {
    let advice =
        if shared { rustix::mm::Advice::LinuxRemove } else { rustix::mm::Advice::LinuxDontNeed };
    let guard = memory.ptr_guard_mut();
    // SAFETY: the range is guest memory, which this process only accesses as volatile, so that
    // its content may change at any time; `memory` keeps it mapped.
    unsafe { rustix::mm::madvise(guard.as_ptr().cast(), memory.len(), advice) }.map_err(Into::into)
}

/// Vectors of the kernel, with what keeps their memory mapped.
struct Vectors<'g> {
    pieces: Vec<libc::iovec>,
    _guards: Vec<Guard<'g>>,
}

type Guard<'g> = (PtrGuardMut, std::marker::PhantomData<&'g ()>);

impl<'g> Vectors<'g> {
    fn new(slices: &'g [Slice<'_>]) -> Self {
        let guards: Vec<Guard<'g>> = slices
            .iter()
            .take(MOST_PIECES)
            .map(|slice| (slice.ptr_guard_mut(), std::marker::PhantomData))
            .collect();
        let pieces = guards
            .iter()
            .map(|(guard, _)| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        Self { pieces, _guards: guards }
    }

    fn count(&self) -> libc::c_int {
        self.pieces.len() as libc::c_int
    }
}

/// A message of these vectors, which must outlive its use, without a name and control data.
pub(super) fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.as_mut_ptr(),
        msg_iovlen: vectors.len() as _,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    offset.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// What a system call counted, or its error.
pub(super) fn checked(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Records that the first `count` bytes of `slices` were written.
pub(super) fn mark_written(slices: &[Slice<'_>], mut count: usize) {
    for slice in slices {
        let here = count.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        count -= here;
        if count == 0 {
            break;
        }
    }
}
