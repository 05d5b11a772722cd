//! One connection: a Unix stream on the host's side, credit and shutdown on the guest's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{SendFlags, Shutdown};

use super::packet::{
    HOST_CID, Header, MOST_DATA, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::switch::Watcher;
use crate::virtio::buffer::GuestBuffer;
use crate::{Interest, Registration};

/// Bytes held for the host's side when it reads slowly; what the guest is given as credit.
pub(super) const BUFFER_SIZE: u32 = 256 << 10;

/// Ports of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked, the guest has not answered.
    Requested,
    /// Data may flow.
    Established,
    /// The guest is done with it and may use its ports again; what it sent last is being flushed.
    Lingering,
}

/// What the guest is to be told.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// REQUEST or RESPONSE.
    opening: Option<Operation>,
    /// SHUTDOWN with what ended on our side.
    shutdown: bool,
    /// The host's stream has data or its end.
    data: bool,
    credit_update: bool,
    credit_request: bool,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest knows.
    Silent,
    /// The guest is told by RST.
    Reset,
}

pub(super) struct Connection {
    pub ports: Ports,
    guest_cid: u64,
    stream: OwnedFd,
    watch: Option<(Registration, Interest)>,
    phase: Phase,
    pending: Pending,
    /// It is in the list of connections that have packets for the guest.
    pub queued: bool,
    /// The stream is gone both ways; there is nothing more to watch.
    hung_up: bool,

    /// Sent by the guest, not yet taken by the stream.
    unsent: VecDeque<u8>,
    /// Bytes passed on to the stream, and the same as the guest was told last.
    forwarded: u32,
    told_forwarded: u32,
    guest_sends: bool,
    host_receives: bool,

    /// Bytes sent to the guest.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    guest_receives: bool,
    host_sends: bool,
    /// There is data that the guest has no room for.
    starved: bool,
}

impl Connection {
    /// A connection that the host asks for.
    pub(super) fn to_guest(ports: Ports, guest_cid: u64, stream: OwnedFd) -> Self {
        Self::new(ports, guest_cid, stream, Phase::Requested, Operation::Request)
    }

    /// A connection that the guest asked for by `request`, and gets.
    pub(super) fn to_host(ports: Ports, guest_cid: u64, stream: OwnedFd, request: &Header) -> Self {
        let mut connection =
            Self::new(ports, guest_cid, stream, Phase::Established, Operation::Response);
        connection.take_credit(request);
        connection
    }

    fn new(ports: Ports, cid: u64, stream: OwnedFd, phase: Phase, opening: Operation) -> Self {
        Self {
            ports,
            guest_cid: cid,
            stream,
            watch: None,
            phase,
            pending: Pending { opening: Some(opening), ..Pending::default() },
            queued: false,
            hung_up: false,
            unsent: VecDeque::new(),
            forwarded: 0,
            told_forwarded: 0,
            guest_sends: true,
            host_receives: true,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            guest_receives: true,
            host_sends: true,
            starved: false,
        }
    }

