//! The PCI transport (VIRTIO 1.2 section 4.1): modern interface, MSI-X only, everything in BAR 0.

mod common;
mod signal;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Doorbell, Doorbells, GuestMemory};
use serde::{Deserialize, Serialize};

use self::common::{Common, SavedCommon, Written};
use self::signal::{Signals, VectorInterrupt};
use super::{Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtQueue, VirtioDevice};
use crate::pci::{
    Bar, BarKind, ClassCode, ConfigSpace, Function, Identity, Msix, Root, SavedConfig, SavedMsix,
};
use crate::{Device, Error, Interrupt, MsiController, Result, State};

/// Vendor of all virtio devices (section 4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device ID of device type 0.
const DEVICE_BASE: u16 = 0x1040;

/// The one BAR: where each structure of section 4.1.4 lies in it. A page each, so that a hypervisor
/// could give some of them to hardware.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const REGION: u64 = 0x1000;
/// Bytes between the doorbells of neighbouring queues.
const NOTIFY_MULTIPLIER: u32 = 4;
/// Most queues: their MSI-X entries and doorbells fit into a region each.
const MAX_QUEUES: usize = 255;

/// Capability IDs and types (PCI, and section 4.1.4).
const CAP_MSIX: u8 = 0x11;
const CAP_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Bits of the device status field (section 2.1).
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
}

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    name: String,
    device: Arc<dyn VirtioDevice>,
    memory: GuestMemory,
    doorbells: Option<Arc<dyn Doorbells>>,
    msix: Arc<Msix>,
    signals: Arc<Signals>,
    home: u64,
    state: Mutex<Transport>,
}

struct Transport {
    config: ConfigSpace,
    /// Offsets of the capabilities that act when they are written.
    msix_capability: u16,
    pci_access: u16,
    common: Common,
    /// The queues that the device serves, while it is active.
    active: Option<Vec<Option<Arc<VirtQueue>>>>,
    attached: Vec<(Doorbell, Arc<VirtQueue>)>,
    /// A restored device waits for its start.
    activate_on_start: bool,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    config: SavedConfig,
    msix: SavedMsix,
    common: SavedCommon,
    isr: u8,
    device: serde_json::Value,
}

