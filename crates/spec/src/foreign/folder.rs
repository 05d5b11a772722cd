//! The folder of a VM: where the files that its description names may lie.

use std::path::{Component, Path, PathBuf};

use super::description::{FileRef, FileState};
use super::tar::Archive;
use crate::{Error, Result};

/// A folder, and whether what lies outside of it may be used; or an archive.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    anywhere: bool,
    /// Files of the archive: they and no others count.
    members: Option<Vec<FileRef>>,
}

impl Folder {
    /// The folder at `root`.
    pub fn new(root: &Path, anywhere: bool) -> Result<Self> {
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let canonical = std::fs::canonicalize(root)
            .map_err(|source| Error::Read { path: root.to_owned(), source })?;
        Ok(Self { root: canonical, anywhere, members: None })
    }

    /// The folder in which a file lies.
    pub fn of(file: &Path, anywhere: bool) -> Result<Self> {
        Self::new(file.parent().unwrap_or(Path::new("")), anywhere)
    }

    /// A folder without files, for descriptions that come without one.
    pub fn nowhere() -> Self {
        Self { root: PathBuf::from("/nonexistent"), anywhere: false, members: None }
    }

    /// A folder of an archive.
    pub fn in_archive(archive: &Archive, root: &Path) -> Self {
        let members = archive.names().map(|name| archive.locate(name)).collect();
        Self { root: root.to_owned(), anywhere: false, members: Some(members) }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A file that the description names, as it is written there: relative or absolute, with the separators
    /// of any system. One that is not where it is said to be is looked for by its own name in the folder and in
    /// those `beside`, since VMs are moved as a folder.
    pub fn locate(&self, written: &str, beside: &[&str]) -> FileRef {
        // A longer one cannot be a path; it would be kept for each image that names it.
        let shown: String = written.chars().take(LONGEST_PATH).collect();
        let refused = FileRef::new(&shown, None, FileState::Refused);
        if written.is_empty() || written.contains('\0') || written.len() > LONGEST_PATH {
            return FileRef { state: FileState::Missing, ..refused };
        }
        let mut native = to_native(written);
        let mut found = FileState::Present;
        // Windows' drives and servers are not this computer's: the name alone counts.
        if is_of_windows(written) {
            let Some(name) = native.file_name() else {
                return FileRef { state: FileState::Missing, ..refused };
            };
            (native, found) = (PathBuf::from(name), FileState::Moved);
        }
        let said = self.root.join(&native);
        if let Some(members) = &self.members {
            let find = |path: &Path| {
                members.iter().find(|member| Path::new(&member.written) == path).cloned()
            };
            let own = |folder| find(&self.root.join(folder).join(native.file_name()?));
            let found = find(&said).or_else(|| around(beside).find_map(own));
            return found.unwrap_or_else(|| FileRef::new(written, None, FileState::Missing));
        }
        let outside = match self.resolve(&said) {
            Resolved::Inside(path) => return FileRef::new(written, Some(path), found),
            Resolved::Outside => true,
            Resolved::Missing => leaves(&native),
        };
        if let Some(name) = native.file_name() {
            for folder in around(beside) {
                let path = self.root.join(folder).join(name);
                if path != said
                    && let Resolved::Inside(path) = self.resolve(&path)
                {
                    return FileRef::new(written, Some(path), FileState::Moved);
                }
            }
        }
        // Where it would be is told, so that whoever runs the VM can say that it may be used.
        let state = if outside && !self.anywhere { FileState::Refused } else { FileState::Missing };
        FileRef::new(written, Some(said), state)
    }

    /// A file that may lie anywhere, since whoever runs the VM named it.
    pub fn trusted(&self, path: &Path) -> FileRef {
        let said = self.root.join(path);
        let state = if said.exists() { FileState::Present } else { FileState::Missing };
        FileRef::new(&path.display().to_string(), Some(said), state)
    }

    /// A file of this name in the folder, if it is there.
    pub fn find(&self, name: impl AsRef<Path>) -> Option<PathBuf> {
        match self.resolve(&self.root.join(name)) {
            Resolved::Inside(path) => Some(path),
            _ => None,
        }
    }

    /// The names of what is in the folder, sorted; so many at most.
    pub fn names(&self) -> Result<Vec<String>> {
        let reading = |source| Error::Read { path: self.root.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(reading)?.take(MOST_NAMES) {
            let name = entry.map_err(reading)?.file_name();
            names.extend(name.into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn resolve(&self, path: &Path) -> Resolved {
        match std::fs::canonicalize(path) {
            Ok(path) if self.anywhere || path.starts_with(&self.root) => Resolved::Inside(path),
            Ok(_) => Resolved::Outside,
            Err(_) => Resolved::Missing,
        }
    }
}

/// Where a file that was moved with its folder may be.
fn around<'a>(beside: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    std::iter::once("").chain(beside.iter().copied())
}

enum Resolved {
    Inside(PathBuf),
    Outside,
    Missing,
}

/// Linux's PATH_MAX.
const LONGEST_PATH: usize = 4096;
/// A folder with more is not a VM's.
const MOST_NAMES: usize = 10_000;

/// A path that begins with a drive (`C:\VMs\disk.vhdx`) or a server.
fn is_of_windows(written: &str) -> bool {
    let mut letters = written.chars();
    let has_drive = letters.next().is_some_and(|letter| letter.is_ascii_alphabetic())
        && letters.next() == Some(':')
        && matches!(letters.next(), Some('\\' | '/'));
    has_drive || written.starts_with("\\\\")
}

/// A path of Windows (`C:\VMs\disk.vhdx`, `..\disk.vhdx`) or of Unix as one of Unix.
fn to_native(written: &str) -> PathBuf {
    if is_of_windows(written) || (written.contains('\\') && !written.contains('/')) {
        return PathBuf::from(written.replace('\\', "/"));
    }
    PathBuf::from(written)
}

/// Whether a path leads out of where it starts, whatever there is.
fn leaves(path: &Path) -> bool {
    let mut depth = 0_i32;
    for component in path.components() {
        match component {
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::RootDir | Component::Prefix(_) => return true,
            Component::CurDir => {}
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_refused_unless_told() {
        let base = tempfile::tempdir().unwrap();
        let vm = base.path().join("vm");
        std::fs::create_dir_all(vm.join("Virtual Hard Disks")).unwrap();
        std::fs::write(base.path().join("secret"), "").unwrap();
        std::fs::write(vm.join("disk.vmdk"), "").unwrap();
        std::fs::write(vm.join("Virtual Hard Disks/c.vhdx"), "").unwrap();
        std::os::unix::fs::symlink("../secret", vm.join("link")).unwrap();
        let folder = Folder::new(&vm, false).unwrap();
        let state = |written: &str| folder.locate(written, &["Virtual Hard Disks"]).state;
        assert_eq!(state("disk.vmdk"), FileState::Present);
        assert_eq!(state("./Virtual Hard Disks/../disk.vmdk"), FileState::Present);
        assert_eq!(state("../secret"), FileState::Refused);
        assert_eq!(state("link"), FileState::Refused);
        assert_eq!(state("/etc/passwd"), FileState::Refused);
        assert_eq!(state("../nothing"), FileState::Refused);
        assert_eq!(state("nothing"), FileState::Missing);
        assert_eq!(state("a\0b"), FileState::Missing);
        assert_eq!(state(&"/a".repeat(10_000)), FileState::Missing);
        assert_eq!(state("C:\\VMs\\Virtual Hard Disks\\c.vhdx"), FileState::Moved);
        assert_eq!(state("\\\\server\\share\\c.vhdx"), FileState::Moved);
        assert_eq!(state("/vmfs/volumes/ds/vm/disk.vmdk"), FileState::Moved);
        assert_eq!(state("C:\\etc\\passwd"), FileState::Missing);
        assert_eq!(state("C:\\..\\.."), FileState::Missing);
        assert_eq!(state("C:\\x\\disk.vmdk"), FileState::Moved);
        let told = Folder::new(&vm, true).unwrap();
        assert_eq!(told.locate("C:\\etc\\passwd", &[]).state, FileState::Missing);
        assert_eq!(told.locate("../secret", &[]).state, FileState::Present);
        assert_eq!(told.locate("link", &[]).state, FileState::Present);
    }
}
