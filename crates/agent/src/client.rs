//! The host's end.

use crate::wire::{Exec, Exit, Hello, MAX_DATA, Message, STDIN_WINDOW, VERSION, Window, WireError};
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The host's end of a connection to a guest agent. It runs one command at a time.
///
/// Dropping it closes a stream given to [`Client::from_stream`], even when a thread still waits for standard input;
/// a guest whose PID 1 is the agent then switches itself off.
pub struct Client {
    stream: Option<UnixStream>,
    reader: Box<dyn Read + Send>,
    shared: Arc<Shared>,
    hello: Hello,
    next_session: u32,
}

/// Sends signals and window sizes to the running command from other threads.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// Where a command's input comes from and where its output goes.
pub struct Streams<'a> {
    /// Standard input; empty when `None`. It is read by a thread of its own, which lives until a read returns after
    /// the command has ended, and may then have taken input that nobody gets.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// Standard output; with a terminal, all output.
    pub stdout: &'a mut dyn Write,
    /// Standard error.
    pub stderr: &'a mut dyn Write,
}

/// Why a command's result is not known.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The frames could not be exchanged.
    #[error("The connection to the guest agent broke")]
    Wire(#[from] WireError),
    /// The agent in the guest is of another version.
    #[error(
        "The guest agent speaks version {0} of the protocol, not {VERSION}; rebuild the initramfs"
    )]
    Version(u16),
    /// The guest sent a frame that makes no sense at this point.
    #[error("The guest agent sent an unexpected message")]
    Unexpected,
    /// The command's output could not be passed on.
    #[error("The command's output could not be written")]
    Output(#[source] io::Error),
    /// The operating system refused a thread or another handle of the stream.
    #[error("The connection to the guest agent could not be set up")]
    Setup(#[source] io::Error),
}

impl Client {
    /// Talks over `stream`, waiting for the agent to greet.
    pub fn from_stream(stream: UnixStream) -> Result<Self, ClientError> {
        let reader = stream.try_clone().map_err(ClientError::Setup)?;
        let writer = stream.try_clone().map_err(ClientError::Setup)?;
        let mut client = Self::new(reader, writer)?;
        client.stream = Some(stream);
        Ok(client)
    }

    /// Talks over a pair of blocking streams, waiting for the agent to greet.
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<Self, ClientError> {
        Self::greet(Box::new(reader), Box::new(writer))
    }

    fn greet(
        reader: Box<dyn Read + Send>,
        writer: Box<dyn Write + Send>,
    ) -> Result<Self, ClientError> {
        let mut reader = Box::new(BufReader::with_capacity(MAX_DATA, reader));
        let Message::Hello(hello) = Message::read_from(&mut reader)? else {
            return Err(ClientError::Unexpected);
        };
        if hello.version != VERSION {
            return Err(ClientError::Version(hello.version));
        }
        let shared = Shared {
            writer: Mutex::new(Box::new(writer)),
            running: Mutex::new(Running { session: None, credit: 0 }),
            credited: Condvar::new(),
        };
        Ok(Self { stream: None, reader, shared: Arc::new(shared), hello, next_session: 1 })
    }

    /// What the guest said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// A handle for other threads.
    pub fn control(&self) -> Control {
        Control { shared: self.shared.clone() }
    }

    /// Runs a command to its end.
    pub fn run(&mut self, exec: &Exec, streams: Streams<'_>) -> Result<Exit, ClientError> {
        let session = self.next_session;
        self.next_session = self.next_session.wrapping_add(1);
        self.shared.send(&Message::Exec { session, exec: exec.clone() })?;
        *self.shared.running() = Running { session: Some(session), credit: STDIN_WINDOW };
        let _end = EndOnDrop(&self.shared);
        match streams.stdin {
            Some(stdin) => {
                let shared = self.shared.clone();
                thread::Builder::new()
                    .name("stdin".into())
                    .spawn(move || shared.forward_stdin(session, stdin))
                    .map_err(ClientError::Setup)?;
            }
            None => self.shared.send(&Message::StdinEnd { session })?,
        }
        loop {
            match Message::read_from(&mut self.reader)? {
                Message::Stdout { session: s, data } if s == session => {
                    write_out(streams.stdout, &data)?
                }
                Message::Stderr { session: s, data } if s == session => {
                    write_out(streams.stderr, &data)?
                }
                Message::Credit { session: s, bytes } if s == session => {
                    self.shared.add_credit(bytes)
                }
                Message::Exit { session: s, exit } if s == session => return Ok(exit),
                Message::Pong { .. } => {}
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Asks the agent for a sign of life and waits for it.
    pub fn ping(&mut self) -> Result<(), ClientError> {
        let token = u64::from(self.next_session);
        self.shared.send(&Message::Ping { token })?;
        match Message::read_from(&mut self.reader)? {
            Message::Pong { token: t } if t == token => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            // What was sent still arrives.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Control {
    /// Tells the running command its terminal's new size.
    pub fn resize(&self, window: Window) -> Result<(), ClientError> {
        self.with_session(|session| Message::Resize { session, window })
    }

    /// Sends a signal (Linux number of x86-64) to the running command's process group.
    pub fn signal(&self, signal: u8) -> Result<(), ClientError> {
        self.with_session(|session| Message::Signal { session, signal })
    }

    /// Asks the guest to switch itself off.
    pub fn power_off(&self) -> Result<(), ClientError> {
        Ok(self.shared.send(&Message::PowerOff)?)
    }

    fn with_session(&self, message: impl FnOnce(u32) -> Message) -> Result<(), ClientError> {
        let session = self.shared.running().session;
        match session {
            Some(session) => Ok(self.shared.send(&message(session))?),
            None => Ok(()),
        }
    }
}

struct Shared {
    writer: Mutex<Box<dyn Write + Send>>,
    running: Mutex<Running>,
    credited: Condvar,
}

struct Running {
    session: Option<u32>,
    /// Bytes of standard input that may be sent.
    credit: usize,
}

struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.running().session = None;
        self.0.credited.notify_all();
    }
}

impl Shared {
    fn send(&self, message: &Message) -> Result<(), WireError> {
        let mut frame = Vec::new();
        message.encode(&mut frame)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&frame)?;
        Ok(writer.flush()?)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_credit(&self, bytes: u32) {
        let mut running = self.running();
        // Never more than the window, whatever the guest says.
        running.credit = running.credit.saturating_add(bytes as usize).min(STDIN_WINDOW);
        self.credited.notify_all();
    }

    /// Waits until input of that session may be sent; `None` when it has ended.
    fn credit(&self, session: u32) -> Option<usize> {
        let mut running = self.running();
        loop {
            if running.session != Some(session) {
                return None;
            }
            if running.credit > 0 {
                return Some(running.credit);
            }
            running = self.credited.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn forward_stdin(&self, session: u32, mut stdin: Box<dyn Read + Send>) {
        let mut buffer = vec![0; MAX_DATA];
        while let Some(credit) = self.credit(session) {
            let room = credit.min(MAX_DATA);
            let message = match stdin.read(&mut buffer[..room]) {
                Ok(0) => Message::StdinEnd { session },
                Ok(n) => Message::Stdin { session, data: buffer[..n].to_vec() },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Message::StdinEnd { session },
            };
            {
                let mut running = self.running();
                if running.session != Some(session) {
                    return;
                }
                if let Message::Stdin { data, .. } = &message {
                    running.credit -= data.len();
                }
            }
            // When the stream is broken, the reading side reports it.
            if self.send(&message).is_err() || message == (Message::StdinEnd { session }) {
                return;
            }
        }
    }
}

fn write_out(sink: &mut dyn Write, data: &[u8]) -> Result<(), ClientError> {
    sink.write_all(data).and_then(|()| sink.flush()).map_err(ClientError::Output)
}
