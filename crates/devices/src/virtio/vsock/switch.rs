//! All connections between the guest and the Unix sockets of the host.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Weak;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use zerocopy::IntoBytes;

use super::connection::{Connection, End, Ports};
use super::packet::{HOST_CID, Header, MOST_DATA, Operation, TYPE_STREAM};
use crate::virtio::buffer::GuestBuffer;
use crate::{EventHandler, EventLoopHandle, Interest, Registration, Result};

/// Connections and streams that may become one, together. Each holds two descriptors.
const MOST_CONNECTIONS: usize = 256;
/// Answers to packets of no connection that wait for room in the guest's queue. Beyond it, what the guest
/// sends waits too.
const MOST_REPLIES: usize = 128;
/// Bytes of a "CONNECT <port>" line at most.
const LINE_SIZE: usize = 32;
/// Ports of the host's side of connections to the guest: above those that programs listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Token of the listening socket; those of streams are larger.
pub(super) const LISTENER: u64 = 8;

/// Registers descriptors for a device that is not paused.
pub(super) struct Watcher {
    events: EventLoopHandle,
    handler: Weak<dyn EventHandler>,
    pub paused: bool,
}

pub(super) struct Switch {
    guest_cid: u64,
    path: PathBuf,
    watcher: Watcher,
    listener: OwnedFd,
    listening: Option<Registration>,
    streams: HashMap<u64, Stream>,
    ids: HashMap<Ports, u64>,
    /// Connections with packets for the guest, each once.
    ready: VecDeque<u64>,
    replies: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
}

enum Stream {
    /// It has not said yet which port it wants.
    Nameless {
        stream: OwnedFd,
        watch: Option<Registration>,
    },
    Connected(Box<Connection>),
}

impl Watcher {
    pub(super) fn new(events: EventLoopHandle, handler: Weak<dyn EventHandler>) -> Self {
        Self { events, handler, paused: false }
    }

