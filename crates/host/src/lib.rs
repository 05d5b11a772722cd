//! Facts about this computer and the verdict on what its virtualization can do.
//!
//! [`Facts::gather`] reads, [`report()`] judges. The first fails at nothing and the second reads
//! nothing, so any machine that was written down ([`Capture`]) is judged like the one that the
//! program runs on. What only running a guest can show comes in from outside as a [`ProofResult`].

#![forbid(unsafe_code)]

mod advice;
mod capture;
mod cpu;
mod cpuid;
mod facts;
mod gather;
mod inside;
mod kvm;
mod msr;
mod nested;
mod platforms;
mod proof;
mod report;
mod root;

pub use advice::{Advice, KvmStep, kvm_advice, kvm_error_advice};
pub use capture::Capture;
pub use cpuid::{CpuidDump, CpuidDumpError, CpuidSource, NativeCpuid, Registers};
pub use facts::{
    Availability, Caller, ContainerFacts, Cpuinfo, Distribution, Dmi, Facts, IommuFacts, Kernel,
    Module, Msr, Node, XenFacts,
};
pub use proof::{LoopFailure, LoopResult, Measurement, ProofResult};
pub use report::{
    Candidate, Choice, Confidence, CpuReport, Evidence, Extension, Firmware, FirmwareState, Holder,
    KvmReport, Layer, LayerKind, Presence, Rejected, Repair, Report, Role, Usability, report,
};
