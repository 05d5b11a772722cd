//! One connection to an SFTP server: `ssh -s HOST sftp` with its pipes.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::{self, Attributes, Reply, Request};
use crate::{Error, Output, Result, Runner};

/// Bytes that are asked for at once: twice the window of OpenSSH's channels.
const AHEAD: u64 = 4 << 20;
/// What every server reads at once (draft, section 6.4).
const SMALLEST_READ: u32 = 32 << 10;
/// The most that is asked for in one request.
const LARGEST_READ: u64 = 255 << 10;
/// Most files that are kept open.
const MOST_HANDLES: usize = 32;
/// Room in the pipe from ssh, so that it need not wait for us.
const PIPE: usize = 1 << 20;

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server refuses: its code, and what it says. The connection can be used on.
    Refused(u32, String),
    /// The connection is of no use any more.
    Broken(Error),
}

type Answer<T> = std::result::Result<T, Failure>;

/// A connection.
pub(super) struct Client {
    runner: Runner,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: Receiver<String>,
    /// So long may an answer take.
    limit: Duration,
    /// What was received lies in `used..filled`; the packet at hand is before that.
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
    /// It cannot be used on, since nobody waits for its answers.
    pub is_stale: bool,
    next_id: u32,
    longest_read: u32,
    handles: HashMap<String, Vec<u8>>,
}

