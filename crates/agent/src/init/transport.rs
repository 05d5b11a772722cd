//! The streams that reach the host.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The host's address on vsock, VMADDR_CID_HOST.
const HOST_CID: u32 = 2;
/// How long the host may take to listen, or its device to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(2);

/// A way to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connect to this vsock port of the host.
    Vsock(u32),
    /// Use the virtio-console port of this name.
    Port(String),
}

impl Transport {
    /// Reads `vsock:PORT` or `port:NAME`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("vsock", port) => port.parse().ok().map(Self::Vsock),
            ("port", name) if !name.is_empty() => Some(Self::Port(name.into())),
            _ => None,
        }
    }

    /// Opens the stream, waiting for the host as long as is reasonable.
    pub fn open(&self) -> Result<OwnedFd, TransportError> {
        let opened = match self {
            Self::Vsock(port) => retry(|| connect_vsock(*port)),
            Self::Port(name) => retry(|| open_port(name)).and_then(wait_for_reader),
        };
        opened.map_err(|source| TransportError { transport: self.clone(), source })
    }
}

/// The host could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("The host could not be reached over {transport:?}")]
pub struct TransportError {
    transport: Transport,
    source: io::Error,
}

impl From<TransportError> for agent::ServeError {
    fn from(error: TransportError) -> Self {
        Self::Stream(io::Error::other(error))
    }
}

fn retry(mut attempt: impl FnMut() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn connect_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port))?;
    Ok(socket)
}

fn open_port(name: &str) -> io::Result<OwnedFd> {
    let device = find_port(name)?;
    Ok(rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?)
}

/// Device of the virtio-console port; there is no udev that would make `/dev/virtio-ports` for us.
fn find_port(name: &str) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim_end() == name {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A port hangs up and drops what is written to it while nobody listens on the host.
fn wait_for_reader(port: OwnedFd) -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        let mut fds = [PollFd::new(&port, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if !fds[0].revents().contains(PollFlags::HUP) {
            return Ok(port);
        }
        if start.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(PAUSE);
    }
}
