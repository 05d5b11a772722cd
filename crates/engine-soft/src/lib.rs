//! The software engine: an x86-64 processor and its interrupt controllers behind the engine traits.
//!
//! Instructions are decoded once into blocks of function pointers with their operands ([`block`], [`op`]);
//! x87 and SSE instructions are executed by the host's own processor through small pieces of machine code
//! ([`native`], [`stubs`]). Guest memory is reached through a software TLB ([`host`], [`mmu`]). What is
//! executed often is translated ([`translate`]). `arena`, `host`, `native`, `confine` and `stubs` of the
//! translator are the only ones with unsafe code.

#![deny(unsafe_code)]

mod apic;
#[allow(unsafe_code)]
mod arena;
mod bits;
mod block;
mod branch;
mod breakpoints;
mod chips;
mod clock;
#[allow(unsafe_code)]
mod confine;
mod cpu;
mod decode;
mod decode_control;
mod decode_integer;
mod decode_native;
mod decode_system;
mod decode_vex;
mod devices;
mod features;
mod flags;
mod gates;
#[allow(unsafe_code)]
mod host;
mod integer;
mod interrupts;
mod legacy;
mod mmu;
mod msr;
#[allow(unsafe_code)]
mod native;
mod op;
mod segments;
mod shifts;
mod soft;
mod state;
mod strings;
mod stubs;
mod system;
mod translate;
mod vcpu;
mod vectors;
mod vex;
mod vm;
mod x87;
mod xsave;

pub use soft::SoftEngine;
pub use translate::Translation;
