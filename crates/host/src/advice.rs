//! A sentence and a repair for whoever met KVM's error himself.

use std::io;

use crate::facts::Facts;
use crate::kvm::{self, ENOENT, Scene, Trouble};
use crate::proof::ProofResult;
use crate::report::{Repair, Usability};
use crate::{cpu, inside};

/// Why KVM cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// One sentence, capitalised, without a full stop.
    pub sentence: String,
    /// What would help, best first.
    pub repair: Vec<Repair>,
}

/// Where KVM's error was met.
#[derive(Debug, Clone, Copy)]
pub enum KvmStep<'e> {
    /// `/dev/kvm` could not be opened.
    Open(&'e io::Error),
    /// A request failed after it was open: its name, and the error.
    Request(&'static str, &'e io::Error),
}

/// The advice on an error of KVM, by the same code as [`crate::report()`].
pub fn kvm_error_advice(facts: &Facts, step: KvmStep<'_>) -> Advice {
    let text;
    let trouble = match step {
        KvmStep::Open(error) => Trouble::Open(error.raw_os_error().unwrap_or(ENOENT)),
        KvmStep::Request(request, error) => {
            text = format!("{request} fails: {error}");
            Trouble::Guest(&text, error.raw_os_error())
        }
    };
    let inside = inside::layers(facts);
    let firmware = cpu::firmware(facts, &inside);
    let (sentence, repair) =
        Scene { facts, inside: &inside, firmware: &firmware }.explain(&trouble);
    Advice { sentence, repair }
}

/// The advice before anything was tried: absent if KVM can run guests. With a proof it also finds a
/// KVM that only emulates.
pub fn kvm_advice(facts: &Facts, proof: Option<&ProofResult>) -> Option<Advice> {
    let inside = inside::layers(facts);
    let firmware = cpu::firmware(facts, &inside);
    let verdict = kvm::candidate(facts, &inside, &firmware, proof);
    (verdict.state != Usability::Usable)
        .then_some(Advice { sentence: verdict.reason, repair: verdict.repair })
}
