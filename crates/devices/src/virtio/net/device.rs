//! The network card.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::GuestMemory;
use serde::{Deserialize, Serialize};
use spec::MacAddress;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::control::{self, Command};
use super::header::{Config, LINK_UP, feature};
use super::pair::{Common, Counters, Pair, Statistics};
use super::passt::{self, Passt};
use super::port::Cable;
use super::vhost::VhostNet;
use super::{Backend, NetConfig, Vhost, tap};
use crate::rate_limiter::RateLimiter;
use crate::virtio::serve::{Outcome, serve};
use crate::virtio::{
    Activation, DeviceSignal, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtQueue, VirtioDevice,
    read_config_bytes,
};
use crate::{Error, EventHandler, EventLoopHandle, Registration, Result, State};

const DEVICE_TYPE: u16 = 1;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Most pairs whose queues, with the control queue, a transport has room for.
const MOST_PAIRS: u16 = 127;
const LEAST_MTU: u16 = 68;

/// A network card.
pub struct Net {
    name: String,
    this: Weak<Self>,
    queue_sizes: Vec<u16>,
    features: u64,
    mtu: Option<u16>,
    common: Arc<Common>,
    pairs: Vec<Arc<Pair>>,
    passt: Option<Arc<Passt>>,
    state: Mutex<NetState>,
    _keep: Option<Box<dyn Send + Sync>>,
}

struct NetState {
    mac: MacAddress,
    /// What a restored device goes on with when it is activated.
    restored: Option<Saved>,
    active: Option<Active>,
}

struct Active {
    memory: Arc<GuestMemory>,
    features: u64,
    /// Pairs in which the driver wants frames.
    queue_pairs: u16,
    /// What the driver takes now, of the guest's offloads it accepted.
    offloads: u64,
    signal: Arc<dyn DeviceSignal>,
    control: Option<Arc<VirtQueue>>,
    watch: Option<Registration>,
}

/// What a snapshot keeps of a card.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Saved {
    mac: MacAddress,
    /// `None` while no driver uses the card.
    #[serde(default)]
    driver: Option<SavedDriver>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDriver {
    queue_pairs: u16,
    offloads: u64,
}

impl Net {
    /// A card called `name`, connected as `config` says, that works on the loop of `events`.
    ///
    /// # Errors
    ///
    /// The configuration cannot be, or the backend is missing, in use, or not permitted.
    pub fn new(
        name: impl Into<String>,
        config: &NetConfig,
        events: EventLoopHandle,
    ) -> Result<Arc<Self>> {
        check(config)?;
        let (cable, passt) = match &config.backend {
            Backend::Tap { name, vhost } => (tap::open(name, config.queue_pairs, *vhost)?, None),
            Backend::User { forward } => {
                let (cable, passt) = passt::start(forward, &events)?;
                (cable, Some(passt))
            }
        };
        Ok(Self::with_cable(name.into(), config, cable, passt, events))
    }