impl VirtioPci {
    /// Puts `device` behind a PCI function with BAR 0 in the window of `root`. Plugging it into `root` is
    /// left to the caller.
    pub fn new(
        name: &str,
        device: Arc<dyn VirtioDevice>,
        memory: GuestMemory,
        root: &Root,
        interrupts: &dyn MsiController,
        doorbells: Option<Arc<dyn Doorbells>>,
    ) -> Result<Arc<Self>> {
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(Error::Configuration(format!("{name} has more than {MAX_QUEUES} queues")));
        }
        let vectors = sizes.len() as u16 + 1;
        let msix = Arc::new(Msix::new(interrupts, vectors)?);
        let (mut config, msix_capability, pci_access) = config_space(device.device_type(), &msix);
        let home = root.allocate(BAR_SIZE)?;
        config.assign_bar(BAR, home);
        let common = Common::new(sizes, device.features() | VIRTIO_F_VERSION_1);
        Ok(Arc::new(Self {
            name: name.to_owned(),
            signals: Arc::new(Signals::new(Arc::clone(&msix))),
            device,
            memory,
            doorbells,
            msix,
            home,
            state: Mutex::new(Transport {
                config,
                msix_capability,
                pci_access,
                common,
                active: None,
                attached: Vec::new(),
                activate_on_start: false,
            }),
        }))
    }

    /// Obeys a write to the device status field.
    fn set_status(&self, state: &mut Transport, value: u8) {
        if value == 0 {
            self.deactivate(state);
            state.common.reset();
            self.signals.reset();
            return;
        }
        let before = self.signals.status.load(Ordering::Acquire);
        let mut value = value | before;
        if value & status::FEATURES_OK != 0 && !state.common.features_acceptable() {
            value &= !status::FEATURES_OK;
        }
        // Until then the features are whatever the driver wrote.
        if value & status::FEATURES_OK == 0 {
            value &= !status::DRIVER_OK;
        }
        self.signals.status.store(value, Ordering::Release);
        if value & status::DRIVER_OK != 0 && before & status::DRIVER_OK == 0 {
            self.activate(state);
        }
    }

    /// Builds the queues as the driver set them up and hands them to the device.
    fn activate(&self, state: &mut Transport) {
        let result = self.build_queues(state).and_then(|queues| {
            state.active = Some(queues.clone());
            self.attach_doorbells(state);
            self.device.activate(Activation {
                memory: self.memory.clone(),
                features: state.common.driver_features,
                queues,
                signal: Arc::clone(&self.signals) as Arc<dyn super::DeviceSignal>,
            })
        });
        if let Err(error) = result {
            tracing::warn!(device = %self.name, %error, "the device could not be activated");
            self.deactivate(state);
            super::DeviceSignal::needs_reset(&*self.signals);
        }
    }

    fn build_queues(&self, state: &Transport) -> Result<Vec<Option<Arc<VirtQueue>>>> {
        let event_index = state.common.driver_features & VIRTIO_F_EVENT_IDX != 0;
        let build = |(index, setup): (usize, &common::QueueSetup)| {
            if !setup.saved.ready {
                return Ok(None);
            }
            let mut saved = setup.saved;
            saved.event_index = event_index;
            let queue = saved.queue()?;
            if !virtio_queue::QueueT::is_valid(&queue, &self.memory) {
                return Err(Error::InvalidState("a virtqueue lies outside of guest memory"));
            }
            let interrupt = VectorInterrupt::new(Arc::clone(&self.signals), setup.vector);
            let queue =
                VirtQueue::new(index as u16, queue, Arc::new(interrupt) as Arc<dyn Interrupt>)?;
            Ok(Some(Arc::new(queue)))
        };
        state.common.queues.iter().enumerate().map(build).collect()
    }

    /// Ends the device's work and keeps the queues' positions in the registers.
    fn deactivate(&self, state: &mut Transport) {
        self.detach_doorbells(state);
        self.device.deactivate();
        state.active = None;
        state.activate_on_start = false;
    }

    fn attach_doorbells(&self, state: &mut Transport) {
        let (Some(doorbells), Some(queues)) = (&self.doorbells, &state.active) else { return };
        let Some(bar) = state.config.decoded().first().copied() else { return };
        for queue in queues.iter().flatten() {
            let offset = NOTIFY + u64::from(NOTIFY_MULTIPLIER) * u64::from(queue.index());
            let Some(address) = bar.address.checked_add(offset) else { continue };
            let doorbell = Doorbell { address, width: Some(2), value: None };
            // Without the short cut the write comes to `bar_write`, which rings as well.
            if doorbells.attach(doorbell, queue.doorbell()).is_ok() {
                state.attached.push((doorbell, Arc::clone(queue)));
            }
        }
    }

    fn detach_doorbells(&self, state: &mut Transport) {
        let Some(doorbells) = &self.doorbells else { return };
        for (doorbell, queue) in state.attached.drain(..) {
            if let Err(error) = doorbells.detach(doorbell, queue.doorbell()) {
                tracing::warn!(device = %self.name, %error, "a doorbell could not be detached");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Transport> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_region(&self, state: &Transport, offset: u64, data: &mut [u8]) {
        let within = offset % REGION;
        match offset - within {
            COMMON => state.common.read(within, data, &self.signals),
            ISR => {
                data.fill(0);
                if within == 0 && !data.is_empty() {
                    data[0] = self.signals.isr.swap(0, Ordering::AcqRel);
                }
            }
            CONFIG => self.device.read_config(within, data),
            TABLE => self.msix.read_table(within, data),
            PENDING => self.msix.read_pending(within, data),
            _ => data.fill(0),
        }
    }

    fn write_region(&self, state: &mut Transport, offset: u64, data: &[u8]) {
        let within = offset % REGION;
        match offset - within {
            COMMON => {
                match state.common.write(within, data, self.signals.status.load(Ordering::Acquire))
                {
                    Written::Nothing => {}
                    Written::Status(value) => self.set_status(state, value),
                    Written::ConfigVector(vector) => self.signals.set_config_vector(vector),
                }
            }
            CONFIG => self.device.write_config(within, data),
            NOTIFY => {
                let index = (within / u64::from(NOTIFY_MULTIPLIER)) as usize;
                let queue = state.active.as_ref().and_then(|queues| queues.get(index)?.as_ref());
                if let Some(queue) = queue {
                    queue.ring();
                }
            }
            TABLE => self.msix.write_table(within, data),
            _ => {}
        }
    }

    /// The access that the PCI configuration access capability asks for (section 4.1.4.9): offset in the BAR and width.
    fn pci_access(&self, state: &Transport) -> Option<(u64, usize)> {
        let mut body = [0; 16];
        state.config.read(state.pci_access, &mut body);
        let offset = u32::from_le_bytes([body[8], body[9], body[10], body[11]]);
        let length = u32::from_le_bytes([body[12], body[13], body[14], body[15]]);
        let valid = body[4] == BAR
            && matches!(length, 1 | 2 | 4)
            && u64::from(offset) + u64::from(length) <= BAR_SIZE;
        valid.then_some((u64::from(offset), length as usize))
    }
}

impl Function for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let mut state = self.lock();
        if offset == state.pci_access + 16
            && let Some((at, length)) = self.pci_access(&state)
        {
            let mut window = [0; 4];
            self.read_region(&state, at, &mut window[..length]);
            let pci_access = state.pci_access;
            state.config.write(pci_access + 16, &window);
        }
        state.config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut state = self.lock();
        let decoded = state.config.decoded();
        state.config.write(offset, data);
        if state.config.decoded() != decoded {
            self.detach_doorbells(&mut state);
            self.attach_doorbells(&mut state);
        }
        let control = state.msix_capability + 2;
        if offset <= control + 1 && usize::from(offset) + data.len() > usize::from(control) {
            let mut value = [0; 2];
            state.config.read(control, &mut value);
            self.msix.set_control(u16::from_le_bytes(value));
        }
        if offset == state.pci_access + 16
            && let Some((at, length)) = self.pci_access(&state)
            && data.len() >= length
        {
            self.write_region(&mut state, at, &data[..length]);
        }
    }

    fn bars(&self) -> Vec<Bar> {
        self.lock().config.decoded()
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        self.read_region(&self.lock(), offset, data);
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        self.write_region(&mut self.lock(), offset, data);
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self) -> Result<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.activate_on_start) {
            self.activate(&mut state);
            // What the driver offered before the snapshot has no doorbell rung for it any more.
            if state.active.is_some() {
                self.device.resume()?;
            }
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        let state = self.lock();
        if state.active.is_some() { self.device.pause() } else { Ok(()) }
    }

    fn resume(&self) -> Result<()> {
        let state = self.lock();
        if state.active.is_some() { self.device.resume() } else { Ok(()) }
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.lock();
        self.set_status(&mut state, 0);
        self.msix.reset();
        let (mut config, ..) = config_space(self.device.device_type(), &self.msix);
        config.assign_bar(BAR, self.home);
        state.config = config;
        Ok(())
    }

    fn save(&self) -> Result<State> {
        let state = self.lock();
        let mut common = state.common.clone();
        for (setup, queue) in common.queues.iter_mut().zip(state.active.iter().flatten()) {
            if let Some(queue) = queue {
                setup.saved = queue.save();
            }
        }
        State::new(&Saved {
            config: state.config.save(),
            msix: self.msix.save(),
            common: common.save(&self.signals),
            isr: self.signals.isr.load(Ordering::Acquire),
            device: self.device.save()?.0,
        })
    }

    fn restore(&self, saved: &State) -> Result<()> {
        let saved: Saved = saved.get()?;
        let mut state = self.lock();
        state.config.restore(&saved.config)?;
        self.msix.restore(&saved.msix)?;
        state.common.restore(&saved.common, &self.signals)?;
        self.signals.isr.store(saved.isr, Ordering::Release);
        self.device.restore(&State(saved.device))?;
        let status = self.signals.status.load(Ordering::Acquire);
        state.activate_on_start =
            status & status::DRIVER_OK != 0 && status & status::NEEDS_RESET == 0;
        Ok(())
    }

    fn stop(&self) {
        self.deactivate(&mut self.lock());
    }
}

