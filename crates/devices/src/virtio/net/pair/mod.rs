//! One pair of queues: moves frames between guest memory and a port.

mod buffers;
mod receive;
mod transmit;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::GuestMemory;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::header::{HEADER_SIZE, MOST_FRAME, feature};
use super::port::Port;
use super::vhost::VhostNet;
use crate::rate_limiter::RateLimiter;
use crate::virtio::{DeviceSignal, VirtQueue};
use crate::{Error, EventHandler, EventLoopHandle, Interest, Registration, Result};

/// What a card has carried since it was made. Frames that the kernel carries are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the guest received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames for the guest that were lost for want of room.
    pub receive_dropped: u64,
    /// Frames that the guest sent.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames of the guest that could not be sent.
    pub send_dropped: u64,
}

/// What the pairs of a card have in common.
pub(super) struct Common {
    pub events: EventLoopHandle,
    pub limit_rx: RateLimiter,
    pub limit_tx: RateLimiter,
    pub link_up: AtomicBool,
    pub counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub received_frames: AtomicU64,
    pub received_bytes: AtomicU64,
    pub receive_dropped: AtomicU64,
    pub sent_frames: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub send_dropped: AtomicU64,
}

/// A pair of queues and its port.
pub(super) struct Pair {
    common: Arc<Common>,
    state: Mutex<PairState>,
}

struct PairState {
    port: Box<dyn Port>,
    vhost: Option<VhostNet>,
    /// Where the end of a frame goes that is larger than the buffers collected for it.
    rest: Box<[u8]>,
    active: Option<Active>,
}

/// While the driver uses the pair.
struct Active {
    memory: Arc<GuestMemory>,
    features: u64,
    signal: Arc<dyn DeviceSignal>,
    rx: Arc<VirtQueue>,
    tx: Arc<VirtQueue>,
    /// The driver wants frames in this pair.
    enabled: bool,
    /// The driver broke a ring: nothing is done until it resets the device.
    broken: bool,
    receiving: Flow,
    sending: Flow,
    /// The frame at the front was already counted against its limit.
    paid: bool,
    /// Bytes of buffers to collect for the next frame.
    expected: usize,
    /// `None` while paused.
    watches: Option<Watches>,
}

/// What one direction of the traffic waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The port.
    Port,
    /// The driver: frames to send, or buffers to receive into.
    Driver,
    /// Its rate limit.
    Limit,
}

enum Watches {
    User {
        port: Option<Registration>,
        interest: Interest,
        _doorbells: [Registration; 2],
        timers: [Option<Timer>; 2],
    },
    Kernel {
        _broken: Registration,
    },
}

struct Timer {
    fd: OwnedFd,
    _watch: Registration,
}

/// What the driver has to be told when the pair is unlocked again.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    /// A ring is broken.
    needs_reset: bool,
    /// The port is gone.
    link_down: bool,
}

/// Frames handled in one go; what remains is looked at after the other descriptors of the loop.
const BATCH: usize = 256;

/// Tokens of what is watched.
const RX_DOORBELL: u64 = 0;
const TX_DOORBELL: u64 = 1;
const PORT: u64 = 2;
const RX_TIMER: u64 = 3;
const TX_TIMER: u64 = 4;
const BROKEN: u64 = 5;

impl Pair {
    pub(super) fn new(common: Arc<Common>, port: Box<dyn Port>, vhost: Option<VhostNet>) -> Self {
        let rest = vec![0; HEADER_SIZE + MOST_FRAME].into_boxed_slice();
        Self { common, state: Mutex::new(PairState { port, vhost, rest, active: None }) }
    }

    /// Begins to serve the queues; `enabled` says whether frames are received in this pair.
    pub(super) fn activate(
        self: &Arc<Self>,
        memory: &Arc<GuestMemory>,
        features: u64,
        queues: [Arc<VirtQueue>; 2],
        signal: Arc<dyn DeviceSignal>,
        enabled: bool,
    ) -> Result<()> {
        let mut state = self.lock();
        let [rx, tx] = queues;
        state.port.set_enabled(enabled).map_err(Error::io("switch a queue of the network"))?;
        state.active = Some(Active {
            memory: Arc::clone(memory),
            features,
            signal,
            rx,
            tx,
            enabled,
            broken: false,
            receiving: Flow::Port,
            sending: Flow::Driver,
            paid: false,
            expected: 0,
            watches: None,
        });
        state.start(self)
    }

    /// Forgets the queues.
    pub(super) fn deactivate(&self) {
        let mut state = self.lock();
        state.stop();
        state.active = None;
    }

    /// Returns when nothing touches guest memory any more.
    pub(super) fn pause(&self) {
        self.lock().stop();
    }

