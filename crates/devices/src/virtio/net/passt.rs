//! The host's network without privileges, by the program `passt` (<https://passt.top>).
//!
//! passt holds the other end of a socket and ends when that closes, so it never outlives the process
//! that started it, however that ends.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spec::{Forward, MacAddress, Protocol};

use super::pair::hung_up;
use super::port::Cable;
use super::stream::StreamPort;
use super::sys;
use crate::{Error, EventHandler, EventLoopHandle, Interest, Registration, Result};

const PROGRAM: &str = "passt";
/// Largest payload: 64 KiB less an Ethernet header, in whole words, as passt's manual advises.
const MTU: u16 = 65520;
/// passt needs some 30 ms until it serves.
const READY: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);
/// What passt is told where the host has no way out, since it takes all this from the interface that leads there: the
/// guest has an address of its own, and that of its gateway leads to the host's loopback interface. The
/// numbers are those of QEMU's user-mode network.
const NO_WAY_OUT: [&str; 11] = [
    "--ipv4-only",
    "--interface",
    "lo",
    "--address",
    "10.0.2.15",
    "--netmask",
    "24",
    "--gateway",
    "10.0.2.2",
    "--mac-addr",
    "52:55:0a:00:02:02",
];
/// Most bytes kept of what it says.
const MOST_WORDS: usize = 4096;

/// A running passt.
pub(super) struct Passt {
    child: Mutex<Child>,
    words: Arc<Words>,
    /// A second handle of the socket, to see what passt has read.
    socket: UnixStream,
}

/// What passt says on standard error.
struct Words {
    state: Mutex<WordsState>,
}

struct WordsState {
    pipe: ChildStderr,
    text: Vec<u8>,
    watch: Option<Registration>,
}

/// Starts passt, and the cable to it.
pub(super) fn start(forward: &[Forward], events: &EventLoopHandle) -> Result<(Cable, Arc<Passt>)> {
    let failed = |source| Error::io("start passt")(source);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let port = StreamPort::new(ours.try_clone().map_err(failed)?).map_err(failed)?;
    let passt = Arc::new(Passt::start(forward, ours, theirs, events)?);
    let keep = Box::new(Arc::clone(&passt));
    let cable = Cable {
        features: 0,
        mtu: Some(MTU),
        ports: vec![(Box::new(port), None)],
        keep: Some(keep),
    };
    Ok((cable, passt))
}

