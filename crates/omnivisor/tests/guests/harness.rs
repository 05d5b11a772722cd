//! Guests made of Debian packages (`tests/guests`), and the program that runs them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What getty prints when a guest is up.
pub const PROMPT: &str = " login: ";
/// Of a boot, on the software processor of a busy machine.
const DEADLINE: Duration = Duration::from_secs(500);
/// Exit code of scripts that miss something.
const SKIP: i32 = 77;

/// Where a test's VM lies, with its state and a raw disk to make it of.
pub struct Workshop {
    folder: TempDir,
    /// The raw disk of the guest; it is shared by tests, and must not be changed.
    pub raw: PathBuf,
}

impl Workshop {
    /// With a guest of this kind (`tests/guests/disk`); `None` where it cannot be made, which is said.
    pub fn new(kind: &str) -> Option<Self> {
        Some(Self { raw: disk(kind)?, ..Self::empty() })
    }

    /// Without a guest.
    pub fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), raw: PathBuf::new() }
    }

    /// The VM's folder, for its description and its disks.
    pub fn vm(&self) -> PathBuf {
        let folder = self.folder.path().join("vm");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A path outside of the VM's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with a state of its own.
    pub fn omnivisor(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_omnivisor"));
        command.env("XDG_STATE_HOME", self.path("state"));
        command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
        command
    }

    /// Runs a verb that must succeed.
    pub fn verb(&self, arguments: &[&str]) -> Output {
        let output = self.omnivisor().args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output
    }

    /// Makes an image in the VM's folder of the guest's disk.
    pub fn convert(&self, name: &str, to: &str) -> PathBuf {
        let target = self.vm().join(name);
        self.verb(&["convert", path(&self.raw), path(&target), "--to", to]);
        target
    }

    /// Writes a file into the VM's folder.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.vm().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Runs the VM until it prints `wanted`, then ends it; the console until there.
    pub fn boot(&self, arguments: &[&str], wanted: &str) -> String {
        let mut command = self.omnivisor();
        command.args(["run", "--engine", "soft", "--cmdline", "quiet"]).args(arguments);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut all = Vec::new();
            let _ = errors.read_to_end(&mut all);
            text(&all)
        });
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let _ = sender.send(buffer[..count].to_vec());
            }
        });
        let begun = Instant::now();
        let mut console = Vec::new();
        while !text(&console).contains(wanted) {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            match lines.recv_timeout(left) {
                Ok(bytes) => console.extend(bytes),
                Err(_) => break,
            }
        }
        // The first asks the guest, which may not listen.
        for _ in 0..2 {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            thread::sleep(Duration::from_millis(200));
        }
        child.wait().unwrap();
        let (console, errors) = (text(&console), errors.join().unwrap());
        assert!(
            console.contains(wanted),
            "{arguments:?}: {wanted:?} never came:\n{console}\n{errors}"
        );
        format!("{console}\n{errors}")
    }
}

/// The raw disk of a guest, made once.
fn disk(kind: &str) -> Option<PathBuf> {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests");
    let output = Command::new(guests.join("cached")).arg(kind).output().unwrap();
    if output.status.code() == Some(SKIP) {
        eprintln!("skipped: {}", text(&output.stderr));
        return None;
    }
    assert!(output.status.success(), "{kind}: {}", text(&output.stderr));
    Some(PathBuf::from(text(&output.stdout).trim_end()))
}

/// A checksum of each file under `folder`.
pub fn sums(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut sums = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let output = Command::new("md5sum").arg(&path).output().unwrap();
                sums.insert(path, text(&output.stdout).split(' ').next().unwrap().to_owned());
            }
        }
    }
    assert!(!sums.is_empty());
    sums
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
