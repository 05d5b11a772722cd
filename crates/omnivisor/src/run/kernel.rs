//! Kernels as the machine likes them best: unpacked ELF files in the cache, which never change, so that they can be
//! mapped instead of read, and all guests share their pages.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use image::Cache;
use machine::boot;

use crate::failure::{Failure, NOT_FOUND, NOT_STARTED};

/// With which the names of unpacked kernels in the cache begin.
const PREFIX: &str = "vmlinux-";
/// Where holes are worth it: a page.
const PAGE: usize = 4096;

/// The kernel at `path` for a [`boot::BootPlan`]: its file, and whether that is immutable.
pub fn keep(path: &Path) -> Result<(PathBuf, bool), Failure> {
    let cannot_read = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(NOT_FOUND, format!("There is no kernel {}", path.display()))
        }
        _ => Failure::new(NOT_STARTED, format!("Cannot read {}: {error}", path.display())),
    };
    let cache = Cache::open();
    let name = entry_name(path, cache.as_ref().ok()).map_err(cannot_read)?;
    if let Ok(cache) = &cache
        && cache.path(&name).exists()
        && let Ok(kept) = cache.entry(&name, |_| Ok(()))
    {
        return Ok((kept, true));
    }
    let explain = |source| machine::Error::Kernel { path: path.to_owned(), source };
    let elf = match boot::unpack(path).map_err(explain)? {
        Some(unpacked) => unpacked,
        None => std::fs::read(path).map_err(cannot_read)?,
    };
    let kept = cache.and_then(|cache| {
        cache.entry(&name, |temporary| {
            write_sparse(temporary, &elf).map_err(|source| image::Error::File {
                action: "written",
                path: temporary.to_owned(),
                source,
            })
        })
    });
    match kept {
        Ok(kept) => Ok((kept, true)),
        // A cache that cannot be written costs time, no more.
        Err(error) => {
            tracing::debug!(%error, "the kernel could not be kept");
            Ok((path.to_owned(), false))
        }
    }
}

/// The cache's name for the file as it is now: another content has another time or inode. A kernel of the cache keeps
/// its own.
fn entry_name(path: &Path, cache: Option<&Cache>) -> io::Result<String> {
    let path = path.canonicalize()?;
    if let Some(cache) = cache
        && let Some(name) = path.file_name().and_then(OsStr::to_str)
        && name.starts_with(PREFIX)
        && cache.path(name).canonicalize().is_ok_and(|entry| entry == path)
    {
        return Ok(name.to_owned());
    }
    let metadata = std::fs::metadata(&path)?;
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    (metadata.dev(), metadata.ino(), metadata.size()).hash(&mut hasher);
    (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
        .hash(&mut hasher);
    Ok(format!("{PREFIX}{:016x}", hasher.finish()))
}

/// Writes `bytes` and leaves holes where a page is zero.
fn write_sparse(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (page, index) in bytes.chunks(PAGE).zip(0_u64..) {
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(page, index * PAGE as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_kernel_has_holes_and_the_same_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let mut bytes = vec![0; 1 << 20];
        bytes[5] = 1;
        bytes[(1 << 20) - 1] = 2;
        write_sparse(&path, &bytes).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_file_that_was_changed_has_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, b"one").unwrap();
        let before = entry_name(&path, None).unwrap();
        assert_eq!(entry_name(&path, None).unwrap(), before);
        std::fs::write(&path, b"another").unwrap();
        assert_ne!(entry_name(&path, None).unwrap(), before);
    }

    #[test]
    fn a_kernel_of_the_cache_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let write = |path: &Path| std::fs::write(path, b"kernel").map_err(|_| image::Error::NoApt);
        let kept = cache.entry("vmlinux-1", write).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        for path in [&kept, &link] {
            assert_eq!(entry_name(path, Some(&cache)).unwrap(), "vmlinux-1");
        }
        // Elsewhere it could be changed, and so could another entry's content be anything.
        let copy = folder.path().join("vmlinux-1");
        std::fs::copy(&kept, &copy).unwrap();
        let other = cache.entry("root-1", write).unwrap();
        for path in [&copy, &other] {
            let name = entry_name(path, Some(&cache)).unwrap();
            assert!(name.starts_with(PREFIX) && name != "vmlinux-1", "{name}");
        }
    }
}
