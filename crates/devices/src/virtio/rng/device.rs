//! The entropy device.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use engine::GuestMemory;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;

use crate::virtio::serve::{Outcome, serve, unwatch, watch_doorbells};
use crate::virtio::{
    Activation, DeviceSignal, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtQueue, VirtioDevice,
};
use crate::{EventHandler, EventLoopHandle, Registration, Result, State};

const DEVICE_TYPE: u16 = 4;
const QUEUE_SIZES: [u16; 1] = [64];

/// Bytes given per request at most. A driver asks again for what it still lacks; Linux asks for 64.
const MOST_BYTES: usize = 4096;

/// Gives the guest random bytes of the host.
pub struct Rng {
    name: String,
    events: EventLoopHandle,
    active: Mutex<Option<Active>>,
}

struct Active {
    queues: Vec<Option<Arc<VirtQueue>>>,
    handler: Arc<dyn EventHandler>,
    watches: Vec<Registration>,
}

struct Handler {
    memory: GuestMemory,
    queue: Arc<VirtQueue>,
    signal: Arc<dyn DeviceSignal>,
}

#[derive(Serialize, Deserialize)]
struct Saved {}

impl Rng {
    /// An entropy device called `name` that works on the loop of `events`.
    pub fn new(name: impl Into<String>, events: EventLoopHandle) -> Self {
        Self { name: name.into(), events, active: Mutex::new(None) }
    }

    /// Its name within the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        // A driver that leaves the only queue disabled gets nothing, which is no error.
        let Some(Some(queue)) = activation.queues.first() else { return Ok(()) };
        let handler: Arc<dyn EventHandler> = Arc::new(Handler {
            memory: activation.memory,
            queue: Arc::clone(queue),
            signal: activation.signal,
        });
        let watches = watch_doorbells(&self.events, &activation.queues, &handler)?;
        *self.active() = Some(Active { queues: activation.queues, handler, watches });
        Ok(())
    }

    fn deactivate(&self) {
        let active = self.active().take();
        if let Some(active) = active {
            unwatch(&self.events, active.watches);
        }
    }

    fn pause(&self) -> Result<()> {
        let watches = self.active().as_mut().map(|active| std::mem::take(&mut active.watches));
        unwatch(&self.events, watches.unwrap_or_default());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        if let Some(active) = self.active().as_mut()
            && active.watches.is_empty()
        {
            active.watches = watch_doorbells(&self.events, &active.queues, &active.handler)?;
        }
        Ok(())
    }

    fn save(&self) -> Result<State> {
        State::new(&Saved {})
    }

    fn restore(&self, state: &State) -> Result<()> {
        let Saved {} = state.get()?;
        Ok(())
    }
}

impl EventHandler for Handler {
    fn ready(&self, _token: u64) {
        let _ = self.queue.doorbell().read();
        serve(&self.queue, &self.memory, self.signal.as_ref(), |chain| {
            Outcome::Used(fill(chain, &self.memory))
        });
    }
}

/// Fills the device-writable part of `chain` with random bytes and returns how many there are.
fn fill<'m>(chain: DescriptorChain<&'m GuestMemory>, memory: &'m GuestMemory) -> u32 {
    // Buffers outside of memory are the driver's mistake and get nothing.
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    let mut bytes = [0; MOST_BYTES];
    let wanted = writer.available_bytes().min(MOST_BYTES);
    let mut filled = 0;
    while filled < wanted {
        match getrandom(&mut bytes[filled..wanted], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    match writer.write_all(&bytes[..filled]) {
        Ok(()) => filled as u32,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::Rng;
    use super::*;
    use crate::virtio::hostile::{self, Loop};
    use crate::virtio::testing::TestDriver;

    #[test]
    fn a_request_is_filled_with_random_bytes() {
        let events = Loop::start();
        let rng = Rng::new("rng", events.handle());
        let mut driver = TestDriver::new(1);
        rng.activate(driver.activation(rng.features())).unwrap();
        let chain = driver.push(0, &[], &[32, 32]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (chain.head, 64));
        let first = driver.read(chain.writable[0].0, 32);
        let second = driver.read(chain.writable[1].0, 32);
        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
        assert_eq!(driver.queues[0].interrupt.0.load(Ordering::SeqCst), 1);
        rng.deactivate();
    }

    #[test]
    fn a_large_request_is_answered_in_part() {
        let events = Loop::start();
        let rng = Rng::new("rng", events.handle());
        let mut driver = TestDriver::new(1);
        rng.activate(driver.activation(rng.features())).unwrap();
        let chain = driver.push(0, &[], &[1 << 20]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (chain.head, MOST_BYTES as u32));
        rng.deactivate();
    }

    #[test]
    fn a_request_that_waits_while_paused_is_filled_after_a_restore() {
        let events = Loop::start();
        let rng = Rng::new("rng", events.handle());
        let mut driver = TestDriver::new(1);
        rng.activate(driver.activation(rng.features())).unwrap();
        rng.pause().unwrap();
        let chain = driver.push(0, &[], &[16]);
        driver.kick(0);
        events.handle().barrier();
        assert_eq!(driver.used(0), None);
        let state = rng.save().unwrap();
        rng.deactivate();

        let restored = Rng::new("rng", events.handle());
        restored.restore(&state).unwrap();
        restored.activate(driver.activation(restored.features())).unwrap();
        restored.resume().unwrap();
        assert_eq!(driver.wait_used(0), (chain.head, 16));
        restored.deactivate();
    }

    #[test]
    fn after_a_reset_nothing_is_written() {
        let events = Loop::start();
        let rng = Rng::new("rng", events.handle());
        let mut driver = TestDriver::new(1);
        rng.activate(driver.activation(rng.features())).unwrap();
        rng.deactivate();
        driver.push(0, &[], &[16]);
        driver.kick(0);
        events.handle().barrier();
        assert_eq!(driver.used(0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_chain_is_survived(chains in hostile::chains(1)) {
            let events = Loop::start();
            let rng = Rng::new("rng", events.handle());
            hostile::attack(&rng, &events, chains);
        }
    }
}
