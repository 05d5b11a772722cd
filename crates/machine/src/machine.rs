//! A running virtual machine: processors on their threads, devices on the event loop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use devices::power::{Actions, Power};
use devices::{Device, EventLoop, EventLoopHandle};
use engine::cpuid::CpuidTable;
use engine::{
    Capabilities, Engine, Exit, GuestMemory, Kicker, Statistics, Vcpu, VcpuConfig, Vm, VmConfig,
};
use spec::{Smbios, Topology};

use crate::acpi::{self, AcpiConfig};
use crate::board::{Board, POWER_PORTS, SCI};
use crate::boot::{self, BootPlan};
use crate::bus::AddressSpaces;
use crate::memory::{self, MemoryConfig};
use crate::saved::Saved;
use crate::{Error, Result, chain, cpu, smbios, topology};

/// Most processors: 8-bit APIC IDs with room to spare.
pub const MAX_CPUS: u32 = 64;

/// What a machine is made of, but for its devices.
#[derive(Clone, Debug)]
pub struct Config {
    /// Processors.
    pub cpus: Topology,
    /// Memory.
    pub memory: MemoryConfig,
    /// What it tells the guest about itself.
    pub smbios: Smbios,
    /// What it boots.
    pub boot: BootPlan,
    /// What its processors may be, where not everything that the engine has is to be offered: a guest that will move
    /// to another engine gets what both have ([`Capabilities::common`]).
    pub offered: Option<Capabilities>,
}

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A processor shut down after a triple fault.
    TripleFault,
    /// The engine could not go on; the text says why.
    Failed(String),
    /// [`Control::stop`] was called.
    Stopped,
    /// [`Control::suspend`] was called, and the guest can go on from [`Finished::saved`].
    Suspended,
}

/// A machine that is ready to run.
pub struct Machine {
    events: EventLoop,
    control: Control,
    vcpus: Vec<Box<dyn Vcpu>>,
    /// What each processor answers to CPUID.
    cpuid: Vec<CpuidTable>,
    spaces: Arc<AddressSpaces>,
    devices: Vec<Arc<dyn Device>>,
    memory: GuestMemory,
    /// Last, so that it outlives what uses it.
    vm: Arc<dyn Vm>,
}

/// Steers a machine from any thread.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    events: EventLoopHandle,
    power: Arc<Power>,
}

struct Shared {
    /// What the processors should do, read by them after each kick.
    wanted: AtomicU8,
    state: Mutex<SharedState>,
    changed: Condvar,
    kickers: Vec<Kicker>,
}

#[derive(Default)]
struct SharedState {
    outcome: Option<Outcome>,
    parked: usize,
    running: usize,
}

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

impl Machine {
    /// Builds a machine on `engine`: `plug` adds the devices that the board does not have anyway.
    pub fn new(
        engine: &dyn Engine,
        config: &Config,
        plug: impl FnOnce(&mut Board) -> Result<()>,
    ) -> Result<Self> {
        let capabilities = config.offered.as_ref().unwrap_or_else(|| engine.capabilities());
        check_processors(config.cpus.count(), capabilities)?;
        let memory = memory::allocate(&config.memory)?;
        let acpi = AcpiConfig { cpus: config.cpus, power_ports: POWER_PORTS, sci: SCI };
        let rsdp = acpi::write(&memory, &acpi)?;
        smbios::write(&memory, &config.smbios)?;
        let entry = boot::load(&memory, &config.boot, rsdp)?;
        let indices = 0..config.cpus.count();
        let cpuid = indices.map(|index| cpu::cpuid(capabilities, config.cpus, index)).collect();
        let mut machine = Self::build(engine, memory, cpuid, plug)?;
        let mut state = machine.vcpus[0].state()?;
        cpu::enter(&mut state, &machine.memory, entry)?;
        machine.vcpus[0].set_state(&state)?;
        Ok(machine)
    }

