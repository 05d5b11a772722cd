//! The socket device.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::GuestMemory;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::switch::{Switch, Watcher, connect, port_path};
use crate::virtio::buffer::GuestBuffer;
use crate::virtio::serve::{Outcome, serve, watch_doorbells};
use crate::virtio::{
    Activation, DeviceSignal, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtQueue, VirtioDevice,
    read_config_bytes,
};
use crate::{Error, EventHandler, EventLoopHandle, Registration, Result, State};

const DEVICE_TYPE: u16 = 19;
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// To the guest, from the guest, and events: queues and tokens of their doorbells.
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const EVENT: u64 = 2;

/// `struct virtio_vsock_event` with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// How guest and host reach each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context identifier: 3 or more, and less than 2^32 - 1.
    pub guest_cid: u64,
    /// The Unix socket of the host; those of its ports are beside it.
    pub path: PathBuf,
}

/// Connects sockets of the guest with Unix sockets of the host.
pub struct Vsock {
    name: String,
    config: VsockConfig,
    events: EventLoopHandle,
    listener: UnixListener,
    /// Of the socket file, so that only our own is removed.
    inode: Option<(u64, u64)>,
    idle: Mutex<Idle>,
    active: Mutex<Option<Arc<Handler>>>,
}

/// What is known while no driver is there.
#[derive(Clone, Copy, Default)]
struct Idle {
    /// The guest still has connections of a device that is no more.
    transport_reset: bool,
    next_port: u32,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    /// The guest may have connections, which end by the restore.
    transport_reset: bool,
    /// Ports of the host below were used.
    next_port: u32,
}

struct Handler {
    memory: GuestMemory,
    queues: Vec<Option<Arc<VirtQueue>>>,
    signal: Arc<dyn DeviceSignal>,
    state: Mutex<Active>,
}

struct Active {
    switch: Switch,
    doorbells: Vec<Registration>,
    /// Guest memory may be used.
    running: bool,
    /// The guest sent more than fits while the answers wait.
    stalled: bool,
    transport_reset: bool,
}

impl Vsock {
    /// A socket device called `name` that works on the loop of `events`. The socket at `config.path` exists from now
    /// on; who connects waits until the guest's driver is ready.
    pub fn new(
        name: impl Into<String>,
        config: VsockConfig,
        events: EventLoopHandle,
    ) -> Result<Self> {
        if !(3..u64::from(u32::MAX)).contains(&config.guest_cid) {
            let cid = config.guest_cid;
            return Err(Error::Configuration(format!(
                "The vsock context identifier must be from 3 to 4294967294, not {cid}"
            )));
        }
        let action = || format!("listen on the vsock socket {}", config.path.display());
        // The longest name of a port's socket must fit into an address, too.
        rustix::net::SocketAddrUnix::new(port_path(&config.path, u32::MAX))
            .map_err(Error::io(action()))?;
        let listener = listen(&config.path).map_err(Error::io(action()))?;
        let inode = inode(&config.path);
        Ok(Self {
            name: name.into(),
            config,
            events,
            listener,
            inode,
            idle: Mutex::default(),
            active: Mutex::new(None),
        })
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How guest and host reach each other.
    pub fn config(&self) -> &VsockConfig {
        &self.config
    }

    fn handler(&self) -> Option<Arc<Handler>> {
        lock(&self.active).clone()
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        let listener = self.listener.try_clone().map_err(Error::io("listen for connections"))?;
        let idle = *lock(&self.idle);
        let handler = Arc::new_cyclic(|handler: &Weak<Handler>| {
            let watcher = Watcher::new(self.events.clone(), handler.clone());
            let switch = Switch::new(
                self.config.guest_cid,
                self.config.path.clone(),
                OwnedFd::from(listener),
                idle.next_port,
                watcher,
            );
            Handler {
                memory: activation.memory,
                queues: activation.queues,
                signal: activation.signal,
                state: Mutex::new(Active {
                    switch,
                    doorbells: Vec::new(),
                    running: false,
                    stalled: false,
                    transport_reset: idle.transport_reset,
                }),
            }
        });
        *lock(&self.active) = Some(Arc::clone(&handler));
        handler.run(&self.events)
    }

    fn deactivate(&self) {
        if let Some(handler) = lock(&self.active).take() {
            // The guest has forgotten its connections itself.
            let next_port = handler.halt().switch.next_port();
            *lock(&self.idle) = Idle { transport_reset: false, next_port };
        }
    }

    fn pause(&self) -> Result<()> {
        if let Some(handler) = self.handler() {
            drop(handler.halt());
        }
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.handler().map_or(Ok(()), |handler| handler.run(&self.events))
    }

    fn save(&self) -> Result<State> {
        let saved = match self.handler() {
            Some(handler) => {
                Saved { transport_reset: true, next_port: handler.lock().switch.next_port() }
            }
            None => {
                let idle = *lock(&self.idle);
                Saved { transport_reset: idle.transport_reset, next_port: idle.next_port }
            }
        };
        State::new(&saved)
    }

    fn restore(&self, state: &State) -> Result<()> {
        let Saved { transport_reset, next_port } = state.get()?;
        *lock(&self.idle) = Idle { transport_reset, next_port };
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.deactivate();
        if self.inode.is_some() && inode(&self.config.path) == self.inode {
            let _ = std::fs::remove_file(&self.config.path);
        }
    }
}

impl Handler {
    fn lock(&self) -> MutexGuard<'_, Active> {
        lock(&self.state)
    }

