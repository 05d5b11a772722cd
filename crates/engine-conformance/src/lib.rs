//! Tests that every engine must pass, written against the traits only.
//!
//! Each test builds a virtual machine, runs a guest of a few instructions in it and compares what came
//! out with what the architecture says. They are plain functions, so that the same list runs under
//! `cargo test`, and as a program on a computer (or in a lab) where the engine works.

#![forbid(unsafe_code)]

mod asm;
mod board;
mod both;
mod guest;

mod breakpoints;
mod cpu;
mod gates;
mod interrupts;
mod io;
mod kick;
mod memory;
mod processors;
mod state;
mod vectors;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use both::Both;
use engine::Engine;

/// One property of an engine.
#[derive(Clone, Copy)]
pub struct Test {
    /// What an engine that passes does, as a sentence.
    pub name: &'static str,
    body: fn(&dyn Engine) -> Outcome,
}

impl Test {
    /// Runs it.
    pub fn run(&self, engine: &dyn Engine) -> Verdict {
        match catch_unwind(AssertUnwindSafe(|| (self.body)(engine))) {
            Ok(Ok(())) => Verdict::Passed,
            Ok(Err(Failure::Lacking(ability))) => Verdict::Skipped(ability),
            Ok(Err(Failure::Seen(text))) => Verdict::Failed(text),
            Err(panic) => Verdict::Failed(format!("panicked: {}", panic_text(&*panic))),
        }
    }
}

/// What came out of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The engine does it.
    Passed,
    /// The engine does not offer this ability on this computer.
    Skipped(&'static str),
    /// What was seen instead.
    Failed(String),
}

/// All tests.
pub fn tests() -> Vec<Test> {
    [
        io::TESTS,
        cpu::TESTS,
        breakpoints::TESTS,
        gates::TESTS,
        memory::TESTS,
        interrupts::TESTS,
        processors::TESTS,
        kick::TESTS,
        state::TESTS,
        vectors::TESTS,
    ]
    .concat()
}

/// Runs all tests.
pub fn run_all(engine: &dyn Engine) -> Report {
    let run = |test: Test| (test.name, test.run(engine));
    Report { results: tests().into_iter().map(run).collect() }
}

/// What came out of [`run_all`].
#[derive(Default)]
pub struct Report {
    /// Each test's name and result.
    pub results: Vec<(&'static str, Verdict)>,
}

impl Report {
    /// Whether every test passed.
    pub fn passed(&self) -> bool {
        self.count(|verdict| matches!(verdict, Verdict::Failed(_))) == 0
    }

    /// The last result in words.
    pub fn last_line(&self) -> Option<String> {
        self.results.last().map(line)
    }

    /// How many tests passed, were skipped and failed.
    pub fn sum(&self) -> String {
        let passed = self.count(|verdict| *verdict == Verdict::Passed);
        let skipped = self.count(|verdict| matches!(verdict, Verdict::Skipped(_)));
        let failed = self.results.len() - passed - skipped;
        format!("{passed} passed, {skipped} skipped, {failed} failed")
    }

    fn count(&self, wanted: impl Fn(&Verdict) -> bool) -> usize {
        self.results.iter().filter(|(_, verdict)| wanted(verdict)).count()
    }
}

/// One line a test, and a line with the sum.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in &self.results {
            writeln!(formatter, "{}", line(result))?;
        }
        write!(formatter, "{}", self.sum())
    }
}

fn line((name, verdict): &(&'static str, Verdict)) -> String {
    match verdict {
        Verdict::Passed => format!("ok    {name}"),
        Verdict::Skipped(ability) => format!("skip  {name} (the engine has no {ability})"),
        Verdict::Failed(why) => format!("FAIL  {name}\n      {why}"),
    }
}

/// What a test returns.
type Outcome = Result<(), Failure>;

/// Why a test did not pass.
enum Failure {
    /// The engine does not offer this.
    Lacking(&'static str),
    /// What was seen instead.
    Seen(String),
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self::Seen(text.into())
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text += &format!(": {next}");
            cause = next.source();
        }
        Self::Seen(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Seen(error.to_string())
    }
}

/// Fails unless two values are the same.
fn equal<T: PartialEq + fmt::Debug>(what: &str, seen: T, expected: T) -> Outcome {
    if seen == expected {
        return Ok(());
    }
    Err(Failure::new(format!("{what}: saw {seen:x?}, expected {expected:x?}")))
}

/// Fails with `what` unless `condition` holds.
fn ensure(condition: bool, what: impl Into<String>) -> Outcome {
    if condition { Ok(()) } else { Err(Failure::new(what)) }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}
