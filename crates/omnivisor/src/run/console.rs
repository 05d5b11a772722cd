//! Joins the guest's console with the user's terminal, or with standard input and output.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use devices::serial::Serial;
use devices::virtio::console::{Console, ConsolePort};
use devices::{EventHandler, EventLoopHandle, Interest, Registration};
use machine::{Board, Control};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use crate::failure::{FAILED, Failure};
use crate::run::terminal::{Escape, RawTerminal, size};

/// Silence after which the user is told how to leave.
const HINT_AFTER: Duration = Duration::from_secs(5);
/// Bytes of the console's end that are kept for a report.
const TAIL: usize = 4096;

/// The host's side of a guest's console.
pub struct Attachment {
    interactive: bool,
    /// Output is only kept for a report.
    hidden: bool,
    tail: Arc<Tail>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    device: Option<ConsoleDevice>,
    events: Option<EventLoopHandle>,
    control: Option<Control>,
    terminal: Option<RawTerminal>,
    watches: Vec<Registration>,
    signals: Option<UnixStream>,
    registered: Vec<signal_hook::SigId>,
    escape: Escape,
    /// Typed, but not yet taken by the guest.
    waiting: VecDeque<u8>,
    stdin: Option<Registration>,
    asked_to_end: bool,
}

/// A device that takes what is typed.
#[derive(Clone)]
enum ConsoleDevice {
    Serial(Arc<Serial>),
    Virtio(Arc<Console>),
}

/// The end of what the guest printed.
#[derive(Default)]
struct Tail {
    bytes: Mutex<VecDeque<u8>>,
    any: AtomicBool,
}

const STDIN: u64 = 0;
const SIGNAL: u64 = 1;
const HINT: u64 = 2;

impl Attachment {
    /// An attachment for one run of a machine.
    pub fn new(interactive: bool, hidden: bool) -> Self {
        Self { interactive, hidden, tail: Arc::default(), state: Mutex::default() }
    }

    /// Puts the console device on the board.
    pub fn plug(&self, board: &mut Board, kind: spec::Console) -> machine::Result<()> {
        let output = Box::new(Output { hidden: self.hidden, tail: Arc::clone(&self.tail) });
        let device = match kind {
            spec::Console::Serial => ConsoleDevice::Serial(board.plug_serial(output)),
            spec::Console::Virtio => {
                let port = ConsolePort { name: None, output, input: None };
                let console =
                    Arc::new(Console::new("console", vec![port], board.events().clone())?);
                if let Some((columns, rows)) = size() {
                    console.resize(columns, rows);
                }
                board.plug_virtio("console", Arc::clone(&console) as _)?;
                ConsoleDevice::Virtio(console)
            }
        };
        let mut state = self.lock();
        state.device = Some(device);
        state.events = Some(board.events().clone());
        Ok(())
    }