    fn queue(&self, token: u64) -> Option<&Arc<VirtQueue>> {
        self.queues.get(usize::try_from(token).ok()?)?.as_ref()
    }

    /// Begins or goes on to serve the guest.
    fn run(self: &Arc<Self>, events: &EventLoopHandle) -> Result<()> {
        let mut active = self.lock();
        if active.running {
            return Ok(());
        }
        active.running = true;
        let handler = Arc::clone(self) as Arc<dyn EventHandler>;
        active.doorbells = watch_doorbells(events, &self.queues, &handler)?;
        active.switch.resume()
    }

    /// Stops serving the guest. All use of guest memory is under this lock, so none is under way then.
    fn halt(&self) -> MutexGuard<'_, Active> {
        let mut active = self.lock();
        active.running = false;
        active.doorbells.clear();
        active.switch.pause();
        active
    }

    /// Serves what the guest sends.
    fn transmit(&self, active: &mut Active) {
        let Some(queue) = self.queue(TRANSMIT) else { return };
        active.stalled = false;
        serve(queue, &self.memory, self.signal.as_ref(), |chain| {
            if active.switch.is_congested() {
                active.stalled = true;
                return Outcome::Later;
            }
            if let Some(packet) = GuestBuffer::readable(chain, &self.memory) {
                active.switch.receive(packet);
            }
            Outcome::Used(0)
        });
    }

    /// Hands packets to the guest as long as it has buffers.
    fn deliver(&self, active: &mut Active) {
        if !active.switch.has_packets() {
            return;
        }
        if let Some(queue) = self.queue(RECEIVE) {
            serve(queue, &self.memory, self.signal.as_ref(), |chain| {
                if !active.switch.has_packets() {
                    return Outcome::Later;
                }
                let Some(buffer) = GuestBuffer::writable(chain, &self.memory) else {
                    return Outcome::Used(0);
                };
                active.switch.next_packet(buffer).map_or(Outcome::Later, Outcome::Used)
            });
        }
        active.switch.rest();
    }

    /// Tells the guest that its connections are gone.
    fn tell_event(&self, active: &mut Active) {
        let Some(queue) = self.queue(EVENT).filter(|_| active.transport_reset) else { return };
        serve(queue, &self.memory, self.signal.as_ref(), |chain| {
            if !active.transport_reset {
                return Outcome::Later;
            }
            let buffer = GuestBuffer::writable(chain, &self.memory);
            let told = buffer.map_or(0, |buffer| buffer.copy_from(&TRANSPORT_RESET));
            active.transport_reset = told < TRANSPORT_RESET.len();
            Outcome::Used(told as u32)
        });
    }
}

impl EventHandler for Handler {
    fn ready(&self, token: u64) {
        if let Some(queue) = self.queue(token) {
            let _ = queue.doorbell().read();
        }
        let mut active = self.lock();
        if !active.running {
            return;
        }
        match token {
            RECEIVE => {}
            TRANSMIT => self.transmit(&mut active),
            EVENT => self.tell_event(&mut active),
            stream => active.switch.ready(stream),
        }
        self.deliver(&mut active);
        if active.stalled && !active.switch.is_congested() {
            self.transmit(&mut active);
            self.deliver(&mut active);
        }
    }
}

/// Listens at `path`, in the place of a socket that nobody listens on any more.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let bound = UnixListener::bind(path);
    let in_use = bound.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
    if !in_use || !is_abandoned(path) {
        return bound.and_then(nonblocking);
    }
    std::fs::remove_file(path)?;
    UnixListener::bind(path).and_then(nonblocking)
}

fn nonblocking(listener: UnixListener) -> std::io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn is_abandoned(path: &Path) -> bool {
    let socket = path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
    socket && connect(path).is_err_and(|error| error == Errno::CONNREFUSED)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
