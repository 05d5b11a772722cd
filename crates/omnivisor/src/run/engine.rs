//! Which engine runs the guest.

use std::path::Path;

use engine::Engine;
use engine_kvm::{KvmEngine, OpenError};
use engine_soft::{SoftEngine, Translation};
use host::Facts;

use crate::cli::EngineChoice;
use crate::failure::{Failure, NOT_STARTED};
use crate::probe;

/// The engine that was asked for, or the fastest that is usable.
pub fn choose(choice: EngineChoice) -> Result<Box<dyn Engine>, Failure> {
    match choice {
        EngineChoice::Auto => kvm().or_else(|refusal| {
            tell!("The software processor runs this guest, slowly. {refusal}.");
            choose(EngineChoice::Soft)
        }),
        EngineChoice::Kvm => kvm(),
        EngineChoice::Soft => Ok(Box::new(SoftEngine::new())),
        EngineChoice::SoftInterpret => Ok(Box::new(SoftEngine::with(Translation::Off))),
        EngineChoice::SoftVerify => Ok(Box::new(SoftEngine::with(Translation::Verified))),
    }
}

fn kvm() -> Result<Box<dyn Engine>, Failure> {
    let engine = KvmEngine::new().map_err(|error| unusable(&error))?;
    if !runs_on_hardware() {
        let facts = Facts::of_this_machine();
        let proof = probe::kvm_proof();
        if let Some(advice) = host::kvm_advice(&facts, Some(&proof)) {
            return Err(failure(advice));
        }
    }
    Ok(Box::new(engine))
}

/// Whether the modules that drive VT-x or AMD-V are loaded. Then nothing need be proved, which would
/// take longer than the rest of the start; elsewhere KVM may be there and only emulate.
fn runs_on_hardware() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| Path::new("/sys/module").join(module).exists())
}

fn unusable(error: &OpenError) -> Failure {
    match host::kvm_advice(&Facts::of_this_machine(), None) {
        Some(advice) => failure(advice),
        None => Failure::new(NOT_STARTED, format!("KVM cannot be used: {error}")),
    }
}

fn failure(advice: host::Advice) -> Failure {
    let mut repairs: Vec<String> = advice
        .repair
        .iter()
        .map(|repair| match &repair.command {
            Some(command) => format!("{}: {command}", repair.explain),
            None => repair.explain.clone(),
        })
        .collect();
    repairs.push("or run it slowly on the software processor, with --engine soft".to_owned());
    Failure::new(NOT_STARTED, advice.sentence).help(repairs.join("\n"))
}
