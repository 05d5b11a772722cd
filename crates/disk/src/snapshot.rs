//! Internal snapshots, of qcow2 alone.

use std::path::Path;

use crate::source::FileSource;
use crate::{Error, Format, Result, Snapshot, qcow2};

/// Makes an internal snapshot of the present state of the qcow2 image at `path`, which nobody else may use meanwhile.
pub fn create_snapshot(path: impl AsRef<Path>, name: &str) -> Result<Snapshot> {
    of_qcow2(path.as_ref(), |path| qcow2::create_snapshot(path, name))
}

/// Deletes the internal snapshot of this number or name.
pub fn delete_snapshot(path: impl AsRef<Path>, snapshot: &str) -> Result<()> {
    of_qcow2(path.as_ref(), |path| qcow2::delete_snapshot(path, snapshot))
}

/// Makes the present state what the internal snapshot of this number or name has kept: the disk alone, not a machine's
/// state. What was written since is lost unless another snapshot has it.
pub fn revert_to_snapshot(path: impl AsRef<Path>, snapshot: &str) -> Result<()> {
    of_qcow2(path.as_ref(), |path| qcow2::revert_to_snapshot(path, snapshot))
}

fn of_qcow2<T>(path: &Path, act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let format = Format::detect(&FileSource::open(path, true)?)?;
    if format != Format::Qcow2 {
        let what = "only snapshots of qcow2 can be changed".to_owned();
        return Err(Error::Unsupported { format, what });
    }
    act(path).map_err(|source| Error::Image { path: path.to_owned(), source: Box::new(source) })
}