    /// Builds a machine on `engine` that goes on where a suspended one, of this or another engine, stopped. `plug` must
    /// add the same devices.
    ///
    /// # Errors
    /// The engine has not all that the guest was offered, or the saved state does not fit the board.
    pub fn restore(
        engine: &dyn Engine,
        saved: Saved,
        plug: impl FnOnce(&mut Board) -> Result<()>,
    ) -> Result<Self> {
        let capabilities = engine.capabilities();
        let Saved { cpuid, mut vcpus, vm, mut devices, memory } = saved;
        let count = u32::try_from(vcpus.len()).unwrap_or(u32::MAX);
        check_processors(count, capabilities)?;
        if cpuid.len() != vcpus.len() {
            return Err(Error::SavedState("each processor must have its CPUID table"));
        }
        if !cpuid.iter().all(|table| capabilities.has_features_of(table)) {
            return Err(Error::SavedState("this engine's processor has not all of its features"));
        }
        let mut machine = Self::build(engine, memory, cpuid, plug)?;
        for (vcpu, state) in machine.vcpus.iter_mut().zip(&mut vcpus) {
            // What the guest was not offered means nothing to it.
            state.msrs.retain(|(index, _)| capabilities.msrs.contains(index));
            vcpu.set_state(state)?;
        }
        machine.vm.set_state(&vm)?;
        for device in &machine.devices {
            let state = devices.remove(device.name());
            device.restore(&state.ok_or(Error::SavedState("a device was not there"))?)?;
        }
        if !devices.is_empty() {
            return Err(Error::SavedState("a device is missing"));
        }
        Ok(machine)
    }

    /// A machine whose processors and devices are as after a reset.
    fn build(
        engine: &dyn Engine,
        memory: GuestMemory,
        cpuid: Vec<CpuidTable>,
        plug: impl FnOnce(&mut Board) -> Result<()>,
    ) -> Result<Self> {
        devices::threads::prepare().map_err(Error::Thread)?;
        let vm = engine.create_vm(&VmConfig { vcpus: cpuid.len() as u32 })?;
        memory::map(&memory, &*vm)?;
        let vcpus = (0..)
            .zip(&cpuid)
            .map(|(index, cpuid)| {
                let apic_id = topology::apic_id_in(cpuid).unwrap_or(index);
                vm.create_vcpu(&VcpuConfig { index, apic_id, cpuid: cpuid.clone() })
            })
            .collect::<engine::Result<Vec<_>>>()?;

        let events = EventLoop::new()?;
        let shared = Arc::new(Shared {
            wanted: AtomicU8::new(RUN),
            state: Mutex::default(),
            changed: Condvar::new(),
            kickers: vcpus.iter().map(|vcpu| vcpu.kicker()).collect(),
        });
        let end_with = |outcome: Outcome| -> Arc<dyn Fn() + Send + Sync> {
            let (shared, events) = (Arc::clone(&shared), events.handle());
            Arc::new(move || shared.end(outcome.clone(), &events))
        };
        let actions =
            Actions { power_off: end_with(Outcome::PowerOff), reset: end_with(Outcome::Reset) };
        let mut board = Board::new(Arc::clone(&vm), memory.clone(), events.handle(), actions);
        plug(&mut board)?;
        let board = board.close();
        let control = Control { shared, events: events.handle(), power: board.power };
        Ok(Self {
            events,
            control,
            vcpus,
            cpuid,
            spaces: Arc::new(board.spaces),
            devices: board.devices,
            memory,
            vm,
        })
    }

    /// To steer the machine while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Runs the guest until it ends; the calling thread serves the devices meanwhile.
    pub fn run(mut self) -> Result<Finished> {
        for device in &self.devices {
            device.start()?;
        }
        let threads = self.start_vcpus();
        let served = threads.and_then(|threads| {
            let served = self.events.run();
            self.control.shared.want(STOP);
            let ended: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
            served?;
            Ok(ended)
        });
        let outcome = self.control.shared.lock().outcome.clone().unwrap_or(Outcome::Stopped);
        let finished = served.and_then(|ended| {
            let statistics = ended
                .iter()
                .map(|ended| ended.as_ref().map(|vcpu| vcpu.statistics()).unwrap_or_default())
                .collect();
            let saved = match outcome {
                Outcome::Suspended => Some(self.save(ended)?),
                _ => None,
            };
            Ok(Finished { outcome, statistics, saved })
        });
        // The devices stop whatever happened, for they may hold what the guest has flushed.
        for device in self.devices.iter().rev() {
            device.stop();
        }
        finished
    }

    /// What the guest is, now that its processors have stopped.
    fn save(&self, ended: Vec<std::thread::Result<Box<dyn Vcpu>>>) -> Result<Saved> {
        // First, since what they finish now may interrupt the processors.
        for device in &self.devices {
            device.pause()?;
        }
        let mut devices = BTreeMap::new();
        for device in &self.devices {
            devices.insert(device.name().to_owned(), device.save()?);
        }
        let crashed = || Error::SavedState("a processor's thread crashed");
        let vcpus = ended
            .into_iter()
            .map(|ended| Ok(ended.map_err(|_| crashed())?.state()?))
            .collect::<Result<_>>()?;
        // After the processors' counters: a clock that is late would go backwards.
        let vm = self.vm.state()?;
        Ok(Saved { cpuid: self.cpuid.clone(), vcpus, vm, devices, memory: self.memory.clone() })
    }

