//! A file system of a few files in memory, for tests and fuzz targets.

use std::collections::BTreeMap;

use crate::fs::{Entry, FileSystem, Kind, Metadata};
use crate::{Error, Result};

/// Files by path; a content `-> target` is a symbolic link.
#[derive(Default)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn of_bytes(files: &[(&str, &[u8])]) -> Self {
        Self(files.iter().map(|(path, bytes)| ((*path).into(), (*bytes).into())).collect())
    }

    #[cfg(test)]
    pub fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect())
    }

    #[cfg(test)]
    pub fn tree(files: &[(&str, &str)]) -> crate::Tree {
        crate::Tree::new(std::rc::Rc::new(Self::new(files)), "/")
    }

    fn target(&self, path: &str) -> Option<String> {
        let text = std::str::from_utf8(self.0.get(path)?).ok()?;
        text.strip_prefix("-> ").map(str::to_owned)
    }
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn uuid(&self) -> Option<String> {
        Some("0123-4567".into())
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn read_dir(&self, path: &str) -> Result<Vec<Entry>> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let mut names: Vec<String> = self
            .0
            .keys()
            .filter_map(|key| Some(key.strip_prefix(&prefix)?.split('/').next()?.to_owned()))
            .collect();
        names.dedup();
        let entry = |name: String| {
            let kind = self.metadata(&format!("{prefix}{name}"))?.kind;
            Ok(Entry { name, kind })
        };
        names.into_iter().map(entry).collect()
    }

    fn metadata(&self, path: &str) -> Result<Metadata> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let (kind, length) = match self.0.get(path) {
            Some(_) if self.target(path).is_some() => (Kind::Link, 0),
            Some(content) => (Kind::File, content.len() as u64),
            None if path == "/" => (Kind::Folder, 0),
            None if self.0.keys().any(|key| key.starts_with(&prefix)) => (Kind::Folder, 0),
            None => return Err(Error::NotFound(path.into())),
        };
        Ok(Metadata { kind, length, mode: 0o644 })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let content = self.0.get(path).ok_or_else(|| Error::NotFound(path.into()))?;
        if content.len() as u64 > limit {
            return Err(Error::TooLarge { path: path.into(), limit });
        }
        Ok(content.clone())
    }

    /// The content of a file that no path leads to.
    fn default_folder(&self) -> String {
        self.0
            .get("default folder")
            .map_or("/".into(), |folder| String::from_utf8_lossy(folder).into_owned())
    }

    fn read_link(&self, path: &str) -> Result<String> {
        self.target(path).ok_or_else(|| Error::NotFound(path.into()))
    }
}
