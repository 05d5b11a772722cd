//! What outlasts a run: the disks of machines that have roots of their own.

use std::path::{Path, PathBuf};

use spec::Size;

use crate::failure::{FAILED, Failure, USAGE};

/// The root disk of the machine called `name`: the one of its last run, or a new one of `size`, made out of the
/// prepared root at `base`.
pub fn root_disk(name: &str, base: &Path, size: Size) -> Result<PathBuf, Failure> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !plain {
        return Err(Failure::new(USAGE, format!("The name {name:?} cannot be that of a folder")));
    }
    let folder = folder()?.join(name);
    std::fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(FAILED, format!("Cannot create {}: {error}", folder.display()))
    })?;
    let disk = folder.join("root.raw");
    if !disk.exists() {
        image::copy_disk(base, &disk, size.0)?;
        tell!("The guest's disk is {}; the next run of {name:?} goes on with it.", disk.display());
    }
    Ok(disk)
}

/// `$XDG_STATE_HOME/omnivisor` or `~/.local/state/omnivisor` (XDG Base Directory Specification).
pub fn folder() -> Result<PathBuf, Failure> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("omnivisor"))
        .ok_or_else(|| {
            Failure::new(FAILED, "There is no folder for the machine's state")
                .help("set XDG_STATE_HOME or HOME")
        })
}