    /// Starts the processors' threads; if one cannot be started, those that were end again.
    fn start_vcpus(&mut self) -> Result<Vec<JoinHandle<Box<dyn Vcpu>>>> {
        let mut threads = Vec::new();
        let vcpus = std::mem::take(&mut self.vcpus);
        self.control.shared.lock().running = vcpus.len();
        for (vcpu, index) in vcpus.into_iter().zip(0..) {
            let (control, spaces) = (self.control.clone(), Arc::clone(&self.spaces));
            let started = Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(256 << 10)
                .spawn(move || run_vcpu(vcpu, &spaces, &control));
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.control.shared.want(STOP);
                    for thread in threads {
                        let _ = thread.join();
                    }
                    return Err(Error::Thread(error));
                }
            }
        }
        Ok(threads)
    }
}

/// How a machine ended.
#[derive(Debug)]
pub struct Finished {
    /// Why.
    pub outcome: Outcome,
    /// Counters of each processor.
    pub statistics: Vec<Statistics>,
    /// From where a suspended guest goes on.
    pub saved: Option<Saved>,
}

impl Control {
    /// Ends the machine without asking the guest.
    pub fn stop(&self) {
        self.shared.end(Outcome::Stopped, &self.events);
    }

    /// Ends the machine as if the guest had asked for a reset.
    pub fn reset(&self) {
        self.shared.end(Outcome::Reset, &self.events);
    }

    /// Ends the machine so that its guest can go on later, elsewhere, and notices nothing but the time that has passed.
    pub fn suspend(&self) {
        self.shared.end(Outcome::Suspended, &self.events);
    }

    /// Presses the power button; whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        let listens = self.power.listens();
        self.power.press_power_button();
        listens
    }

    /// Returns when no processor executes guest instructions any more.
    pub fn pause_processors(&self) {
        self.shared.want(PAUSE);
        let mut state = self.shared.lock();
        while state.parked < state.running {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the processors go on.
    pub fn resume_processors(&self) {
        self.shared.want(RUN);
    }
}

impl Shared {
    /// Ends the machine with the first outcome that comes.
    fn end(&self, outcome: Outcome, events: &EventLoopHandle) {
        self.lock().outcome.get_or_insert(outcome);
        events.stop();
    }

    fn want(&self, wanted: u8) {
        // Nothing comes after a stop.
        let _ = self.wanted.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
            (before != STOP).then_some(wanted)
        });
        drop(self.lock());
        self.changed.notify_all();
        for kicker in &self.kickers {
            kicker.kick();
        }
    }

    /// Waits while a pause is wanted; whether to go on.
    fn may_run(&self) -> bool {
        if self.wanted.load(Ordering::Acquire) == RUN {
            return true;
        }
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::Acquire) == PAUSE {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        self.wanted.load(Ordering::Acquire) == RUN
    }

    fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_processors(asked: u32, capabilities: &Capabilities) -> Result<()> {
    let maximum = capabilities.max_vcpus.min(MAX_CPUS);
    if !(1..=maximum).contains(&asked) {
        return Err(Error::Processors { asked, maximum });
    }
    Ok(())
}

/// A processor's thread.
fn run_vcpu(mut vcpu: Box<dyn Vcpu>, spaces: &AddressSpaces, control: &Control) -> Box<dyn Vcpu> {
    let mut confined = vcpu.confine();
    let outcome = loop {
        if let Err(error) = std::mem::replace(&mut confined, Ok(())) {
            break Some(Outcome::Failed(chain(&error)));
        }
        if !control.shared.may_run() {
            break None;
        }
        match vcpu.run(spaces) {
            Ok(Exit::Kicked) => {}
            Ok(Exit::Shutdown) => break Some(Outcome::TripleFault),
            Ok(Exit::Failed(reason)) => break Some(Outcome::Failed(reason)),
            Err(error) => break Some(Outcome::Failed(chain(&error))),
        }
    };
    if let Some(outcome) = outcome {
        control.shared.end(outcome, &control.events);
    }
    let mut state = control.shared.lock();
    state.running -= 1;
    drop(state);
    control.shared.changed.notify_all();
    vcpu
}