    /// Serves a packet of the guest.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        operation: Operation,
        data: GuestBuffer<'_>,
    ) -> Result<(), End> {
        self.take_credit(header);
        match operation {
            Operation::Response if self.phase == Phase::Requested => {
                self.phase = Phase::Established;
                self.pending.opening = None;
                // The stream is fresh, so that a few bytes always find room.
                let answer = format!("OK {}\n", self.ports.host);
                let sent = rustix::net::send(&self.stream, answer.as_bytes(), SEND_FLAGS);
                if sent != Ok(answer.len()) {
                    return Err(End::Reset);
                }
            }
            Operation::ReadWrite if self.phase == Phase::Established && self.guest_sends => {
                self.forward(data)?;
            }
            Operation::Shutdown if self.phase == Phase::Established => {
                return self.guest_shuts_down(header.flags.get());
            }
            Operation::CreditUpdate => {}
            Operation::CreditRequest => self.pending.credit_update = true,
            Operation::Reset => {
                // What the guest sent before is still the host's, if it accepted the connection.
                if self.unsent.is_empty() || self.phase == Phase::Requested {
                    return Err(End::Silent);
                }
                self.linger();
            }
            Operation::Request
            | Operation::Response
            | Operation::ReadWrite
            | Operation::Shutdown => return Err(End::Reset),
        }
        Ok(())
    }

    /// The stream is ready for something that was watched for.
    pub(super) fn ready(&mut self) -> Result<(), End> {
        let reads = self.wants_to_read() && !self.pending.data;
        let writes = !self.unsent.is_empty();
        if writes {
            self.flush()?;
        }
        if reads {
            self.pending.data = true;
        }
        // Nothing was asked for, so this is a hang-up; or it was asked for when the loop looked.
        if !reads && !writes && self.is_hung_up() {
            self.watch = None;
            self.hung_up = true;
            if self.phase != Phase::Established {
                let told = self.phase == Phase::Requested;
                return Err(if told { End::Reset } else { End::Silent });
            }
            if !self.host_sends {
                self.host_gone();
            }
        }
        Ok(())
    }

    /// Whether the guest is to be told something.
    pub(super) fn has_packet(&self) -> bool {
        let pending = &self.pending;
        self.phase != Phase::Lingering
            && (pending.opening.is_some()
                || pending.shutdown
                || pending.credit_update
                || pending.credit_request
                || self.reads_now())
    }

    /// The next packet for the guest, its data written to `buffer`.
    pub(super) fn next_packet(&mut self, buffer: &GuestBuffer<'_>) -> Result<Option<Header>, End> {
        if self.phase == Phase::Lingering {
            return Ok(None);
        }
        if let Some(operation) = self.pending.opening.take() {
            return Ok(Some(self.header(operation)));
        }
        if std::mem::take(&mut self.pending.shutdown) {
            return Ok(Some(self.shutdown_packet()));
        }
        if self.reads_now()
            && let Some(header) = self.read(buffer)?
        {
            return Ok(Some(header));
        }
        if std::mem::take(&mut self.pending.credit_request) {
            return Ok(Some(self.header(Operation::CreditRequest)));
        }
        if self.pending.credit_update {
            return Ok(Some(self.header(Operation::CreditUpdate)));
        }
        Ok(None)
    }

    /// Whether the guest is done with it, so that its ports are free.
    pub(super) fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// Whether there is nothing left to do for it.
    pub(super) fn is_finished(&self) -> bool {
        self.phase == Phase::Lingering && (self.unsent.is_empty() || !self.host_receives)
    }

    /// Watches the stream for what it waits for now.
    pub(super) fn update_watch(&mut self, id: u64, watcher: &Watcher) -> crate::Result<()> {
        let interest = match (self.wants_to_read() && !self.pending.data, !self.unsent.is_empty()) {
            (true, true) => Interest::ReadWrite,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (false, false) if self.hung_up => {
                self.watch = None;
                return Ok(());
            }
            (false, false) => Interest::None,
        };
        match &mut self.watch {
            Some((_, now)) if *now == interest => {}
            Some((watch, now)) => {
                watch.set_interest(interest)?;
                *now = interest;
            }
            None => {
                self.watch =
                    watcher.watch(&self.stream, interest, id)?.map(|watch| (watch, interest));
            }
        }
        Ok(())
    }

    /// Watches nothing until [`update_watch`](Self::update_watch).
    pub(super) fn unwatch(&mut self) {
        self.watch = None;
    }

    /// The RST that ends it.
    pub(super) fn reset_packet(&mut self) -> Header {
        self.header(Operation::Reset)
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc.get();
        self.guest_forwarded = header.fwd_cnt.get();
        if self.starved && self.guest_room() > 0 {
            self.starved = false;
            self.pending.data = true;
        }
    }

    /// Bytes that the guest has room for.
    fn guest_room(&self) -> u32 {
        // A guest that claims to have passed on what it never got has no room.
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&at_once)).is_ok()
            && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn wants_to_read(&self) -> bool {
        self.phase == Phase::Established && self.host_sends && self.guest_receives && !self.starved
    }

    fn reads_now(&self) -> bool {
        self.pending.data && self.wants_to_read()
    }

    /// Passes data of the guest on to the stream.
    fn forward(&mut self, mut data: GuestBuffer<'_>) -> Result<(), End> {
        let length = data.len();
        if length + self.unsent.len() > BUFFER_SIZE as usize {
            // The guest sends more than it has credit for.
            return Err(End::Reset);
        }
        if !self.host_receives {
            self.count_forwarded(length);
            return Ok(());
        }
        let mut done = 0;
        while self.unsent.is_empty() && done < length {
            match data.send(self.stream.as_fd()) {
                Ok(count) => {
                    data.take(count);
                    done += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.count_forwarded(length);
                    self.host_gone();
                    return Ok(());
                }
            }
        }
        self.count_forwarded(done);
        if done < length {
            let mut rest = vec![0; length - done];
            data.copy_to(&mut rest);
            self.unsent.extend(rest);
        }
        Ok(())
    }

    /// Passes on what the stream did not take before.
    fn flush(&mut self) -> Result<(), End> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.stream, self.unsent.as_slices().0, SEND_FLAGS) {
                Ok(count) => {
                    self.unsent.drain(..count);
                    self.count_forwarded(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(_) => {
                    self.host_gone();
                    return Ok(());
                }
            }
        }
        self.unsent.shrink_to(0);
        if !self.guest_sends {
            self.end_sending();
        }
        Ok(())
    }

    fn count_forwarded(&mut self, count: usize) {
        // Never more than BUFFER_SIZE at once.
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.forwarded.wrapping_sub(self.told_forwarded) >= BUFFER_SIZE / 2 {
            self.pending.credit_update = true;
        }
    }

    /// The host's side takes no more data.
    fn host_gone(&mut self) {
        self.count_forwarded(self.unsent.len());
        self.unsent.clear();
        // A guest that sends no more need not know.
        if self.host_receives && self.guest_sends {
            self.host_receives = false;
            self.pending.shutdown = true;
        }
    }

    fn guest_shuts_down(&mut self, flags: u32) -> Result<(), End> {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
            if self.unsent.is_empty() {
                self.end_sending();
            }
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.guest_receives = false;
            self.pending.data = false;
            // It fails only where the host has hung up already.
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
        }
        if self.guest_sends || self.guest_receives {
            return Ok(());
        }
        if self.unsent.is_empty() {
            // Section 5.10.6.5: RST confirms that the connection is closed both ways.
            return Err(End::Reset);
        }
        self.linger();
        Err(End::Reset)
    }

    fn end_sending(&self) {
        // It fails only where the host has hung up already.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
    }

    fn linger(&mut self) {
        self.phase = Phase::Lingering;
        self.guest_sends = false;
        self.pending = Pending::default();
    }

    /// Reads from the stream into `buffer` as much as the guest has room for.
    fn read(&mut self, buffer: &GuestBuffer<'_>) -> Result<Option<Header>, End> {
        let room = self.guest_room() as usize;
        if room == 0 {
            self.starved = true;
            self.pending.data = false;
            self.pending.credit_request = true;
            return Ok(None);
        }
        let wanted = buffer.first(room.min(MOST_DATA));
        match wanted.receive(self.stream.as_fd()) {
            Ok(0) => {
                self.pending.data = false;
                self.host_sends = false;
                if self.hung_up {
                    self.host_gone();
                }
                Ok(Some(self.shutdown_packet()))
            }
            Ok(count) => {
                // Fewer than asked for: the stream is empty, or the event loop says that it is not.
                self.pending.data = count == wanted.len();
                self.sent = self.sent.wrapping_add(count as u32);
                let mut header = self.header(Operation::ReadWrite);
                header.len = (count as u32).into();
                Ok(Some(header))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                // The event loop tells when there is more.
                self.pending.data = false;
                Ok(None)
            }
            Err(_) => Err(End::Reset),
        }
    }

    fn shutdown_packet(&mut self) -> Header {
        self.pending.shutdown = false;
        let mut header = self.header(Operation::Shutdown);
        let receive = if self.host_receives { 0 } else { SHUTDOWN_RECEIVE };
        let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
        header.flags = (receive | send).into();
        header
    }

    /// A packet of this connection. Each tells the guest its credit.
    fn header(&mut self, operation: Operation) -> Header {
        self.told_forwarded = self.forwarded;
        self.pending.credit_update = false;
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: self.ports.host.into(),
            dst_port: self.ports.guest.into(),
            len: 0.into(),
            socket_type: TYPE_STREAM.into(),
            op: (operation as u16).into(),
            flags: 0.into(),
            buf_alloc: BUFFER_SIZE.into(),
            fwd_cnt: self.forwarded.into(),
        }
    }
}

const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);
