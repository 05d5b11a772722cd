//! The engines' conformance tests on the software engine.

use engine_conformance::{Report, Verdict, tests};
use engine_soft::SoftEngine;

/// Tests that are known not to pass yet.
const PENDING: &[&str] = &[];

#[test]
fn the_software_engine_keeps_what_an_engine_promises() {
    let engine = SoftEngine::new();
    let mut report = Report::default();
    for test in tests() {
        report.results.push((test.name, test.run(&engine)));
        println!("{}", report.last_line().unwrap_or_default());
    }
    let failed: Vec<_> = report
        .results
        .iter()
        .filter(|(name, verdict)| matches!(verdict, Verdict::Failed(_)) && !PENDING.contains(name))
        .collect();
    println!("{}", report.sum());
    assert!(failed.is_empty(), "{failed:#?}");
}
