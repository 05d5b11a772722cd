//! The engines' conformance tests on this computer's KVM, where it runs kernel code natively.

use engine_conformance::run_all;
use engine_kvm::KvmEngine;
use engine_kvm::proof::{Measurement, prove};

/// A KVM that interprets ring 0 is slower than this many times; one that runs it, about as fast as
/// ring 3.
const INTERPRETER: f64 = 20.0;

#[test]
fn kvm_keeps_what_an_engine_promises() {
    if let Err(why) = runs_kernel_code() {
        eprintln!("SKIPPED: {why}. The lab test runs the same list on a real KVM.");
        return;
    }
    let engine = KvmEngine::new().unwrap();
    let report = run_all(&engine);
    println!("{report}");
    assert!(report.passed(), "{report}");
}

/// An interpreter of ring 0 (such as kvm_pvm's) knows only some instructions.
fn runs_kernel_code() -> Result<(), String> {
    let proof = prove().map_err(|error| error.to_string())?;
    let ring0 = proof.ring0.map_err(|error| format!("ring 0: {error}"))?;
    let ring3 = proof.ring3.map_err(|error| format!("ring 3: {error}"))?;
    let nanoseconds = |loops: Measurement| loops.nanoseconds as f64 / loops.instructions as f64;
    let times = nanoseconds(ring0) / nanoseconds(ring3);
    if times > INTERPRETER {
        return Err(format!("/dev/kvm interprets ring 0, {times:.0} times slower than ring 3"));
    }
    Ok(())
}