/// Configuration space of a device of this type, and the offsets of its MSI-X and PCI access
/// capabilities.
fn config_space(device_type: u16, msix: &Msix) -> (ConfigSpace, u16, u16) {
    let class = match device_type {
        1 => ClassCode(0x02, 0x00, 0x00),
        2 => ClassCode(0x01, 0x80, 0x00),
        3 => ClassCode(0x07, 0x80, 0x00),
        _ => ClassCode(0xff, 0x00, 0x00),
    };
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + device_type,
    };
    let mut config = ConfigSpace::new(identity);
    config.add_bar(BAR, BarKind::Memory32, BAR_SIZE);
    // The capabilities together take 100 of 192 bytes, so there is room for each.
    let mut add = |id, body: &[u8]| config.add_capability(id, body).unwrap_or_default();
    let msix_capability = add(CAP_MSIX, &msix.capability(BAR, TABLE as u32, PENDING as u32));
    add(CAP_VENDOR, &vendor_body(CFG_COMMON, COMMON, &[]));
    add(CAP_VENDOR, &vendor_body(CFG_ISR, ISR, &[]));
    add(CAP_VENDOR, &vendor_body(CFG_DEVICE, CONFIG, &[]));
    add(CAP_VENDOR, &vendor_body(CFG_NOTIFY, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes()));
    let mut access = vendor_body(CFG_PCI, 0, &[0; 4]);
    access[10..14].fill(0);
    let pci_access = add(CAP_VENDOR, &access);
    // Enable and function mask, in the upper half of the first doubleword.
    config.allow_writes(msix_capability, 0xc000_0000);
    // BAR, offset, length and data of the access window.
    config.allow_writes(pci_access + 4, 0xff);
    config.allow_writes(pci_access + 8, u32::MAX);
    config.allow_writes(pci_access + 12, u32::MAX);
    config.allow_writes(pci_access + 16, u32::MAX);
    (config, msix_capability, pci_access)
}

/// `struct virtio_pci_cap` (section 4.1.4) after its ID and next pointer.
fn vendor_body(kind: u8, offset: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&(REGION as u32).to_le_bytes());
    body.extend_from_slice(more);
    body
}
