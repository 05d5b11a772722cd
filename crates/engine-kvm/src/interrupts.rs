//! Interrupts raised by eventfds (irqfd).

use std::sync::{Arc, PoisonError};

use engine::{Error, FastInterrupts, InterruptRoute, MsiMessage, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::vm::{KvmVm, VmShared, check_line};

impl FastInterrupts for KvmVm {
    fn connect_msi(&self, event: &EventFd, message: MsiMessage) -> Result<Box<dyn InterruptRoute>> {
        let shared = &self.shared;
        let mut routing = shared.routing.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = routing.add(&shared.fd, message)?;
        let route = Route::new(shared, event, gsi, true);
        if route.is_err() {
            routing.remove(gsi);
        }
        Ok(Box::new(route?))
    }

    fn connect_line(&self, event: &EventFd, gsi: u32) -> Result<Box<dyn InterruptRoute>> {
        check_line(gsi)?;
        Ok(Box::new(Route::new(&self.shared, event, gsi, false)?))
    }
}

/// An irqfd.
struct Route {
    shared: Arc<VmShared>,
    /// Our own descriptor of the eventfd: KVM wants the same event to disconnect.
    event: EventFd,
    gsi: u32,
    message: bool,
}

impl Route {
    fn new(shared: &Arc<VmShared>, event: &EventFd, gsi: u32, message: bool) -> Result<Self> {
        let event = event.try_clone().map_err(Error::backend("duplicate an eventfd"))?;
        shared
            .fd
            .register_irqfd(&event, gsi)
            .map_err(Error::backend("connect an eventfd to an interrupt"))?;
        Ok(Self { shared: Arc::clone(shared), event, gsi, message })
    }
}

impl InterruptRoute for Route {
    fn update(&self, message: MsiMessage) -> Result<()> {
        if !self.message {
            return Err(Error::Invalid("An interrupt line carries no message".into()));
        }
        let mut routing = self.shared.routing.lock().unwrap_or_else(PoisonError::into_inner);
        routing.update(&self.shared.fd, self.gsi, message)
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // Cannot fail for what was registered; if it did, the GSI must not be given away again.
        let disconnected = self.shared.fd.unregister_irqfd(&self.event, self.gsi).is_ok();
        if disconnected && self.message {
            let mut routing = self.shared.routing.lock().unwrap_or_else(PoisonError::into_inner);
            routing.remove(self.gsi);
        }
    }
}
