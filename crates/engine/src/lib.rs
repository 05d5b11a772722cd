//! The engine traits and the neutral state of processors and interrupt controllers.
//!
//! An *engine* runs guest instructions in our own process. This crate holds no implementation: it
//! names what `machine` asks of an engine ([`Engine`], [`Vm`], [`Vcpu`]), what an engine asks of the
//! machine ([`Bus`]), and the plain data that both understand ([`state`], [`cpuid`]). Abilities that
//! not every engine has are handed out as `Option<&dyn ..>`, never as methods that may panic.

#![forbid(unsafe_code)]

pub mod cpuid;
pub mod state;

mod common;
mod memory;
mod traits;
mod writes;

pub use memory::{GuestMemory, GuestRegion, MemoryRegion, PAGE_SIZE};
pub use traits::{
    Bus, Capabilities, DirtyTracking, Doorbell, Doorbells, Engine, Error, Exit, FastInterrupts,
    InterruptRoute, Kick, Kicker, MsiMessage, Result, Statistics, Vcpu, VcpuConfig, Vm, VmConfig,
};
pub use writes::{DeviceWrites, WriteWatch};
