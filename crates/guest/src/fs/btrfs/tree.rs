//! B-trees: sorted items, found by their keys.

use std::rc::Rc;

use super::{Btrfs, MAX_CACHED, damaged};
use crate::Result;
use crate::volume::at;

const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Deepest tree.
const MAX_LEVEL: u8 = 7;
/// Most items that one walk sees.
const MAX_ITEMS: u32 = 1 << 24;

/// By what an item is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub const LENGTH: usize = 17;
    pub const MIN: Self = Self::new(0, 0, 0);

    pub const fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    pub fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self::new(at::le64(bytes, 0)?, at::u8(bytes, 8)?, at::le64(bytes, 9)?))
    }
}

/// Where a tree begins.
#[derive(Clone, Copy)]
pub struct Root {
    pub address: u64,
    pub level: u8,
}

impl Root {
    /// That of a tree in the tree of trees.
    pub fn of_item(item: &[u8]) -> Option<Self> {
        Some(Self { address: at::le64(item, 176)?, level: at::u8(item, 238)? })
    }
}

/// Sees items in their order until it returns false.
type Visit<'a> = dyn FnMut(&Key, &[u8]) -> Result<bool> + 'a;

impl Btrfs {
    /// Shows the items of a tree from `from` on to `visit`.
    pub(super) fn each_item(&self, root: Root, from: Key, visit: &mut Visit<'_>) -> Result<()> {
        if root.level > MAX_LEVEL {
            return Err(damaged("a tree"));
        }
        let mut left = MAX_ITEMS;
        self.each_below(root, from, visit, &mut left)?;
        Ok(())
    }

    fn each_below(
        &self,
        root: Root,
        from: Key,
        visit: &mut Visit<'_>,
        left: &mut u32,
    ) -> Result<bool> {
        let bad = || damaged("a tree");
        let node = self.node(root)?;
        let count = at::le32(&node, 96).ok_or_else(bad)? as usize;
        let entry = if root.level == 0 { ITEM } else { POINTER };
        let entries = node.get(HEADER..).unwrap_or_default();
        if count > entries.len() / entry {
            return Err(bad());
        }
        let key_at = |index: usize| Key::of(&entries[index * entry..]).unwrap_or(Key::MIN);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if key_at(middle) < from { low = middle + 1 } else { high = middle }
        }
        // What is looked for may be below the entry before the first larger one.
        let first = if root.level == 0 || low < count && key_at(low) == from {
            low
        } else {
            low.saturating_sub(1)
        };
        for index in first..count {
            *left = left.checked_sub(1).ok_or_else(bad)?;
            let bytes = &entries[index * entry..][..entry];
            let goes_on = if root.level == 0 {
                let (offset, size) =
                    at::le32(bytes, 17).zip(at::le32(bytes, 21)).ok_or_else(bad)?;
                let item =
                    entries.get(offset as usize..).and_then(|rest| rest.get(..size as usize));
                visit(&key_at(index), item.ok_or_else(bad)?)?
            } else {
                let address = at::le64(bytes, Key::LENGTH).ok_or_else(bad)?;
                let below = Root { address, level: root.level - 1 };
                self.each_below(below, from, visit, left)?
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A block of a tree, which says itself where it belongs.
    fn node(&self, root: Root) -> Result<Rc<Vec<u8>>> {
        if let Some(known) = self.cache.borrow().get(&root.address)
            && at::u8(known, 100) == Some(root.level)
        {
            return Ok(Rc::clone(known));
        }
        let mut node = vec![0; self.node_size];
        self.read_at(&mut node, root.address)?;
        let node = Rc::new(node);
        // A level less each time, so that no tree leads back to itself.
        if at::le64(&node, 48) != Some(root.address) || at::u8(&node, 100) != Some(root.level) {
            return Err(damaged("a tree"));
        }
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(root.address, Rc::clone(&node));
        Ok(node)
    }
}
