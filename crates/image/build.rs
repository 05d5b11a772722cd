//! Builds the guest's static program, which the library embeds.
//!
//! It is another target (static C library) and another profile than what is being built, so a cargo of its own builds
//! it, into a folder of its own because the outer one holds the lock of the usual one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program built beforehand, for packagers who cannot have a cargo within a cargo.
const PREBUILT: &str = "OMNIVISOR_AGENT";

fn main() {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let agent = match env::var_os(PREBUILT) {
        Some(path) => PathBuf::from(path),
        None => build(),
    };
    println!("cargo::rerun-if-changed={}", agent.display());
    println!("cargo::rustc-env=OMNIVISOR_AGENT_PROGRAM={}", agent.display());
}

fn build() -> PathBuf {
    let workspace = variable("CARGO_MANIFEST_DIR").join("../..");
    for path in [
        "crates/agent/src",
        "crates/agent/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
        "crates/image/build.rs",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let folder = variable("OUT_DIR").join("agent");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(&workspace);
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "omnivisor-agent",
        "--bin",
        "omnivisor-agent",
    ]);
    cargo.args(["--profile", "agent", "--target", &target]).arg("--target-dir").arg(&folder);
    // What the outer cargo was told for its own target must not reach the guest's program; without a target, flags
    // would also go to build scripts, which cannot be static.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    // Not position-independent either: nothing to relocate when it starts.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the guest agent could not be built");
    folder.join(Path::new(&target)).join("agent/omnivisor-agent")
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")).into()
}
