//! KVM behind the engine traits.
//!
//! The interrupt controllers (8259A, I/O APIC, local APICs) and the 8254 timer are all in the kernel
//! (`KVM_CREATE_IRQCHIP`, `KVM_CREATE_PIT2`). A split irqchip would move the first two into this
//! process, and with them an exit for each end-of-interrupt of a level-triggered line and for each
//! access to the timer; its gain, a smaller kernel surface, is not worth that here. The software
//! engine implements the same controllers, so both speak the same [`engine::state::VmState`].
//!
//! A kick is a signal ([`kick_signal`]) plus the `immediate_exit` flag of `KVM_RUN`; whoever embeds
//! this crate must leave that signal alone.

mod convert;
mod dirty;
mod doorbells;
mod interrupts;
mod kick;
mod kvm;
pub mod proof;
mod routing;
mod run_page;
mod sys;
mod vcpu;
mod vcpu_state;
mod vm;
mod vm_state;

pub use kick::kick_signal;
pub use kvm::{KvmEngine, OpenError};
pub use vm::RESERVED;
