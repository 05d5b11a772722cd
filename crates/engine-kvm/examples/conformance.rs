//! Runs the engines' conformance tests on this computer's KVM: `conformance [WORD...]` runs those whose
//! names hold one of the words, and `conformance --but WORD` all others. `conformance --both` lets KVM and the software processor take turns, so that
//! tests which move a guest move it between them.

use std::process::ExitCode;

use engine::{Engine, VmConfig};
use engine_conformance::{Both, Report, tests};
use engine_kvm::KvmEngine;
use engine_soft::SoftEngine;

fn main() -> ExitCode {
    let engine = match KvmEngine::new() {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    // With the first virtual machine and without the last, Linux patches its scheduler's code
    // (preempt_notifier_inc), which now and then hangs an SMP host that is QEMU's software processor.
    let _keep = engine.create_vm(&VmConfig { vcpus: 1 });
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let engine: Box<dyn Engine> = if words.first().is_some_and(|word| word == "--both") {
        words.remove(0);
        Box::new(Both::new(Box::new(engine), Box::new(SoftEngine::new())))
    } else {
        Box::new(engine)
    };
    let but = words.first().is_some_and(|word| word == "--but");
    words.drain(..usize::from(but));
    let named = |name: &str| words.iter().any(|word| name.contains(word));
    let wanted = |name: &str| words.is_empty() || named(name) != but;
    let mut report = Report::default();
    for test in tests().into_iter().filter(|test| wanted(test.name)) {
        let result = test.run(&*engine);
        report.results.push((test.name, result));
        // At once, so that a test that takes this process down is the one after the last line.
        if let Some(line) = report.last_line() {
            println!("{line}");
        }
    }
    println!("{}", report.sum());
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
