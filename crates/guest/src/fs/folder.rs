//! Folders of file systems that show their entries one after another.

use super::{Entry, Kind, MAX_ENTRIES};
use crate::Result;

/// A name in a folder.
pub struct DirEntry<'a, I> {
    pub name: &'a [u8],
    /// What stands for the file.
    pub inode: I,
    /// Not all versions say it.
    pub kind: Option<Kind>,
}

/// Looks at an entry, and says whether more are wanted.
pub type Visit<'a, I> = dyn FnMut(DirEntry<'_, I>) -> Result<bool> + 'a;

/// The file with this name in the folder that `each_entry` shows.
pub fn child<I: Copy>(
    name: &str,
    each_entry: impl FnOnce(&mut Visit<'_, I>) -> Result<()>,
) -> Result<Option<I>> {
    let mut found = None;
    each_entry(&mut |entry| {
        if entry.name == name.as_bytes() {
            found = Some(entry.inode);
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// What is in the folder that `each_entry` shows; `kind_of` a file is asked where the entry does not say it.
pub fn list<I: Copy>(
    kind_of: impl Fn(I) -> Result<Kind>,
    each_entry: impl FnOnce(&mut Visit<'_, I>) -> Result<()>,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    each_entry(&mut |entry| {
        let kind = match entry.kind {
            Some(kind) => kind,
            None => kind_of(entry.inode)?,
        };
        entries.push(Entry { name: String::from_utf8_lossy(entry.name).into(), kind });
        Ok(entries.len() < MAX_ENTRIES)
    })?;
    Ok(entries)
}
