//! The snapshots that hold a VM's disks still for us. Before one is made it is noted here that there may be one, so that whoever
//! comes after a process that was killed takes away what it left on the platform.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::pull::hexadecimal;
use crate::{Action, Error, Platform, Result, Snapshot, Undo, VmName, lock};

/// The snapshot of a VM that is copied.
pub(crate) const PULL: &str = "omnivisor pull";
/// The snapshot of a VM that is run here, where it is another one.
pub(crate) const RUN: &str = "omnivisor run";

/// The note that a VM may have such a snapshot.
pub(crate) struct Hold {
    /// That it is there is what counts; what it says is for people.
    path: PathBuf,
    /// Another process does not take away what this one needs.
    _lock: File,
    /// It was there before, and nobody's.
    is_left: bool,
}

/// Whether the snapshot of a process that ended may still be there.
///
/// `state` is the folder for state; VMs are known by the names that they were called by.
pub fn is_held(state: &Path, vm: &VmName) -> bool {
    note(state, vm).exists()
}

fn note(state: &Path, vm: &VmName) -> PathBuf {
    state.join("held").join(hexadecimal(&Sha256::digest(vm.to_string())))
}

impl Hold {
    /// Notes it; `None` if a process that lives has noted it.
    pub fn take(state: &Path, vm: &VmName) -> Result<Option<Self>> {
        let path = note(state, vm);
        let take = || -> io::Result<Option<Self>> {
            let folder = path.parent().unwrap_or(state);
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let Some(mut lock) = lock::take(&path)? else { return Ok(None) };
            let is_left = lock.metadata()?.len() > 0;
            if !is_left {
                writeln!(lock, "{vm}")?;
                lock.sync_all()?;
                File::open(folder)?.sync_all()?;
            }
            Ok(Some(Self { path: path.clone(), _lock: lock, is_left }))
        };
        take().map_err(|source| Error::File { path: path.clone(), source })
    }

    /// What another process left on the platform.
    pub fn left(&self, platform: &dyn Platform, vm: &str) -> Result<Vec<Snapshot>> {
        if self.is_left { Self::there(platform, vm) } else { Ok(Vec::new()) }
    }

    fn there(platform: &dyn Platform, vm: &str) -> Result<Vec<Snapshot>> {
        let mut snapshots = platform.snapshots(vm)?;
        snapshots.retain(|one| [PULL, RUN].contains(&one.name.as_str()));
        Ok(snapshots)
    }

    /// Takes it away, and the note.
    pub fn let_go(self, platform: &dyn Platform, vm: &str) -> Result<()> {
        for snapshot in self.left(platform, vm)? {
            let name = if snapshot.id.is_empty() { snapshot.name } else { snapshot.id };
            platform.perform(vm, &Action::DeleteSnapshot { name })?;
        }
        fs::remove_file(&self.path).map_err(|source| Error::File { path: self.path, source })
    }

    /// After something went wrong: it may have left nothing.
    pub fn forget_if_nothing_is_left(&self, platform: &dyn Platform, vm: &str) {
        let there = Self::there(platform, vm);
        if matches!(there, Err(Error::NotFound { .. })) || there.is_ok_and(|there| there.is_empty())
        {
            // If it stays, the next one looks again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Does what a driver would do at the end; when all is here, then what `hold` says is done, too.
pub(crate) fn until_all_is_here(
    hold: Hold,
    platform: Arc<dyn Platform>,
    vm: &str,
    undo: Option<Undo>,
) -> Undo {
    let vm = vm.to_owned();
    Box::new(move |is_complete| {
        undo.map_or(Ok(()), |undo| undo(is_complete))?;
        if is_complete { hold.let_go(&*platform, &vm) } else { Ok(()) }
    })
}