    /// Begins to pass on what is typed, and to mind signals.
    pub fn attach(self: &Arc<Self>, control: &Control) -> Result<(), Failure> {
        let cannot =
            |error: io::Error| Failure::new(FAILED, format!("Cannot attach the console: {error}"));
        let mut state = self.lock();
        state.control = Some(control.clone());
        let Some(events) = state.events.clone() else { return Ok(()) };
        let handler: Arc<dyn EventHandler> = Arc::new(Handler(Arc::downgrade(self)));
        let watch = |fd: &dyn std::os::fd::AsFd, token| {
            events.watch(fd.as_fd(), Interest::Read, token, Arc::clone(&handler))
        };

        let (reader, writer) = UnixStream::pair().map_err(cannot)?;
        reader.set_nonblocking(true).map_err(cannot)?;
        for signal in [SIGTERM, SIGHUP, SIGWINCH] {
            let id = register(signal, &writer).map_err(cannot)?;
            state.registered.push(id);
        }
        if !self.hidden && !self.interactive {
            state.registered.push(register(SIGINT, &writer).map_err(cannot)?);
        }
        state
            .watches
            .push(watch(&reader, SIGNAL).map_err(|error| Failure::from_error(FAILED, error))?);
        state.signals = Some(reader);

        if self.hidden {
            return Ok(());
        }
        if self.interactive {
            tell!("Console of the guest; leave with Ctrl-] or Ctrl-a x.");
            state.terminal = RawTerminal::enter().map_err(cannot)?;
            let timer = hint_timer().map_err(cannot)?;
            state
                .watches
                .push(watch(&timer, HINT).map_err(|error| Failure::from_error(FAILED, error))?);
        }
        // A regular file or /dev/null cannot be waited for: such input is read at once.
        match watch(&io::stdin(), STDIN) {
            Ok(registration) => state.stdin = Some(registration),
            Err(_) => {
                let mut all = Vec::new();
                let _ = io::stdin().take(1 << 20).read_to_end(&mut all);
                state.waiting.extend(all);
            }
        }
        let weak = Arc::downgrade(self);
        let more: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(attachment) = weak.upgrade() {
                attachment.deliver();
            }
        });
        match &state.device {
            Some(ConsoleDevice::Serial(serial)) => serial.set_input_ready_callback(more),
            Some(ConsoleDevice::Virtio(console)) => console.set_input_ready_callback(0, more),
            None => {}
        }
        drop(state);
        self.deliver();
        Ok(())
    }

    /// Gives the terminal back.
    pub fn detach(&self) {
        let mut state = self.lock();
        let fell_silent = state.terminal.take().is_some();
        state.watches.clear();
        state.stdin = None;
        for id in state.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
        if fell_silent {
            // The guest's last line may have no end.
            tell!();
        }
    }

    /// The last lines that the guest printed.
    pub fn last_lines(&self, count: usize) -> String {
        let bytes: Vec<u8> = self
            .tail
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> =
            text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    fn read_stdin(&self) {
        let mut buffer = [0; 1024];
        let count = match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) => 0,
        };
        let mut state = self.lock();
        if count == 0 {
            state.stdin = None;
            return;
        }
        let (typed, leaves) = if self.interactive {
            state.escape.filter(&buffer[..count])
        } else {
            (buffer[..count].to_vec(), false)
        };
        state.waiting.extend(typed);
        // While the guest does not take it, no more is read.
        if state.waiting.len() > 4096
            && let Some(stdin) = &state.stdin
        {
            let _ = stdin.set_interest(Interest::None);
        }
        let control = state.control.clone();
        drop(state);
        self.deliver();
        if let Some(control) = control.filter(|_| leaves) {
            control.stop();
        }
    }

    /// Gives the guest what waits for it, as far as it takes it.
    fn deliver(&self) {
        let mut state = self.lock();
        let Some(device) = state.device.clone() else { return };
        let bytes: Vec<u8> = state.waiting.iter().copied().collect();
        if bytes.is_empty() {
            return;
        }
        let taken = match device {
            ConsoleDevice::Serial(serial) => serial.receive(&bytes),
            ConsoleDevice::Virtio(console) => console.receive(0, &bytes),
        };
        state.waiting.drain(..taken);
        if state.waiting.len() <= 4096
            && let Some(stdin) = &state.stdin
        {
            let _ = stdin.set_interest(Interest::Read);
        }
    }

    /// A signal came: the window changed, or we are to end.
    fn obey_signals(&self) {
        let mut state = self.lock();
        let mut buffer = [0; 64];
        let Some(count) = state.signals.as_mut().and_then(|signals| signals.read(&mut buffer).ok())
        else {
            return;
        };
        if let (Some(ConsoleDevice::Virtio(console)), Some((columns, rows))) =
            (&state.device, size())
        {
            console.resize(columns, rows);
        }
        let ends = buffer[..count].iter().any(|&signal| i32::from(signal) != SIGWINCH);
        let Some(control) = state.control.clone().filter(|_| ends) else { return };
        let again = std::mem::replace(&mut state.asked_to_end, true);
        drop(state);
        // Politely first; a guest that does not listen, or a second signal, ends it.
        if again || !control.press_power_button() {
            control.stop();
        }
    }

    fn hint(&self) {
        let mut state = self.lock();
        state.watches.truncate(1);
        drop(state);
        if !self.tail.any.load(Ordering::Acquire) {
            tell!("The guest has been silent for 5 seconds; leave with Ctrl-] or Ctrl-a x.\r");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls the attachment as long as there is one.
struct Handler(Weak<Attachment>);

impl EventHandler for Handler {
    fn ready(&self, token: u64) {
        let Some(attachment) = self.0.upgrade() else { return };
        match token {
            STDIN => attachment.read_stdin(),
            SIGNAL => attachment.obey_signals(),
            _ => attachment.hint(),
        }
    }
}

/// Where the guest's output goes.
struct Output {
    hidden: bool,
    tail: Arc<Tail>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.any.store(true, Ordering::Release);
        let mut tail = self.tail.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
        drop(tail);
        if !self.hidden {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the number of `signal` through `writer` whenever it comes.
fn register(signal: i32, writer: &UnixStream) -> io::Result<signal_hook::SigId> {
    signal_hook::low_level::pipe::register(signal, writer.try_clone()?)
}

fn hint_timer() -> io::Result<std::os::fd::OwnedFd> {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    let timer =
        timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let value = Timespec { tv_sec: HINT_AFTER.as_secs() as i64, tv_nsec: 0 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(timer)
}
