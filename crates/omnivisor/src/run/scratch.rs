//! A folder for the sockets of one run, which goes with it; if the run was killed, with the next one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PREFIX: &str = "omnivisor-";
/// Locked as long as its folder's process lives, whatever PID namespace that is in.
const LOCK: &str = "lock";

/// The folder of this run.
pub struct Scratch {
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes the folder, and removes those of runs that were killed.
    pub fn new() -> io::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    fn under(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Locked before it has its name, so that nobody takes the folder for one that was left.
        let unnamed = folder.path().join("new");
        let lock = File::create(&unnamed)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        fs::rename(unnamed, folder.path().join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes what killed runs of the same user left under `parent`. What cannot be removed stays.
fn sweep(parent: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == user);
        if ours
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_with_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Scratch::under(parent.path()).unwrap();
        let killed = Scratch::under(parent.path()).unwrap();
        let left = killed.folder.keep();
        fs::write(left.join("vsock"), "").unwrap();
        let others = parent.path().join("omnivisor-notes");
        fs::create_dir(&others).unwrap();
        drop(killed._lock);
        let next = Scratch::under(parent.path()).unwrap();
        assert!(!left.exists());
        assert!(alive.path().exists() && next.path().exists() && others.exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
