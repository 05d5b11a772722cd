//! Locks that end with their process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Locks the file at `path`, which is made if it is not there; the lock lasts as long as the file is open. `None` if
/// another one has it.
pub(crate) fn take(path: &Path) -> io::Result<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(source),
        }
        // Whoever had it may have removed the file meanwhile: then this lock protects nothing.
        let here = file.metadata()?;
        if std::fs::metadata(path).is_ok_and(|there| there.ino() == here.ino()) {
            return Ok(Some(file));
        }
    }
}
