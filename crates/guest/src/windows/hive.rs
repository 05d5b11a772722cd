//! Registry hives, read-only (the format is not documented by Microsoft: "Windows registry file format specification",
//! Maxim Suhanov). All numbers are little-endian; places are counted from the first bin, 4 KiB into the file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::volume::{Patched, Volume, at, read, read_up_to};
use crate::{Error, Result};

const PAGE: u64 = 4096;
/// Longest cell that is read.
const MAX_CELL: usize = 1 << 20;
/// Most names in one key.
const MAX_NAMES: usize = 1 << 16;
/// Pages that are kept.
const MAX_CACHED: usize = 4096;
/// Largest transaction log.
const MAX_LOG: usize = 64 << 20;
/// Bytes in each segment of a long value.
const SEGMENT: usize = 16344;

/// `REG_SZ` and `REG_EXPAND_SZ`, texts.
const TEXT: [u32; 2] = [1, 2];
/// `REG_DWORD`.
const NUMBER: u32 = 4;

/// An opened hive.
pub struct Hive {
    file: Arc<dyn Volume>,
    root: u32,
    is_dirty: bool,
    pages: RefCell<HashMap<u64, Rc<Vec<u8>>>>,
}

/// A key.
#[derive(Clone)]
pub struct Key {
    cell: Rc<Vec<u8>>,
}

/// A value of a key.
pub struct Value {
    pub name: String,
    kind: u32,
    data: Vec<u8>,
    /// Where in the file its data is, if that is in the value itself.
    inline: Option<u64>,
}

impl Value {
    /// A text.
    pub fn text(&self) -> Option<String> {
        TEXT.contains(&self.kind).then(|| utf16(&self.data))
    }

    /// A number of 32 bits, and where in the file it is.
    pub fn number(&self) -> Option<u32> {
        (self.kind == NUMBER && self.data.len() == 4).then(|| at::le32(&self.data, 0))?
    }

    /// Where in the file a number is.
    pub fn place(&self) -> Option<u64> {
        self.number().and(self.inline)
    }
}

impl Hive {
    /// Opens a hive. What its transaction logs hold beyond it is put over it in memory.
    pub fn open(file: Arc<dyn Volume>, logs: &[Arc<dyn Volume>]) -> Result<Self> {
        let header = read(&*file, 0, PAGE as usize)?;
        if !header.starts_with(b"regf") {
            return Err(damaged("its header"));
        }
        let word = |place| at::le32(&header, place).unwrap_or(0);
        let is_dirty = word(4) != word(8);
        let file = if is_dirty { replayed(file, logs, word(8))? } else { file };
        Ok(Self { file, root: word(36), is_dirty, pages: RefCell::default() })
    }

    /// It was not written to its end: Windows was not shut down.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// The file that it is read from.
    pub fn file(&self) -> &dyn Volume {
        &*self.file
    }

