//! The house: a crate imports only crates of lower floors, and few may be unsafe.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The floors of the house, from below; see ARCHITECTURE.md.
const FLOORS: [(&str, u32); 14] = [
    ("omnivisor-agent", 0),
    ("omnivisor-disk", 0),
    ("omnivisor-engine", 1),
    ("omnivisor-host", 1),
    ("omnivisor-image", 1),
    ("omnivisor-spec", 1),
    ("omnivisor-devices", 2),
    ("omnivisor-engine-conformance", 2),
    ("omnivisor-engine-kvm", 2),
    ("omnivisor-engine-soft", 2),
    ("omnivisor-guest", 2),
    ("omnivisor-machine", 3),
    ("omnivisor-platform", 3),
    ("omnivisor", 5),
];

/// Crates that exist for tests of their own floor.
const FOR_TESTS: [&str; 1] = ["omnivisor-engine-conformance"];

/// Crates that talk to the kernel or map memory, in modules of their own.
const UNSAFE: [&str; 4] =
    ["omnivisor-devices", "omnivisor-disk", "omnivisor-engine-kvm", "omnivisor-engine-soft"];

#[test]
fn a_crate_imports_only_crates_of_lower_floors() {
    let mut wrong = Vec::new();
    for package in packages() {
        let name = text(&package, "name");
        let floor = floor(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = text(dependency, "name");
            // Crates of others have no path.
            if dependency["path"].is_null() {
                continue;
            }
            let for_tests = dependency["kind"] == "dev";
            // What only tests import may stand higher: an engine's tests boot a machine.
            let allowed = for_tests || (!FOR_TESTS.contains(&other) && self::floor(other) < floor);
            if !allowed {
                wrong.push(format!("{name} imports {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_floor_has_its_crates() {
    let mut packages: Vec<String> =
        packages().iter().map(|package| text(package, "name").into()).collect();
    let mut known: Vec<&str> = FLOORS.iter().map(|(name, _)| *name).collect();
    packages.sort_unstable();
    known.sort_unstable();
    assert_eq!(packages, known);
}

#[test]
fn only_crates_that_need_it_may_be_unsafe() {
    let mut wrong = Vec::new();
    for package in packages() {
        let name = text(&package, "name");
        for target in package["targets"].as_array().unwrap() {
            let kinds = target["kind"].as_array().unwrap();
            let shipped = kinds.iter().any(|kind| kind == "lib" || kind == "bin");
            let root = Path::new(text(target, "src_path"));
            let forbids = || {
                let source = std::fs::read_to_string(root).unwrap();
                source.lines().any(|line| line == "#![forbid(unsafe_code)]")
            };
            if shipped && !UNSAFE.contains(&name) && !forbids() {
                wrong.push(root.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "no forbid(unsafe_code) in {}", wrong.join(", "));
}

/// The packages of the workspace.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn floor(name: &str) -> u32 {
    let found = FLOORS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("{name} is on no floor")).1
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}
