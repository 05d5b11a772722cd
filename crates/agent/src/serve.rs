//! The guest's end: one thread and one `poll` for the stream and everything that runs.

use crate::session::{Session, Slots, exit_code_of};
use crate::wire::{Decoder, Exec, Exit, Hello, MAX_DATA, Message, VERSION, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Most commands at the same time.
const MAX_SESSIONS: usize = 64;
/// Output is fetched from commands only while less than this waits for the host.
const OUTPUT_LIMIT: usize = 128 << 10;
/// The host is not listened to while more than this waits for it; only a host that sends and never reads gets there.
const BACKLOG_LIMIT: usize = 8 << 20;
/// How often the end of a command is looked for on kernels without pidfd.
const PROBE_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// What [`serve`] needs besides the stream.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The agent's own program, started with [`crate::TTY_HELPER`] to put a command on its terminal.
    pub tty_helper: PathBuf,
}

/// Why [`serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The host asked for the guest to be switched off.
    PowerOff,
    /// The host has closed the stream.
    Disconnected,
}

/// What made serving impossible.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The host broke the protocol.
    #[error("The host broke the agent's protocol")]
    Wire(#[from] WireError),
    /// The host sent what only the guest sends, or more input than it had credit for.
    #[error("The host sent a message that it must not send")]
    Unexpected,
    /// The stream failed.
    #[error("The stream to the host failed")]
    Stream(#[source] io::Error),
}

/// Greets the host and runs its commands until it closes the stream or wants the guest off. Commands that still run
/// then are killed.
pub fn serve(stream: impl AsFd, options: &ServeOptions) -> Result<Ended, ServeError> {
    let stream = stream.as_fd();
    fcntl_getfl(stream)
        .and_then(|flags| fcntl_setfl(stream, flags | OFlags::NONBLOCK))
        .map_err(|error| ServeError::Stream(error.into()))?;
    let mut server = Server { options, sessions: BTreeMap::new(), out: Vec::new(), sent: 0 };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    server.push(Message::Hello(Hello { version: VERSION, kernel }))?;
    let result = server.run(stream);
    for session in server.sessions.into_values() {
        session.kill();
    }
    result
}

struct Server<'a> {
    options: &'a ServeOptions,
    sessions: BTreeMap<u32, Session>,
    /// Encoded frames for the host, of which the first `sent` bytes are gone.
    out: Vec<u8>,
    sent: usize,
}

impl Server<'_> {
    fn run(&mut self, stream: impl AsFd + Copy) -> Result<Ended, ServeError> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; MAX_DATA];
        loop {
            if !self.flush(stream)? {
                return Ok(Ended::Disconnected);
            }
            let (slots, ready) = self.poll(stream)?;
            if ready[0] {
                match rustix::io::read(stream, &mut buffer) {
                    Ok(0) | Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => {
                        return Ok(Ended::Disconnected);
                    }
                    Ok(n) => decoder.feed(&buffer[..n]),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(ServeError::Stream(error.into())),
                }
            }
            self.advance(&slots, &ready)?;
            while let Some(message) = decoder.take()? {
                if message == Message::PowerOff {
                    return Ok(Ended::PowerOff);
                }
                self.handle(message)?;
            }
        }
    }

    /// Waits for something to do: for each session its slots, and for each slot whether it is ready.
    fn poll(&self, stream: impl AsFd) -> Result<(BTreeMap<u32, Slots>, Vec<bool>), ServeError> {
        let waiting = self.out.len() - self.sent;
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, waiting < BACKLOG_LIMIT);
        flags.set(PollFlags::OUT, waiting > 0);
        let mut fds = vec![PollFd::from_borrowed_fd(stream.as_fd(), flags)];
        let room = waiting < OUTPUT_LIMIT;
        let slots = self.sessions.iter().map(|(&id, s)| (id, s.poll_fds(&mut fds, room))).collect();
        let probing = self.sessions.values().any(|session| !session.announces_its_end());
        match poll(&mut fds, probing.then_some(&PROBE_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(ServeError::Stream(error.into())),
        }
        let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Writing is tried anyway; reading only when it is wanted.
        let readable = fds[0].revents() & (PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        ready[0] = !readable.is_empty() && waiting < BACKLOG_LIMIT;
        Ok((slots, ready))
    }

    fn advance(&mut self, slots: &BTreeMap<u32, Slots>, ready: &[bool]) -> Result<(), ServeError> {
        let mut messages = Vec::new();
        for (id, slots) in slots {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            if let Some(exit) = session.advance(slots, ready, &mut messages) {
                self.sessions.remove(id);
                messages.push(Message::Exit { session: *id, exit });
            }
        }
        messages.into_iter().try_for_each(|message| self.push(message))
    }

    fn handle(&mut self, message: Message) -> Result<(), ServeError> {
        let mut replies = Vec::new();
        match message {
            Message::Ping { token } => replies.push(Message::Pong { token }),
            Message::Exec { session, .. } if self.sessions.contains_key(&session) => {
                return Err(ServeError::Unexpected);
            }
            Message::Exec { session, exec } => self.start(session, &exec, &mut replies),
            // What arrives for a command that has just ended is dropped.
            Message::Stdin { session, data } => {
                if let Some(session) = self.sessions.get_mut(&session)
                    && !session.feed(&data, &mut replies)
                {
                    return Err(ServeError::Unexpected);
                }
            }
            Message::StdinEnd { session } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.end_stdin(&mut replies);
                }
            }
            Message::Resize { session, window } => {
                if let Some(session) = self.sessions.get(&session) {
                    session.resize(window);
                }
            }
            Message::Signal { session, signal } => {
                if let Some(session) = self.sessions.get(&session) {
                    session.signal(signal);
                }
            }
            _ => return Err(ServeError::Unexpected),
        }
        replies.into_iter().try_for_each(|reply| self.push(reply))
    }

    fn start(&mut self, id: u32, exec: &Exec, replies: &mut Vec<Message>) {
        let started = if self.sessions.len() >= MAX_SESSIONS {
            Err(io::Error::other("too many commands"))
        } else {
            Session::start(id, exec, &self.options.tty_helper)
        };
        match started {
            Ok(session) => {
                self.sessions.insert(id, session);
            }
            Err(error) => {
                let program = exec.argv.first().map(|p| p.to_string_lossy()).unwrap_or_default();
                let mut data = format!("omnivisor: {program}: {error}\n").into_bytes();
                data.truncate(MAX_DATA);
                replies.push(Message::Stderr { session: id, data });
                replies.push(Message::Exit { session: id, exit: Exit::Code(exit_code_of(&error)) });
            }
        }
    }

    fn push(&mut self, message: Message) -> Result<(), ServeError> {
        Ok(message.encode(&mut self.out)?)
    }

    /// Writes what can be written; `false` when the host has gone.
    fn flush(&mut self, stream: impl AsFd) -> Result<bool, ServeError> {
        while self.sent < self.out.len() {
            match rustix::io::write(&stream, &self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(false),
                Err(error) => return Err(ServeError::Stream(error.into())),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > OUTPUT_LIMIT {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(true)
    }
}