impl Passt {
    fn start(
        forward: &[Forward],
        ours: UnixStream,
        theirs: UnixStream,
        events: &EventLoopHandle,
    ) -> Result<Self> {
        let mut command = Command::new(PROGRAM);
        let fd =
            sys::inherit(&mut command, OwnedFd::from(theirs)).map_err(Error::io("start passt"))?;
        command
            .args(arguments(fd, forward, has_way_out()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(not_started)?;
        // The command holds the other end of the socket.
        drop(command);
        let pipe = child.stderr.take();
        let mut passt = StartedChild(Some(child));
        let pipe = pipe.ok_or_else(|| not_started(io::ErrorKind::BrokenPipe.into()))?;
        let words = Words::watch(pipe, events)?;
        let child = passt.0.take().ok_or_else(|| not_started(io::ErrorKind::Other.into()))?;
        Ok(Self { child: Mutex::new(child), words, socket: ours })
    }

    /// Returns when passt serves the guest, whose address is `mac`; what it complained of if it ended instead. To be
    /// called before frames are sent.
    pub(super) fn wait_ready(&self, mac: MacAddress) -> Result<()> {
        // Nothing tells that passt is ready, but it looks at this frame (of a protocol for experiments, IEEE
        // 802.3 annex 96, which it ignores) when it is.
        let mut frame = [0_u8; 4 + 60];
        frame[3] = 60;
        frame[4 + 6..][..6].copy_from_slice(&mac.0);
        frame[4 + 12..][..2].copy_from_slice(&[0x88, 0xb5]);
        let failed = |source: io::Error| Error::io("speak to passt")(source);
        let mut socket = &self.socket;
        if let Err(error) = io::Write::write_all(&mut socket, &frame) {
            self.check_alive()?;
            return Err(failed(error));
        }
        let deadline = Instant::now() + READY;
        loop {
            self.check_alive()?;
            let unread = sys::unread_by_peer(&self.socket).map_err(failed)?;
            if unread == 0 {
                // It may have closed the socket instead.
                return self.check_alive();
            }
            if Instant::now() > deadline {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(POLL);
        }
    }

    fn check_alive(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if hung_up(self.socket.as_fd()) {
            // It closes its socket when it ends, and only then.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Configuration(format!("passt ended: {}", self.words.text())));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Passt {
    /// The number of its process.
    pub(super) fn process(&self) -> u32 {
        self.child.lock().unwrap().id()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.words.end();
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Ends the child unless it was handed on.
struct StartedChild(Option<Child>);

impl Drop for StartedChild {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Words {
    fn watch(pipe: ChildStderr, events: &EventLoopHandle) -> Result<Arc<Self>> {
        rustix::io::ioctl_fionbio(&pipe, true).map_err(Error::io("start passt"))?;
        let state = WordsState { pipe, text: Vec::new(), watch: None };
        let words = Arc::new(Self { state: Mutex::new(state) });
        let mut state = words.lock();
        let handler = Arc::clone(&words) as Arc<dyn EventHandler>;
        state.watch = Some(events.watch(&state.pipe, Interest::Read, 0, handler)?);
        drop(state);
        Ok(words)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WordsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().watch = None;
    }

    fn text(&self) -> String {
        let mut state = self.lock();
        state.read();
        state.text()
    }
}

impl WordsState {
    /// The lines that tell something.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.contains("syslog") && !line.starts_with("Don't run as root"))
            .map(|line| line.trim_end_matches('.'))
            .collect();
        if lines.is_empty() { "it did not say why".into() } else { lines.join(". ") }
    }

    /// Takes what is there; whether the pipe was closed.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 1024];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => {
                    self.watch = None;
                    return true;
                }
                Ok(count) => {
                    tracing::debug!(message = %String::from_utf8_lossy(&bytes[..count]), "passt says");
                    let room = MOST_WORDS - self.text.len().min(MOST_WORDS);
                    self.text.extend_from_slice(&bytes[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

impl EventHandler for Words {
    fn ready(&self, _token: u64) {
        let mut state = self.lock();
        if state.read() {
            tracing::warn!("passt ended, and the guest has no network any more: {}", state.text());
        }
    }
}

/// Whether this thread's network has a default route, by which passt finds its interface.
fn has_way_out() -> bool {
    let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let ipv4 = read("route").is_ok_and(|routes| {
        // Interface, destination.
        routes.lines().skip(1).any(|route| route.split_whitespace().nth(1) == Some("00000000"))
    });
    let ipv6 = read("ipv6_route").is_ok_and(|routes| {
        routes.lines().any(|route| {
            // Destination, its prefix's length, ..., interface. The loopback's is that of all unreachable ones.
            let mut fields = route.split_whitespace();
            let destination =
                fields.next().is_some_and(|text| text.bytes().all(|digit| digit == b'0'));
            destination && fields.next() == Some("00") && fields.next_back() != Some("lo")
        })
    });
    ipv4 || ipv6
}

/// passt's arguments for the socket `fd`: it stays in the foreground and ends when the socket closes.
pub(super) fn arguments(fd: RawFd, forward: &[Forward], way_out: bool) -> Vec<String> {
    let fixed = ["--foreground", "--quiet", "--stderr", "--one-off", "--fd"];
    let mut arguments: Vec<_> = fixed.map(String::from).into();
    arguments.push(fd.to_string());
    if !way_out {
        arguments.extend(NO_WAY_OUT.map(String::from));
    }
    for port in forward {
        let option = match port.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
        };
        let address = port.address.map(|address| format!("{address}/")).unwrap_or_default();
        arguments.push(option.into());
        arguments.push(format!("{address}{}:{}", port.host, port.guest));
    }
    arguments
}

fn not_started(source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::NotFound {
        return Error::Configuration(
            "User-mode networking needs the program passt, which is not installed; install it with `sudo apt install passt` (or dnf)"
                .into(),
        );
    }
    Error::io("start passt")(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passt_is_told_of_each_port() {
        let forwards = ["8080:80", "127.0.0.1:53:5353/udp"].map(|text| text.parse().unwrap());
        let arguments = arguments(7, &forwards, true);
        let told = ["--fd", "7", "-t", "8080:80", "-u", "127.0.0.1/53:5353"];
        assert!(arguments.ends_with(&told.map(String::from)), "{arguments:?}");
    }
}
