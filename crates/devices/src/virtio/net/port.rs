//! The seam between a pair of queues and what carries its frames on the host.

use std::io;
use std::os::fd::BorrowedFd;

use super::vhost::VhostNet;
use crate::virtio::sys::Slice;

/// One end of a cable on the host. Every frame has a [`super::header::Header`] before it.
pub(super) trait Port: Send {
    /// Ready to read when a frame may be there, ready to write when one may be sent.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Bytes of the next frame with its header where that can be known beforehand.
    fn next_frame(&mut self) -> Result<Option<usize>, PortError> {
        Ok(None)
    }

    /// Receives a frame into `slices` and what is left of it into `rest`; returns its whole size,
    /// of which what neither had room for is lost.
    fn receive(&mut self, slices: &[Slice<'_>], rest: &mut [u8]) -> Result<usize, PortError>;

    /// Sends a frame of which `slices` hold at least header and Ethernet header.
    fn send(&mut self, slices: &[Slice<'_>]) -> Result<(), PortError>;

    /// The driver takes these frames from now on: guest features of [`super::header::feature`].
    fn set_offloads(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    /// Whether this port is to take part, where there are several.
    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Why a frame did not pass.
#[derive(Debug)]
pub(super) enum PortError {
    /// It may pass when the descriptor is ready again.
    NotReady,
    /// This one never will, another may.
    Refused,
    /// None will any more.
    Gone(io::Error),
}

/// What a backend gives to a card.
pub(super) struct Cable {
    /// Features it makes possible.
    pub features: u64,
    /// Largest payload it prefers.
    pub mtu: Option<u16>,
    /// One for each pair of queues.
    pub ports: Vec<(Box<dyn Port>, Option<VhostNet>)>,
    /// What must live as long as the cable.
    pub keep: Option<Box<dyn Send + Sync>>,
}
