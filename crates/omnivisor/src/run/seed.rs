//! The disk that tells the guest's cloud-init its name, keys and data.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use spec::Disk;
use spec::cloud_init::Seed;
use tempfile::NamedTempFile;

use crate::cli::RunArgs;
use crate::failure::{FAILED, Failure, NOT_FOUND, USAGE};
use crate::run::state;

/// A seed if anything is to be told.
pub fn disk(args: &RunArgs) -> Result<Option<Disk>, Failure> {
    if args.user_data.is_none() && args.ssh_key.is_empty() && args.hostname.is_none() {
        return Ok(None);
    }
    let seed = Seed {
        user_data: args.user_data.as_deref().map(read).transpose()?,
        ssh_keys: args.ssh_key.iter().map(|key| read_key(key)).collect::<Result<_, _>>()?,
        hostname: args.hostname.clone(),
        network_config: None,
    };
    let image = seed.image().map_err(|error| Failure::from_error(USAGE, error))?;
    keep("cidata", &image).map(Some)
}

/// An image that is made for the guest, as a disk: it lies with the state, by a name that begins with `what` and that only
/// this content has.
pub fn keep(what: &str, image: &[u8]) -> Result<Disk, Failure> {
    let digest = Sha256::digest(image);
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = state::folder()?.join("seeds").join(format!("{what}-{name}.iso"));
    write(&path, image).map_err(|error| {
        Failure::new(FAILED, format!("Cannot write {}: {error}", path.display()))
    })?;
    Ok(Disk { path, readonly: true, format: Some("raw".into()), ..Disk::default() })
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        Failure::new(NOT_FOUND, format!("Cannot read {}: {error}", path.display()))
    })
}

/// A key itself has spaces and no such file.
fn read_key(key: &str) -> Result<String, Failure> {
    if key.contains(' ') && !Path::new(key).exists() {
        Ok(key.to_owned())
    } else {
        read(Path::new(key))
    }
}

/// Under its name is all of it or nothing.
fn write(path: &PathBuf, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
