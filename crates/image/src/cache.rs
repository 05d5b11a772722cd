//! A folder of finished files and folders, each built once.

use crate::error::{About, Error};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Version of the cache's layout. Another version's entries are left alone: they stay in a folder of their own.
const LAYOUT: &str = "v1";
/// An entry that nobody has asked for in that time is removed when another is built.
const UNUSED: Duration = Duration::from_secs(60 * 24 * 3600);

/// A folder of entries that are either whole or absent.
///
/// An entry is built under a temporary name, written to the disk and renamed; meanwhile a lock file keeps other
/// processes from building it as well. Entries are never changed, so a reader needs no lock.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The user's cache.
    pub fn open() -> Result<Self, Error> {
        Self::at(&Self::folder()?)
    }

    /// The folder of the user's cache and of what else can be made again, which may not exist: `$XDG_CACHE_HOME/omnivisor` or `~/.cache/omnivisor`.
    pub fn folder() -> Result<PathBuf, Error> {
        // An XDG variable that is not an absolute path counts as unset (XDG Base Directory Specification).
        let absolute =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base =
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        Ok(base.ok_or(Error::NoCacheFolder)?.join("omnivisor"))
    }

    /// A cache in that folder, which is created where it does not exist.
    pub fn at(folder: &Path) -> Result<Self, Error> {
        let folder = folder.join(LAYOUT);
        fs::create_dir_all(&folder).about("created", &folder)?;
        Ok(Self { folder })
    }

    /// Where the entry of that name is or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The entry of that name, a file or a folder. If there is none yet, `build` makes it at the path it is given.
    pub fn entry(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.path(name);
        if path.exists() {
            self.note_use(name);
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        if path.exists() {
            return Ok(path);
        }
        self.remove_unused();
        self.replace(name, build)
    }

    /// Makes the entry anew, whether there is one or not; an existing one must be a file.
    pub(crate) fn update(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let _lock = self.lock(name)?;
        self.replace(name, build)
    }

    fn replace(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.path(name);
        // The lock is held, so whatever has this name was left by a process that died.
        let temporary = self.path(&format!(".{name}.new"));
        remove(&temporary)?;
        let finished = build(&temporary)
            .and_then(|()| sync_filesystem(&temporary))
            .and_then(|()| fs::rename(&temporary, &path).about("renamed", &temporary))
            .and_then(|()| sync_folder(&self.folder));
        if finished.is_err() {
            // The first error counts.
            let _ = remove(&temporary);
        }
        finished.map(|()| path)
    }

    /// The lock file's time is that of the entry's last use.
    fn note_use(&self, name: &str) {
        // A cache on a read-only file system is used all the same.
        if let Ok(lock) = fs::File::options().write(true).open(self.lock_path(name)) {
            let _ = lock.set_modified(SystemTime::now());
        }
    }

    fn remove_unused(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".lock"))
            else {
                continue;
            };
            let used = entry.metadata().and_then(|data| data.modified());
            let unused = used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED));
            // Under its lock, so that nobody builds it at the same time. Lock files stay: removing one would let two
            // processes hold locks of the same name.
            if unused && let Ok(_lock) = self.lock(name) {
                let _ = remove(&self.path(name));
            }
        }
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.path(&format!(".{name}.lock"))
    }

    /// Holds off other processes until the handle is dropped.
    fn lock(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = self.lock_path(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).about("opened", &path)?;
        while let Err(error) = flock(&file, FlockOperation::LockExclusive) {
            if error != rustix::io::Errno::INTR {
                return Err(error).about("locked", &path);
            }
        }
        Ok(file)
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).about("read", path),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).about("removed", path),
        Ok(_) => fs::remove_file(path).about("removed", path),
    }
}

/// One call for the thousand files of a kernel package.
fn sync_filesystem(path: &Path) -> Result<(), Error> {
    let file = fs::File::open(path).about("opened", path)?;
    if file.metadata().is_ok_and(|data| data.is_file()) {
        return file.sync_all().about("written", path);
    }
    rustix::fs::syncfs(&file).about("written", path)
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).about("written", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_entry_is_built_once_however_many_want_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let built = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = cache.entry("thing", |path| {
                        built.fetch_add(1, Ordering::Relaxed);
                        fs::write(path, "content").about("written", path)
                    });
                    assert_eq!(fs::read(path.unwrap()).unwrap(), b"content");
                });
            }
        });
        assert_eq!(built.into_inner(), 1);
    }

    #[test]
    fn what_fails_or_dies_leaves_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let failed = cache.entry("thing", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("half"), "").unwrap();
            Err(Error::NoApt)
        });
        assert!(matches!(failed, Err(Error::NoApt)));
        assert!(!cache.path("thing").exists());
        // As if a process had been killed while it built.
        fs::create_dir(cache.path(".thing.new")).unwrap();
        fs::write(cache.path(".thing.new").join("half"), "").unwrap();
        let path =
            cache.entry("thing", |path| fs::create_dir(path).about("created", path)).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        let again = cache.entry("thing", |_| Err(Error::NoApt)).unwrap();
        assert_eq!(again, cache.path("thing"));
    }

    #[test]
    fn what_nobody_uses_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let make = |path: &Path| fs::write(path, "").about("written", path);
        for name in ["old", "used"] {
            cache.entry(name, make).unwrap();
            let lock = fs::File::options().write(true).open(cache.lock_path(name)).unwrap();
            lock.set_modified(SystemTime::now() - 2 * UNUSED).unwrap();
        }
        cache.entry("used", |_| Err(Error::NoApt)).unwrap();
        cache.entry("new", make).unwrap();
        assert!(!cache.path("old").exists());
        assert!(cache.path("used").exists() && cache.path("new").exists());
    }

    #[test]
    fn a_file_can_be_updated() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        for text in ["one", "two"] {
            let path =
                cache.update("note", |path| fs::write(path, text).about("written", path)).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), text);
        }
    }
}
