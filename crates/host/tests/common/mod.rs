//! Machines to judge. Each test program uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;

use host::{
    Candidate, Capture, Facts, Firmware, Layer, LayerKind, LoopFailure, Measurement, ProofResult,
    Report,
};

/// The machine that is written down in `tests/machines/NAME.toml`.
pub fn machine(name: &str) -> Capture {
    let path = folder().join(format!("{name}.toml"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All machines, with their names.
pub fn all_machines() -> Vec<(String, Capture)> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .expect("tests/machines")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() > 30, "only {} machines found", names.len());
    names.into_iter().map(|name| (name.clone(), machine(&name))).collect()
}

/// The verdict without a proof.
pub fn judge(capture: &Capture) -> Report {
    host::report(&Facts::replay(capture), None)
}

/// The verdict with a proof.
pub fn judge_with(capture: &Capture, proof: &ProofResult) -> Report {
    host::report(&Facts::replay(capture), Some(proof))
}

/// A measured speed.
pub fn mips(speed: u64) -> Result<Measurement, LoopFailure> {
    Ok(Measurement { instructions: speed * 1_000, nanoseconds: 1_000_000 })
}

/// The proof of a processor that runs guests itself.
pub fn native() -> ProofResult {
    ProofResult::judge(Some(12), mips(7_000), mips(7_100))
}

/// The innermost hypervisor of a report.
pub fn hypervisor(report: &Report) -> Option<&Layer> {
    report.inside.iter().find(|layer| layer.kind == LayerKind::Hypervisor)
}

/// The stable names of the layers, innermost first.
pub fn inside(report: &Report) -> Vec<&str> {
    report.inside.iter().map(|layer| layer.id.as_str()).collect()
}

/// An engine or platform.
pub fn candidate<'r>(report: &'r Report, id: &str) -> &'r Candidate {
    report.candidate(id).unwrap_or_else(|| panic!("no candidate {id}"))
}

/// The commands of a candidate, joined.
pub fn commands(candidate: &Candidate) -> String {
    let commands: Vec<&str> =
        candidate.repair.iter().filter_map(|repair| repair.command.as_deref()).collect();
    commands.join("\n")
}

/// Where the firmware setting is said to be.
pub fn firmware_place(firmware: &Firmware) -> String {
    firmware.repair.iter().map(|repair| repair.explain.as_str()).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/machines")
}