    /// Goes on, and looks at both queues.
    pub(super) fn resume(self: &Arc<Self>) -> Result<()> {
        let mut state = self.lock();
        if state.active.as_ref().is_none_or(|active| active.watches.is_some()) {
            return Ok(());
        }
        state.start(self)
    }

    /// Whether the driver gave this pair its queues.
    pub(super) fn is_active(&self) -> bool {
        self.lock().active.is_some()
    }

    /// Whether frames are received in this pair.
    pub(super) fn set_enabled(self: &Arc<Self>, enabled: bool) -> Result<()> {
        let mut state = self.lock();
        state.port.set_enabled(enabled).map_err(Error::io("switch a queue of the network"))?;
        let Some(active) = &mut state.active else { return Ok(()) };
        if active.enabled == enabled {
            return Ok(());
        }
        active.enabled = enabled;
        active.receiving = Flow::Port;
        // Frames that the driver left in a disabled pair are dropped.
        active.tx.ring();
        state.plug(self)?;
        state.watch_port();
        Ok(())
    }

    /// The driver takes frames with these features of the guest only.
    pub(super) fn set_offloads(&self, features: u64) -> Result<()> {
        let mut state = self.lock();
        state.port.set_offloads(features).map_err(Error::io("switch offloads of the network"))
    }

    fn lock(&self) -> MutexGuard<'_, PairState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, news: News, signal: Option<Arc<dyn DeviceSignal>>) {
        if news.link_down {
            self.common.link_up.store(false, Ordering::Release);
        }
        let Some(signal) = signal else { return };
        if news.needs_reset {
            signal.needs_reset();
        }
        if news.link_down {
            signal.config_changed();
        }
    }
}

impl EventHandler for Pair {
    fn ready(&self, token: u64) {
        let mut state = self.lock();
        let news = state.handle(token, &self.common);
        let signal = state.active.as_ref().map(|active| Arc::clone(&active.signal));
        drop(state);
        // Not while the pair is locked: the driver may be resetting the device just now.
        self.tell(news, signal);
    }
}

impl PairState {
    fn start(&mut self, pair: &Arc<Pair>) -> Result<()> {
        let common = &pair.common;
        let handler = Arc::clone(pair) as Arc<dyn EventHandler>;
        let Some(active) = &mut self.active else { return Ok(()) };
        let queues = [&*active.rx, &*active.tx];
        if let Some(vhost) = &mut self.vhost
            && !common.limit_rx.is_limited()
            && !common.limit_tx.is_limited()
            && VhostNet::can_serve(queues)
        {
            let _broken =
                common.events.watch_event(vhost.broken(), BROKEN, Arc::clone(&handler))?;
            match vhost.start(&active.memory, active.features, queues) {
                Ok(()) => {
                    active.watches = Some(Watches::Kernel { _broken });
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "frames are carried without vhost-net"),
            }
        }
        let timer = |limit: &RateLimiter, token| {
            limit.is_limited().then(|| Timer::new(&common.events, token, &handler)).transpose()
        };
        let timers = [timer(&common.limit_rx, RX_TIMER)?, timer(&common.limit_tx, TX_TIMER)?];
        let doorbell = |queue: &VirtQueue, token| {
            common.events.watch_event(queue.doorbell(), token, Arc::clone(&handler))
        };
        let _doorbells = [doorbell(&active.rx, RX_DOORBELL)?, doorbell(&active.tx, TX_DOORBELL)?];
        let interest = Interest::None;
        active.watches = Some(Watches::User { port: None, interest, _doorbells, timers });
        active.receiving = Flow::Port;
        active.sending = Flow::Driver;
        active.rx.ring();
        active.tx.ring();
        self.plug(pair)
    }

