//! The board `micro`: which devices there are and where they answer.

use std::io::Write;
use std::sync::Arc;

use devices::i8042::{self, I8042};
use devices::pci::{ECAM_SIZE, Root, RootAddresses};
use devices::power::{self, Actions, Power};
use devices::rtc::{self, Rtc};
use devices::serial::{self, Serial};
use devices::virtio::{VirtioDevice, VirtioPci};
use devices::{Device, EventLoopHandle};
use engine::{GuestMemory, Vm};

use crate::Result;
use crate::bus::AddressSpaces;
use crate::interrupts::{EdgeLine, LevelLine, MsiVectors, VmDoorbells};
use crate::layout::{ECAM, PCI_WINDOW, PCI_WINDOW_SIZE};

/// First port of the power management block.
pub(crate) const POWER_PORTS: u16 = 0x600;
/// Interrupt of power management events.
pub(crate) const SCI: u8 = 9;

/// A board in the making: devices are plugged in, then it is closed.
pub struct Board {
    vm: Arc<dyn Vm>,
    memory: GuestMemory,
    events: EventLoopHandle,
    root: Arc<Root>,
    spaces: AddressSpaces,
    devices: Vec<Arc<dyn Device>>,
    power: Arc<Power>,
}

/// A board that is complete.
pub(crate) struct Closed {
    pub(crate) spaces: AddressSpaces,
    pub(crate) devices: Vec<Arc<dyn Device>>,
    pub(crate) power: Arc<Power>,
}

impl Board {
    /// The board with what every machine has.
    pub(crate) fn new(
        vm: Arc<dyn Vm>,
        memory: GuestMemory,
        events: EventLoopHandle,
        actions: Actions,
    ) -> Self {
        let mut spaces = AddressSpaces::default();
        let root = Root::new(RootAddresses { window: PCI_WINDOW, window_size: PCI_WINDOW_SIZE });
        spaces.claim_memory(PCI_WINDOW, PCI_WINDOW_SIZE, root.window());
        spaces.claim_memory(ECAM, ECAM_SIZE, root.ecam());
        spaces.claim_ports(0xcf8, 8, root.config_ports());
        let reset = Arc::clone(&actions.reset);
        let keyboard = Arc::new(I8042::new("i8042", reset));
        spaces.claim_ports(i8042::BASE, i8042::LENGTH, Arc::clone(&keyboard) as _);
        let clock = Arc::new(Rtc::new("rtc"));
        spaces.claim_ports(rtc::BASE, rtc::LENGTH, Arc::clone(&clock) as _);
        let power =
            Arc::new(Power::new("power", LevelLine::new(Arc::clone(&vm), SCI.into()), actions));
        spaces.claim_ports(POWER_PORTS, power::LENGTH, Arc::clone(&power) as _);
        let devices: Vec<Arc<dyn Device>> =
            vec![Arc::clone(&root) as _, keyboard, clock, Arc::clone(&power) as _];
        Self { vm, memory, events, root, spaces, devices, power }
    }

    /// The loop that serves the devices.
    pub fn events(&self) -> &EventLoopHandle {
        &self.events
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The serial port COM1, which sends to `output`.
    pub fn plug_serial(&mut self, output: Box<dyn Write + Send>) -> Arc<Serial> {
        let interrupt = EdgeLine::new(Arc::clone(&self.vm), serial::COM1_IRQ);
        let serial = Arc::new(Serial::new("serial", interrupt, output));
        self.spaces.claim_ports(serial::COM1, serial::LENGTH, Arc::clone(&serial) as _);
        self.devices.push(Arc::clone(&serial) as _);
        serial
    }

    /// A virtio device in the next PCI slot; its name must be unique.
    pub fn plug_virtio(&mut self, name: &str, device: Arc<dyn VirtioDevice>) -> Result<()> {
        let vectors = MsiVectors(Arc::clone(&self.vm));
        let doorbells = VmDoorbells::of(&self.vm);
        let function =
            VirtioPci::new(name, device, self.memory.clone(), &self.root, &vectors, doorbells)?;
        self.root.plug(Arc::clone(&function) as _)?;
        self.devices.push(function);
        Ok(())
    }

    pub(crate) fn close(self) -> Closed {
        Closed { spaces: self.spaces, devices: self.devices, power: self.power }
    }
}
