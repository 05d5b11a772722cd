//! One file that comes only whole.

use std::fs::{self, File};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::piece::{Pace, write_sparse};
use super::{PullOptions, PulledFile, StreamFile, failed, hash, hexadecimal, with_suffix};
use crate::{Error, Result};

/// Copies it to its end, and reads it back. What does not come to its end is removed, for nothing can go on with it.
pub(super) fn copy(
    file: &dyn StreamFile,
    path: &Path,
    options: &PullOptions,
    tell: &mut dyn FnMut(u64),
) -> Result<PulledFile> {
    if path.exists() {
        return Err(failed(path, std::io::ErrorKind::AlreadyExists.into()));
    }
    let part = with_suffix(path, "part");
    let result = receive(file, &part, options, tell);
    if result.is_err() {
        // There may be nothing to remove.
        let _ = fs::remove_file(&part);
    }
    let (length, sha256) = result?;
    fs::rename(&part, path).map_err(|source| failed(path, source))?;
    Ok(PulledFile { path: path.into(), length, sha256 })
}

fn receive(
    file: &dyn StreamFile,
    part: &Path,
    options: &PullOptions,
    tell: &mut dyn FnMut(u64),
) -> Result<(u64, String)> {
    let local = File::create(part).map_err(|source| failed(part, source))?;
    let pace = options.rate.map(Pace::new);
    let mut digest = Sha256::new();
    let mut length = 0;
    file.read(&mut |bytes| {
        if let Some(pace) = &pace {
            pace.wait(bytes.len());
        }
        digest.update(bytes);
        write_sparse(&local, bytes, length).map_err(|source| failed(part, source))?;
        length += bytes.len() as u64;
        tell(length);
        Ok(())
    })?;
    // It may end with a hole.
    local.set_len(length).and_then(|()| local.sync_all()).map_err(|source| failed(part, source))?;
    let sha256 = hexadecimal(&digest.finalize());
    let back = hash(part, length)?.map(|digest| hexadecimal(&digest.finalize()));
    if back.as_deref() != Some(&sha256) {
        let message = "what was read back is not what was written";
        return Err(failed(part, std::io::Error::other(message)));
    }
    file.check(part).map_err(|error| match error {
        Error::Disk(error) => Error::reply(file.name(), error.to_string()),
        error => error,
    })?;
    Ok((length, sha256))
}
