//! Runs scenarios, which are shell scripts, in one boot of the lab.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Seconds that a whole lab may take on a machine that is busy with much else.
const DEADLINE: u32 = 480;

/// What each scenario begins with: a shell that stops at the first failure, and a few words.
const PRELUDE: &str = r#"
set -eu
cd "$SCENARIO"
export TMPDIR=$SCENARIO XDG_STATE_HOME=$SCENARIO/state
exec 3>&1
trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT
omnivisor() { timeout 150 "$OMNIVISOR" "$@"; }
# run ARG...: a machine without a network.
run() { omnivisor run --net none "$@"; }
fail() { echo "$*" >&3; exit 1; }
# code N COMMAND...: the command exits with N; what it said on stderr is in the file `err`.
code() {
    code=$1; shift; got=0
    "$@" 2>err || got=$?
    cat err >&3
    [ "$got" = "$code" ] || fail "exit code $got, not $code: $*"
}
# says TEXT FILE...
says() { grep -qF -- "$@" || fail "'$1' is not in: $(shift; cat "$@")"; }
same() { [ "$1" = "$2" ] || fail "'$1' is not '$2'"; }
# description ARG...: a file that describes the machine, with a shell on its console and no agent.
description() {
    run "$@" --dry-run | sed '/^\[vsock\]/,/^path/d; s/ omnivisor\.agent=[a-z0-9:]*//'
}
# within SECONDS COMMAND...: the command succeeds in the end.
within() {
    i=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do
        i=$((i - 1)); [ $i -gt 0 ] || fail "never: $*"; sleep 0.1
    done
}
"#;

/// A lab that is still to be booted.
pub struct Lab {
    memory: u32,
    cpus: u32,
    prepared: Vec<Vec<String>>,
    scenarios: Vec<(&'static str, &'static str)>,
    variables: Vec<(&'static str, String)>,
}

impl Lab {
    /// A lab with that much memory, in MiB.
    pub fn new(memory: u32) -> Self {
        let (prepared, scenarios, variables) = Default::default();
        Self { memory, cpus: 1, prepared, scenarios, variables }
    }

    /// With that many processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Fetches and builds on the host what `omnivisor run` with these arguments needs: the lab is offline.
    pub fn prepare(mut self, arguments: &[&str]) -> Self {
        self.prepared.push(arguments.iter().map(|&argument| argument.into()).collect());
        self
    }

    /// A variable for the scripts.
    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Adds a scenario: it passes when its script ends with 0.
    pub fn scenario(mut self, name: &'static str, script: &'static str) -> Self {
        self.scenarios.push((name, script));
        self
    }

    /// Boots the lab, runs the scenarios one after the other and panics with the output of those that failed.
    pub fn run(self) {
        if missing() {
            return;
        }
        for arguments in &self.prepared {
            prepare(arguments);
        }
        let folder = tempfile::tempdir().unwrap();
        for (number, (_, script)) in self.scenarios.iter().enumerate() {
            let text = format!("{PRELUDE}\n{script}\n");
            std::fs::write(folder.path().join(number.to_string()), text).unwrap();
        }
        let output = self.boot(folder.path());
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        eprint!("{stderr}");
        let mut failed = String::new();
        let results = results(folder.path());
        for (number, (name, _)) in self.scenarios.iter().enumerate() {
            let log = std::fs::read_to_string(folder.path().join(format!("{number}.log")))
                .unwrap_or_default();
            match results.get(&number) {
                Some(0) => {
                    let took = log.lines().last().unwrap_or_default();
                    eprintln!("ok: {name}: {took}");
                }
                code => {
                    let code = code.map_or("no result".into(), |code| format!("code {code}"));
                    let _ = writeln!(failed, "\n--- {name}: {code}\n{log}");
                }
            }
        }
        assert!(
            failed.is_empty() && output.status.success(),
            "{failed}\n--- the lab: {}\n{stdout}",
            output.status
        );
    }

    fn boot(&self, folder: &Path) -> Output {
        // Each scenario has a folder in memory; logs and exit codes travel over the shared folder.
        let driver = r#"
            mkdir -p /run/scenarios
            for n in $(seq 0 $(($2 - 1))); do
                export SCENARIO=/run/scenarios/$n; mkdir "$SCENARIO"; begin=${EPOCHREALTIME%.*}
                timeout -k 5 600 bash "$1/$n" </dev/null >"$1/$n.log" 2>&1; echo $? >"$1/$n.code"
                echo "took $((${EPOCHREALTIME%.*} - begin)) s" >>"$1/$n.log"
            done"#;
        let mut command = Command::new(repository().join("tests/labs/kvm-lab"));
        command
            .args(["-v", "-m", &self.memory.to_string(), "-s", &self.cpus.to_string()])
            .args(["-t", &DEADLINE.to_string(), "-C", "/", "-w"])
            .arg(folder)
            .args(["-e", &format!("OMNIVISOR={}", env!("CARGO_BIN_EXE_omnivisor"))])
            .args(["-e", &format!("XDG_CACHE_HOME={}", cache().display())])
            .env("KVM_LAB_CACHE", cache().join("kvm-lab"));
        for (name, value) in &self.variables {
            command.args(["-e", &format!("{name}={value}")]);
        }
        command.args(["--", "bash", "-c", driver, "driver"]);
        command.arg(folder).arg(self.scenarios.len().to_string());
        command.stdin(Stdio::null()).output().unwrap()
    }
}

/// Whether there can be no lab here, which is said; on a build server it is a failure.
fn missing() -> bool {
    let absent = ["qemu-system-x86_64", "apt-get", "dpkg-deb", "busybox", "cpio", "passt"]
        .into_iter()
        .find(|program| !is_installed(program));
    let Some(program) = absent else { return false };
    assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
    eprintln!("skipped: {program} is not installed, without which there is no lab");
    true
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Fills the cache, in which the lab then finds everything.
fn prepare(arguments: &[String]) {
    let output = Command::new(env!("CARGO_BIN_EXE_omnivisor"))
        .args(["run", "--dry-run"])
        .args(arguments)
        .env("XDG_CACHE_HOME", cache())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

/// The program of the unit tests of a library: the newest, since cargo keeps those of earlier builds.
pub fn unit_tests(library: &str) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_omnivisor")).with_file_name("deps");
    let programs = std::fs::read_dir(folder).unwrap().flatten().filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        let hash = name.strip_prefix(library).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
    });
    let newest = programs.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    let newest = newest.unwrap_or_else(|| panic!("cargo test --no-run -p omnivisor-{library}"));
    newest.path().into_os_string().into_string().unwrap()
}

/// Kept between runs, so that packages are fetched once.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn results(folder: &Path) -> HashMap<usize, i32> {
    let mut results = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if let Some(number) = name.strip_suffix(".code") {
            let code = std::fs::read_to_string(entry.path()).unwrap();
            results.insert(number.parse().unwrap(), code.trim().parse().unwrap());
        }
    }
    results
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
