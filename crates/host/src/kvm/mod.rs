//! The verdict on KVM.

mod explain;

use crate::cpu;
use crate::facts::Facts;
use crate::proof::{LoopResult, ProofResult};
use crate::report::{Candidate, Evidence, Firmware, KvmReport, Layer, Usability};

/// What was tried with KVM, and how it went wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Trouble<'p> {
    /// There is no `/dev/kvm`.
    NodeMissing,
    /// Opening it failed with this error number.
    Open(i32),
    /// It opened, but no guest could be built or entered: a reason, and an error number.
    Guest(&'p str, Option<i32>),
    /// Guests' kernel code is interpreted; speeds of ring 0 and ring 3 if they were measured.
    Emulated(Option<(f64, f64)>),
    /// It opened, nothing was measured, and neither processor nor module speak for it.
    Doubtful,
}

/// Everything that a judgement of KVM needs.
pub(crate) struct Scene<'f> {
    pub(crate) facts: &'f Facts,
    pub(crate) inside: &'f [Layer],
    pub(crate) firmware: &'f Firmware,
}

/// The verdict, with the exact repair.
pub(crate) fn candidate(
    facts: &Facts,
    inside: &[Layer],
    firmware: &Firmware,
    proof: Option<&ProofResult>,
) -> Candidate {
    let scene = Scene { facts, inside, firmware };
    let evidence = scene.evidence(proof);
    let (state, reason, repair) = match find_trouble(facts, proof) {
        None => (Usability::Usable, usable_reason(facts, proof), Vec::new()),
        Some(trouble) => {
            let (reason, repair) = scene.explain(&trouble);
            let something = facts.nodes.contains_key(NODE)
                || cpu::usable_extension(facts, inside)
                || vendor_module(facts).is_some();
            let state = if something { Usability::Unusable } else { Usability::Absent };
            (state, reason, repair)
        }
    };
    Candidate { id: "kvm".into(), name: "KVM".into(), state, reason, evidence, repair }
}

/// KVM in detail.
pub(crate) fn details(facts: &Facts, proof: Option<&ProofResult>) -> KvmReport {
    let of_module = |name: &str| {
        let module = facts.modules.get(name)?;
        Some(
            module
                .parameters
                .iter()
                .map(|(parameter, value)| (format!("{name}.{parameter}"), value.clone()))
                .collect::<Vec<_>>(),
        )
    };
    let module = vendor_module(facts);
    let names = ["kvm"].into_iter().chain(module);
    KvmReport {
        node: facts.nodes.get(NODE).cloned(),
        module: module.map(str::to_owned),
        parameters: names.filter_map(of_module).flatten().collect(),
        proof: proof.cloned(),
    }
}

/// The module that does the work behind `/dev/kvm`.
pub(crate) fn vendor_module(facts: &Facts) -> Option<&str> {
    facts.modules.keys().map(String::as_str).find(|name| name.starts_with("kvm_"))
}

const NODE: &str = "/dev/kvm";
/// The only version of KVM's interface that was ever stable.
const API_VERSION: i32 = 12;

/// Error numbers of Linux.
pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
const ENXIO: i32 = 6;
const ENOMEM: i32 = 12;
pub(crate) const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;

fn find_trouble<'p>(facts: &Facts, proof: Option<&'p ProofResult>) -> Option<Trouble<'p>> {
    let Some(node) = facts.nodes.get(NODE) else { return Some(Trouble::NodeMissing) };
    if let Some(errno) = node.errno {
        // Permission would not help: what is behind the node interprets.
        let interprets = vendor_module(facts) == Some("kvm_pvm") && !cpu::has_extension(facts);
        let refused = matches!(errno, EACCES | EPERM);
        return Some(if refused && interprets {
            Trouble::Emulated(None)
        } else {
            Trouble::Open(errno)
        });
    }
    let Some(proof) = proof else { return unproven(facts) };
    match (&proof.ring0, &proof.ring3) {
        (LoopResult::Fails { reason, errno }, _) | (_, LoopResult::Fails { reason, errno }) => {
            Some(Trouble::Guest(reason, *errno))
        }
        (
            LoopResult::Emulated { mips: ring0 },
            LoopResult::Native { mips: ring3 } | LoopResult::Emulated { mips: ring3 },
        )
        | (LoopResult::Native { mips: ring0 }, LoopResult::Emulated { mips: ring3 }) => {
            Some(Trouble::Emulated(Some((*ring0, *ring3))))
        }
        _ if proof.api_version.is_some_and(|version| version != API_VERSION) => {
            Some(Trouble::Guest("its interface is not version 12", None))
        }
        _ => None,
    }
}

/// Without the proof, the module's name and the processor's extension have to do.
fn unproven(facts: &Facts) -> Option<Trouble<'static>> {
    match vendor_module(facts) {
        Some("kvm_intel" | "kvm_amd") => None,
        Some("kvm_pvm") => Some(Trouble::Emulated(None)),
        _ if cpu::has_extension(facts) => None,
        _ => Some(Trouble::Doubtful),
    }
}

fn usable_reason(facts: &Facts, proof: Option<&ProofResult>) -> String {
    match proof.map(|proof| &proof.ring0) {
        Some(LoopResult::Native { mips }) => {
            format!("Runs guest code natively ({} M instructions/s in ring 0)", speed(*mips))
        }
        _ => {
            let behind = vendor_module(facts)
                .map_or(String::new(), |module| format!(", with {module} behind it"));
            format!("/dev/kvm opens{behind}; whether it runs guest code natively was not tried")
        }
    }
}

/// Two digits are enough, and more would suggest a benchmark.
pub(crate) fn speed(mips: f64) -> String {
    if mips < 100.0 { format!("{mips:.1}") } else { format!("{mips:.0}") }
}

impl Scene<'_> {
    fn evidence(&self, proof: Option<&ProofResult>) -> Vec<Evidence> {
        let mut list = Vec::new();
        if let Some(node) = self.facts.nodes.get(NODE) {
            let outcome = match node.errno {
                None => "opens".to_owned(),
                Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
            };
            list.push(Evidence::new(
                NODE,
                format!("group {}, mode {:04o}: {outcome}", node.group, node.mode),
            ));
        }
        if let Some(module) = vendor_module(self.facts) {
            list.push(Evidence::new(format!("/sys/module/{module}"), "loaded"));
        }
        if let Some(proof) = proof {
            if let Some(version) = proof.api_version {
                list.push(Evidence::new("KVM_GET_API_VERSION", version.to_string()));
            }
            for (ring, result) in [("ring 0", &proof.ring0), ("ring 3", &proof.ring3)] {
                list.push(Evidence::new(format!("a loop in {ring}"), describe(result)));
            }
        }
        list
    }
}

/// A loop's result in words.
pub(crate) fn describe(result: &LoopResult) -> String {
    match result {
        LoopResult::Native { mips } => format!("native, {} M instructions/s", speed(*mips)),
        LoopResult::Emulated { mips } => format!("emulated, {} M instructions/s", speed(*mips)),
        LoopResult::Fails { reason, .. } => format!("fails: {reason}"),
    }
}