    /// Watches the port if the driver wants frames in this pair; a tap's queue that does not take part would only
    /// tell of an error.
    fn plug(&mut self, pair: &Arc<Pair>) -> Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let wanted = active.enabled && pair.common.link_up.load(Ordering::Acquire);
        let Some(Watches::User { port, interest, .. }) = &mut active.watches else { return Ok(()) };
        *port = None;
        *interest = Interest::None;
        if wanted {
            let handler = Arc::clone(pair) as Arc<dyn EventHandler>;
            let fd = self.port.descriptor();
            *port = Some(pair.common.events.watch(fd, Interest::None, PORT, handler)?);
        }
        Ok(())
    }

    fn stop(&mut self) {
        let Some(active) = &mut self.active else { return };
        active.watches = None;
        if let Some(vhost) = &mut self.vhost {
            vhost.stop([&active.rx, &active.tx]);
        }
    }

    fn handle(&mut self, token: u64, common: &Common) -> News {
        let mut news = News::default();
        let Some(active) = &mut self.active else { return news };
        match &active.watches {
            // A call that was under way when the pair was paused.
            None => return news,
            Some(Watches::Kernel { .. }) => {
                let broken = self.vhost.as_ref().is_some_and(|vhost| vhost.broken().read().is_ok());
                news.needs_reset = broken && !std::mem::replace(&mut active.broken, true);
                return news;
            }
            Some(Watches::User { .. }) => {}
        }
        match token {
            RX_DOORBELL => {
                let _ = active.rx.doorbell().read();
                // The driver gave buffers, or the pair starts.
                if active.receiving != Flow::Limit {
                    self.receive(common, &mut news);
                }
            }
            TX_DOORBELL => {
                let _ = active.tx.doorbell().read();
                if active.sending == Flow::Driver {
                    self.transmit(common, &mut news);
                }
            }
            PORT => self.port_ready(common, &mut news),
            RX_TIMER => {
                active.clear_timer(0);
                self.receive(common, &mut news);
            }
            TX_TIMER => {
                active.clear_timer(1);
                self.transmit(common, &mut news);
            }
            _ => {}
        }
        if news.link_down {
            self.unplug();
        }
        if let Some(active) = &mut self.active {
            active.broken |= news.needs_reset;
        }
        self.watch_port();
        news
    }

    fn port_ready(&mut self, common: &Common, news: &mut News) {
        let Some(active) = &self.active else { return };
        let wanted = active.interest();
        if active.sending == Flow::Port {
            self.transmit(common, news);
        }
        if matches!(wanted, Interest::Read | Interest::ReadWrite) {
            self.receive(common, news);
        } else if wanted == Interest::None && hung_up(self.port.descriptor()) {
            tracing::warn!("the network's other end hung up");
            news.link_down = true;
        }
    }

    /// The port is gone for good: what the guest sends is dropped from now on.
    fn unplug(&mut self) {
        let Some(active) = &mut self.active else { return };
        if let Some(Watches::User { port, .. }) = &mut active.watches {
            *port = None;
        }
        active.sending = Flow::Driver;
        active.tx.ring();
    }

    /// Waits for what the port is needed for, and for nothing else.
    fn watch_port(&mut self) {
        let Some(active) = &mut self.active else { return };
        let wanted = active.interest();
        let Some(Watches::User { port: Some(port), interest, .. }) = &mut active.watches else {
            return;
        };
        if *interest != wanted {
            match port.set_interest(wanted) {
                Ok(()) => *interest = wanted,
                Err(error) => tracing::error!(%error, "the network cannot be watched"),
            }
        }
    }
}

/// Whether the other end is gone. Asked, and not taken from the event loop having called: it may have seen the
/// port ready before the pair ceased to wait for that.
pub(super) fn hung_up(port: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(port, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

impl Active {
    fn mergeable(&self) -> bool {
        self.features & feature::MRG_RXBUF != 0
    }

    fn interest(&self) -> Interest {
        if self.broken {
            return Interest::None;
        }
        let reads = self.enabled && self.receiving == Flow::Port;
        match (reads, self.sending == Flow::Port) {
            (true, true) => Interest::ReadWrite,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (false, false) => Interest::None,
        }
    }

    fn set_timer(&self, index: usize, after: Duration) {
        if let Some(Watches::User { timers, .. }) = &self.watches
            && let Some(timer) = &timers[index]
        {
            timer.set(after);
        }
    }

    fn clear_timer(&self, index: usize) {
        if let Some(Watches::User { timers, .. }) = &self.watches
            && let Some(timer) = &timers[index]
        {
            let _ = rustix::io::read(&timer.fd, &mut [0; 8]);
        }
    }
}

impl Timer {
    fn new(events: &EventLoopHandle, token: u64, handler: &Arc<dyn EventHandler>) -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(Error::io("create a timer"))?;
        let _watch = events.watch(&fd, Interest::Read, token, Arc::clone(handler))?;
        Ok(Self { fd, _watch })
    }

    fn set(&self, after: Duration) {
        // Zero would stop the timer. A limit that is not over in a year is looked at again then.
        let after = after.clamp(Duration::from_nanos(1), Duration::from_secs(365 * 24 * 3600));
        let value =
            Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
        let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let new = Itimerspec { it_interval: interval, it_value: value };
        if let Err(error) = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &new) {
            tracing::error!(%error, "a rate limit cannot be waited for");
        }
    }
}

impl Counters {
    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            received_frames: self.received_frames.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            receive_dropped: self.receive_dropped.load(Ordering::Relaxed),
            sent_frames: self.sent_frames.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            send_dropped: self.send_dropped.load(Ordering::Relaxed),
        }
    }

    fn received(&self, bytes: usize) {
        self.received_frames.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        self.sent_frames.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
