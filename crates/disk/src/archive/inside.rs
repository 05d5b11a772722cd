//! A file in an archive, whose image may name others beside it: the extents of a VMDK.

use std::path::PathBuf;
use std::sync::Arc;

use super::tar::Member;
use crate::source::{PartSource, RemoteSource, Source};
use crate::{Error, Result};

/// What is in an archive.
#[derive(Debug)]
pub(super) struct Contents {
    pub source: Arc<dyn Source>,
    pub members: Vec<Member>,
    /// That of the archive.
    pub path: PathBuf,
}

/// A file in it.
#[derive(Debug)]
pub(super) struct Inside {
    contents: Arc<Contents>,
    name: String,
    part: PartSource,
}

impl Contents {
    /// The bytes of the file with this name.
    pub fn part(&self, name: &str) -> Option<PartSource> {
        let found = self.members.iter().find(|member| *member.name == *name)?;
        let range = found.offset..found.offset + found.length;
        Some(PartSource::new(Arc::clone(&self.source), range))
    }
}

impl Inside {
    /// The file with this name.
    pub fn new(contents: &Arc<Contents>, name: &str) -> Option<Self> {
        let part = contents.part(name)?;
        Some(Self { contents: Arc::clone(contents), name: name.to_owned(), part })
    }
}

impl Source for Inside {
    fn len(&self) -> u64 {
        self.part.len()
    }

    fn name(&self) -> Option<String> {
        self.name.rsplit('/').next().map(str::to_owned)
    }

    fn version(&self) -> Option<String> {
        self.part.version()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.part.read_at(buffer, offset)
    }
}

impl RemoteSource for Inside {
    fn address(&self) -> String {
        self.contents.path.join(&self.name).display().to_string()
    }

    fn state(&self) -> Option<String> {
        self.version()
    }

    fn sibling(&self, name: &str) -> Result<Arc<dyn RemoteSource>> {
        // It is compared with names, and never a path.
        let folder = self.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let beside = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let found = Self::new(&self.contents, &beside);
        Ok(Arc::new(found.ok_or_else(|| Error::NotFound { name: name.to_owned() })?))
    }
}
