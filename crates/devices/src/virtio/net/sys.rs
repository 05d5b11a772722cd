//! System calls on guest memory and of the kernel's tun and vhost drivers: the only unsafe code of network
//! cards.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::ioctl::{Getter, IntegerSetter, NoArg, Setter, Updater, ioctl, opcode};

use crate::virtio::sys::{Slice, checked, mark_written, message};

/// Most vectors of one system call (UIO_MAXIOV).
const MOST_VECTORS: usize = 1024;
/// Most pieces of guest memory that a frame may consist of.
pub(super) const MOST_SLICES: usize = MOST_VECTORS - 1;

/// Reads into `slices` and then into `rest`, as readv(2).
pub(super) fn read_frame(
    fd: BorrowedFd<'_>,
    slices: &[Slice<'_>],
    rest: &mut [u8],
) -> io::Result<usize> {
    let vectors = vectors(slices, Some(iovec(rest.as_mut_ptr(), rest.len())), None);
    // SAFETY: the vectors cover guest memory that `slices` keep mapped and which is only accessed as
    // volatile, and `rest`, which is borrowed for the call; the kernel writes nowhere else.
    let read = unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as _) };
    let read = checked(read)?;
    mark_written(slices, read);
    Ok(read)
}

/// Writes `slices`, as writev(2).
pub(super) fn write_frame(fd: BorrowedFd<'_>, slices: &[Slice<'_>]) -> io::Result<usize> {
    let vectors = vectors(slices, None, None);
    // SAFETY: the vectors cover guest memory that `slices` keep mapped; the kernel only reads it.
    checked(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as _) })
}

/// Sends `prefix` and then `slices` without waiting and without a signal where the peer is gone.
pub(super) fn send_frame(
    socket: BorrowedFd<'_>,
    prefix: &[u8],
    slices: &[Slice<'_>],
) -> io::Result<usize> {
    let mut vectors = vectors(slices, None, Some(iovec(prefix.as_ptr().cast_mut(), prefix.len())));
    let message = message(&mut vectors);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to vectors that outlive the call; they cover `prefix` and guest memory that
    // `slices` keep mapped, and the kernel only reads both. There is no name and no control data.
    checked(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Copies `bytes` into `slices` from byte `offset` on; returns how many had room.
pub(super) fn copy_at(slices: &[Slice<'_>], mut offset: usize, bytes: &[u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        if done == bytes.len() {
            break;
        }
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        let count = (slice.len() - offset).min(bytes.len() - done);
        // In range by construction.
        if let Ok(part) = slice.subslice(offset, count) {
            part.copy_from(&bytes[done..done + count]);
        }
        done += count;
        offset = 0;
    }
    done
}

fn vectors(
    slices: &[Slice<'_>],
    last: Option<libc::iovec>,
    first: Option<libc::iovec>,
) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(slices.len() + 1);
    vectors.extend(first);
    // The pointers stay valid beyond their guards: guards only matter for memory that is mapped on
    // demand, which `engine::GuestMemory` is not.
    vectors.extend(
        slices
            .iter()
            .take(MOST_SLICES)
            .map(|slice| iovec(slice.ptr_guard_mut().as_ptr(), slice.len())),
    );
    vectors.extend(last);
    vectors
}

fn iovec(base: *mut u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast::<c_void>(), iov_len: length }
}

/// Hands `fd` to the process that `command` starts, where it has the number that is returned (not less
/// than 3).
pub(super) fn inherit(command: &mut Command, fd: OwnedFd) -> io::Result<RawFd> {
    let fd = rustix::io::fcntl_dupfd_cloexec(&fd, 3)?;
    let number = fd.as_raw_fd();
    let keep =
        move || rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor locks.
    unsafe { command.pre_exec(keep) };
    Ok(number)
}

/// Bytes sent on a Unix socket that the other side has not read yet.
pub(super) fn unread_by_peer(socket: impl AsFd) -> io::Result<i32> {
    const SIOCOUTQ: u32 = libc::TIOCOUTQ as u32;
    // SAFETY: SIOCOUTQ writes an int.
    unsafe { Ok(ioctl(socket, Getter::<SIOCOUTQ, i32>::new())?) }
}

/// `struct ifreq` where it has flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

const TUN: u8 = b'T';
const TUNSETIFF: u32 = opcode::write::<libc::c_int>(TUN, 202);
const TUNSETOFFLOAD: u32 = opcode::write::<libc::c_uint>(TUN, 208);
const TUNSETVNETHDRSZ: u32 = opcode::write::<libc::c_int>(TUN, 216);
const TUNSETQUEUE: u32 = opcode::write::<libc::c_int>(TUN, 217);
const TUNSETVNETLE: u32 = opcode::write::<libc::c_int>(TUN, 220);

/// Attaches `tun` to the interface `name` with `flags` of linux/if_tun.h.
pub(super) fn tun_attach(
    tun: BorrowedFd<'_>,
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
) -> io::Result<()> {
    let mut request = InterfaceRequest { name, flags, padding: [0; 22] };
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, whose size and layout this has.
    unsafe { Ok(ioctl(tun, Updater::<TUNSETIFF, _>::new(&mut request))?) }
}

/// Flags of the interface `name`, such as IFF_UP, asked of any `socket`.
pub(super) fn interface_flags(
    socket: BorrowedFd<'_>,
    name: [u8; libc::IFNAMSIZ],
) -> io::Result<i16> {
    const SIOCGIFFLAGS: u32 = libc::SIOCGIFFLAGS as u32;
    let mut request = InterfaceRequest { name, flags: 0, padding: [0; 22] };
    // SAFETY: SIOCGIFFLAGS reads and writes a `struct ifreq`, whose size and layout this has.
    unsafe { ioctl(socket, Updater::<SIOCGIFFLAGS, _>::new(&mut request))? };
    Ok(request.flags)
}

/// Attaches (IFF_ATTACH_QUEUE) or detaches (IFF_DETACH_QUEUE) a queue of a multi-queue interface.
pub(super) fn tun_set_queue(tun: BorrowedFd<'_>, flags: i16) -> io::Result<()> {
    let request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, padding: [0; 22] };
    // SAFETY: TUNSETQUEUE reads a `struct ifreq`, whose size and layout this has.
    unsafe { Ok(ioctl(tun, Setter::<TUNSETQUEUE, _>::new(request))?) }
}

