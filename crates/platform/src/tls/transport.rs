//! TLS below the HTTP client. What the socket has is taken at once and decrypted in place: rustls' own streams ask for 4 KiB
//! at a time and move each record twice more, which whole disks feel.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::{Verifier, config};

/// What is taken from the socket at once. A record has 16 KiB, and rustls takes no message of a handshake above 64 KiB.
const RECEIVED: usize = 80 << 10;

/// Puts TLS over connections.
#[derive(Debug)]
pub(crate) struct TlsConnector {
    config: Arc<ClientConfig>,
}

/// A connection with TLS.
pub(crate) struct TlsTransport {
    tls: UnbufferedClientConnection,
    wire: TransportAdapter,
    received: Received,
    /// Records that are to be sent.
    sealed: Vec<u8>,
    /// What is read and written within the connection.
    buffers: LazyBuffers,
}

/// What came and is not decrypted yet.
struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// How far a connection has come with what it received.
enum Step {
    /// So many bytes more can be read.
    Read(usize),
    /// What was to be sent is sent; anything else must be received first.
    Sent,
    /// A handshake cannot go on without more from the server.
    Blocked,
    /// The server has said its last.
    End,
}

impl TlsConnector {
    /// For servers that `verifier` takes for the right ones.
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self { config: config(verifier) }
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = TlsTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<TlsTransport>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        let host = details.uri.host().unwrap_or_default();
        let name = ServerName::try_from(host.trim_matches(['[', ']']))
            .map_err(|_| Error::Tls("the host's name is none"))?
            .to_owned();
        let mut wire = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        wire.set_timeout(details.timeout);
        let mut transport = TlsTransport {
            tls: UnbufferedClientConnection::new(self.config.clone(), name)?,
            wire,
            received: Received { bytes: vec![0; RECEIVED].into(), start: 0, end: 0 },
            sealed: Vec::new(),
            buffers: LazyBuffers::new(
                details.config.input_buffer_size(),
                details.config.output_buffer_size(),
            ),
        };
        // Nothing is to be sent yet, but it could be when hands are shaken.
        transport.send(0)?;
        Ok(Some(transport))
    }
}

impl TlsTransport {
    /// Goes on with what was received; sends `amount` bytes of the output as soon as that is possible.
    fn step(&mut self, amount: usize) -> Result<Step, Error> {
        loop {
            let status = self.tls.process_tls_records(self.received.bytes());
            let UnbufferedStatus { mut discard, state } = status;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.received.discard(discard);
                    self.say_why();
                    return Err(error.into());
                }
            };
            let step = match state {
                ConnectionState::ReadTraffic(mut records) => {
                    let mut read = 0;
                    while let Some(length) = records.peek_len().map(usize::from)
                        && let Some(room) = self.buffers.input_append_buf().get_mut(..length)
                        && let Some(record) = records.next_record().transpose()?
                    {
                        room.copy_from_slice(record.payload);
                        discard += record.discard;
                        self.buffers.input_appended(length);
                        read += length;
                    }
                    Some(Step::Read(read))
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    seal(&mut self.sealed, |room| encode(&mut data, room));
                    None
                }
                ConnectionState::TransmitTlsData(sent) => {
                    self.wire.write_all(&self.sealed)?;
                    self.sealed.clear();
                    sent.done();
                    None
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    let output = &self.buffers.output()[..amount];
                    let mut is_exhausted = false;
                    seal(&mut self.sealed, |room| match traffic.encrypt(output, room) {
                        Err(EncryptError::InsufficientSize(lack)) => Err(lack.required_size),
                        encrypted => {
                            is_exhausted = encrypted.is_err();
                            Ok(encrypted.unwrap_or(0))
                        }
                    });
                    self.wire.write_all(&self.sealed)?;
                    self.sealed.clear();
                    if is_exhausted {
                        return Err(Error::Tls("the connection's keys are used up"));
                    }
                    Some(Step::Sent)
                }
                ConnectionState::BlockedHandshake => Some(Step::Blocked),
                ConnectionState::PeerClosed | ConnectionState::Closed => Some(Step::End),
                _ => return Err(Error::Tls("the server asks for what nobody offered")),
            };
            self.received.discard(discard);
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// Tells the server why nothing goes on, if it listens: rustls has put an alert behind its error. What was received must not
    /// be looked at again afterwards.
    fn say_why(&mut self) {
        let status = self.tls.process_tls_records(self.received.bytes());
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) = status.state {
            seal(&mut self.sealed, |room| encode(&mut alert, room));
            let _ = self.wire.write_all(&self.sealed);
        }
    }

    /// Sends `amount` bytes of the output.
    fn send(&mut self, amount: usize) -> Result<(), Error> {
        loop {
            match self.step(amount)? {
                Step::Sent => return Ok(()),
                Step::Blocked => self.received.fill(&mut self.wire)?,
                Step::Read(0) => return Err(Error::Tls("the server talks and does not listen")),
                Step::Read(_) => {}
                Step::End => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            }
        }
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.wire.set_timeout(timeout);
        self.send(amount)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.wire.set_timeout(timeout);
        let mut has_read = false;
        loop {
            match self.step(0)? {
                Step::Read(0) | Step::End => return Ok(has_read),
                Step::Read(_) => has_read = true,
                // Whatever is here is better than to wait for more.
                Step::Sent | Step::Blocked if has_read => return Ok(true),
                Step::Sent | Step::Blocked => self.received.fill(&mut self.wire)?,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.received.bytes().is_empty() && self.wire.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Received {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    fn discard(&mut self, count: usize) {
        self.start += count;
    }

    /// Waits for more.
    fn fill(&mut self, wire: &mut impl Read) -> io::Result<()> {
        if self.start > 0 {
            // The beginning of a record.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = &mut self.bytes[self.end..];
        if room.is_empty() {
            return Err(io::Error::other("a message is longer than any of TLS"));
        }
        match wire.read(room)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }
}

/// What a handshake has to say; how much room it needs if it has too little.
fn encode(
    data: &mut EncodeTlsData<'_, ClientConnectionData>,
    room: &mut [u8],
) -> Result<usize, usize> {
    match data.encode(room) {
        Err(EncodeError::InsufficientSize(lack)) => Err(lack.required_size),
        encoded => Ok(encoded.unwrap_or(0)),
    }
}

/// Appends what `fill` writes into the room that it gets, which it is asked again if it says that it needs more.
fn seal(sealed: &mut Vec<u8>, mut fill: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = sealed.len();
    let mut room = 0;
    loop {
        sealed.resize(start + room, 0);
        match fill(&mut sealed[start..]) {
            Ok(written) => return sealed.truncate(start + written),
            Err(needed) if needed > room => room = needed,
            Err(_) => return sealed.truncate(start),
        }
    }
}