    /// Watches `fd`, unless the device is paused.
    pub(super) fn watch(
        &self,
        fd: impl AsFd,
        interest: Interest,
        token: u64,
    ) -> Result<Option<Registration>> {
        match self.handler.upgrade() {
            Some(handler) if !self.paused => {
                self.events.watch(fd, interest, token, handler).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Switch {
    pub(super) fn new(
        guest_cid: u64,
        path: PathBuf,
        listener: OwnedFd,
        next_port: u32,
        watcher: Watcher,
    ) -> Self {
        Self {
            guest_cid,
            path,
            watcher,
            listener,
            listening: None,
            streams: HashMap::new(),
            ids: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            next_id: LISTENER + 1,
            next_port: next_port.max(FIRST_HOST_PORT),
        }
    }

    /// The port that the next connection of the host gets.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Watches nothing from now on.
    pub(super) fn pause(&mut self) {
        self.watcher.paused = true;
        self.listening = None;
        for stream in self.streams.values_mut() {
            match stream {
                Stream::Nameless { watch, .. } => *watch = None,
                Stream::Connected(connection) => connection.unwatch(),
            }
        }
    }

    /// Watches again, or for the first time.
    pub(super) fn resume(&mut self) -> Result<()> {
        self.watcher.paused = false;
        for (&id, stream) in &mut self.streams {
            match stream {
                Stream::Nameless { stream, watch } => {
                    *watch = self.watcher.watch(&*stream, Interest::Read, id)?;
                }
                Stream::Connected(connection) => connection.update_watch(id, &self.watcher)?,
            }
        }
        self.listen()
    }

    /// Whether the guest must first take answers before it may send more.
    pub(super) fn is_congested(&self) -> bool {
        self.replies.len() >= MOST_REPLIES
    }

    /// Whether there are packets for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Serves a packet that the guest sent.
    pub(super) fn receive(&mut self, mut packet: GuestBuffer<'_>) {
        let Some(header) = packet.take_array().map(parse) else { return };
        // Section 5.10.6.4.2: what does not come from the guest's own address is ignored.
        if header.src_cid.get() != self.guest_cid {
            return;
        }
        let length = header.len.get() as usize;
        let operation = header.operation();
        let whole = length <= packet.len().min(MOST_DATA);
        let ours = header.dst_cid.get() == HOST_CID && header.socket_type.get() == TYPE_STREAM;
        let Some(operation) = operation.filter(|_| ours && whole) else {
            return self.refuse(&header);
        };
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        match self.ids.get(&ports).copied() {
            Some(id) => {
                let Some(Stream::Connected(connection)) = self.streams.get_mut(&id) else { return };
                let served = connection.receive(&header, operation, packet.take(length));
                self.settle(id, served);
            }
            None if operation == Operation::Request => self.connect(ports, &header),
            None => self.refuse(&header),
        }
    }

    /// Writes the next packet for the guest to `buffer`; returns its bytes, or `None` if there is none.
    pub(super) fn next_packet(&mut self, mut buffer: GuestBuffer<'_>) -> Option<u32> {
        if buffer.len() <= Header::SIZE {
            // No driver offers such a buffer. It gets it back, and no packet is lost.
            return self.has_packets().then_some(0);
        }
        let head = buffer.take(Header::SIZE);
        if let Some(reply) = self.replies.pop_front() {
            head.copy_from(reply.as_bytes());
            return Some(Header::SIZE as u32);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(Stream::Connected(connection)) = self.streams.get_mut(&id) else { continue };
            connection.queued = false;
            let packet = connection.next_packet(&buffer);
            let header = packet.as_ref().ok().copied().flatten();
            self.settle(id, packet.map(drop));
            // An end was answered among the replies.
            if let Some(header) = header.or_else(|| self.replies.pop_front()) {
                head.copy_from(header.as_bytes());
                return Some(Header::SIZE as u32 + header.len.get());
            }
        }
        None
    }

    /// The descriptor watched with `token` is ready.
    pub(super) fn ready(&mut self, token: u64) {
        if token == LISTENER {
            return self.accept();
        }
        match self.streams.get_mut(&token) {
            Some(Stream::Nameless { .. }) => self.greet(token),
            Some(Stream::Connected(connection)) => {
                let served = connection.ready();
                self.settle(token, served);
            }
            None => {}
        }
    }

    /// To be called after packets went to the guest: those that still have some wait for the guest now,
    /// not for their streams.
    pub(super) fn rest(&mut self) {
        for id in &self.ready {
            if let Some(Stream::Connected(connection)) = self.streams.get_mut(id) {
                // If it fails, the stream is told again, which costs time only.
                let _ = connection.update_watch(*id, &self.watcher);
            }
        }
    }

    /// Looks after a connection that was served.
    fn settle(&mut self, id: u64, served: std::result::Result<(), End>) {
        let Some(Stream::Connected(connection)) = self.streams.get_mut(&id) else { return };
        let ports = connection.ports;
        if served == Err(End::Reset) && self.ids.get(&ports) == Some(&id) {
            self.replies.push_back(connection.reset_packet());
        }
        if connection.is_lingering() && self.ids.get(&ports) == Some(&id) {
            self.ids.remove(&ports);
        }
        let ended = served.is_err() && !connection.is_lingering();
        if ended || connection.is_finished() {
            return self.remove(id);
        }
        if connection.has_packet() {
            if !connection.queued {
                connection.queued = true;
                self.ready.push_back(id);
            }
        } else if connection.update_watch(id, &self.watcher).is_err() {
            self.replies.push_back(connection.reset_packet());
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(Stream::Connected(connection)) = self.streams.remove(&id)
            && self.ids.get(&connection.ports) == Some(&id)
        {
            self.ids.remove(&connection.ports);
        }
        self.ready.retain(|ready| *ready != id);
        // There is room again.
        if self.listening.is_none()
            && !self.watcher.paused
            && let Err(error) = self.listen()
        {
            tracing::warn!(%error, "no more connections to the guest are taken");
        }
    }

    /// Answers a packet that belongs to no connection by RST.
    fn refuse(&mut self, header: &Header) {
        if header.operation() != Some(Operation::Reset) {
            self.replies.push_back(header.reset());
        }
    }

    /// The guest asks for a connection to a port of the host.
    fn connect(&mut self, ports: Ports, request: &Header) {
        if self.streams.len() >= MOST_CONNECTIONS {
            return self.refuse(request);
        }
        let Ok(stream) = connect(&port_path(&self.path, ports.host)) else {
            return self.refuse(request);
        };
        self.insert(Connection::to_host(ports, self.guest_cid, stream, request));
    }

    fn insert(&mut self, mut connection: Connection) {
        let id = self.new_id();
        self.ids.insert(connection.ports, id);
        connection.queued = true;
        self.streams.insert(id, Stream::Connected(Box::new(connection)));
        self.ready.push_back(id);
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn listen(&mut self) -> Result<()> {
        if self.streams.len() < MOST_CONNECTIONS {
            self.listening = self.watcher.watch(&self.listener, Interest::Read, LISTENER)?;
        }
        Ok(())
    }

    /// A program of the host wants to speak to the guest.
    fn accept(&mut self) {
        if self.streams.len() >= MOST_CONNECTIONS {
            // It waits until another ends.
            self.listening = None;
            return;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = match rustix::net::accept_with(&self.listener, flags) {
            Ok(stream) => stream,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                tracing::warn!("no more connections to the guest: too many open files");
                self.listening = None;
                return;
            }
            Err(_) => return,
        };
        let id = self.new_id();
        if let Ok(watch) = self.watcher.watch(&stream, Interest::Read, id) {
            self.streams.insert(id, Stream::Nameless { stream, watch });
        }
    }

    /// A stream of the host says which port of the guest it wants.
    fn greet(&mut self, id: u64) {
        let Some(Stream::Nameless { stream, .. }) = self.streams.get(&id) else { return };
        let Some(asked) = asked_port(stream) else { return };
        let Some(Stream::Nameless { stream, .. }) = self.streams.remove(&id) else { return };
        let Some(guest) = asked else { return self.remove(id) };
        let ports = Ports { host: self.host_port(guest), guest };
        self.insert(Connection::to_guest(ports, self.guest_cid, stream));
    }

    /// A port of the host that has no connection with port `guest`.
    fn host_port(&mut self, guest: u32) -> u32 {
        // Ends, since there are fewer connections than ports.
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.ids.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}

/// The socket on which a program of the host waits for the guest's connections to `port`.
pub(super) fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// A header as it lies in guest memory.
pub(super) fn parse(bytes: [u8; Header::SIZE]) -> Header {
    zerocopy::transmute!(bytes)
}

/// The port in a "CONNECT <port>" line: `Some(None)` if it is wrong, `None` if it is not there yet.
pub(super) fn parse_line(line: &[u8]) -> Option<Option<(u32, usize)>> {
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return (line.len() >= LINE_SIZE).then_some(None);
    };
    let text = std::str::from_utf8(&line[..end]).ok();
    let port = text.and_then(|text| {
        let (word, port) = text.trim_end_matches('\r').split_once(' ')?;
        word.eq_ignore_ascii_case("connect").then(|| port.trim().parse().ok()).flatten()
    });
    Some(port.map(|port| (port, end + 1)))
}

/// Takes the greeting off `stream` and nothing behind it, as [`parse_line`].
fn asked_port(stream: &OwnedFd) -> Option<Option<u32>> {
    let mut line = [0; LINE_SIZE];
    let count =
        match rustix::net::recv(stream, &mut line[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Some(None),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => return Some(None),
        };
    let Some((port, length)) = parse_line(&line[..count])? else { return Some(None) };
    let taken = rustix::net::recv(stream, &mut line[..length], RecvFlags::DONTWAIT);
    Some(matches!(taken, Ok((count, _)) if count == length).then_some(port))
}

/// Connects without waiting: a listener whose backlog is full refuses.
pub(super) fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &address)?;
    Ok(stream)
}
