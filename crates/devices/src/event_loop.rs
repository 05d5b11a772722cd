//! The thread that serves devices: it waits for host descriptors and calls their handlers.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;

use rustix::event::epoll;
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::fd::event_fd;
use crate::{Error, Result};

/// Called when a watched descriptor is ready.
pub trait EventHandler: Send + Sync {
    /// The descriptor registered with `token` is ready. Must not block; descriptors are level-triggered, so what is
    /// not read now is told again.
    fn ready(&self, token: u64);
}

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It can be read, or the other side hung up.
    Read,
    /// It can be written, or the other side hung up.
    Write,
    /// Either.
    ReadWrite,
    /// Nothing but a hang-up or an error.
    None,
}

/// Waits for descriptors and calls handlers, on the thread that calls [`EventLoop::run`].
pub struct EventLoop {
    shared: Arc<Shared>,
}

/// Registers descriptors with an [`EventLoop`], from any thread.
#[derive(Clone)]
pub struct EventLoopHandle {
    shared: Arc<Shared>,
}

/// A watched descriptor; dropping it ends the watch.
///
/// A call that is under way on the loop's thread may still finish after the drop; see
/// [`EventLoopHandle::barrier`].
pub struct Registration {
    shared: Arc<Shared>,
    id: u64,
    fd: OwnedFd,
}

struct Shared {
    epoll: OwnedFd,
    /// Woken to stop the loop or to pass barriers.
    wake: EventFd,
    stop: AtomicBool,
    next_id: AtomicU64,
    /// By registration: the handler and its token.
    handlers: Mutex<HashMap<u64, Watch>>,
    /// Who waits for the end of a round; `None` once the loop has ended.
    barriers: Mutex<Option<Vec<SyncSender<()>>>>,
    thread: OnceLock<ThreadId>,
}

type Watch = (u64, Arc<dyn EventHandler>);

const WAKE: u64 = 0;

impl EventLoop {
    /// A loop that watches nothing yet.
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::io("create the event loop"))?;
        let wake =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::io("create the event loop"))?;
        epoll::add(&epoll, event_fd(&wake), epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
            .map_err(Error::io("create the event loop"))?;
        Ok(Self {
            shared: Arc::new(Shared {
                epoll,
                wake,
                stop: AtomicBool::new(false),
                next_id: AtomicU64::new(WAKE + 1),
                handlers: Mutex::default(),
                barriers: Mutex::new(Some(Vec::new())),
                thread: OnceLock::new(),
            }),
        })
    }

    /// To register descriptors.
    pub fn handle(&self) -> EventLoopHandle {
        EventLoopHandle { shared: Arc::clone(&self.shared) }
    }

    /// Serves descriptors until [`EventLoopHandle::stop`].
    pub fn run(&self) -> Result<()> {
        let shared = &self.shared;
        let _ = shared.thread.set(std::thread::current().id());
        let mut events = Vec::with_capacity(32);
        while !shared.stop.load(Ordering::Acquire) {
            events.clear();
            match epoll::wait(&shared.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(source) => return Err(Error::io("wait for events")(source)),
            }
            for event in &events {
                let id = event.data.u64();
                if id == WAKE {
                    let _ = shared.wake.read();
                    continue;
                }
                // Looked up anew for each event: an earlier handler may have ended this watch.
                let found = lock(&shared.handlers).get(&id).cloned();
                if let Some((token, handler)) = found {
                    handler.ready(token);
                }
            }
            for barrier in lock(&shared.barriers).iter_mut().flat_map(|waiting| waiting.drain(..)) {
                let _ = barrier.send(());
            }
        }
        // Nobody may wait for a loop that has ended.
        lock(&shared.barriers).take();
        Ok(())
    }
}

impl EventLoopHandle {
    /// Calls `handler` with `token` whenever `fd` is ready. The descriptor is duplicated.
    pub fn watch(
        &self,
        fd: impl AsFd,
        interest: Interest,
        token: u64,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Registration> {
        let fd = fd.as_fd().try_clone_to_owned().map_err(Error::io("watch a descriptor"))?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.handlers).insert(id, (token, handler));
        let added =
            epoll::add(&self.shared.epoll, &fd, epoll::EventData::new_u64(id), interest.flags());
        if let Err(source) = added {
            lock(&self.shared.handlers).remove(&id);
            return Err(Error::io("watch a descriptor")(source));
        }
        Ok(Registration { shared: Arc::clone(&self.shared), id, fd })
    }

    /// Like [`watch`](Self::watch), for an eventfd.
    pub fn watch_event(
        &self,
        event: &EventFd,
        token: u64,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Registration> {
        self.watch(event_fd(event), Interest::Read, token, handler)
    }

    /// Returns when every handler that was being called has returned. On the loop's own thread, and
    /// when no loop runs, it returns at once.
    pub fn barrier(&self) {
        let on_loop = self.shared.thread.get().is_none_or(|id| *id == std::thread::current().id());
        if on_loop {
            return;
        }
        let (sender, receiver) = sync_channel(1);
        match lock(&self.shared.barriers).as_mut() {
            Some(waiting) => waiting.push(sender),
            None => return,
        }
        let _ = self.shared.wake.write(1);
        // An error says that the loop ended, so nothing is being called either.
        let _ = receiver.recv();
    }

    /// Makes [`EventLoop::run`] return.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
    }
}

impl Registration {
    /// Waits for something else from now on.
    pub fn set_interest(&self, interest: Interest) -> Result<()> {
        epoll::modify(
            &self.shared.epoll,
            &self.fd,
            epoll::EventData::new_u64(self.id),
            interest.flags(),
        )
        .map_err(Error::io("watch a descriptor"))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = epoll::delete(&self.shared.epoll, &self.fd);
        lock(&self.shared.handlers).remove(&self.id);
    }
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::Write => epoll::EventFlags::OUT,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Self::None => epoll::EventFlags::empty(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Count {
        event: EventFd,
        calls: AtomicUsize,
    }

    impl EventHandler for Count {
        fn ready(&self, token: u64) {
            assert_eq!(token, 7);
            let _ = self.event.read();
            self.calls.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_handler_is_called_until_its_registration_is_dropped() {
        let events = EventLoop::new().unwrap();
        let handle = events.handle();
        let thread = std::thread::spawn(move || events.run().unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let count =
            Arc::new(Count { event: event.try_clone().unwrap(), calls: AtomicUsize::new(0) });
        let registration =
            handle.watch_event(&event, 7, Arc::clone(&count) as Arc<dyn EventHandler>).unwrap();
        event.write(1).unwrap();
        while count.calls.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        drop(registration);
        handle.barrier();
        event.write(1).unwrap();
        handle.barrier();
        assert_eq!(count.calls.load(Ordering::SeqCst), 1);
        handle.stop();
        thread.join().unwrap();
        handle.barrier();
    }
}
