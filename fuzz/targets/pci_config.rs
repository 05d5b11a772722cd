//! PCI configuration space, by ports and by ECAM.

#![no_main]

use devices::pci::{BarKind, ClassCode, ConfigSpace, Identity, Root, RootAddresses};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use omnivisor_fuzz::Access;

#[derive(Arbitrary, Debug)]
enum Step {
    Space(Access),
    Ports(Access),
    Ecam(u8, Access),
    Window(Access),
}

const WINDOW: RootAddresses = RootAddresses { window: 0xc000_0000, window_size: 0x1000_0000 };

fuzz_target!(|steps: Vec<Step>| {
    let root = Root::new(WINDOW);
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: ClassCode(1, 0, 0),
        subsystem_vendor: 0,
        subsystem: 0,
    });
    space.add_bar(0, BarKind::Memory64, 0x8000);
    space.add_capability(0x11, &[0; 10]);
    let (ports, ecam, window) = (root.config_ports(), root.ecam(), root.window());
    for step in &steps {
        match step {
            Step::Space(Access::Read(offset, width)) => {
                space.read(*offset, &mut vec![0; width.bytes()])
            }
            Step::Space(Access::Write(offset, width, value)) => {
                space.write(*offset, &value.to_le_bytes()[..width.bytes()]);
                for bar in space.decoded() {
                    assert_eq!(bar.address % bar.size, 0, "{bar:?}");
                }
            }
            Step::Ports(access) => access.perform(&*ports, 0),
            Step::Ecam(slot, access) => access.perform(&*ecam, u64::from(*slot) << 12),
            Step::Window(access) => access.perform(&*window, 0),
        }
    }
});
