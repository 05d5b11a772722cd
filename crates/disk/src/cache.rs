//! A bounded store of what was read lately: pages of tables, unpacked grains.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::Result;
use crate::source::{Source, truncated};

/// Values by number, of each set those that were used lately. Who finds a value keeps nobody else from finding one.
pub(crate) struct Cache<V: ?Sized> {
    sets: Box<[RwLock<Vec<Slot<V>>>]>,
    ways: usize,
}

struct Slot<V: ?Sized> {
    key: u64,
    /// Since a value was last thrown out of the set.
    is_used: AtomicBool,
    value: Box<V>,
}

impl<V: ?Sized> Cache<V> {
    pub fn new(sets: usize, ways: usize) -> Self {
        let sets = (0..sets.max(1)).map(|_| RwLock::default()).collect();
        Self { sets, ways: ways.max(1) }
    }

    fn set(&self, key: u64) -> &RwLock<Vec<Slot<V>>> {
        // The sets are few, so the remainder fits.
        &self.sets[(key % self.sets.len() as u64) as usize]
    }

    /// Calls `look` with the value, if it is there.
    pub fn with<T>(&self, key: u64, look: impl FnOnce(&V) -> T) -> Option<T> {
        let set = self.set(key).read().unwrap_or_else(PoisonError::into_inner);
        let entry = set.iter().find(|entry| entry.key == key)?;
        // Not written when it is set already: the other processors would have to load it again.
        if !entry.is_used.load(Ordering::Relaxed) {
            entry.is_used.store(true, Ordering::Relaxed);
        }
        Some(look(&entry.value))
    }

    pub fn insert(&self, key: u64, value: Box<V>) {
        let mut set = self.set(key).write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|entry| entry.key != key);
        if set.len() >= self.ways {
            let unused = set.iter_mut().position(|entry| !*entry.is_used.get_mut());
            set.remove(unused.unwrap_or(0));
            set.iter_mut().for_each(|entry| *entry.is_used.get_mut() = false);
        }
        set.push(Slot { key, is_used: AtomicBool::new(true), value });
    }

    pub fn remove(&self, key: u64) {
        let mut set = self.set(key).write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|entry| entry.key != key);
    }
}

/// Bytes of one page of tables, unless a format chooses.
const PAGE: usize = 64 << 10;

/// Pages of tables that are kept take at most this much memory, or four pages where that is more.
const PAGES_BYTES: usize = 4 << 20;

/// When a change of a table must reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Before whatever refers to it: counts of references, tables that nothing leads to yet.
    First,
    /// After all that.
    Second,
}

/// A source's tables, read in pages of which few are kept: however large a table a header claims, it
/// takes no more memory. Changed pages stay in memory until they are taken to be written.
pub(crate) struct Tables {
    source: Arc<dyn Source>,
    page_size: usize,
    pages: Cache<[u8]>,
    changed: RwLock<BTreeMap<u64, Changed>>,
    /// Tables that never were need not be looked for among the changed ones.
    was_changed: AtomicBool,
}

/// A page that is to be written.
struct Changed {
    stage: Stage,
    page: Vec<u8>,
    /// What of it: the rest may be none of the tables' business.
    part: Range<usize>,
}