/// What frames the process on this side takes: TUN_F_ flags.
pub(super) fn tun_set_offload(tun: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes flags as a number.
    unsafe { Ok(ioctl(tun, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags as usize))?) }
}

/// Frames have a little-endian header of `size` bytes.
pub(super) fn tun_set_header(tun: BorrowedFd<'_>, size: i32) -> io::Result<()> {
    // SAFETY: both read an int.
    unsafe {
        ioctl(tun, Setter::<TUNSETVNETHDRSZ, i32>::new(size))?;
        Ok(ioctl(tun, Setter::<TUNSETVNETLE, i32>::new(1))?)
    }
}

const VHOST: u8 = 0xaf;
const VHOST_GET_FEATURES: u32 = opcode::read::<u64>(VHOST, 0x00);
const VHOST_SET_FEATURES: u32 = opcode::write::<u64>(VHOST, 0x00);
const VHOST_SET_OWNER: u32 = opcode::none(VHOST, 0x01);
const VHOST_SET_MEM_TABLE: u32 = opcode::write::<[u32; 2]>(VHOST, 0x03);
const VHOST_SET_VRING_NUM: u32 = opcode::write::<VringState>(VHOST, 0x10);
const VHOST_SET_VRING_ADDR: u32 = opcode::write::<VringAddress>(VHOST, 0x11);
const VHOST_SET_VRING_BASE: u32 = opcode::write::<VringState>(VHOST, 0x12);
const VHOST_GET_VRING_BASE: u32 = opcode::read_write::<VringState>(VHOST, 0x12);
const VHOST_SET_VRING_KICK: u32 = opcode::write::<VringFile>(VHOST, 0x20);
const VHOST_SET_VRING_CALL: u32 = opcode::write::<VringFile>(VHOST, 0x21);
const VHOST_SET_VRING_ERR: u32 = opcode::write::<VringFile>(VHOST, 0x22);
const VHOST_NET_SET_BACKEND: u32 = opcode::write::<VringFile>(VHOST, 0x30);

/// Most regions of guest memory that the kernel takes (its module's parameter `max_mem_regions` is at least
/// this).
const MOST_REGIONS: usize = 64;

/// `struct vhost_vring_state`
#[repr(C)]
struct VringState {
    index: u32,
    number: u32,
}

