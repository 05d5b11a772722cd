//! A client of NBD, by which XenServer gives its disks in parts.
//!
//! Source: the NBD project's `doc/proto.md`, "Newstyle negotiation" and "Transmission phase"; of the options only
//! `NBD_OPT_STARTTLS` and `NBD_OPT_EXPORT_NAME`, which every server has. What is not encrypted is not spoken.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::tls::{self, Verifier};
use crate::{Error, Result, Secret};

/// A disk that a server gives.
pub(super) struct Export {
    /// The server's host, by name or number.
    pub address: String,
    pub port: u16,
    /// What it is asked for; it holds what lets us in.
    pub name: Secret,
    /// The server's own certificate, as PEM.
    pub certificate: String,
}

/// A connection to one disk.
pub(super) struct Connection {
    stream: StreamOwned<ClientConnection, Wire>,
    place: String,
    limit: Duration,
    length: u64,
    /// Tells answers apart.
    cookie: u64,
}

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Flags of both sides: `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const EXPORT_NAME: u32 = 1;
const START_TLS: u32 = 5;
const ACK: u32 = 1;
const READ: u16 = 0;
const DISCONNECT: u16 = 2;
/// Longest text in the answer to an option.
const LONGEST_TEXT: u32 = 4096;
/// Longest name that the protocol has.
const LONGEST_NAME: usize = 4096;
/// Zeroes behind an export's flags, unless both sides leave them out.
const ZEROES: usize = 124;

impl Connection {
    /// Connects within `limit`, which each read has as well.
    pub fn open(export: &Export, limit: Duration) -> Result<Self> {
        let place = format!("{}:{}", export.address, export.port);
        let failed = |error| broken(&place, limit, error);
        if export.name.reveal().len() > LONGEST_NAME {
            return Err(Error::reply(&place, "the name of a disk is longer than NBD has it"));
        }
        let deadline = Instant::now() + limit;
        let socket = connect(export, deadline).map_err(failed)?;
        let mut wire = Wire { socket, deadline };
        let flags = greet(&mut wire).map_err(failed)?;
        if !starts_tls(&mut wire).map_err(failed)? {
            return Err(Error::Failed {
                what: format!("reading a disk from {place}"),
                message: "its NBD server does not encrypt, as on networks with the purpose \"insecure_nbd\"".into(),
                repair: Some("give the pool's network the purpose \"nbd\" instead".into()),
            });
        }
        let mut stream = encrypt(export, wire).map_err(failed)?;
        let length = choose(&mut stream, export.name.reveal(), flags).map_err(failed)?;
        if length > disk::MAX_LENGTH || !length.is_multiple_of(disk::SECTOR_SIZE) {
            return Err(Error::reply(&place, format!("a disk has {length} bytes")));
        }
        Ok(Self { stream, place, limit, length, cookie: 0 })
    }

    /// Bytes of the disk.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from `offset`, which must lie within the disk. After an error the connection is of no use.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.stream.sock.deadline = Instant::now() + self.limit;
        let code = self.exchange(offset, buffer);
        match code.map_err(|error| broken(&self.place, self.limit, error))? {
            0 => Ok(()),
            code => Err(Error::Failed {
                what: format!("reading a disk from {}", self.place),
                message: io::Error::from_raw_os_error(code as i32).to_string(),
                repair: None,
            }),
        }
    }

    /// The server's error, 0 if there is none.
    fn exchange(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<u32> {
        self.cookie += 1;
        let length = u32::try_from(buffer.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let stream = &mut self.stream;
        stream.write_all(&request(READ, self.cookie, offset, length))?;
        stream.flush()?;
        let (magic, code) = (read_u32(stream)?, read_u32(stream)?);
        if magic != REPLY || read_u64(stream)? != self.cookie {
            return Err(wrong("it answers something else"));
        }
        if code == 0 {
            stream.read_exact(buffer)?;
        }
        Ok(code)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A server that is gone needs no farewell.
        self.stream.sock.deadline = Instant::now() + Duration::from_secs(1);
        let _ = self.stream.write_all(&request(DISCONNECT, 0, 0, 0));
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }
}

/// Bytes that come and go up to a deadline.
struct Wire {
    socket: TcpStream,
    deadline: Instant,
}

impl Wire {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero()).ok_or_else(|| ErrorKind::TimedOut.into())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

fn connect(export: &Export, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = ErrorKind::NotFound.into();
    for address in (export.address.as_str(), export.port).to_socket_addrs()?.take(8) {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The flags that both sides have.
fn greet(wire: &mut (impl Read + Write)) -> io::Result<u16> {
    let mut greeting = [0; GREETING.len()];
    wire.read_exact(&mut greeting)?;
    let mut flags = [0; 2];
    wire.read_exact(&mut flags)?;
    let flags = u16::from_be_bytes(flags) & (FIXED_NEWSTYLE | NO_ZEROES);
    if greeting != *GREETING || flags & FIXED_NEWSTYLE == 0 {
        return Err(wrong("it is no NBD server of this time"));
    }
    wire.write_all(&u32::from(flags).to_be_bytes())?;
    Ok(flags)
}

/// Whether TLS begins now.
fn starts_tls(wire: &mut (impl Read + Write)) -> io::Result<bool> {
    wire.write_all(&option(START_TLS, &[]))?;
    let (magic, what, answer, length) =
        (read_u64(wire)?, read_u32(wire)?, read_u32(wire)?, read_u32(wire)?);
    if magic != OPTION_REPLY || what != START_TLS || length > LONGEST_TEXT {
        return Err(wrong("it answers something else"));
    }
    // What was sent beside an answer in the clear would be taken for what comes encrypted.
    match (answer, length) {
        (ACK, 0) => Ok(true),
        (ACK, _) => Err(wrong("it answers something else")),
        _ => Ok(false),
    }
}

fn encrypt(export: &Export, wire: Wire) -> io::Result<StreamOwned<ClientConnection, Wire>> {
    let pinned = Verifier::pinned(&export.certificate)
        .ok_or_else(|| wrong("the certificate that the pool names is none"))?;
    let verifier = Arc::new(pinned);
    let name = ServerName::try_from(export.address.clone())
        .map_err(|_| wrong("the host's name is none"))?;
    let connection =
        ClientConnection::new(tls::config(verifier.clone()), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, wire);
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            return Err(match verifier.take_refused() {
                Some(_) => wrong("its certificate is not the one that the pool names"),
                None => error,
            });
        }
    }
    Ok(stream)
}

/// Chooses a disk; returns its length.
fn choose(stream: &mut (impl Read + Write), name: &str, flags: u16) -> io::Result<u64> {
    stream.write_all(&option(EXPORT_NAME, name.as_bytes()))?;
    stream.flush()?;
    let length = read_u64(stream).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => wrong("it hangs up instead of giving the disk"),
        _ => error,
    })?;
    let mut rest = [0; 2 + ZEROES];
    let rest = if flags & NO_ZEROES == 0 { &mut rest[..] } else { &mut rest[..2] };
    stream.read_exact(rest)?;
    Ok(length)
}

fn option(what: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [OPTION, &what.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

fn request(what: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[6..8].copy_from_slice(&what.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn wrong(message: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

fn broken(place: &str, limit: Duration, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            Error::TimedOut { what: format!("the NBD server {place}"), limit }
        }
        ErrorKind::InvalidData => {
            Error::reply(format!("the NBD server {place}"), error.to_string())
        }
        _ => Error::Unreachable {
            place: format!("the NBD server {place}"),
            message: error.to_string(),
            repair: None,
        },
    }
}

/// Reads any bytes as a server's, up to where they would be encrypted, and behind that.
pub(super) fn fuzz(bytes: &[u8]) {
    struct Peer<'a>(&'a [u8]);
    impl Read for Peer<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Peer<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut peer = Peer(bytes);
    if let Ok(flags) = greet(&mut peer)
        && starts_tls(&mut peer).is_ok()
    {
        let _ = choose(&mut peer, "disk", flags);
    }
}
