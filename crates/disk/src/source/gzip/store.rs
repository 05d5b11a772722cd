//! The folder that keeps indexes from one opening of a file to the next.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha1::{Digest, Sha1};

use super::index::Index;
use crate::FileSource;

/// Most bytes of all indexes together.
const MAX_FOLDER: u64 = 256 << 20;
/// An index that was not used for so long is removed.
const UNUSED: Duration = Duration::from_secs(60 * 24 * 3600);
/// How their names end, and those of what was not finished.
pub(super) const SUFFIX: &str = ".gzindex";

/// A place for the index of one file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// What tells the file from every other one, and from itself before a change.
    key: String,
}

impl Store {
    pub fn new(folder: &Path, key: String) -> Self {
        let name: String = Sha1::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: folder.join(name + SUFFIX), key }
    }

    /// The index of a file with so many bytes, if there is one.
    pub fn read(&self, packed: u64) -> Option<Index> {
        let file = FileSource::open(&self.path, true).ok()?;
        let found = Index::read(Arc::new(file), &self.key, packed)?;
        // So that it is known to be in use.
        let _ = File::open(&self.path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(found)
    }

    /// Writes an index, or does nothing where that is not possible. Nothing waits for the disk: what a loss of power leaves
    /// of it has wrong checksums.
    pub fn write(&self, index: &Index) {
        if let Err(error) = self.try_write(index) {
            tracing::debug!("{} is not kept: {error}", self.path.display());
        }
    }

    fn try_write(&self, index: &Index) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        // A window is what somebody's disk holds.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let bytes = index.to_bytes(&self.key).map_err(io::Error::other)?;
        sweep(folder, MAX_FOLDER.saturating_sub(bytes.len() as u64));
        let temporary = self.path.with_extension(format!("{}{SUFFIX}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes an index that turned out to be damaged.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what was not used for long, and what was used least recently of more than `most` bytes.
pub(super) fn sweep(folder: &Path, most: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(|metadata| metadata.is_file())?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    found.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
    let mut total: u64 = 0;
    for (used, length, path) in found {
        total = total.saturating_add(length);
        if total > most || used.elapsed().is_ok_and(|age| age > UNUSED) {
            let _ = fs::remove_file(path);
        }
    }
}