    /// The key at a path, whose parts are separated by `\`; `None` if there is none.
    pub fn key(&self, path: &str) -> Result<Option<Key>> {
        let mut key = Key::of(self.cell(self.root)?)?;
        for name in path.split('\\').filter(|name| !name.is_empty()) {
            match self.subkey(&key, name)? {
                Some(found) => key = found,
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    /// The key below another one with this name, whatever its case.
    fn subkey(&self, key: &Key, name: &str) -> Result<Option<Key>> {
        let wanted = hash_of(name);
        for (place, hash) in self.subkey_places(key)? {
            if hash.is_some_and(|hash| hash != wanted) {
                continue;
            }
            let found = Key::of(self.cell(place)?)?;
            if found.name().to_uppercase() == name.to_uppercase() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The names of the keys below a key.
    pub fn names(&self, key: &Key) -> Result<Vec<String>> {
        let places = self.subkey_places(key)?.into_iter();
        places.map(|(place, _)| Ok(Key::of(self.cell(place)?)?.name())).collect()
    }

    /// Where the keys below a key are, with the hashes of their names where the list has them.
    fn subkey_places(&self, key: &Key) -> Result<Vec<(u32, Option<u32>)>> {
        let bad = || damaged("a list of keys");
        if key.word(20) == 0 {
            return Ok(Vec::new());
        }
        let mut lists = vec![self.cell(key.word(28))?];
        if lists[0].starts_with(b"ri") {
            let count = usize::from(at::le16(&lists[0], 2).ok_or_else(bad)?);
            let list = lists.remove(0);
            for index in 0..count {
                lists.push(self.cell(at::le32(&list, 4 + index * 4).ok_or_else(bad)?)?);
            }
        }
        let mut places = Vec::new();
        for list in lists {
            let step = match list.get(..2) {
                Some(b"lf" | b"lh") => 8,
                Some(b"li") => 4,
                _ => return Err(bad()),
            };
            let count = usize::from(at::le16(&list, 2).ok_or_else(bad)?);
            for index in 0..count {
                let place = at::le32(&list, 4 + index * step).ok_or_else(bad)?;
                let hash = at::le32(&list, 8 + index * step).filter(|_| list.starts_with(b"lh"));
                places.push((place, hash));
            }
            if places.len() > MAX_NAMES {
                return Err(bad());
            }
        }
        Ok(places)
    }

    /// The values of a key.
    pub fn values(&self, key: &Key) -> Result<Vec<Value>> {
        let bad = || damaged("a list of values");
        let count = key.word(36) as usize;
        if count == 0 {
            return Ok(Vec::new());
        }
        let list = self.cell(key.word(40))?;
        if count > MAX_NAMES || list.len() < count * 4 {
            return Err(bad());
        }
        (0..count).map(|index| self.value_at(at::le32(&list, index * 4).ok_or_else(bad)?)).collect()
    }

    /// The value with this name, whatever its case.
    pub fn value(&self, key: &Key, name: &str) -> Result<Option<Value>> {
        let values = self.values(key)?.into_iter();
        Ok(values.into_iter().find(|value| value.name.to_uppercase() == name.to_uppercase()))
    }

    fn value_at(&self, place: u32) -> Result<Value> {
        const INLINE: u32 = 1 << 31;
        const LATIN: u16 = 1;
        let bad = || damaged("a value");
        let cell = self.cell(place)?;
        let word = |place| at::le32(&cell, place).ok_or_else(bad);
        if !cell.starts_with(b"vk") {
            return Err(bad());
        }
        let length = usize::from(at::le16(&cell, 2).ok_or_else(bad)?);
        let name = cell.get(20..).and_then(|rest| rest.get(..length)).ok_or_else(bad)?;
        let is_latin = at::le16(&cell, 16).ok_or_else(bad)? & LATIN != 0;
        let (size, kind) = (word(4)?, word(12)?);
        let mut inline = None;
        let data = if size & INLINE != 0 {
            inline = Some(PAGE + u64::from(place) + 4 + 8);
            let size = (size & !INLINE) as usize;
            cell.get(8..12).and_then(|data| data.get(..size)).ok_or_else(bad)?.to_vec()
        } else if size == 0 {
            Vec::new()
        } else {
            self.data_at(word(8)?, size as usize)?
        };
        Ok(Value { name: name_of(name, is_latin), kind, data, inline })
    }

    fn data_at(&self, place: u32, size: usize) -> Result<Vec<u8>> {
        let bad = || damaged("a value");
        if size > MAX_CELL {
            return Err(bad());
        }
        let cell = self.cell(place)?;
        if size <= SEGMENT || !cell.starts_with(b"db") {
            return cell.get(..size).map(<[u8]>::to_vec).ok_or_else(bad);
        }
        let list = self.cell(at::le32(&cell, 4).ok_or_else(bad)?)?;
        let mut data = Vec::new();
        for index in 0..size.div_ceil(SEGMENT) {
            let segment = self.cell(at::le32(&list, index * 4).ok_or_else(bad)?)?;
            let count = SEGMENT.min(size - data.len());
            data.extend_from_slice(segment.get(..count).ok_or_else(bad)?);
        }
        Ok(data)
    }

    /// The content of a cell.
    fn cell(&self, place: u32) -> Result<Rc<Vec<u8>>> {
        let bad = || damaged("a cell");
        let start = PAGE + u64::from(place);
        // In use, its length is negative.
        let length = at::le32(&self.bytes(start, 4)?, 0).ok_or_else(bad)?.cast_signed();
        let length = length.checked_neg().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|&length| (8..=MAX_CELL).contains(&length)).ok_or_else(bad)?;
        Ok(Rc::new(self.bytes(start + 4, length - 4)?))
    }

    /// Bytes of the file, which is read by pages.
    fn bytes(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let place = start + bytes.len() as u64;
            let known = self.pages.borrow().get(&(place / PAGE)).map(Rc::clone);
            let page = match known {
                Some(page) => page,
                None => {
                    let page = read_up_to(&*self.file, place / PAGE * PAGE, PAGE as usize)?;
                    let page = Rc::new(page);
                    let mut pages = self.pages.borrow_mut();
                    if pages.len() == MAX_CACHED {
                        pages.clear();
                    }
                    pages.insert(place / PAGE, Rc::clone(&page));
                    page
                }
            };
            let part = page.get((place % PAGE) as usize..).unwrap_or_default();
            if part.is_empty() {
                return Err(damaged("a place in it"));
            }
            bytes.extend_from_slice(&part[..part.len().min(length - bytes.len())]);
        }
        Ok(bytes)
    }
}

impl Key {
    fn of(cell: Rc<Vec<u8>>) -> Result<Self> {
        if !cell.starts_with(b"nk") || cell.len() < 76 {
            return Err(damaged("a key"));
        }
        Ok(Self { cell })
    }

    fn name(&self) -> String {
        const LATIN: u16 = 0x20;
        let length = usize::from(at::le16(&self.cell, 72).unwrap_or(0));
        let name = self.cell.get(76..).and_then(|rest| rest.get(..length)).unwrap_or_default();
        name_of(name, at::le16(&self.cell, 2).unwrap_or(0) & LATIN != 0)
    }

    fn word(&self, place: usize) -> u32 {
        at::le32(&self.cell, place).unwrap_or(0)
    }
}

/// The hive with what newer transactions changed, which Windows 8.1 and later write to logs first.
fn replayed(
    file: Arc<dyn Volume>,
    logs: &[Arc<dyn Volume>],
    first: u32,
) -> Result<Arc<dyn Volume>> {
    const ENTRIES: usize = 512;
    let mut transactions = Vec::new();
    for log in logs {
        let bytes = read_up_to(&**log, 0, MAX_LOG)?;
        let mut rest = bytes.get(ENTRIES..).unwrap_or_default();
        while rest.starts_with(b"HvLE") {
            let size = at::le32(rest, 4).unwrap_or(0) as usize;
            let Some((entry, next)) = rest.split_at_checked(size.max(40)) else { break };
            transactions.push((at::le32(entry, 12).unwrap_or(0), entry.to_vec()));
            rest = next;
        }
    }
    transactions.retain(|(sequence, _)| *sequence >= first);
    transactions.sort_by_key(|(sequence, _)| *sequence);
    let mut patched = Patched::new(file);
    for ((sequence, entry), expected) in transactions.iter().zip(first..) {
        if *sequence != expected {
            break;
        }
        let count = at::le32(entry, 20).unwrap_or(0) as usize;
        let mut data = count.checked_mul(8).and_then(|list| entry.get(40 + list..));
        for index in 0..count {
            let (place, size) = at::le32(entry, 40 + index * 8)
                .zip(at::le32(entry, 44 + index * 8))
                .ok_or_else(|| damaged("its log"))?;
            let page = data.and_then(|data| data.split_at_checked(size as usize));
            let (page, rest) = page.ok_or_else(|| damaged("its log"))?;
            patched.write(PAGE + u64::from(place), page)?;
            data = Some(rest);
        }
    }
    Ok(Arc::new(patched))
}

/// As lists of keys have it.
fn hash_of(name: &str) -> u32 {
    name.to_uppercase()
        .encode_utf16()
        .fold(0_u32, |hash, unit| hash.wrapping_mul(37).wrapping_add(unit.into()))
}

fn name_of(bytes: &[u8], is_latin: bool) -> String {
    if is_latin { bytes.iter().copied().map(char::from).collect() } else { utf16(bytes) }
}

/// A text that ends at its first NUL.
fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

fn damaged(why: &str) -> Error {
    Error::damaged("registry", why)
}
