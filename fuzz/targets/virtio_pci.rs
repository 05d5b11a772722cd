//! A virtio device's registers and queues: a driver that writes anything anywhere at any time.

#![no_main]

use std::sync::{Arc, Mutex};

use devices::pci::{Root, RootAddresses};
use devices::virtio::{
    Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtioDevice, VirtioPci,
};
use devices::{Device, Result, State};
use engine::GuestMemory;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use omnivisor_fuzz::{Access, Nobody};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

#[derive(Arbitrary, Debug)]
enum Step {
    Window(Access),
    Config(Access),
    Memory(u16, Vec<u8>),
    Reset,
    PauseAndResume,
    Restore,
}

const MEMORY: usize = 64 << 10;
const WINDOW: RootAddresses = RootAddresses { window: 0xc000_0000, window_size: 0x1000_0000 };
/// The first free slot of the bus, as ECAM shows it.
const SLOT: u64 = 1 << 15;
/// Memory space and bus master enabled.
const COMMAND: Access = Access::Write(4, omnivisor_fuzz::Width::Two, 6);

fuzz_target!(|steps: Vec<Step>| {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("there is memory");
    let device = Arc::new(Echo::default());
    let root = Root::new(WINDOW);
    let new =
        || VirtioPci::new("echo", Arc::clone(&device) as _, memory.clone(), &root, &Nobody, None);
    let function = new().expect("it can be made");
    root.plug(Arc::clone(&function) as _).expect("there is a slot");
    let (window, ecam) = (root.window(), root.ecam());
    COMMAND.perform(&*ecam, SLOT);
    root.refresh();
    for step in &steps {
        match step {
            Step::Window(access) => access.perform(&*window, 0),
            Step::Config(access) => access.perform(&*ecam, SLOT),
            Step::Memory(address, bytes) => {
                let room = MEMORY - usize::from(*address);
                let bytes = &bytes[..bytes.len().min(room)];
                memory.write_slice(bytes, GuestAddress((*address).into())).expect("it fits");
            }
            Step::Reset => function.reset().expect("it resets"),
            Step::PauseAndResume => {
                function.pause().expect("it pauses");
                function.resume().expect("it goes on");
            }
            Step::Restore => {
                function.pause().expect("it pauses");
                let state = function.save().expect("it can be saved");
                function.reset().expect("it resets");
                function.restore(&state).expect("it can be restored");
                function.start().expect("it starts");
                function.resume().expect("it goes on");
            }
        }
        device.serve();
    }
});

/// Reads all that is in its queues, and writes zeroes where it may write.
#[derive(Default)]
struct Echo(Mutex<Option<Activation>>);

impl Echo {
    fn serve(&self) {
        let active = self.0.lock().expect("nothing panicked");
        let Some(activation) = &*active else { return };
        for queue in activation.queues.iter().flatten() {
            let mut rings = queue.lock();
            let mut used = Vec::new();
            if let Ok(chains) = rings.iter(&activation.memory) {
                for chain in chains {
                    let head = chain.head_index();
                    for descriptor in chain {
                        let mut buffer = vec![0; (descriptor.len() as usize).min(4096)];
                        let _ = if descriptor.is_write_only() {
                            activation.memory.write_slice(&buffer, descriptor.addr())
                        } else {
                            activation.memory.read_slice(&mut buffer, descriptor.addr())
                        };
                    }
                    used.push(head);
                }
            }
            for head in used {
                let _ = rings.add_used(&activation.memory, head, 0);
            }
            queue.notify_driver(&mut rings, &activation.memory);
        }
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn features(&self) -> u64 {
        VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&self, activation: Activation) -> Result<()> {
        *self.0.lock().expect("nothing panicked") = Some(activation);
        Ok(())
    }

    fn deactivate(&self) {
        *self.0.lock().expect("nothing panicked") = None;
    }

    fn pause(&self) -> Result<()> {
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        Ok(())
    }

    fn save(&self) -> Result<State> {
        Ok(State::default())
    }

    fn restore(&self, _state: &State) -> Result<()> {
        Ok(())
    }
}
