//! XenStore by its wire protocol, over the socket of xenstored, its device in dom0, or the socket by ssh.
//!
//! Source: Xen's `docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h`.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Error, Result, Runner};

/// Where xenstored listens.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// The device through which domains reach it, dom0 as well.
const DEVICE: &str = "/dev/xen/xenbus";
/// XENSTORE_PAYLOAD_MAX.
const LONGEST: usize = 4096;
/// Most nodes below a place that are read.
const MOST_NODES: usize = 400;
/// Deepest node that is read.
const DEEPEST: usize = 6;

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

/// A connection.
pub(super) struct Xenstore {
    stream: File,
    limit: Duration,
    next_id: u32,
    buffer: Vec<u8>,
    /// Paths of watches that fired while something else was asked.
    fired: Vec<String>,
    forward: Option<Forward>,
}

/// A socket of another computer, by ssh.
struct Forward {
    ssh: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// `struct xsd_sockmsg`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u32,
    id: u32,
    body: Vec<u8>,
}

impl Xenstore {
    /// Reaches the store of the computer on which `runner` runs programs.
    pub fn connect(runner: &Runner, limit: Duration) -> Result<Self> {
        let failed = |path: &str, source| Error::File { path: path.into(), source };
        let mut first = None;
        if !runner.is_local() {
            let (stream, forward) = forwarded(runner, limit)?;
            return Ok(Self::over(stream, limit, Some(forward)));
        }
        for path in SOCKETS {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Self::over(OwnedFd::from(stream).into(), limit, None)),
                Err(error) => first = first.or(Some(failed(path, error))),
            }
        }
        match File::options().read(true).write(true).open(DEVICE) {
            Ok(file) => Ok(Self::over(file, limit, None)),
            Err(error) => Err(first.unwrap_or_else(|| failed(DEVICE, error))),
        }
    }

    fn over(stream: File, limit: Duration, forward: Option<Forward>) -> Self {
        Self { stream, limit, next_id: 1, buffer: Vec::new(), fired: Vec::new(), forward }
    }

    /// The value at a path; `None` if there is none.
    pub fn read(&mut self, path: &str) -> Result<Option<String>> {
        let value = self.ask(READ, &[path])?;
        Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).replace(char::is_control, " ")))
    }

    /// The names of the nodes below a path.
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>> {
        let names = self.ask(DIRECTORY, &[path])?.unwrap_or_default();
        Ok(names_of(&names))
    }

    /// All values below a path, with their paths from there.
    pub fn tree(&mut self, path: &str) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        let mut waiting = vec![(String::new(), 0)];
        let mut seen = 0;
        while let Some((below, depth)) = waiting.pop() {
            for name in self.directory(&format!("{path}{below}"))? {
                seen += 1;
                if seen > MOST_NODES {
                    return Ok(found);
                }
                let node = format!("{below}/{name}");
                if let Some(value) = self.read(&format!("{path}{node}"))?
                    && !value.is_empty()
                {
                    found.push((node.clone(), value));
                }
                if depth < DEEPEST {
                    waiting.push((node, depth + 1));
                }
            }
        }
        Ok(found)
    }

    /// Asks to be told when something changes at a path or below, which [`wait`](Self::wait) does.
    pub fn watch(&mut self, path: &str) -> Result<()> {
        match self.ask(WATCH, &[path, "omnivisor"])? {
            Some(_) => Ok(()),
            None => Err(Error::reply("xenstored", format!("it does not watch {path}"))),
        }
    }

    /// Waits for a watch to fire: the path that changed, or nothing within `time`.
    pub fn wait(&mut self, time: Duration) -> Result<Option<String>> {
        if let Some(path) = self.fired.pop() {
            return Ok(Some(path));
        }
        let deadline = Instant::now() + time;
        Ok(self.message(deadline)?.and_then(|message| fired(&message)))
    }

    /// Sends a request and waits for its answer; nothing if there is no such node.
    fn ask(&mut self, kind: u32, words: &[&str]) -> Result<Option<Vec<u8>>> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let request = encode(kind, id, words)
            .ok_or_else(|| Error::reply("xenstored", "a path is longer than any"))?;
        let sent = (&self.stream).write_all(&request);
        sent.map_err(|error| self.lost(&error.to_string()))?;
        let deadline = Instant::now() + self.limit;
        loop {
            let Some(message) = self.message(deadline)? else {
                return Err(Error::TimedOut { what: "xenstored".into(), limit: self.limit });
            };
            if let Some(path) = fired(&message) {
                self.fired.push(path);
                self.fired.truncate(MOST_NODES);
                continue;
            }
            if message.id != id {
                return Err(Error::reply("xenstored", "it answers what was not asked"));
            }
            if message.kind == ERROR {
                let error = String::from_utf8_lossy(&message.body).replace(['\0', '\n'], "");
                return match error.as_str() {
                    "ENOENT" => Ok(None),
                    _ => Err(Error::Failed {
                        what: format!("xenstored, {}", words.first().copied().unwrap_or_default()),
                        message: error.replace(char::is_control, " "),
                        repair: None,
                    }),
                };
            }
            return Ok(Some(message.body));
        }
    }

    /// The next message; nothing if none comes by then.
    fn message(&mut self, deadline: Instant) -> Result<Option<Message>> {
        loop {
            let decoded =
                decode(&self.buffer).map_err(|message| Error::reply("xenstored", message))?;
            if let Some((message, length)) = decoded {
                self.buffer.drain(..length);
                return Ok(Some(message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(self.lost(&error.to_string())),
            }
            let mut bytes = [0; LONGEST];
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Err(self.lost("it hung up")),
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    fn lost(&self, message: &str) -> Error {
        let place = match self.forward {
            Some(_) => "xenstored by ssh",
            None => "xenstored",
        };
        Error::Unreachable { place: place.into(), message: message.into(), repair: None }
    }
}

/// The socket of another computer's xenstored.
fn forwarded(runner: &Runner, limit: Duration) -> Result<(File, Forward)> {
    let wrong = |source| Error::File { path: std::env::temp_dir(), source };
    // Only its user may enter it.
    let folder = tempfile::Builder::new().prefix("omnivisor").tempdir().map_err(wrong)?;
    let socket = folder.path().join("xenstored");
    let mut command = runner.forward(&socket, Path::new(SOCKETS[1]));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ssh = command.spawn().map_err(Runner::no_ssh)?;
    let mut forward = Forward { ssh, _folder: folder };
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(stream) = UnixStream::connect(&socket) {
            return Ok((OwnedFd::from(stream).into(), forward));
        }
        let place = runner.place().to_owned();
        if let Ok(Some(_)) = forward.ssh.try_wait() {
            let message = "ssh does not lead to its xenstored".into();
            return Err(Error::Unreachable { place, message, repair: None });
        }
        if Instant::now() >= deadline {
            return Err(Error::TimedOut { what: format!("ssh to {place}"), limit });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A message of words, each with a zero behind it; `None` if it is too long.
fn encode(kind: u32, id: u32, words: &[&str]) -> Option<Vec<u8>> {
    let body: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
    if body.len() > LONGEST {
        return None;
    }
    let mut message = Vec::with_capacity(16 + body.len());
    for field in [kind, id, 0, body.len() as u32] {
        message.extend(field.to_ne_bytes());
    }
    message.extend(body);
    Some(message)
}

/// The first message of what was received, and its length; nothing yet if it is not whole.
fn decode(bytes: &[u8]) -> std::result::Result<Option<(Message, usize)>, &'static str> {
    let field = |at: usize| {
        let field = bytes.get(at * 4..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*field))
    };
    let (Some(kind), Some(id), Some(length)) = (field(0), field(1), field(3)) else {
        return Ok(None);
    };
    let length = length as usize;
    if length > LONGEST {
        return Err("its message is longer than any");
    }
    let body = bytes.get(16..16 + length).map(<[u8]>::to_vec);
    Ok(body.map(|body| (Message { kind, id, body }, 16 + length)))
}

fn names_of(body: &[u8]) -> Vec<String> {
    let name = |part: &[u8]| {
        let name = std::str::from_utf8(part).ok()?;
        // What is part of a path, and no more than that.
        let is_plain = !name.is_empty() && !name.contains('/') && !name.contains(char::is_control);
        is_plain.then(|| name.to_owned())
    };
    body.split(|byte| *byte == 0).filter_map(name).collect()
}

/// The path that changed, if a message says so.
fn fired(message: &Message) -> Option<String> {
    let path = message.body.split(|byte| *byte == 0).next().unwrap_or_default();
    (message.kind == WATCH_EVENT).then(|| String::from_utf8_lossy(path).into_owned())
}

/// Reads any bytes as messages.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((message, length))) = decode(rest) {
        let _ = (fired(&message), names_of(&message.body));
        rest = &rest[length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store with one guest, which a watch tells of.
    fn serve(mut stream: UnixStream) {
        let mut header = [0; 16];
        while stream.read_exact(&mut header).is_ok() {
            let field =
                |at: usize| u32::from_ne_bytes(header[at * 4..at * 4 + 4].try_into().unwrap());
            let mut body = vec![0; field(3) as usize];
            stream.read_exact(&mut body).unwrap();
            let path = body.split(|byte| *byte == 0).next().unwrap();
            let (kind, answer): (u32, &[u8]) = match (field(0), path) {
                (DIRECTORY, b"/local/domain/1/attr") => (DIRECTORY, b"vif\0../x\0"),
                (DIRECTORY, b"/local/domain/1/attr/vif") => (DIRECTORY, b"ip\0"),
                (READ, b"/local/domain/1/attr/vif/ip") => (READ, b"192.0.2.1"),
                (DIRECTORY | READ, b"/secret") => (ERROR, b"EACCES\0"),
                (WATCH, _) => (WATCH, b"OK\0"),
                _ => (ERROR, b"ENOENT\0"),
            };
            let mut send = |kind: u32, id: u32, body: &[u8]| {
                let fields = [kind, id, 0, body.len() as u32];
                let mut message: Vec<u8> =
                    fields.iter().flat_map(|one| one.to_ne_bytes()).collect();
                message.extend(body);
                stream.write_all(&message).unwrap();
            };
            if kind == WATCH {
                send(WATCH_EVENT, 0, b"@introduceDomain\0omnivisor\0");
            }
            send(kind, field(1), answer);
        }
    }

    #[test]
    fn what_guests_tell_is_read_and_changes_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve(theirs));
        let limit = Duration::from_secs(60);
        let mut store = Xenstore::over(OwnedFd::from(ours).into(), limit, None);
        let tree = store.tree("/local/domain/1/attr").unwrap();
        assert_eq!(tree, [("/vif/ip".to_owned(), "192.0.2.1".to_owned())]);
        assert_eq!(store.read("/nothing").unwrap(), None);
        let error = store.read("/secret").unwrap_err();
        assert!(error.to_string().contains("EACCES"), "{error}");
        store.watch("@introduceDomain").unwrap();
        assert_eq!(store.wait(limit).unwrap().as_deref(), Some("@introduceDomain"));
        assert_eq!(store.wait(Duration::from_millis(1)).unwrap(), None);
    }

    #[test]
    fn a_message_that_cannot_be_is_refused() {
        let mut message = encode(READ, 1, &["/a"]).unwrap();
        assert_eq!(decode(&message[..17]), Ok(None));
        assert!(matches!(decode(&message), Ok(Some((_, 19)))));
        message[12..16].fill(0xff);
        assert!(decode(&message).is_err());
        assert_eq!(encode(READ, 1, &["x".repeat(5000).as_str()]), None);
    }
}
