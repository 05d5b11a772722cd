//! Loop devices, for the tests here and those in `src/raw`.

use std::path::Path;
use std::process::Command;

/// A loop device over a file, which ends with the value.
pub struct LoopDevice {
    pub path: String,
}

impl LoopDevice {
    /// `None` where we may not make one.
    pub fn new(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        made.status.success().then_some(Self { path })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}