    pub(super) fn with_cable(
        name: String,
        config: &NetConfig,
        cable: Cable,
        passt: Option<Arc<Passt>>,
        events: EventLoopHandle,
    ) -> Arc<Self> {
        let common = Arc::new(Common {
            events,
            limit_rx: RateLimiter::new(&config.rate_rx),
            limit_tx: RateLimiter::new(&config.rate_tx),
            link_up: AtomicBool::new(true),
            counters: Counters::default(),
        });
        let mtu = config.mtu.or(cable.mtu);
        let mut features = cable.features
            | feature::MAC
            | feature::STATUS
            | (feature::MRG_RXBUF | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
        for vhost in cable.ports.iter().filter_map(|(_, vhost)| vhost.as_ref()) {
            features &= vhost.features() | !VhostNet::RING_FEATURES;
        }
        if mtu.is_some() {
            features |= feature::MTU;
        }
        if cable.ports.len() > 1 {
            features |= feature::MQ;
        }
        let mut queue_sizes = vec![config.queue_size; 2 * cable.ports.len()];
        if features & feature::CTRL_VQ != 0 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let pairs = cable
            .ports
            .into_iter()
            .map(|(port, vhost)| Arc::new(Pair::new(Arc::clone(&common), port, vhost)))
            .collect();
        let mac = config.mac.unwrap_or_else(|| MacAddress::of_name(&name));
        let state = NetState { mac, restored: None, active: None };
        Arc::new_cyclic(|this| Self {
            name,
            this: Weak::clone(this),
            queue_sizes,
            features,
            mtu,
            common,
            pairs,
            passt,
            state: Mutex::new(state),
            _keep: cable.keep,
        })
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn mac(&self) -> MacAddress {
        self.lock().mac
    }

    /// Returns when the backend serves the guest: to be called once, before the guest runs. Where it is
    /// not called, a backend that fails late only shows as a link that is down.
    pub fn wait_ready(&self) -> Result<()> {
        match &self.passt {
            Some(passt) => passt.wait_ready(self.mac()),
            None => Ok(()),
        }
    }

    /// What it has carried so far.
    pub fn statistics(&self) -> Statistics {
        self.common.counters.statistics()
    }

    pub(super) fn pairs(&self) -> &[Arc<Pair>] {
        &self.pairs
    }

    fn lock(&self) -> MutexGuard<'_, NetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Index of the control queue, which depends on what the driver accepted (section 5.1.2).
    fn control_index(&self, features: u64) -> Option<usize> {
        let pairs = if features & feature::MQ != 0 { self.pairs.len() } else { 1 };
        (features & feature::CTRL_VQ != 0).then_some(2 * pairs)
    }

    fn activate_pairs(&self, activation: &Activation, active: &Active) -> Result<()> {
        // The card's offloads are those of its first port.
        if let Some(first) = self.pairs.first() {
            first.set_offloads(active.offloads)?;
        }
        let usable = if active.features & feature::MQ != 0 { self.pairs.len() } else { 1 };
        for (index, pair) in self.pairs.iter().enumerate().take(usable) {
            let queue = |index: usize| activation.queues.get(index).cloned().flatten();
            // A pair is used whole or not at all.
            let (Some(rx), Some(tx)) = (queue(2 * index), queue(2 * index + 1)) else { continue };
            let enabled = index < usize::from(active.queue_pairs);
            let signal = Arc::clone(&active.signal);
            pair.activate(&active.memory, active.features, [rx, tx], signal, enabled)?;
        }
        Ok(())
    }

    fn watch_control(&self, active: &mut Active) -> Result<()> {
        let (Some(queue), Some(this)) = (&active.control, self.this.upgrade()) else {
            return Ok(());
        };
        let watch = self.common.events.watch_event(queue.doorbell(), 0, this)?;
        active.watch = Some(watch);
        queue.ring();
        Ok(())
    }

    fn execute(&self, command: Command, active: &mut Active) -> bool {
        let done = match command {
            Command::SetQueuePairs(count) => self.set_queue_pairs(count, active),
            Command::SetOffloads(offloads) => self.set_offloads(offloads, active).map(|()| true),
        };
        done.unwrap_or_else(|error| {
            tracing::warn!(%error, ?command, "a command of the network's driver failed");
            false
        })
    }

    fn set_queue_pairs(&self, count: u16, active: &mut Active) -> Result<bool> {
        let wanted = usize::from(count);
        let possible = (1..=self.pairs.len()).contains(&wanted);
        if !possible || !self.pairs[..wanted].iter().all(|pair| pair.is_active()) {
            return Ok(false);
        }
        for (index, pair) in self.pairs.iter().enumerate() {
            pair.set_enabled(index < wanted)?;
        }
        active.queue_pairs = count;
        Ok(true)
    }

    fn set_offloads(&self, offloads: u64, active: &mut Active) -> Result<()> {
        if let Some(first) = self.pairs.first() {
            first.set_offloads(offloads)?;
        }
        active.offloads = offloads;
        Ok(())
    }
}

#[cfg(test)]
impl Net {
    /// The number of passt's process.
    pub(super) fn passt_process(&self) -> Option<u32> {
        self.passt.as_ref().map(|passt| passt.process())
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let up = self.common.link_up.load(Ordering::Acquire);
        let config = Config {
            mac: self.mac().0,
            status: U16::new(if up { LINK_UP } else { 0 }),
            max_virtqueue_pairs: U16::new(self.pairs.len() as u16),
            mtu: U16::new(self.mtu.unwrap_or(0)),
        };
        read_config_bytes(config.as_bytes(), offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        let mut state = self.lock();
        let restored = state.restored.take().and_then(|saved| saved.driver);
        let allowed = activation.features & feature::GUEST_OFFLOADS;
        let driver = restored.unwrap_or(SavedDriver { queue_pairs: 1, offloads: allowed });
        let control = self.control_index(activation.features);
        let mut active = Active {
            memory: Arc::new(activation.memory.clone()),
            features: activation.features,
            queue_pairs: driver.queue_pairs.clamp(1, self.pairs.len() as u16),
            offloads: driver.offloads & allowed,
            signal: Arc::clone(&activation.signal),
            control: control.and_then(|index| activation.queues.get(index).cloned().flatten()),
            watch: None,
        };
        self.activate_pairs(&activation, &active)?;
        self.watch_control(&mut active)?;
        state.active = Some(active);
        Ok(())
    }

    fn deactivate(&self) {
        let mut state = self.lock();
        state.active = None;
        state.restored = None;
        self.pairs.iter().for_each(|pair| pair.deactivate());
    }

    fn pause(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(active) = &mut state.active {
            active.watch = None;
        }
        self.pairs.iter().for_each(|pair| pair.pause());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(active) = &mut state.active {
            self.watch_control(active)?;
        }
        self.pairs.iter().try_for_each(|pair| pair.resume())
    }

    fn save(&self) -> Result<State> {
        let state = self.lock();
        let driver = match &state.active {
            Some(active) => {
                Some(SavedDriver { queue_pairs: active.queue_pairs, offloads: active.offloads })
            }
            // Restored, and saved again before its driver went on.
            None => state.restored.and_then(|saved| saved.driver),
        };
        State::new(&Saved { mac: state.mac, driver })
    }

    fn restore(&self, state: &State) -> Result<()> {
        let saved: Saved = state.get()?;
        if !saved.mac.is_unicast() {
            return Err(Error::InvalidState("its address is not that of one network card"));
        }
        if let Some(driver) = saved.driver {
            if !(1..=self.pairs.len()).contains(&usize::from(driver.queue_pairs)) {
                return Err(Error::InvalidState("it has more queue pairs than the network card"));
            }
            if driver.offloads & !(self.features & feature::GUEST_OFFLOADS) != 0 {
                return Err(Error::InvalidState("it has offloads that the network lacks"));
            }
        }
        let mut state = self.lock();
        // The guest knows its address.
        state.mac = saved.mac;
        state.restored = Some(saved);
        Ok(())
    }
}

impl EventHandler for Net {
    /// The control queue's doorbell rang.
    fn ready(&self, _token: u64) {
        let mut state = self.lock();
        let Some(active) = state.active.as_mut().filter(|active| active.watch.is_some()) else {
            return;
        };
        let Some(queue) = active.control.clone() else { return };
        let _ = queue.doorbell().read();
        let memory = Arc::clone(&active.memory);
        let signal = Arc::clone(&active.signal);
        serve(&queue, &memory, &*signal, |chain| {
            let mut bytes = Vec::with_capacity(control::MOST_BYTES);
            let mut acknowledgement = None;
            for piece in chain {
                if piece.is_write_only() {
                    acknowledgement = acknowledgement.or((piece.len() > 0).then_some(piece.addr()));
                } else {
                    let room = control::MOST_BYTES - bytes.len();
                    read_piece(&memory, piece.addr(), room.min(piece.len() as usize), &mut bytes);
                }
            }
            let Some(acknowledgement) = acknowledgement else { return Outcome::Used(0) };
            let done = Command::parse(&bytes, active.features)
                .is_some_and(|command| self.execute(command, active));
            let answer = if done { control::OK } else { control::ERROR };
            Outcome::Used(memory.write_obj(answer, acknowledgement).is_ok().into())
        });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Watches hold the pairs, and so does a call that is under way: the backend is free for others only then.
        self.pairs.iter().for_each(|pair| pair.deactivate());
        self.common.events.barrier();
    }
}

fn read_piece(memory: &GuestMemory, from: GuestAddress, count: usize, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    bytes.resize(before + count, 0);
    if memory.read_slice(&mut bytes[before..], from).is_err() {
        bytes.truncate(before);
    }
}

fn check(config: &NetConfig) -> Result<()> {
    let refuse = |message: String| Err(Error::Configuration(message));
    if !(1..=MOST_PAIRS).contains(&config.queue_pairs) {
        return refuse(format!("A network card has 1 to {MOST_PAIRS} queue pairs"));
    }
    if matches!(config.backend, Backend::User { .. }) && config.queue_pairs != 1 {
        return refuse("User-mode networking has one queue pair".into());
    }
    if !config.queue_size.is_power_of_two() || config.queue_size > 32768 {
        return refuse("The queue size of a network card is a power of two, at most 32768".into());
    }
    if config.mtu.is_some_and(|mtu| mtu < LEAST_MTU) {
        return refuse(format!("The MTU of a network card is at least {LEAST_MTU}"));
    }
    if let Some(mac) = config.mac.filter(|mac| !mac.is_unicast()) {
        return refuse(format!("{mac} is not the address of one network card"));
    }
    let limited = [config.rate_rx, config.rate_tx]
        .iter()
        .any(|limit| limit.bytes_per_second.is_some() || limit.operations_per_second.is_some());
    if limited && matches!(config.backend, Backend::Tap { vhost: Vhost::Required, .. }) {
        return refuse(
            "Rate limits do not work with vhost-net: the kernel carries the frames".into(),
        );
    }
    Ok(())
}
