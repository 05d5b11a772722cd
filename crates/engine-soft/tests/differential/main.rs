//! Random instructions on the host's own processor and on ours: registers, flags, x87, SSE, memory and
//! faults must be the same.
//!
//! `OMNIVISOR_DIFFERENTIAL=N` runs N rounds over all encodings instead of a few, `OMNIVISOR_SEED=N` starts
//! elsewhere, and `OMNIVISOR_ENCODING=TEXT` takes only encodings whose name contains it.

mod case;
mod compared;
mod generate;
mod guest;
mod native;
mod runs;
mod undefined;
mod values;

use std::collections::BTreeMap;

use case::{Case, End, Executor, describe, differences};
use engine_soft::{SoftEngine, Translation};
use generate::Encodings;
use guest::Guest;
use native::Native;
use values::Random;

/// Rounds in the normal run, which takes a few seconds.
const ROUNDS: u64 = 12;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Differences by what they are in, with one example each.
#[derive(Default)]
struct Differences(BTreeMap<String, (u32, String)>);

impl Differences {
    fn compare(&mut self, name: &str, case: &Case, a: &mut dyn Executor, b: &mut dyn Executor) {
        let expected = a.execute(case);
        if expected.end == End::Endless {
            return;
        }
        let found = b.execute(case);
        let text = differences(case, &expected, &found);
        if !text.is_empty() {
            let example = || (0, format!("{}\n{text}", describe(case)));
            self.0.entry(name.to_owned()).or_insert_with(example).0 += 1;
        }
    }

    fn assert_none(&self) {
        let mut text = String::new();
        for (name, (count, example)) in &self.0 {
            text += &format!("\n{name}: {count} cases differ, such as\n{example}");
        }
        assert!(self.0.is_empty(), "{} kinds differ:{text}", self.0.len());
    }
}

/// Compares what the host's processor and ours do with each case that `work` makes.
fn compare(
    narrow: bool,
    translation: Translation,
    work: impl FnOnce(&Encodings, &mut Random, &mut dyn FnMut(&str, &Case)),
) {
    let mut native = match Native::new() {
        Ok(native) => native,
        // Where tracing is forbidden there is nothing to compare with.
        Err(error) => return println!("skipped: {error}"),
    };
    let mut guest = Guest::new(&SoftEngine::with(translation));
    let encodings = Encodings::new(narrow);
    let mut random = Random(setting("OMNIVISOR_SEED", 1));
    let mut found = Differences::default();
    work(&encodings, &mut random, &mut |name, case| {
        found.compare(name, case, &mut native, &mut guest);
    });
    println!("{} encodings", encodings.len());
    found.assert_none();
}

fn rounds() -> u64 {
    setting("OMNIVISOR_DIFFERENTIAL", ROUNDS)
}

fn every_encoding(narrow: bool, translation: Translation) {
    let only = std::env::var("OMNIVISOR_ENCODING").unwrap_or_default();
    compare(narrow, translation, |encodings, random, compare| {
        for _ in 0..rounds() {
            for index in 0..encodings.len() {
                let name = encodings.name(index);
                if name.contains(&only) {
                    compare(&name, &encodings.single(index, random));
                }
            }
        }
    });
}

#[test]
fn every_encoding_does_what_the_host_does_in_64_bit_mode() {
    every_encoding(false, Translation::Off);
}

#[test]
fn every_encoding_does_what_the_host_does_in_compatibility_mode() {
    every_encoding(true, Translation::Off);
}

fn sequences(narrow: bool, translation: Translation) {
    compare(narrow, translation, |encodings, random, compare| {
        for round in 0..rounds() * 500 {
            let length = 2 + random.below(30);
            compare(&format!("sequence {round}"), &encodings.sequence(length, random));
        }
    });
}

#[test]
fn sequences_do_what_the_host_does_in_64_bit_mode() {
    sequences(false, Translation::Off);
}

#[test]
fn sequences_do_what_the_host_does_in_compatibility_mode() {
    sequences(true, Translation::Off);
}

#[test]
fn every_translated_encoding_does_what_the_host_does() {
    every_encoding(false, Translation::Eager);
}

#[test]
fn translated_sequences_do_what_the_host_does() {
    sequences(false, Translation::Eager);
}

#[test]
fn a_register_that_any_encoding_changes_is_another_address() {
    compare(false, Translation::Eager, |encodings, random, compare| {
        for _ in 0..rounds() {
            for index in 0..encodings.len() {
                if let Some(case) = runs::around(encodings, index, random) {
                    compare(&encodings.name(index), &case);
                }
            }
        }
    });
}

#[test]
fn operands_that_are_checked_together_do_what_the_host_does() {
    compare(false, Translation::Eager, |encodings, random, compare| {
        for round in 0..rounds() * 1000 {
            compare(&format!("run {round}"), &runs::case(encodings, 2 + random.below(20), random));
        }
    });
}
