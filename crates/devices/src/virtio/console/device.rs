//! The console device.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::control::{
    CONSOLE_PORT, DEVICE_ADD, DEVICE_READY, Message, PORT_NAME, PORT_OPEN, PORT_READY, RESIZE,
};
use super::output::Output;
use crate::virtio::buffer::GuestBuffer;
use crate::virtio::serve::{Outcome, Served, serve};
use crate::virtio::{
    Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtioDevice, read_config_bytes,
};
use crate::{Error, EventHandler, EventLoopHandle, Interest, Registration, Result, State as Saved};

/// Bytes of input that wait for the guest at most.
pub const INPUT_LIMIT: usize = 16 << 10;

const DEVICE_TYPE: u16 = 3;
const QUEUE_SIZE: u16 = 128;
/// Of the control queues, in both directions.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// More ports than anybody names, and few enough for the queues of one device.
const MOST_PORTS: usize = 16;
/// Answers that wait for the guest at most; then its control messages wait.
const MOST_ANSWERS: usize = 64;
/// Bytes of a control message of the guest that are looked at.
const CONTROL_SIZE: usize = 64;

const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;
/// Offset of `emerg_wr` in the configuration.
const EMERGENCY_WRITE: u64 = 8;

const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;
/// Tokens of the ports' descriptors are above those of the queues.
const INPUTS: u64 = 1 << 16;

/// One port of a [`Console`].
pub struct ConsolePort {
    /// Its name in the guest; the console itself needs none.
    pub name: Option<String>,
    /// Where the guest's output goes. A thread writes it, which may block.
    pub output: Box<dyn Write + Send>,
    /// Where input is read from, besides [`Console::receive`]: a pipe, socket or terminal.
    pub input: Option<OwnedFd>,
}

/// A console and named ports.
pub struct Console {
    name: String,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
}

struct Shared {
    this: Weak<Shared>,
    events: EventLoopHandle,
    state: Mutex<State>,
}

struct State {
    ports: Vec<Port>,
    /// Columns and rows.
    size: (u16, u16),
    answers: VecDeque<Vec<u8>>,
    /// Since the driver is ready.
    active: Option<Served>,
}

type Callback = Arc<dyn Fn() + Send + Sync>;

struct Port {
    name: Option<String>,
    output: Output,
    input: Option<OwnedFd>,
    watch: Option<Registration>,
    /// Input that the guest has not taken.
    pending: VecDeque<u8>,
    /// [`Console::receive`] did not take everything.
    refused: bool,
    callback: Option<Callback>,
    /// Some program of the guest has it open.
    open: bool,
    /// Bytes of the chain at the head of its queue that went out already.
    sent: u32,
}

/// What the guest has made of the device.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedConsole {
    ports: Vec<SavedPort>,
    answers: Vec<Vec<u8>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedPort {
    input: Vec<u8>,
    output: Vec<u8>,
    open: bool,
    sent: u32,
}

impl Console {
    /// A console device called `name` that works on the loop of `events`. The first of `ports` is the console, with
    /// 80 columns and 25 rows until [`resize`](Self::resize).
    pub fn new(
        name: impl Into<String>,
        ports: Vec<ConsolePort>,
        events: EventLoopHandle,
    ) -> Result<Self> {
        if ports.is_empty() || ports.len() > MOST_PORTS {
            let message = format!("A console device has from 1 to {MOST_PORTS} ports");
            return Err(Error::Configuration(message));
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2];
        if ports.len() > 1 {
            queue_sizes.extend([CONTROL_QUEUE_SIZE; 2]);
            queue_sizes.extend(vec![QUEUE_SIZE; 2 * (ports.len() - 1)]);
        }
        let ports = ports.into_iter().map(Port::new).collect();
        let state = State { ports, size: (80, 25), answers: VecDeque::new(), active: None };
        let shared =
            Arc::new_cyclic(|this| Shared { this: this.clone(), events, state: Mutex::new(state) });
        Ok(Self { name: name.into(), queue_sizes, shared })
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the guest that the terminal of the console has a new size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut state = self.shared.lock();
        if state.size == (columns, rows) {
            return;
        }
        state.size = (columns, rows);
        let message = state.resize_message();
        let Some(active) = &state.active else { return };
        if !is_multiport(active) {
            let signal = Arc::clone(&active.signal);
            drop(state);
            signal.config_changed();
        } else {
            let queue = active.queue(CONTROL_TO_GUEST).cloned();
            // One that waits still is replaced.
            state.answers.retain(|answer| answer[..Message::SIZE] != message[..Message::SIZE]);
            state.answers.push_back(message);
            drop(state);
            queue.inspect(|queue| queue.ring());
        }
    }

