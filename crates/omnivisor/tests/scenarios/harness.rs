//! Runs scenarios, which are shell scripts, in one place: the lab, or here.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What each scenario begins with: a shell that stops at the first failure, and a few words.
const PRELUDE: &str = r#"
set -eu
cd "$SCENARIO"
export TMPDIR=$SCENARIO XDG_STATE_HOME=$SCENARIO/state
exec 3>&1
trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT
# omnivisor VERB ARG...: the program, on the engine of this place.
omnivisor() {
    verb=$1; shift
    [ "$verb" != run ] || set -- --engine "$ENGINE" "$@"
    timeout 150 "$OMNIVISOR" "$verb" "$@"
}
# machine ARG... &: a machine for the background, whose process is `$!`.
machine() { exec "$OMNIVISOR" run --engine "$ENGINE" "$@"; }
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

/// Scenarios that want the same things.
#[derive(Default)]
pub struct Scenarios {
    prepared: Vec<Vec<String>>,
    scripts: Vec<(&'static str, String)>,
}

impl Scenarios {
    /// Fetches and builds ahead what `omnivisor run` with these arguments needs: where the scenarios run
    /// is no network.
    pub fn prepare(mut self, arguments: &[&str]) -> Self {
        self.prepared.push(arguments.iter().map(|&argument| argument.into()).collect());
        self
    }

    /// Adds a scenario: it passes when its script ends with 0.
    pub fn scenario(mut self, name: &'static str, script: impl Into<String>) -> Self {
        self.scripts.push((name, script.into()));
        self
    }

    /// Runs the scenarios on `place`, one after the other, and panics with the output of those that failed.
    pub fn run(self, place: &dyn Place) {
        if missing(place.needs()) {
            return;
        }
        for arguments in &self.prepared {
            prepare(arguments);
        }
        let folder = tempfile::tempdir().unwrap();
        for (number, (_, script)) in self.scripts.iter().enumerate() {
            let text = format!("{PRELUDE}\n{script}\n");
            std::fs::write(folder.path().join(number.to_string()), text).unwrap();
        }
        let variables = [
            ("ENGINE", place.engine().into()),
            ("OMNIVISOR", env!("CARGO_BIN_EXE_omnivisor").into()),
            ("XDG_CACHE_HOME", cache().display().to_string()),
        ];
        let output = place
            .driver(folder.path(), &variables)
            .args(["bash", "-c", DRIVER, "driver"])
            .arg(folder.path())
            .arg(self.scripts.len().to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        eprint!("{stderr}");
        let mut failed = String::new();
        let results = results(folder.path());
        for (number, (name, _)) in self.scripts.iter().enumerate() {
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
            "{failed}\n--- all: {}\n{stdout}",
            output.status
        );
    }
}

/// Where scenarios run.
pub trait Place {
    /// What `--engine` is given.
    fn engine(&self) -> &'static str;
    /// Programs without which it cannot be.
    fn needs(&self) -> &'static [&'static str];
    /// A command to which one is appended that runs there, with these variables, and may write in `folder`.
    fn driver(&self, folder: &Path, variables: &[(&'static str, String)]) -> Command;
}

/// Each scenario has a folder in memory; logs and exit codes travel over the shared folder.
const DRIVER: &str = r#"
    mkdir -p /run/scenarios
    for n in $(seq 0 $(($2 - 1))); do
        export SCENARIO=/run/scenarios/$n; mkdir "$SCENARIO"; begin=${EPOCHREALTIME%.*}
        timeout -k 5 600 bash "$1/$n" </dev/null >"$1/$n.log" 2>&1; echo $? >"$1/$n.code"
        echo "took $((${EPOCHREALTIME%.*} - begin)) s" >>"$1/$n.log"
        rm -rf "$SCENARIO"
    done"#;

/// Whether scenarios cannot run here, which is said; on a build server it is a failure.
fn missing(needed: &[&str]) -> bool {
    let needed = [needed, &["apt-get", "dpkg-deb", "busybox", "cpio", "passt", "socat"]].concat();
    let Some(program) = needed.into_iter().find(|program| !is_installed(program)) else {
        return false;
    };
    assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
    eprintln!("skipped: {program} is not installed");
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

/// Kept between runs, so that packages are fetched once.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
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