impl Tables {
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self::with_pages(source, PAGE)
    }

    /// With pages of a certain size, the unit in which changes are kept.
    pub fn with_pages(source: Arc<dyn Source>, page_size: usize) -> Self {
        let ways = 4;
        let sets = (PAGES_BYTES / page_size / ways).clamp(1, 256);
        Self {
            source,
            page_size,
            pages: Cache::new(sets, ways),
            changed: RwLock::default(),
            was_changed: AtomicBool::new(false),
        }
    }

    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Calls `look` with what the page that holds the byte at `offset` has from there.
    fn with_page<T>(&self, offset: u64, mut look: impl FnMut(&[u8]) -> T) -> Result<T> {
        let size = self.page_size as u64;
        let (number, within) = (offset / size, (offset % size) as usize);
        if self.was_changed.load(Ordering::Acquire) {
            let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(changed) = changed.get(&number) {
                return Ok(look(&changed.page[within..]));
            }
        }
        // A page that was the file's last may be longer now.
        let mut look_there = |page: &[u8]| (within < page.len()).then(|| look(&page[within..]));
        if let Some(Some(found)) = self.pages.with(number, &mut look_there) {
            return Ok(found);
        }
        let page = self.load(number)?;
        let found = look_there(&page).ok_or_else(|| truncated(&*self.source, offset, 1))?;
        self.pages.insert(number, page.into());
        Ok(found)
    }

    fn load(&self, number: u64) -> Result<Vec<u8>> {
        let start = number * self.page_size as u64;
        let there = self.source.len().saturating_sub(start).min(self.page_size as u64);
        let mut bytes = vec![0; there as usize];
        self.source.read_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// Fills `buffer` from `offset`.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset
                .checked_add(done as u64)
                .ok_or_else(|| truncated(&*self.source, offset, buffer.len()))?;
            let rest = &mut buffer[done..];
            done += self.with_page(at, |page| {
                let count = page.len().min(rest.len());
                rest[..count].copy_from_slice(&page[..count]);
                count
            })?;
        }
        Ok(())
    }

    fn array<const N: usize>(&self, table: u64, index: u64) -> Result<[u8; N]> {
        let offset = index.checked_mul(N as u64).and_then(|within| table.checked_add(within));
        let offset = offset.ok_or_else(|| truncated(&*self.source, table, N))?;
        let mut bytes = [0; N];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Entry `index` of a table of little-endian entries of 32 bits.
    pub fn le32(&self, table: u64, index: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(table, index)?))
    }

    /// Entry `index` of a table of little-endian entries of 64 bits.
    pub fn le64(&self, table: u64, index: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(table, index)?))
    }

    /// Entry `index` of a table of big-endian entries of 32 bits.
    pub fn be32(&self, table: u64, index: u64) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(table, index)?))
    }

    /// Entry `index` of a table of big-endian entries of 64 bits.
    pub fn be64(&self, table: u64, index: u64) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array(table, index)?))
    }

    /// Changes bytes within one page. A page stays in the first stage that it was changed in unless it
    /// has been written since: who asks for the first knows that nothing on the disk refers to it.
    pub fn change(&self, offset: u64, bytes: &[u8], stage: Stage) -> Result<()> {
        let size = self.page_size as u64;
        let (number, within) = (offset / size, (offset % size) as usize);
        self.was_changed.store(true, Ordering::Release);
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        let part = within..within + bytes.len();
        let changed = match changed.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut page = self.load(number)?;
                // The file may end within it.
                page.resize(self.page_size, 0);
                entry.insert(Changed { stage, page, part: part.clone() })
            }
        };
        changed.page[part.clone()].copy_from_slice(bytes);
        changed.part = changed.part.start.min(part.start)..changed.part.end.max(part.end);
        Ok(())
    }

    /// A new page with this content, whatever the file holds there.
    pub fn begin(&self, offset: u64, content: Vec<u8>) {
        let number = offset / self.page_size as u64;
        self.was_changed.store(true, Ordering::Release);
        self.pages.remove(number);
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        let part = 0..content.len();
        changed.insert(number, Changed { stage: Stage::First, page: content, part });
    }

    /// How many pages are changed.
    pub fn changes(&self) -> usize {
        self.changed.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Writes the changed pages of a stage, in the file's order. They are forgotten only once written.
    pub fn write_back(&self, stage: Stage) -> Result<()> {
        let numbers: Vec<u64> = {
            let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
            let staged = changed.iter().filter(|(_, page)| page.stage == stage);
            staged.map(|(number, _)| *number).collect()
        };
        self.write_pages(&numbers)
    }

    /// Writes changed pages by their numbers.
    pub fn write_pages(&self, numbers: &[u64]) -> Result<()> {
        let writable = self.source.writable().ok_or(crate::Error::ReadOnly)?;
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        for &number in numbers {
            if let Some(Changed { page, part, .. }) = changed.get(&number) {
                let offset = number * self.page_size as u64 + part.start as u64;
                writable.write_at(&page[part.clone()], offset)?;
            }
            if let Some(Changed { page, .. }) = changed.remove(&number) {
                self.pages.insert(number, page.into());
            }
        }
        Ok(())
    }

    /// The first `most` changed pages with their offsets, to be written to a log before
    /// [`write_pages`](Self::write_pages).
    pub fn changed_pages(&self, most: usize) -> Vec<(u64, Vec<u8>)> {
        let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
        let pages = changed.iter().take(most);
        pages.map(|(number, it)| (number * self.page_size as u64, it.page.clone())).collect()
    }

    /// Forgets the unchanged pages of a range that was written past them.
    pub fn forget_clean(&self, offset: u64, length: u64) {
        let size = self.page_size as u64;
        for number in offset / size..offset.saturating_add(length).div_ceil(size) {
            self.pages.remove(number);
        }
    }

    /// Forgets a page whose bytes are no table any more.
    pub fn forget(&self, offset: u64) {
        let number = offset / self.page_size as u64;
        self.pages.remove(number);
        self.changed.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}