    /// Gives `port`, counted from 0, input and returns how many of `bytes` it took. When that is not all, the
    /// callback of [`set_input_ready_callback`](Self::set_input_ready_callback) says when to go on.
    pub fn receive(&self, port: usize, bytes: &[u8]) -> usize {
        let mut state = self.shared.lock();
        let Some(target) = state.ports.get_mut(port) else { return 0 };
        let count = bytes.len().min(INPUT_LIMIT.saturating_sub(target.pending.len()));
        target.pending.extend(&bytes[..count]);
        target.refused |= count < bytes.len();
        let queue = state.active.as_ref().and_then(|active| active.queue(to_guest(port))).cloned();
        drop(state);
        // The event loop delivers, and not whoever types.
        queue.inspect(|queue| queue.ring());
        count
    }

    /// Sets what is called, on the event loop, when `port` wants input again after some was refused. It must
    /// not block.
    pub fn set_input_ready_callback(&self, port: usize, callback: Arc<dyn Fn() + Send + Sync>) {
        if let Some(port) = self.shared.lock().ports.get_mut(port) {
            port.callback = Some(callback);
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let multiport = if self.queue_sizes.len() > 2 { F_MULTIPORT } else { 0 };
        VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | F_SIZE | F_EMERG_WRITE | multiport
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.shared.lock();
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&state.size.0.to_le_bytes());
        config[2..4].copy_from_slice(&state.size.1.to_le_bytes());
        config[4..8].copy_from_slice(&(state.ports.len() as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset == EMERGENCY_WRITE
            && let Some(byte) = data.first()
        {
            self.shared.lock().ports[0].output.write(&[*byte]);
        }
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        self.shared.lock().active = Some(Served::new(activation));
        self.shared.run()
    }

    fn deactivate(&self) {
        let mut state = self.shared.halt();
        state.active = None;
        state.answers.clear();
        for port in &mut state.ports {
            port.open = false;
            port.sent = 0;
            port.output.forget_queue();
        }
    }

    fn pause(&self) -> Result<()> {
        drop(self.shared.halt());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.shared.run()
    }

    fn save(&self) -> Result<Saved> {
        let state = self.shared.lock();
        let port = |port: &Port| SavedPort {
            input: port.pending.iter().copied().collect(),
            output: port.output.waiting(),
            open: port.open,
            sent: port.sent,
        };
        Saved::new(&SavedConsole {
            ports: state.ports.iter().map(port).collect(),
            answers: state.answers.iter().cloned().collect(),
        })
    }

    fn restore(&self, state: &Saved) -> Result<()> {
        let saved: SavedConsole = state.get()?;
        let mut state = self.shared.lock();
        if saved.ports.len() != state.ports.len() {
            return Err(Error::InvalidState("the console has another number of ports"));
        }
        let answers_fit = saved.answers.len() <= MOST_ANSWERS + 2 * MOST_PORTS
            && saved.answers.iter().all(|answer| (Message::SIZE..1024).contains(&answer.len()));
        let input_fits = saved.ports.iter().all(|port| port.input.len() <= INPUT_LIMIT);
        if !answers_fit || !input_fits {
            return Err(Error::InvalidState("the console holds more than it can"));
        }
        state.answers = saved.answers.into();
        for (port, saved) in state.ports.iter_mut().zip(saved.ports) {
            port.pending = saved.input.into();
            port.open = saved.open;
            port.sent = saved.sent;
            if !saved.output.is_empty() {
                port.output.write(&saved.output);
            }
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.deactivate();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins or goes on to serve the guest.
    fn run(&self) -> Result<()> {
        let Some(handler) = self.handler() else { return Ok(()) };
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(active) = state.active.as_mut().filter(|active| !active.is_running()) {
            active.run(&self.events, &handler)?;
            self.watch_inputs(&mut state.ports)?;
        }
        Ok(())
    }

    fn handler(&self) -> Option<Arc<dyn EventHandler>> {
        self.this.upgrade().map(|this| this as Arc<dyn EventHandler>)
    }

    fn watch_inputs(&self, ports: &mut [Port]) -> Result<()> {
        let Some(handler) = self.handler() else { return Ok(()) };
        for (index, port) in ports.iter_mut().enumerate() {
            port.update_watch(index, &self.events, &handler)?;
        }
        Ok(())
    }

    /// Stops serving the guest. All use of guest memory is under this lock, so none is under way then.
    fn halt(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if let Some(active) = &mut state.active {
            active.halt();
        }
        state.ports.iter_mut().for_each(|port| port.watch = None);
        state
    }
}

impl EventHandler for Shared {
    fn ready(&self, token: u64) {
        let mut state = self.lock();
        if state.active.as_ref().is_none_or(|active| !active.is_running()) {
            return;
        }
        state.serve(token);
        if let Err(error) = self.watch_inputs(&mut state.ports) {
            tracing::warn!(%error, "the input of a console is lost");
        }
        let callbacks: Vec<_> = state.ports.iter_mut().filter_map(Port::wants_input).collect();
        drop(state);
        callbacks.into_iter().for_each(|callback| callback());
    }
}

impl State {
    /// Serves the descriptor or the queue with `token`.
    fn serve(&mut self, token: u64) {
        let Some(active) = &self.active else { return };
        let index = (token & (INPUTS - 1)) as usize;
        if token >= INPUTS {
            let Some(port) = self.ports.get_mut(index) else { return };
            port.read();
            port.deliver(index, active);
            return;
        }
        if let Some(queue) = active.queue(index) {
            let _ = queue.doorbell().read();
        }
        match index {
            CONTROL_TO_GUEST => {}
            CONTROL_FROM_GUEST => self.serve_control(),
            _ => {
                let port = index / 2 - usize::from(index > CONTROL_FROM_GUEST);
                let Some(target) = self.ports.get_mut(port) else { return };
                if index.is_multiple_of(2) {
                    target.deliver(port, active);
                } else {
                    target.transmit(port, active);
                }
            }
        }
        let full = self.answers.len() >= MOST_ANSWERS;
        self.deliver_answers();
        if full && self.answers.len() < MOST_ANSWERS {
            self.serve_control();
            self.deliver_answers();
        }
    }

    /// Serves the guest's control messages.
    fn serve_control(&mut self) {
        let Some(active) = &self.active else { return };
        let Some(queue) = active.queue(CONTROL_FROM_GUEST).filter(|_| is_multiport(active)) else {
            return;
        };
        let (memory, signal) = (&active.memory, Arc::clone(&active.signal));
        let mut messages = Vec::new();
        let mut room = MOST_ANSWERS.saturating_sub(self.answers.len());
        // Each message is answered by at most as many as there are ports, or by four.
        let most = self.ports.len().max(4);
        serve(queue, memory, signal.as_ref(), |chain| {
            if room == 0 {
                return Outcome::Later;
            }
            room = room.saturating_sub(most);
            let mut bytes = [0; CONTROL_SIZE];
            if let Some(buffer) = GuestBuffer::readable(chain, memory) {
                let count = buffer.copy_to(&mut bytes);
                messages.extend(Message::parse(&bytes[..count]));
            }
            Outcome::Used(0)
        });
        messages.into_iter().for_each(|message| self.answer(message));
    }

    fn answer(&mut self, message: Message) {
        let (id, event, yes) = (message.id.get(), message.event.get(), message.value.get() != 0);
        if event == DEVICE_READY && yes {
            let added = (0..self.ports.len() as u32).map(|id| Message::new(id, DEVICE_ADD, 0));
            self.answers.extend(added.map(|message| message.bytes(&[])));
            return;
        }
        let size = self.resize_message();
        let Some(port) = usize::try_from(id).ok().and_then(|id| self.ports.get_mut(id)) else {
            return;
        };
        match event {
            PORT_READY if yes => {
                if id == 0 {
                    self.answers.push_back(Message::new(id, CONSOLE_PORT, 1).bytes(&[]));
                    self.answers.push_back(size);
                }
                if let Some(name) = &port.name {
                    let name = name.as_bytes();
                    self.answers.push_back(Message::new(id, PORT_NAME, 1).bytes(name));
                }
                self.answers.push_back(Message::new(id, PORT_OPEN, 1).bytes(&[]));
            }
            PORT_OPEN => {
                port.open = yes;
                if let Some(active) = &self.active {
                    port.deliver(id as usize, active);
                }
            }
            _ => {}
        }
    }

    fn deliver_answers(&mut self) {
        let Some(active) = &self.active else { return };
        let Some(queue) = active.queue(CONTROL_TO_GUEST).filter(|_| is_multiport(active)) else {
            return;
        };
        if self.answers.is_empty() {
            return;
        }
        serve(queue, &active.memory, active.signal.as_ref(), |chain| {
            let Some(answer) = self.answers.pop_front() else { return Outcome::Later };
            let buffer = GuestBuffer::writable(chain, &active.memory);
            Outcome::Used(buffer.map_or(0, |buffer| buffer.copy_from(&answer)) as u32)
        });
    }

    fn resize_message(&self) -> Vec<u8> {
        let (columns, rows) = (self.size.0.to_le_bytes(), self.size.1.to_le_bytes());
        Message::new(0, RESIZE, 1).bytes(&[columns, rows].concat())
    }
}

impl Port {
    fn new(port: ConsolePort) -> Self {
        Self {
            name: port.name,
            output: Output::new(port.output),
            input: port.input,
            watch: None,
            pending: VecDeque::new(),
            refused: false,
            callback: None,
            open: false,
            sent: 0,
        }
    }

    /// Watches the descriptor while there is room for what it has.
    fn update_watch(
        &mut self,
        index: usize,
        events: &EventLoopHandle,
        handler: &Arc<dyn EventHandler>,
    ) -> Result<()> {
        if let Some(input) = &self.input
            && self.watch.is_none()
            && self.pending.len() < INPUT_LIMIT
        {
            let token = INPUTS + index as u64;
            self.watch = Some(events.watch(input, Interest::Read, token, Arc::clone(handler))?);
        }
        Ok(())
    }

    /// Whom to tell that input is wanted which was refused before.
    fn wants_input(&mut self) -> Option<Callback> {
        let wanted = self.refused && self.pending.len() < INPUT_LIMIT;
        self.refused &= !wanted;
        self.callback.clone().filter(|_| wanted)
    }

    /// Reads from the descriptor, which is ready.
    fn read(&mut self) {
        let Some(input) = &self.input else { return };
        let room = INPUT_LIMIT.saturating_sub(self.pending.len()).min(4096);
        let mut bytes = [0; 4096];
        if room == 0 {
            // Watched again when the guest has taken some.
            self.watch = None;
            return;
        }
        match rustix::io::read(input, &mut bytes[..room]) {
            Ok(0) => (self.input, self.watch) = (None, None),
            Ok(count) => self.pending.extend(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => (self.input, self.watch) = (None, None),
        }
    }

    /// Gives the guest what waits for it, into port number `index`.
    fn deliver(&mut self, index: usize, active: &Served) {
        let Some(queue) = active.queue(to_guest(index)) else { return };
        // Linux throws away what comes for a port that nobody has open.
        let listens = index == 0 || self.open;
        if self.pending.is_empty() || !listens {
            return;
        }
        serve(queue, &active.memory, active.signal.as_ref(), |chain| {
            if self.pending.is_empty() {
                return Outcome::Later;
            }
            let buffer = GuestBuffer::writable(chain, &active.memory);
            let count = buffer.map_or(0, |buffer| buffer.copy_from(self.pending.make_contiguous()));
            self.pending.drain(..count);
            Outcome::Used(count as u32)
        });
    }

    /// Takes what the guest sends to port number `index`.
    fn transmit(&mut self, index: usize, active: &Served) {
        let Some(queue) = active.queue(to_guest(index) + 1) else { return };
        serve(queue, &active.memory, active.signal.as_ref(), |chain| {
            let mut buffer = GuestBuffer::readable(chain, &active.memory);
            if let Some(buffer) = &mut buffer {
                buffer.take(self.sent as usize);
            }
            while let Some(buffer) = buffer.as_mut().filter(|buffer| buffer.len() > 0) {
                let room = self.output.room(queue);
                if room == 0 {
                    // The rest goes when the queue is rung.
                    return Outcome::Later;
                }
                let part = buffer.take(room);
                let mut bytes = vec![0; part.len()];
                part.copy_to(&mut bytes);
                self.output.write(&bytes);
                self.sent = self.sent.saturating_add(bytes.len() as u32);
            }
            self.sent = 0;
            Outcome::Used(0)
        });
    }
}

/// Whether the driver knows of more ports than the console.
fn is_multiport(active: &Served) -> bool {
    active.features & F_MULTIPORT != 0
}

/// The queue that leads to the guest for `port`; the one from the guest follows it.
fn to_guest(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}