/// `struct vhost_vring_addr`
#[repr(C)]
struct VringAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_vring_file`
#[repr(C)]
struct VringFile {
    index: u32,
    fd: i32,
}

/// `struct vhost_memory_region`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRegion {
    guest_address: u64,
    size: u64,
    host_address: u64,
    flags: u64,
}

/// `struct vhost_memory`
#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [MemoryRegion; MOST_REGIONS],
}

/// An open `/dev/vhost-net`. The calls that make the kernel touch memory take that memory by borrow only:
/// who calls them keeps it mapped until [`detach`](Self::detach).
pub(super) struct VhostFile(OwnedFd);

/// What the kernel tells and is told a ring's events by.
pub(super) enum RingEvent {
    /// The driver filled the ring.
    Kick,
    /// The driver is to be told.
    Call,
    /// The ring is broken.
    Error,
}

impl VhostFile {
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let file = Self(file);
        // SAFETY: VHOST_SET_OWNER takes no argument.
        unsafe { ioctl(file.0.as_fd(), NoArg::<VHOST_SET_OWNER>::new())? };
        Ok(file)
    }

    pub(super) fn features(&self) -> io::Result<u64> {
        // SAFETY: VHOST_GET_FEATURES writes a u64.
        unsafe { Ok(ioctl(self.0.as_fd(), Getter::<VHOST_GET_FEATURES, u64>::new())?) }
    }

    pub(super) fn set_features(&self, features: u64) -> io::Result<()> {
        // SAFETY: VHOST_SET_FEATURES reads a u64.
        unsafe { Ok(ioctl(self.0.as_fd(), Setter::<VHOST_SET_FEATURES, u64>::new(features))?) }
    }

    /// Tells where guest memory is: (guest address, memory).
    ///
    /// # Safety
    ///
    /// The memory stays mapped until this file has no backend any more, and is only accessed as volatile.
    pub(super) unsafe fn set_memory(&self, regions: &[(u64, Slice<'_>)]) -> io::Result<()> {
        if regions.len() > MOST_REGIONS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut table = MemoryTable {
            count: regions.len() as u32,
            padding: 0,
            regions: [MemoryRegion::default(); MOST_REGIONS],
        };
        for (region, (address, memory)) in table.regions.iter_mut().zip(regions) {
            region.guest_address = *address;
            region.size = memory.len() as u64;
            region.host_address = host_address(memory);
        }
        // SAFETY: VHOST_SET_MEM_TABLE reads a `struct vhost_memory` and as many regions as it says.
        unsafe { Ok(ioctl(self.0.as_fd(), Setter::<VHOST_SET_MEM_TABLE, _>::new(table))?) }
    }

    pub(super) fn set_ring_size(&self, index: u32, size: u16) -> io::Result<()> {
        let state = VringState { index, number: size.into() };
        // SAFETY: VHOST_SET_VRING_NUM reads a `struct vhost_vring_state`.
        unsafe { Ok(ioctl(self.0.as_fd(), Setter::<VHOST_SET_VRING_NUM, _>::new(state))?) }
    }

    /// Tells where a ring is.
    ///
    /// # Safety
    ///
    /// As [`set_memory`](Self::set_memory), and the slices are as long as the ring size makes them.
    pub(super) unsafe fn set_ring_address(
        &self,
        index: u32,
        descriptors: &Slice<'_>,
        available: &Slice<'_>,
        used: &Slice<'_>,
    ) -> io::Result<()> {
        let address = VringAddress {
            index,
            flags: 0,
            descriptors: host_address(descriptors),
            used: host_address(used),
            available: host_address(available),
            log: 0,
        };
        // SAFETY: VHOST_SET_VRING_ADDR reads a `struct vhost_vring_addr`.
        unsafe { Ok(ioctl(self.0.as_fd(), Setter::<VHOST_SET_VRING_ADDR, _>::new(address))?) }
    }

    pub(super) fn set_ring_base(&self, index: u32, base: u16) -> io::Result<()> {
        let state = VringState { index, number: base.into() };
        // SAFETY: VHOST_SET_VRING_BASE reads a `struct vhost_vring_state`.
        unsafe { Ok(ioctl(self.0.as_fd(), Setter::<VHOST_SET_VRING_BASE, _>::new(state))?) }
    }

    pub(super) fn ring_base(&self, index: u32) -> io::Result<u16> {
        let mut state = VringState { index, number: 0 };
        // SAFETY: VHOST_GET_VRING_BASE reads and writes a `struct vhost_vring_state`.
        unsafe { ioctl(self.0.as_fd(), Updater::<VHOST_GET_VRING_BASE, _>::new(&mut state))? };
        // The upper half is used for packed rings alone.
        Ok(state.number as u16)
    }

    pub(super) fn set_ring_event(
        &self,
        index: u32,
        event: RingEvent,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let file = VringFile { index, fd: fd.as_raw_fd() };
        // SAFETY: each reads a `struct vhost_vring_file`, and takes its own reference to the eventfd.
        unsafe {
            match event {
                RingEvent::Kick => ioctl(&self.0, Setter::<VHOST_SET_VRING_KICK, _>::new(file))?,
                RingEvent::Call => ioctl(&self.0, Setter::<VHOST_SET_VRING_CALL, _>::new(file))?,
                RingEvent::Error => ioctl(&self.0, Setter::<VHOST_SET_VRING_ERR, _>::new(file))?,
            }
        }
        Ok(())
    }

    /// The kernel serves a ring with the frames of `tap` from now on.
    pub(super) fn attach(&self, index: u32, tap: BorrowedFd<'_>) -> io::Result<()> {
        self.set_backend(index, tap.as_raw_fd())
    }

    /// The kernel serves a ring no more; on return it touches no memory for it.
    pub(super) fn detach(&self, index: u32) -> io::Result<()> {
        self.set_backend(index, -1)
    }

    fn set_backend(&self, index: u32, fd: RawFd) -> io::Result<()> {
        let file = VringFile { index, fd };
        // SAFETY: VHOST_NET_SET_BACKEND reads a `struct vhost_vring_file`, and takes its own reference to the
        // tap; what memory it touches then was promised to `set_memory` and `set_ring_address`.
        unsafe { Ok(ioctl(&self.0, Setter::<VHOST_NET_SET_BACKEND, _>::new(file))?) }
    }
}

fn host_address(memory: &Slice<'_>) -> u64 {
    memory.ptr_guard_mut().as_ptr() as u64
}
