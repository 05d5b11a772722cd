//! Paths over file systems that know files by number.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Entry, FileSystem, Kind, MAX_IN_MEMORY, Metadata};
use crate::volume::{Memory, Volume};
use crate::{Error, Result};

/// Longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;
/// Folders that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// A file system that knows files by number, or whatever stands for one.
pub trait Nodes {
    /// What stands for a file.
    type Id: Clone;

    fn kind(&self) -> &'static str;
    fn uuid(&self) -> Option<String>;
    fn label(&self) -> Option<String>;
    fn root(&self) -> Self::Id;
    fn child(&self, folder: &Self::Id, name: &str) -> Result<Option<Self::Id>>;
    fn list(&self, folder: &Self::Id) -> Result<Vec<Entry>>;
    fn stat(&self, file: &Self::Id) -> Result<Metadata>;
    /// The first `length` bytes, which is all of it.
    fn content(&self, file: &Self::Id, length: u64) -> Result<Vec<u8>>;
    fn target(&self, link: &Self::Id, length: u64) -> Result<Vec<u8>> {
        self.content(link, length)
    }
    /// A file's content, where that lies in one piece after another on the volume.
    fn pieces(&self, _file: &Self::Id) -> Result<Option<Arc<dyn Volume>>> {
        Ok(None)
    }
    fn default_folder(&self) -> String {
        "/".into()
    }
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The same with paths.
pub struct Walk<N: Nodes> {
    nodes: N,
    /// Folders by path: those of modules are passed thousands of times.
    folders: RefCell<HashMap<String, N::Id>>,
}

impl<N: Nodes> Walk<N> {
    pub fn new(nodes: N) -> Self {
        Self { nodes, folders: RefCell::default() }
    }

    fn find(&self, path: &str) -> Result<N::Id> {
        let path = path.trim_end_matches('/');
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(self.nodes.root()) };
        let folder = self.folder(parent)?;
        let missing = || Error::NotFound(path.to_owned());
        self.nodes.child(&folder, name)?.ok_or_else(missing)
    }

    fn folder(&self, path: &str) -> Result<N::Id> {
        if path.is_empty() {
            return Ok(self.nodes.root());
        }
        if let Some(known) = self.folders.borrow().get(path) {
            return Ok(known.clone());
        }
        // Not by recursion: a path can be long.
        let mut found = self.nodes.root();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let missing = || Error::NotFound(path.to_owned());
            found = self.nodes.child(&found, name)?.ok_or_else(missing)?;
        }
        if self.nodes.stat(&found)?.kind != Kind::Folder {
            return Err(Error::Kind { path: path.to_owned(), expected: "a folder" });
        }
        let mut folders = self.folders.borrow_mut();
        if folders.len() < MAX_REMEMBERED {
            folders.insert(path.to_owned(), found.clone());
        }
        Ok(found)
    }

    fn of_kind(&self, path: &str, kind: Kind, expected: &'static str) -> Result<(N::Id, u64)> {
        let file = self.find(path)?;
        let metadata = self.nodes.stat(&file)?;
        if metadata.kind != kind {
            return Err(Error::Kind { path: path.to_owned(), expected });
        }
        Ok((file, metadata.length))
    }
}

impl<N: Nodes> FileSystem for Walk<N> {
    fn kind(&self) -> &'static str {
        self.nodes.kind()
    }

    fn uuid(&self) -> Option<String> {
        self.nodes.uuid()
    }

    fn label(&self) -> Option<String> {
        self.nodes.label().filter(|label| !label.is_empty())
    }

    fn read_dir(&self, path: &str) -> Result<Vec<Entry>> {
        let (folder, _) = self.of_kind(path, Kind::Folder, "a folder")?;
        self.nodes.list(&folder)
    }

    fn metadata(&self, path: &str) -> Result<Metadata> {
        self.nodes.stat(&self.find(path)?)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let (file, length) = self.of_kind(path, Kind::File, "a file")?;
        if length > limit {
            return Err(Error::TooLarge { path: path.to_owned(), limit });
        }
        self.nodes.content(&file, length)
    }

    fn open_file(&self, path: &str) -> Result<Arc<dyn Volume>> {
        let (file, _) = self.of_kind(path, Kind::File, "a file")?;
        match self.nodes.pieces(&file)? {
            Some(volume) => Ok(volume),
            None => Ok(Arc::new(Memory(self.read(path, MAX_IN_MEMORY)?))),
        }
    }

    fn read_link(&self, path: &str) -> Result<String> {
        let (link, length) = self.of_kind(path, Kind::Link, "a symbolic link")?;
        if length > MAX_TARGET {
            return Err(Error::TooLarge { path: path.to_owned(), limit: MAX_TARGET });
        }
        Ok(String::from_utf8_lossy(&self.nodes.target(&link, length)?).into_owned())
    }

    fn default_folder(&self) -> String {
        self.nodes.default_folder()
    }

    fn notes(&self) -> Vec<String> {
        self.nodes.notes()
    }
}