impl Client {
    /// Reaches the server.
    ///
    /// # Errors
    /// ssh cannot be started, is not let in, or finds no SFTP server.
    pub fn connect(runner: &Runner, limit: Duration) -> Result<Self> {
        let mut command = runner.subsystem("sftp");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tracing::debug!(?command, "connect");
        let mut child = command.spawn().map_err(Runner::no_ssh)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(Error::reply("ssh", "it has no pipes"));
        };
        // A small pipe is slower, and no more.
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE);
        let (sender, said) = channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut stderr = stderr;
            let _ = (&mut stderr).take(64 << 10).read_to_end(&mut text);
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        });
        let mut client = Self {
            runner: runner.clone(),
            child,
            stdin,
            stdout,
            stderr: said,
            limit,
            buffer: vec![0; 2 * wire::LONGEST],
            used: 0,
            filled: 0,
            is_stale: false,
            next_id: 0,
            longest_read: SMALLEST_READ,
            handles: HashMap::new(),
        };
        client.greet().map_err(|failure| client.error(failure))?;
        Ok(client)
    }

    fn greet(&mut self) -> Answer<()> {
        self.send(&wire::INIT)?;
        let packet = self.packet()?;
        if !wire::is_version_3(&self.buffer[packet]) {
            return Err(self.nonsense("it speaks no SFTP of version 3"));
        }
        // Servers that do not know it say so.
        if let Ok(longest) = self.call(&Request::Limits, |reply| match reply {
            Reply::Extended(answer) => wire::longest_read(answer),
            _ => None,
        }) && longest >= SMALLEST_READ.into()
        {
            self.longest_read = longest.min(LARGEST_READ) as u32;
        }
        Ok(())
    }

    /// What is known of the file at `path`.
    pub fn stat(&mut self, path: &str) -> Answer<Attributes> {
        self.call(&Request::Stat(path), attributes)
    }

    /// What is known of the file at `path` now that it is open.
    pub fn fstat(&mut self, path: &str) -> Answer<Attributes> {
        let handle = self.handle(path)?;
        self.call(&Request::Fstat(&handle), attributes)
    }

    /// Hands out the bytes of `range` in order.
    pub fn read(
        &mut self,
        path: &str,
        range: Range<u64>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Answer<()> {
        let handle = self.handle(path)?;
        let mut waiting: VecDeque<Piece> = VecDeque::new();
        let mut next = range.start;
        // Unless it ends well, answers are on their way to nobody.
        self.is_stale = true;
        while next < range.end || !waiting.is_empty() {
            let asked = |waiting: &VecDeque<Piece>| {
                waiting.iter().map(|piece| u64::from(piece.length)).sum::<u64>()
            };
            while next < range.end && asked(&waiting) < AHEAD {
                let length = (range.end - next).min(self.longest_read.into()) as u32;
                waiting.push_back(self.ask(&handle, next, length)?);
                next += u64::from(length);
            }
            if let Some(bytes) = waiting.front_mut().and_then(|first| first.bytes.take()) {
                self.deliver(&handle, &bytes, &mut waiting, take)?;
                continue;
            }
            let packet = self.packet()?;
            let buffer = std::mem::take(&mut self.buffer);
            let reply = wire::decode(&buffer[packet]).and_then(|(id, reply)| {
                Some((waiting.iter().position(|piece| piece.id == id)?, reply))
            });
            let result = match reply {
                Some((0, Reply::Data(bytes))) => self.deliver(&handle, bytes, &mut waiting, take),
                Some((at, Reply::Data(bytes))) => {
                    waiting[at].bytes = Some(bytes.to_vec());
                    Ok(())
                }
                Some((_, Reply::Status(code, message))) => Err(Failure::Refused(code, message)),
                _ => Err(self.nonsense("another answer than to what was read")),
            };
            self.buffer = buffer;
            result?;
        }
        self.is_stale = false;
        Ok(())
    }

    /// Hands out what came of the first piece, and asks for what the server did not send of it.
    fn deliver(
        &mut self,
        handle: &[u8],
        bytes: &[u8],
        waiting: &mut VecDeque<Piece>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Answer<()> {
        let Some(Piece { offset, length, .. }) = waiting.pop_front() else { return Ok(()) };
        let rest = length.checked_sub(bytes.len() as u32).filter(|_| !bytes.is_empty());
        let Some(rest) = rest else {
            return Err(self.nonsense("it sends none of the bytes, or more than were asked for"));
        };
        take(bytes).map_err(Failure::Broken)?;
        if rest > 0 {
            let piece = self.ask(handle, offset + bytes.len() as u64, rest)?;
            waiting.push_front(piece);
        }
        Ok(())
    }

    /// Whether there is a byte at each of these offsets.
    pub fn has_bytes(&mut self, path: &str, offsets: &[u64]) -> Answer<Vec<bool>> {
        let handle = self.handle(path)?;
        let mut waiting = HashMap::new();
        for (index, offset) in offsets.iter().enumerate() {
            waiting.insert(self.ask(&handle, *offset, 1)?.id, index);
        }
        let mut found = vec![false; offsets.len()];
        let mut refused = None;
        while !waiting.is_empty() {
            let packet = self.packet()?;
            let reply = wire::decode(&self.buffer[packet]);
            let reply = reply.and_then(|(id, reply)| Some((waiting.remove(&id)?, reply)));
            match reply {
                Some((index, Reply::Data(bytes))) => found[index] = !bytes.is_empty(),
                // A block device cannot be sought past its end.
                Some((_, Reply::Status(wire::EOF | wire::FAILURE | wire::BAD_MESSAGE, _))) => {}
                Some((_, Reply::Status(code, message))) => refused = Some((code, message)),
                _ => return Err(self.nonsense("another answer than to a read")),
            }
        }
        refused.map_or(Ok(found), |(code, message)| Err(Failure::Refused(code, message)))
    }

    /// What a failure means for people.
    pub fn error(&mut self, failure: Failure) -> Error {
        match failure {
            Failure::Broken(error) => error,
            Failure::Refused(_, message) => Error::reply(self.what(), message),
        }
    }

    fn ask(&mut self, handle: &[u8], offset: u64, length: u32) -> Answer<Piece> {
        let id = self.request(&Request::Read(handle, offset, length))?;
        Ok(Piece { id, offset, length, bytes: None })
    }

    fn handle(&mut self, path: &str) -> Answer<Vec<u8>> {
        if let Some(handle) = self.handles.get(path) {
            return Ok(handle.clone());
        }
        if self.handles.len() >= MOST_HANDLES {
            for (_, handle) in std::mem::take(&mut self.handles) {
                // What it says of it changes nothing.
                let _ = self.call(&Request::Close(&handle), |_| Some(()));
            }
        }
        let handle = self.call(&Request::Open(path), |reply| match reply {
            Reply::Handle(handle) => Some(handle.to_vec()),
            _ => None,
        })?;
        self.handles.insert(path.to_owned(), handle.clone());
        Ok(handle)
    }

    fn call<T>(
        &mut self,
        request: &Request<'_>,
        read: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Answer<T> {
        let id = self.request(request)?;
        let packet = self.packet()?;
        let answer = match wire::decode(&self.buffer[packet]) {
            Some((of, Reply::Status(code, message))) if of == id && code != 0 => {
                return Err(Failure::Refused(code, message));
            }
            Some((of, reply)) if of == id => read(reply),
            _ => None,
        };
        answer.ok_or_else(|| self.nonsense("it does not fit what was asked"))
    }

    fn request(&mut self, request: &Request<'_>) -> Answer<u32> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.send(&wire::encode(id, request))?;
        Ok(id)
    }

    fn send(&mut self, packet: &[u8]) -> Answer<()> {
        // So few bytes are on their way to it that its pipe never fills.
        let sent = self.stdin.write_all(packet).and_then(|()| self.stdin.flush());
        sent.map_err(|_| Failure::Broken(self.lost()))
    }

    /// Receives the next packet; returns where it is, without its length.
    fn packet(&mut self) -> Answer<Range<usize>> {
        let deadline = Instant::now() + self.limit;
        loop {
            let received = &self.buffer[self.used..self.filled];
            if let Some(length) = received.first_chunk() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > wire::LONGEST - 4 {
                    return Err(self.nonsense("its packet is longer than any"));
                }
                if received.len() >= 4 + length {
                    let start = self.used + 4;
                    self.used = start + length;
                    return Ok(start..self.used);
                }
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Answer<()> {
        if self.buffer.len() - self.used < wire::LONGEST {
            self.buffer.copy_within(self.used..self.filled, 0);
            (self.used, self.filled) = (0, self.filled - self.used);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(&self.stdout, PollFlags::IN)];
        let is_late = || {
            let what = self.what();
            Failure::Broken(Error::TimedOut { what, limit: self.limit })
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(is_late()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(_) => return Err(Failure::Broken(self.lost())),
        }
        match self.stdout.read(&mut self.buffer[self.filled..]) {
            Ok(read @ 1..) => self.filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return Err(Failure::Broken(self.lost())),
        }
        Ok(())
    }

    /// ssh has ended: what it says of that.
    fn lost(&mut self) -> Error {
        let stderr = self.stderr.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
        let status = self.child.try_wait().ok().flatten().and_then(|status| status.code());
        let output = Output { code: status.unwrap_or(-1), stdout: Vec::new(), stderr };
        self.runner.lost(&output)
    }

    fn nonsense(&self, message: &str) -> Failure {
        Failure::Broken(Error::reply(self.what(), message))
    }

    fn what(&self) -> String {
        format!("the SFTP server of {}", self.runner.place())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A part that was asked for.
struct Piece {
    id: u32,
    offset: u64,
    length: u32,
    /// What came of it before its turn.
    bytes: Option<Vec<u8>>,
}

fn attributes(reply: Reply<'_>) -> Option<Attributes> {
    match reply {
        Reply::Attributes(found) => Some(found),
        _ => None,
    }
}
