//! The file system device.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use engine::GuestMemory;

use super::folder::Folder;
use super::server::Server;
use crate::threads;
use crate::virtio::serve::{Outcome, serve_promptly, watch_doorbells};
use crate::virtio::{
    Activation, DeviceSignal, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtQueue, VirtioDevice,
    read_config_bytes,
};
use crate::{Error, EventHandler, EventLoop, EventLoopHandle, Registration, Result, State};

const DEVICE_TYPE: u16 = 26;
/// Room for the 256 pages of a request, several times over.
const QUEUE_SIZE: u16 = 1024;
/// Bytes of a tag at most; it ends there or with a zero.
const TAG_SIZE: usize = 36;
/// Threads, and queues of requests, at most.
const MOST_QUEUES: u16 = 16;

/// For how long the guest believes what it was told of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// A second; contents until the file is opened again and has changed. For folders that the host changes
    /// meanwhile.
    Auto,
    /// Until it forgets by itself, contents too. Fast, and what the host changes is not seen.
    Always,
}

/// What is shared, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// The name by which the guest mounts it: `mount -t virtiofs TAG /mnt`. 1 to 36 bytes.
    pub tag: String,
    /// The folder of the host.
    pub root: PathBuf,
    /// The guest may change nothing.
    pub readonly: bool,
    /// Queues of requests, each with a thread: from 1 to 16.
    pub queues: u16,
    /// For how long the guest believes what it was told.
    pub cache: Cache,
    /// Extended attributes are there. Without them the guest asks less often.
    pub xattrs: bool,
}

/// Shares a folder of the host with the guest.
pub struct Fs {
    name: String,
    queue_sizes: Vec<u16>,
    config: [u8; TAG_SIZE + 4],
    server: Arc<Server>,
    active: Mutex<Option<Active>>,
}

struct Active {
    handler: Arc<Handler>,
    workers: Vec<Worker>,
}

/// A thread that serves some of the queues.
struct Worker {
    events: EventLoopHandle,
    thread: Option<JoinHandle<()>>,
    watches: Vec<Registration>,
    queues: Vec<Option<Arc<VirtQueue>>>,
}

struct Handler {
    server: Arc<Server>,
    memory: GuestMemory,
    queues: Vec<Option<Arc<VirtQueue>>>,
    signal: Arc<dyn DeviceSignal>,
}

impl FsConfig {
    /// The folder `root` as `tag`: writable, on one queue, with [`Cache::Auto`] and extended attributes.
    pub fn new(tag: impl Into<String>, root: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            root: root.into(),
            readonly: false,
            queues: 1,
            cache: Cache::Auto,
            xattrs: true,
        }
    }
}

impl Fs {
    /// A file system device called `name`. Raises the process' soft limit of open files to the hard one, since a guest
    /// has many open.
    pub fn new(name: impl Into<String>, config: FsConfig) -> Result<Self> {
        let tag = config.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_SIZE || tag.contains(&0) {
            let tag = &config.tag;
            return Err(Error::Configuration(format!(
                "The tag of a shared folder has from 1 to {TAG_SIZE} bytes: {tag:?}"
            )));
        }
        if !(1..=MOST_QUEUES).contains(&config.queues) {
            return Err(Error::Configuration(format!(
                "A shared folder has from 1 to {MOST_QUEUES} queues, not {}",
                config.queues
            )));
        }
        let mut bytes = [0; TAG_SIZE + 4];
        bytes[..tag.len()].copy_from_slice(tag);
        bytes[TAG_SIZE..].copy_from_slice(&u32::from(config.queues).to_le_bytes());
        Ok(Self {
            name: name.into(),
            // The first queue is for what must not wait behind requests.
            queue_sizes: vec![QUEUE_SIZE; 1 + usize::from(config.queues)],
            config: bytes,
            server: Arc::new(Server::new(Folder::open(config)?)),
            active: Mutex::new(None),
        })
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is shared, and how.
    pub fn config(&self) -> &FsConfig {
        self.server.folder().config()
    }

    fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        let handler = Arc::new(Handler {
            server: Arc::clone(&self.server),
            memory: activation.memory,
            queues: activation.queues,
            signal: activation.signal,
        });
        // The first two queues share a thread: what comes in the first is rare and short.
        let workers = (1..handler.queues.len())
            .map(|index| {
                let served = |queue: usize| queue == index || (queue == 0 && index == 1);
                let queue =
                    |(number, queue): (usize, &Option<_>)| queue.clone().filter(|_| served(number));
                Worker::start(handler.queues.iter().enumerate().map(queue).collect())
            })
            .collect::<Result<Vec<_>>>()?;
        let mut active = Active { handler, workers };
        active.run()?;
        *self.active() = Some(active);
        Ok(())
    }

    fn deactivate(&self) {
        let active = self.active().take();
        // With its workers, all use of guest memory ends.
        drop(active);
        self.server.reset();
    }

    fn pause(&self) -> Result<()> {
        if let Some(active) = &mut *self.active() {
            active.workers.iter_mut().for_each(Worker::halt);
        }
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.active().as_mut().map_or(Ok(()), Active::run)
    }

    fn save(&self) -> Result<State> {
        State::new(&self.server.save())
    }

    fn restore(&self, state: &State) -> Result<()> {
        self.server.restore(state.get()?).map_err(Error::InvalidState)
    }
}

impl Active {
    /// Begins or goes on to serve the guest.
    fn run(&mut self) -> Result<()> {
        let handler: Arc<dyn EventHandler> = Arc::clone(&self.handler) as _;
        for worker in &mut self.workers {
            if worker.watches.is_empty() {
                worker.watches = watch_doorbells(&worker.events, &worker.queues, &handler)?;
            }
        }
        Ok(())
    }
}

impl Worker {
    fn start(queues: Vec<Option<Arc<VirtQueue>>>) -> Result<Self> {
        let events = EventLoop::new()?;
        let handle = events.handle();
        let builder = std::thread::Builder::new().name("shared-folder".into());
        let thread = threads::spawn(builder, move || {
            if let Err(error) = events.run() {
                tracing::error!(%error, "a shared folder is served no more");
            }
        })
        .map_err(Error::io("start a thread for a shared folder"))?;
        Ok(Self { events: handle, thread: Some(thread), watches: Vec::new(), queues })
    }

    /// Serves nothing any more; on return nothing is being served.
    fn halt(&mut self) {
        self.watches.clear();
        self.events.barrier();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.halt();
        self.events.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

impl EventHandler for Handler {
    fn ready(&self, token: u64) {
        let index = usize::try_from(token).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get(index).and_then(Option::as_ref) else { return };
        let _ = queue.doorbell().read();
        // Requests take their time: each is told of when it is done.
        serve_promptly(queue, &self.memory, self.signal.as_ref(), |chain| {
            Outcome::Used(self.server.serve(chain, &self.memory))
        });
    }
}
