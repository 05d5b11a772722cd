//! The engines' conformance tests on the software engine.

use engine_conformance::{Report, Verdict, tests};
use engine_soft::{SoftEngine, Translation};

/// Tests that are known not to pass yet.
const PENDING: &[&str] = &[];

fn check(translation: Translation) {
    let engine = SoftEngine::with(translation);
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

#[test]
fn the_interpreter_keeps_what_an_engine_promises() {
    check(Translation::Off);
}

#[test]
fn the_translator_keeps_what_an_engine_promises() {
    check(Translation::On);
}
