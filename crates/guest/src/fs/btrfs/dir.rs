//! Entries of folders.

use super::tree::Key;
use super::{Btrfs, EMPTY_FOLDER, FIRST_INODE, INODE_ITEM, Id, ROOT_ITEM, damaged};
use crate::Result;
use crate::fs::Kind;
use crate::volume::at;

/// An entry of a folder.
pub struct DirItem<'a> {
    pub name: &'a [u8],
    pub id: Id,
    pub is_subvolume: bool,
    pub kind: Kind,
}

impl<'a> DirItem<'a> {
    /// The first one in `bytes`, whose entries lead into `tree` unless they are subvolumes, and the rest.
    pub fn of(bytes: &'a [u8], tree: u64) -> Option<(Self, &'a [u8])> {
        let object = at::le64(bytes, 0)?;
        let is_subvolume = at::u8(bytes, 8)? == ROOT_ITEM;
        let (data, length) = (usize::from(at::le16(bytes, 25)?), usize::from(at::le16(bytes, 27)?));
        let kind = match at::u8(bytes, 29)? {
            1 => Kind::File,
            2 => Kind::Folder,
            7 => Kind::Link,
            _ => Kind::Other,
        };
        let name = bytes.get(30..)?.get(..length)?;
        let id = if is_subvolume { (object, FIRST_INODE) } else { (tree, object) };
        Some((Self { name, id, is_subvolume, kind }, bytes.get(30 + length + data..)?))
    }
}

/// An entry of a folder as it is in a tree.
pub fn dir_item(inode: u64, kind: Kind, name: &[u8]) -> Vec<u8> {
    let mut item = inode.to_le_bytes().to_vec();
    item.push(INODE_ITEM);
    item.extend([0; 18]);
    item.extend((name.len() as u16).to_le_bytes());
    item.push(match kind {
        Kind::File => 1,
        Kind::Folder => 2,
        Kind::Link => 7,
        Kind::Other => 5,
    });
    item.extend(name);
    item
}

impl Btrfs {
    /// What an entry leads to: a subvolume only from the folder that it was made in, not from snapshots of that.
    pub(super) fn target_of(&self, tree: u64, item: &DirItem<'_>) -> Result<Id> {
        const ROOT_REF: u8 = 156;
        if !item.is_subvolume {
            return Ok(item.id);
        }
        let wanted = Key::new(tree, ROOT_REF, item.id.0);
        let mut is_there = false;
        self.each_item(self.root_tree, wanted, &mut |key, _| {
            is_there = *key == wanted;
            Ok(false)
        })?;
        Ok(if is_there { item.id } else { (tree, EMPTY_FOLDER) })
    }

    /// The entries of a folder that the log has changed.
    pub(super) fn logged_entries(
        &self,
        (tree, inode): Id,
    ) -> Option<impl Iterator<Item = DirItem<'_>>> {
        let entries = self.changes.get(&tree)?.folders.get(&inode)?;
        Some(entries.values().filter_map(move |item| Some(DirItem::of(item, tree)?.0)))
    }

    /// The entries of a folder from `from` on, as long as their keys have this kind and `visit` wants more.
    pub(super) fn each_entry(
        &self,
        (tree, inode): Id,
        from: Key,
        visit: &mut dyn FnMut(&Key, DirItem<'_>) -> Result<bool>,
    ) -> Result<()> {
        let root = self.subvolume(tree)?;
        self.each_item(root, from, &mut |key, item| {
            if (key.object, key.kind) != (inode, from.kind) {
                return Ok(false);
            }
            let mut rest = item;
            while !rest.is_empty() {
                let (item, after) = DirItem::of(rest, tree).ok_or_else(|| damaged("a folder"))?;
                if !visit(key, item)? {
                    return Ok(false);
                }
                rest = after;
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_made() {
        let item = dir_item(300, Kind::Link, b"name");
        let (entry, rest) = DirItem::of(&item, 7).unwrap();
        assert_eq!((entry.name, entry.id, entry.is_subvolume), (&b"name"[..], (7, 300), false));
        assert!(entry.kind == Kind::Link && rest.is_empty());
    }
}
