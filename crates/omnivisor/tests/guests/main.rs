//! Real guests, packed as each platform packs them, run to their login prompt on the software processor. No file of the VM may change.

mod harness;
mod importing;
#[path = "../../../guest/tests/common/ntfs_3g.rs"]
mod ntfs_3g;
mod packages;
mod platforms;
mod systems;
mod table;
#[path = "../../../guest/tests/windows/maker.rs"]
mod windows;

use harness::{PROMPT, Workshop, sums};

/// Boots a VM to its login prompt and sees that nothing of it was changed; what its console said.
fn boots(workshop: &Workshop, arguments: &[&str]) -> String {
    let before = sums(&workshop.vm());
    let console = workshop.boot(arguments, PROMPT);
    assert_eq!(sums(&workshop.vm()), before, "an original was changed");
    console
}
