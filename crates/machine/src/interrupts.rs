//! Interrupts of the engine as devices want them.

use std::sync::{Arc, Mutex, PoisonError};

use devices::{Interrupt, InterruptLine, MsiController, MsiVector};
use engine::{Doorbell, Doorbells, InterruptRoute, MsiMessage, Vm};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// MSI vectors of a virtual machine.
pub struct MsiVectors(pub Arc<dyn Vm>);

impl MsiController for MsiVectors {
    fn vector(&self) -> devices::Result<Arc<dyn MsiVector>> {
        Ok(Arc::new(Vector { vm: Arc::clone(&self.0), state: Mutex::default() }))
    }
}

/// One vector. A signal is a call to the engine; only who asks for an eventfd gets a route through the
/// interrupt controller's table, since changing that table is slow (KVM waits for an RCU grace period).
struct Vector {
    vm: Arc<dyn Vm>,
    state: Mutex<VectorState>,
}

#[derive(Default)]
struct VectorState {
    message: Option<MsiMessage>,
    event: Option<EventFd>,
    route: Option<Box<dyn InterruptRoute>>,
}

impl Interrupt for Vector {
    fn signal(&self) {
        let message = self.state.lock().unwrap_or_else(PoisonError::into_inner).message;
        if let Some(message) = message
            && let Err(error) = self.vm.signal_msi(message)
        {
            tracing::debug!(?message, %error, "the guest chose a message that cannot be delivered");
        }
    }

    fn event(&self) -> Option<EventFd> {
        self.vm.fast_interrupts()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.event.is_none() {
            state.event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).ok();
            self.connect(&mut state);
        }
        state.event.as_ref()?.try_clone().ok()
    }
}

impl MsiVector for Vector {
    fn configure(&self, message: Option<MsiMessage>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.message == message {
            return;
        }
        state.message = message;
        if state.event.is_some() {
            self.connect(&mut state);
        }
    }
}

impl Vector {
    /// Makes the route say what the registers say.
    fn connect(&self, state: &mut VectorState) {
        let (Some(event), Some(routes)) = (&state.event, self.vm.fast_interrupts()) else { return };
        let result = match (state.message, &state.route) {
            (None, _) => {
                // A masked vector loses its route; what the event collects meanwhile comes with the next.
                state.route = None;
                Ok(())
            }
            (Some(message), Some(route)) => route.update(message),
            (Some(message), None) => {
                routes.connect_msi(event, message).map(|route| state.route = Some(route))
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "an interrupt could not be routed");
        }
    }
}

/// An edge-triggered ISA interrupt.
pub struct EdgeLine {
    vm: Arc<dyn Vm>,
    gsi: u32,
}

impl EdgeLine {
    /// Input `gsi` of the interrupt controllers.
    pub fn new(vm: Arc<dyn Vm>, gsi: u32) -> Arc<Self> {
        Arc::new(Self { vm, gsi })
    }
}

impl Interrupt for EdgeLine {
    fn signal(&self) {
        for level in [true, false] {
            if let Err(error) = self.vm.set_line(self.gsi, level) {
                tracing::warn!(%error, gsi = self.gsi, "an interrupt line could not be driven");
            }
        }
    }
}

/// A level-triggered interrupt line.
pub struct LevelLine {
    vm: Arc<dyn Vm>,
    gsi: u32,
}

impl LevelLine {
    /// Input `gsi` of the interrupt controllers.
    pub fn new(vm: Arc<dyn Vm>, gsi: u32) -> Arc<Self> {
        Arc::new(Self { vm, gsi })
    }
}

impl InterruptLine for LevelLine {
    fn set_level(&self, high: bool) {
        if let Err(error) = self.vm.set_line(self.gsi, high) {
            tracing::warn!(%error, gsi = self.gsi, "an interrupt line could not be driven");
        }
    }
}

/// The doorbells of a virtual machine that has them.
pub struct VmDoorbells(Arc<dyn Vm>);

impl VmDoorbells {
    /// `None` where the engine has no doorbells.
    pub fn of(vm: &Arc<dyn Vm>) -> Option<Arc<dyn Doorbells>> {
        vm.doorbells()?;
        Some(Arc::new(Self(Arc::clone(vm))))
    }

    fn inner(&self) -> engine::Result<&dyn Doorbells> {
        self.0
            .doorbells()
            .ok_or(engine::Error::Unsupported { engine: "this", ability: "doorbells" })
    }
}

impl Doorbells for VmDoorbells {
    fn attach(&self, doorbell: Doorbell, event: &EventFd) -> engine::Result<()> {
        self.inner()?.attach(doorbell, event)
    }

    fn detach(&self, doorbell: Doorbell, event: &EventFd) -> engine::Result<()> {
        self.inner()?.detach(doorbell, event)
    }
}
