//! Frames over a stream socket, each after its size in four bytes, as QEMU's `-netdev stream` and passt do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::header::{HEADER_SIZE, LEAST_FRAME, NUM_BUFFERS};
use super::port::{Port, PortError};
use super::sys;
use crate::virtio::sys::Slice;

/// Bytes before each frame: its size, big-endian.
const PREFIX: usize = 4;
/// Most bytes of a frame that passt takes and gives (ETH_MAX_MTU).
const MOST_BYTES: usize = 65535;
/// Room for the largest frame and then some, so that small frames come many at a time.
const BUFFER: usize = 2 * (PREFIX + MOST_BYTES);

/// The end of a stream socket that carries frames.
pub(super) struct StreamPort {
    socket: UnixStream,
    /// What was received: `buffer[start..end]`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The rest of a frame of which the socket took only the beginning.
    unsent: Vec<u8>,
}

impl StreamPort {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self { socket, buffer, start: 0, end: 0, unsent: Vec::new() })
    }

    /// Size of the frame at the front, if it is known yet.
    fn front(&self) -> Result<Option<usize>, PortError> {
        let Some(prefix) = self.buffer[self.start..self.end].first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let size = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if (LEAST_FRAME..=MOST_BYTES).contains(&size) {
            Ok(Some(size))
        } else {
            // Where the next frame begins can no longer be told.
            let error = format!("A frame of {size} bytes was announced");
            Err(PortError::Gone(io::Error::new(io::ErrorKind::InvalidData, error)))
        }
    }

    /// Size of the frame at the front, which is here as a whole.
    fn whole(&self) -> Result<Option<usize>, PortError> {
        Ok(self.front()?.filter(|size| self.end - self.start >= PREFIX + size))
    }

    fn fill(&mut self) -> Result<(), PortError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = &mut self.buffer[self.end..];
        match rustix::net::recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(PortError::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok((count, _)) => {
                self.end += count;
                Ok(())
            }
            Err(errno) => Err(classify(errno.into())),
        }
    }

    fn send_rest(&mut self) -> Result<(), PortError> {
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = rustix::net::send(&self.socket, &self.unsent, flags)
                .map_err(|errno| classify(errno.into()))?;
            self.unsent.drain(..sent);
        }
        Ok(())
    }
}

impl Port for StreamPort {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn next_frame(&mut self) -> Result<Option<usize>, PortError> {
        loop {
            if let Some(size) = self.whole()? {
                return Ok(Some(HEADER_SIZE + size));
            }
            self.fill()?;
        }
    }

    fn receive(&mut self, slices: &[Slice<'_>], rest: &mut [u8]) -> Result<usize, PortError> {
        let Some(total) = self.next_frame()? else { return Err(PortError::NotReady) };
        let size = total - HEADER_SIZE;
        let frame = &self.buffer[self.start + PREFIX..][..size];
        let mut header = [0; HEADER_SIZE];
        header[NUM_BUFFERS..].copy_from_slice(&1_u16.to_le_bytes());
        let mut done = sys::copy_at(slices, 0, &header);
        if done == HEADER_SIZE {
            done += sys::copy_at(slices, HEADER_SIZE, frame);
            let left = &frame[done - HEADER_SIZE..];
            let count = left.len().min(rest.len());
            rest[..count].copy_from_slice(&left[..count]);
        }
        self.start += PREFIX + size;
        Ok(total)
    }

    fn send(&mut self, slices: &[Slice<'_>]) -> Result<(), PortError> {
        self.send_rest()?;
        let frame = without_header(slices);
        let size: usize = frame.iter().map(|slice| slice.len()).sum();
        if !(LEAST_FRAME..=MOST_BYTES).contains(&size) {
            return Err(PortError::Refused);
        }
        let prefix = (size as u32).to_be_bytes();
        let sent = sys::send_frame(self.socket.as_fd(), &prefix, &frame).map_err(classify)?;
        if sent < PREFIX + size {
            self.keep_unsent(&prefix, &frame, sent);
        }
        Ok(())
    }
}

impl StreamPort {
    fn keep_unsent(&mut self, prefix: &[u8], frame: &[Slice<'_>], mut sent: usize) {
        let of_prefix = sent.min(prefix.len());
        self.unsent.extend_from_slice(&prefix[of_prefix..]);
        sent -= of_prefix;
        for slice in frame {
            let skip = sent.min(slice.len());
            sent -= skip;
            let from = self.unsent.len();
            self.unsent.resize(from + slice.len() - skip, 0);
            if let Ok(left) = slice.offset(skip) {
                left.copy_to(&mut self.unsent[from..]);
            }
        }
    }
}

fn without_header<'m>(slices: &[Slice<'m>]) -> Vec<Slice<'m>> {
    let mut skip = HEADER_SIZE;
    let mut frame = Vec::with_capacity(slices.len());
    for slice in slices {
        let here = skip.min(slice.len());
        skip -= here;
        if let Ok(left) = slice.offset(here)
            && !left.is_empty()
        {
            frame.push(left);
        }
    }
    frame
}

fn classify(error: io::Error) -> PortError {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::INTR) => PortError::NotReady,
        Some(Errno::NOBUFS | Errno::NOMEM) => PortError::NotReady,
        Some(Errno::FAULT) => PortError::Refused,
        _ => PortError::Gone(error),
    }
}
