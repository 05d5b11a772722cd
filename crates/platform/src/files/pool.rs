//! Several connections to one SFTP server, made when they are needed.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::{Client, Failure};
use super::wire::{self, Attributes};
use super::{Changed, changed};
use crate::{Error, Result, Runner};

/// Connections that are kept for the next reader.
const MOST_IDLE: usize = 16;
/// How many offsets are tried at once to find the end of a block device.
const PROBES: u64 = 15;

/// Connections to one computer.
pub(crate) struct Pool {
    runner: Runner,
    limit: Duration,
    idle: Mutex<Vec<Client>>,
}

impl Pool {
    /// None yet.
    pub fn new(runner: Runner, limit: Duration) -> Self {
        Self { runner, limit, idle: Mutex::default() }
    }

    /// The computer.
    pub fn place(&self) -> &str {
        self.runner.place()
    }

    /// The length of a file or block device, and what tells whether it was changed.
    pub fn stat(&self, path: &str) -> Result<(u64, Changed)> {
        let found = self.with(path, |client| client.stat(path))?;
        let Some(changed) = changed_of(&found) else {
            return Err(self.wrong(path, "it is neither a file nor a block device"));
        };
        if !changed.is_device {
            return Ok((changed.size, changed));
        }
        let length = self.with(path, |client| device_length(client, path))?;
        Ok((length, changed))
    }

    /// Whether a path is that of a folder.
    pub fn is_folder(&self, path: &str) -> Result<bool> {
        let found = self.with(path, |client| client.stat(path))?;
        Ok(found.mode.is_some_and(|mode| mode & TYPE == FOLDER))
    }

    /// Hands out the bytes of `range`, and looks whether the file is still as `known`.
    pub fn read(
        &self,
        path: &str,
        range: Range<u64>,
        known: Changed,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let read = |client: &mut Client| {
            client.read(path, range.clone(), take)?;
            client.fstat(path)
        };
        match self.with(path, read) {
            Ok(found) if changed_of(&found) == Some(known) => Ok(()),
            Ok(_) => Err(changed(path)),
            Err(error) => Err(error),
        }
    }

    /// Does something by a connection, which is kept if it is still good.
    fn with<T>(
        &self,
        path: &str,
        work: impl FnOnce(&mut Client) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let known = self.idle().pop();
        let mut client = match known {
            Some(client) => client,
            None => Client::connect(&self.runner, self.limit)?,
        };
        let result = work(&mut client);
        let is_good = !client.is_stale && !matches!(result, Err(Failure::Broken(_)));
        let mut idle = self.idle();
        match is_good {
            true if idle.len() < MOST_IDLE => idle.push(client),
            true => {}
            // The others are as old.
            false => idle.clear(),
        }
        drop(idle);
        result.map_err(|failure| match failure {
            Failure::Broken(error) => error,
            Failure::Refused(wire::NO_SUCH_FILE, _) => {
                Error::NotFound { place: self.place().into(), what: "file", name: path.into() }
            }
            Failure::Refused(wire::PERMISSION_DENIED, _) => Error::Failed {
                what: format!("reading {path} on {}", self.place()),
                message: "permission denied".into(),
                repair: Some("log in as a user who may read it, such as root".into()),
            },
            Failure::Refused(wire::EOF, _) => changed(path),
            Failure::Refused(_, message) => self.wrong(path, &message),
        })
    }

    fn wrong(&self, path: &str, message: &str) -> Error {
        let message = message.replace(char::is_control, " ");
        Error::Failed { what: format!("reading {path} on {}", self.place()), message, repair: None }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const FOLDER: u32 = 0o040_000;

/// What can be compared later; nothing of what has no bytes by offset.
fn changed_of(found: &Attributes) -> Option<Changed> {
    let is_device = match found.mode.map(|mode| mode & TYPE) {
        Some(BLOCK_DEVICE) => true,
        Some(REGULAR) | None => false,
        Some(_) => return None,
    };
    match is_device {
        true => Some(Changed { size: 0, modified: None, is_device }),
        false => Some(Changed { size: found.size?, modified: found.modified, is_device }),
    }
}

/// Finds where a block device ends, whose length SFTP does not tell: several offsets at once, nearer and nearer.
fn device_length(client: &mut Client, path: &str) -> std::result::Result<u64, Failure> {
    // Bytes before the first are there, the second and those behind it are not.
    let (mut there, mut not) = (0, disk::MAX_LENGTH);
    while there < not {
        let step = (not - there).div_ceil(PROBES + 1);
        let offsets: Vec<_> =
            (1..=PROBES).map(|index| there + index * step - 1).filter(|at| *at < not).collect();
        let found = client.has_bytes(path, &offsets)?;
        let first_missing = found.iter().position(|found| !found).unwrap_or(offsets.len());
        if let Some(offset) = offsets.get(first_missing) {
            not = *offset;
        }
        if first_missing > 0 {
            there = offsets[first_missing - 1] + 1;
        }
    }
    Ok(there)
}
