//! Real guests, packed as each platform packs them, run to their login prompt on the software processor. No file of the VM may change.

mod harness;
mod importing;
mod platforms;
mod systems;
mod table;
#[path = "../../../guest/tests/windows/maker.rs"]
mod windows;
