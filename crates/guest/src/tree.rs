//! One tree of files over several file systems, as the guest itself sees it.

use std::rc::Rc;
use std::sync::Arc;

use crate::fs::{Entry, FileSystem, Kind, Metadata};
use crate::volume::Volume;
use crate::{Error, Result};

/// Most symbolic links on the way to one file (Linux's MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// Longest path (Linux's PATH_MAX).
const MAX_PATH: usize = 4096;

/// File systems mounted over each other. Symbolic links are followed within it and never leave it.
#[derive(Clone)]
pub struct Tree {
    mounts: Vec<Mount>,
}

#[derive(Clone)]
struct Mount {
    /// Where, without a slash at the end: the root is empty.
    at: String,
    fs: Rc<dyn FileSystem>,
    /// The folder of the file system that is seen there, likewise.
    folder: String,
}

impl Tree {
    /// `folder` of one file system.
    pub fn new(fs: Rc<dyn FileSystem>, folder: &str) -> Self {
        let mut tree = Self { mounts: Vec::new() };
        tree.mount("/", fs, folder);
        tree
    }

    /// The folder of its first file system that is mounted if nothing else is said.
    pub fn default_folder(&self) -> String {
        self.mounts.last().map_or_else(|| "/".into(), |mount| mount.fs.default_folder())
    }

    /// What should be known about the state of its file systems.
    pub fn notes(&self) -> Vec<String> {
        self.mounts.iter().flat_map(|mount| mount.fs.notes()).collect()
    }

    /// Puts `folder` of another one at a path that is a folder in this tree.
    pub fn mount(&mut self, at: &str, fs: Rc<dyn FileSystem>, folder: &str) {
        let at = at.trim_end_matches('/').to_owned();
        let folder = format!("/{}", folder.trim_matches('/'));
        let folder = folder.trim_end_matches('/').to_owned();
        self.mounts.retain(|mount| mount.at != at);
        self.mounts.push(Mount { at, fs, folder });
        // The longest path first: that is the one which counts.
        self.mounts.sort_by_key(|mount| std::cmp::Reverse(mount.at.len()));
    }

    /// The content of a file of at most `limit` bytes.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let resolved = self.resolve(path, true)?;
        let (fs, inner) = self.locate(&resolved);
        fs.read(&inner, limit)
    }

    /// A file as a volume, of which only what is needed is read where that is possible.
    pub fn open(&self, path: &str) -> Result<Arc<dyn Volume>> {
        let resolved = self.resolve(path, true)?;
        let (fs, inner) = self.locate(&resolved);
        fs.open_file(&inner)
    }

    /// The content of a file of at most `limit` bytes as a text.
    pub fn read_text(&self, path: &str, limit: u64) -> Result<String> {
        let bytes = self.read(path, limit)?;
        // Not copied where it is UTF-8, as it nearly always is.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// What is in a folder.
    pub fn read_dir(&self, path: &str) -> Result<Vec<Entry>> {
        let resolved = self.resolve(path, true)?;
        let (fs, inner) = self.locate(&resolved);
        fs.read_dir(&inner)
    }

    /// The names in a folder, sorted; none if there is no such folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.read_dir(path).unwrap_or_default().into_iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names
    }

    /// What `path` leads to.
    pub fn metadata(&self, path: &str) -> Result<Metadata> {
        let resolved = self.resolve(path, true)?;
        self.metadata_of(&resolved)
    }

    /// What `path` is, not following it if it is a symbolic link.
    pub fn link_metadata(&self, path: &str) -> Result<Metadata> {
        let resolved = self.resolve(path, false)?;
        self.metadata_of(&resolved)
    }

    /// Where the symbolic link `path` leads.
    pub fn read_link(&self, path: &str) -> Result<String> {
        let resolved = self.resolve(path, false)?;
        let (fs, inner) = self.locate(&resolved);
        fs.read_link(&inner)
    }

    /// `path` leads to a file.
    pub fn is_file(&self, path: &str) -> bool {
        self.metadata(path).is_ok_and(|metadata| metadata.kind == Kind::File)
    }

    /// `path` leads to a folder.
    pub fn is_folder(&self, path: &str) -> bool {
        self.metadata(path).is_ok_and(|metadata| metadata.kind == Kind::Folder)
    }

    /// The path without symbolic links, `.` and `..`; its last part is not followed unless `follow`.
    pub fn resolve(&self, path: &str, follow: bool) -> Result<String> {
        let mut done = String::new();
        // What is still to be walked, the next part last.
        let mut pending: Vec<String> = parts(path);
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == ".." {
                let end = done.rfind('/').unwrap_or(0);
                done.truncate(end);
                continue;
            }
            let next = format!("{done}/{part}");
            if next.len() > MAX_PATH {
                return Err(Error::NotFound(path.to_owned()));
            }
            let is_last = pending.is_empty();
            if is_last && !follow {
                done = next;
                break;
            }
            let metadata = self.metadata_of(&next)?;
            if metadata.kind != Kind::Link {
                done = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Links(path.to_owned()));
            }
            let (fs, inner) = self.locate(&next);
            let target = fs.read_link(&inner)?;
            if target.starts_with('/') {
                done.clear();
            }
            pending.extend(parts(&target));
        }
        Ok(if done.is_empty() { "/".into() } else { done })
    }

    /// The file system and the path in it of a path without symbolic links.
    fn locate(&self, resolved: &str) -> (&dyn FileSystem, String) {
        let resolved = resolved.trim_end_matches('/');
        for mount in &self.mounts {
            let Some(rest) = resolved.strip_prefix(&mount.at) else { continue };
            if rest.is_empty() || rest.starts_with('/') {
                let inner = format!("{}{rest}", mount.folder);
                return (&*mount.fs, if inner.is_empty() { "/".into() } else { inner });
            }
        }
        // There is always one at the root.
        (&*self.mounts[self.mounts.len() - 1].fs, "/".into())
    }

    fn metadata_of(&self, resolved: &str) -> Result<Metadata> {
        let (fs, inner) = self.locate(resolved);
        fs.metadata(&inner)
    }
}

/// The parts of a path, the first one last.
fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).rev().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn links_stay_within_the_guest() {
        let mut tree = Files::tree(&[
            ("/etc/os-release", "-> ../usr/lib/os-release"),
            ("/usr/lib/os-release", "ID=debian"),
            ("/lib", "-> usr/lib"),
            ("/out", "-> ../../../../../lib/os-release"),
            ("/absolute", "-> /boot/vmlinuz"),
            ("/loop", "-> /loop"),
            ("/boot/hidden", "x"),
        ]);
        let boot = Files::new(&[("/@/vmlinuz", "kernel"), ("/@/up", "-> ../lib/os-release")]);
        tree.mount("/boot", Rc::new(boot), "/@");
        for path in
            ["/etc/os-release", "/lib/os-release", "/out", "/boot/up", "lib/./../lib//os-release"]
        {
            assert_eq!(tree.read_text(path, 99).unwrap(), "ID=debian", "{path}");
        }
        assert_eq!(tree.read_text("/absolute", 99).unwrap(), "kernel");
        assert!(matches!(tree.read("/loop", 99), Err(Error::Links(_))));
        assert!(matches!(tree.read("/boot/hidden", 99), Err(Error::NotFound(_))));
        assert!(matches!(tree.read("/absolute", 2), Err(Error::TooLarge { limit: 2, .. })));
        assert_eq!(tree.names("/boot"), ["up", "vmlinuz"]);
        assert_eq!(tree.resolve("/lib/os-release", false).unwrap(), "/usr/lib/os-release");
    }
}
