//! HyperVStorage, the form of `.vmcx` and `.VMRS` files.
//!
//! Microsoft does not document it; this is what files of Hyper-V show. All numbers are little-endian.
//!
//! | where | what |
//! |---|---|
//! | 0 and 4096 | two headers of 46 bytes: signature, CRC-32, sequence, version, log, ...; the newer one counts |
//! | 8192 | object table: kind and number of entries, then entries of 18 bytes: kind, CRC-32, offset, length, in use |
//! | key tables | kind 2, number, sequence, CRC; then entries one after another |
//!
//! An entry of a key table: type, flags, length, the parent's table and offset, CRC-32, order of insertion, length of the name; the
//! name with a zero; the value. CRC-32s are taken with their own bytes as zeros.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use flate2::Crc;

use super::log;
use super::tree::{Node, Value};
use crate::{Error, Place, Result};

pub(super) const SIGNATURE: [u8; 4] = [0x14, 0x20, 0x28, 0x01];
pub(super) const HEADER_LENGTH: usize = 46;
pub(super) const SECOND_HEADER: usize = 0x1000;
const OBJECT_TABLE: usize = 0x2000;
const OBJECT_LENGTH: usize = 18;
const KEY_TABLE: u16 = 2;
/// What stands before the entries of a key table.
const TABLE_HEADER: usize = 10;
/// What stands before the name of an entry.
const ENTRY_HEADER: usize = 21;
/// Keys lie no deeper within each other.
const DEEPEST: usize = 32;

/// Whether these are the first bytes of such a file.
pub(crate) fn is_storage(head: &[u8]) -> bool {
    head.starts_with(&SIGNATURE)
}

/// An entry of a key table.
struct Entry<'a> {
    kind: u8,
    is_external: bool,
    name: &'a [u8],
    value: &'a [u8],
    order: u32,
    offset: usize,
}

/// Offsets and lengths of key tables by their numbers.
type Tables = BTreeMap<u16, (usize, usize)>;

/// Table and offset of an entry.
type Address = (u16, u32);

/// Reads all keys: the node is the root.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Node> {
    File { bytes, name: file, is_checked: true }.check_headers()?;
    let bytes = log::replayed(bytes, file)?;
    let file = File { bytes: &bytes, name: file, is_checked: true };
    let tables = file.tables()?;
    file.tree(tables)
}

/// For the fuzzer: any bytes as key tables of a kibibyte each, whatever their checksums.
pub(crate) fn fuzz(bytes: &[u8]) {
    let file = File { bytes, name: "fuzz", is_checked: false };
    let tables = bytes.chunks(1024).enumerate().map(|(index, table)| {
        (u16::try_from(index + 1).unwrap_or(u16::MAX), (index * 1024, table.len()))
    });
    let _ = file.tree(tables.collect());
}

struct File<'a> {
    bytes: &'a [u8],
    name: &'a str,
    is_checked: bool,
}

impl<'a> File<'a> {
    /// All keys of these tables, as a tree.
    fn tree(&self, tables: Tables) -> Result<Node> {
        let mut children: HashMap<Address, Vec<(Address, Entry<'a>)>> = HashMap::new();
        let mut root = None;
        for (number, (offset, length)) in tables {
            self.entries(offset, length, &mut |at, parent, entry| {
                let address = (number, at);
                if parent.0 == 0 {
                    root.get_or_insert(address);
                } else {
                    children.entry(parent).or_default().push((address, entry));
                }
            })?;
        }
        let root = root.ok_or_else(|| self.error(OBJECT_TABLE, "There is no key at all"))?;
        let mut node = Node { name: "configuration".into(), ..Node::default() };
        self.build(root, &mut children, &mut node, 0)?;
        Ok(node)
    }

    fn check_headers(&self) -> Result<()> {
        let is_good = |at: usize| {
            let header = self.bytes.get(at..at + HEADER_LENGTH)?;
            (header.starts_with(&SIGNATURE) && crc(header, 4) == u32_at(header, 4)?).then_some(())
        };
        // Either may have been under way when the host lost its power.
        if is_good(0).or(is_good(SECOND_HEADER)).is_none() {
            return Err(self.error(0, "Expected a header of HyperVStorage: both are damaged"));
        }
        Ok(())
    }

    /// Places of the key tables by their numbers; of several with one number the newest counts.
    fn tables(&self) -> Result<Tables> {
        let count = self.u32(OBJECT_TABLE + 4)?;
        let mut tables = BTreeMap::<u16, (u16, usize, usize)>::new();
        for index in 0..count.min(u32::from(u16::MAX)) as usize {
            let at = OBJECT_TABLE + 8 + index * OBJECT_LENGTH;
            let entry = self.slice(at, OBJECT_LENGTH)?;
            if u16::from(entry[0]) != KEY_TABLE || entry[OBJECT_LENGTH - 1] == 0 {
                continue;
            }
            if crc(entry, 1) != u32_at(entry, 1).unwrap_or(0) {
                return Err(self.error(at, "The entry of the object table is damaged"));
            }
            let offset = u64_at(entry, 5).and_then(|offset| usize::try_from(offset).ok());
            let length = u32_at(entry, 13).and_then(|length| usize::try_from(length).ok());
            let place = offset.zip(length).filter(|(offset, length)| {
                *length > TABLE_HEADER
                    && offset.checked_add(*length).is_some_and(|end| end <= self.bytes.len())
            });
            let (offset, length) =
                place.ok_or_else(|| self.error(at, "The key table lies outside of the file"))?;
            let header = self.slice(offset, TABLE_HEADER)?;
            if u16_at(header, 0) != Some(KEY_TABLE) {
                return Err(self.error(offset, "Expected a key table"));
            }
            let (number, sequence) =
                (u16_at(header, 2).unwrap_or(0), u16_at(header, 4).unwrap_or(0));
            let known = tables.get(&number);
            if known.is_none_or(|(newest, _, _)| *newest < sequence) {
                tables.insert(number, (sequence, offset, length));
            }
        }
        Ok(tables
            .into_iter()
            .map(|(number, (_, offset, length))| (number, (offset, length)))
            .collect())
    }

    fn entries(
        &self,
        table: usize,
        length: usize,
        found: &mut dyn FnMut(u32, Address, Entry<'a>),
    ) -> Result<()> {
        let mut at = TABLE_HEADER;
        while at + ENTRY_HEADER <= length {
            let start = table + at;
            let header = self.slice(start, ENTRY_HEADER)?;
            let size = u32_at(header, 2).and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
            if size == 0 {
                break;
            }
            if size < ENTRY_HEADER || size > length - at {
                return Err(self.error(start, "The key is longer than its table"));
            }
            let whole = self.slice(start, size)?;
            let kind = header[0];
            // What was removed stays as a gap.
            if kind != FREE {
                let name_end = ENTRY_HEADER + usize::from(header[20]);
                let name = whole.get(ENTRY_HEADER..name_end);
                let name =
                    name.ok_or_else(|| self.error(start, "The key's name is longer than the key"))?;
                let is_external = header[1] & 1 != 0;
                // The key may have more room than its value takes, which the checksum leaves out.
                let value =
                    if is_external { Some(&[][..]) } else { used(kind, &whole[name_end..]) };
                let value = value
                    .ok_or_else(|| self.error(start, "The key's value is shorter than its type"))?;
                let summed = &whole[..name_end + value.len()];
                if self.is_checked
                    && !is_external
                    && crc(summed, 12) != u32_at(header, 12).unwrap_or(0)
                {
                    return Err(self.error(start, "The key is damaged: its checksum is wrong"));
                }
                let entry = Entry {
                    kind,
                    is_external,
                    name,
                    value,
                    order: u32_at(header, 16).unwrap_or(0),
                    offset: start,
                };
                let parent = (u16_at(header, 6).unwrap_or(0), u32_at(header, 8).unwrap_or(0));
                found(u32::try_from(at).unwrap_or(u32::MAX), parent, entry);
            }
            at += size;
        }
        Ok(())
    }

    /// Adds to `node` what lies below the key at `address`. Each key has one parent and is taken once: there are no circles.
    fn build(
        &self,
        address: Address,
        children: &mut HashMap<Address, Vec<(Address, Entry<'a>)>>,
        node: &mut Node,
        depth: usize,
    ) -> Result<()> {
        let mut own = children.remove(&address).unwrap_or_default();
        own.sort_by_key(|(_, entry)| entry.order);
        for (address, entry) in own {
            if depth >= DEEPEST {
                return Err(self.error(entry.offset, "The keys lie too deep within each other"));
            }
            let name = entry.name.split(|byte| *byte == 0).next().unwrap_or_default();
            let mut child = Node {
                name: String::from_utf8_lossy(name).into_owned(),
                value: self.value(&entry)?,
                line: None,
                below: Vec::new(),
                seen: Cell::new(false),
            };
            self.build(address, children, &mut child, depth + 1)?;
            node.below.push(child);
        }
        Ok(())
    }

    fn value(&self, entry: &Entry<'_>) -> Result<Option<Value>> {
        let short = || self.error(entry.offset, "The key's value is shorter than its type");
        if entry.is_external {
            return Ok(Some(Value::Bytes(Vec::new())));
        }
        let bytes = entry.value;
        let counted = || {
            let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
            bytes.get(4..)?.get(..length)
        };
        Ok(match entry.kind {
            INTEGER | UNSIGNED => {
                Some(Value::Number(u64_at(bytes, 0).ok_or_else(short)?.cast_signed()))
            }
            DOUBLE => Some(Value::Real(f64::from_bits(u64_at(bytes, 0).ok_or_else(short)?))),
            STRING => {
                let units: Vec<_> = counted()
                    .ok_or_else(short)?
                    .chunks_exact(2)
                    .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                    .collect();
                let text = String::from_utf16_lossy(&units);
                Some(Value::Text(text.trim_end_matches('\0').to_owned()))
            }
            BYTES => Some(Value::Bytes(counted().ok_or_else(short)?.to_vec())),
            BOOLEAN => Some(Value::Flag(u32_at(bytes, 0).ok_or_else(short)? != 0)),
            NODE => None,
            other => {
                return Err(
                    self.error(entry.offset, format!("The key's type {other} is not known"))
                );
            }
        })
    }

    fn slice(&self, at: usize, length: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(length);
        end.and_then(|end| self.bytes.get(at..end))
            .ok_or_else(|| self.error(at, "The file ends too early"))
    }

    fn u32(&self, at: usize) -> Result<u32> {
        self.slice(at, 4).map(|bytes| u32_at(bytes, 0).unwrap_or(0))
    }

    fn error(&self, at: usize, message: impl Into<String>) -> Error {
        let place = Place { file: self.name.into(), position: None };
        Error::File { place, message: format!("{} (at offset {at:#x})", message.into()) }
    }
}

/// Types of keys.
const FREE: u8 = 1;
const INTEGER: u8 = 3;
const UNSIGNED: u8 = 4;
const DOUBLE: u8 = 5;
const STRING: u8 = 6;
const BYTES: u8 = 7;
const BOOLEAN: u8 = 8;
const NODE: u8 = 9;

/// The part of a key's room that its value takes; `None` if there is less.
fn used(kind: u8, room: &[u8]) -> Option<&[u8]> {
    let length = match kind {
        INTEGER | UNSIGNED | DOUBLE => 8,
        STRING | BYTES => usize::try_from(u32_at(room, 0)?).ok()?.checked_add(4)?,
        BOOLEAN => 4,
        NODE => 12,
        _ => room.len(),
    };
    room.get(..length)
}

/// The CRC-32 of bytes whose four at `own` are taken as zeros.
pub(super) fn crc(bytes: &[u8], own: usize) -> u32 {
    let mut crc = Crc::new();
    crc.update(&bytes[..own]);
    crc.update(&[0; 4]);
    crc.update(&bytes[own + 4..]);
    crc.sum()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file with these keys: path, type, value.
    pub(crate) fn write(keys: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut table = vec![0; TABLE_HEADER];
        table[0] = 2;
        table[2] = 1;
        let mut places = HashMap::new();
        let mut add = |path: &str, kind: u8, value: &[u8]| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let at = table.len();
            let parent: u32 = places.get(parent).copied().unwrap_or(0);
            let mut entry = vec![kind, 0];
            entry.extend(
                u32::try_from(ENTRY_HEADER + name.len() + 1 + value.len()).unwrap().to_le_bytes(),
            );
            entry.extend(u16::from(parent != 0).to_le_bytes());
            entry.extend(parent.to_le_bytes());
            entry.extend([0; 4]);
            entry.extend(u32::try_from(at).unwrap().to_le_bytes());
            entry.push(u8::try_from(name.len() + 1).unwrap());
            entry.extend(name.bytes().chain([0]));
            entry.extend(value);
            let sum = crc(&entry, 12);
            entry[12..16].copy_from_slice(&sum.to_le_bytes());
            table.extend(entry);
            places.insert(path.to_owned(), u32::try_from(at).unwrap());
        };
        add("configuration", NODE, &[0; 12]);
        for (path, kind, value) in keys {
            add(&format!("configuration/{path}"), *kind, value);
        }
        table.resize(table.len().next_multiple_of(0x1000), 0);
        let mut file = vec![0; 0x3000];
        for at in [0, SECOND_HEADER] {
            file[at..at + 4].copy_from_slice(&SIGNATURE);
            let sum = crc(&file[at..at + HEADER_LENGTH], 4);
            file[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        file[OBJECT_TABLE..OBJECT_TABLE + 8].copy_from_slice(&[1, 0, 0x11, 1, 1, 0, 0, 0]);
        let mut object = vec![2, 0, 0, 0, 0];
        object.extend(0x3000_u64.to_le_bytes());
        object.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
        object.push(1);
        let sum = crc(&object, 1);
        object[1..5].copy_from_slice(&sum.to_le_bytes());
        file[OBJECT_TABLE + 8..OBJECT_TABLE + 8 + OBJECT_LENGTH].copy_from_slice(&object);
        file.extend(table);
        file
    }

    /// Gives a file a log with these changes: place and bytes.
    pub(crate) fn add_log(file: &mut Vec<u8>, changes: &[(u64, &[u8])]) {
        let start = file.len() as u64;
        let mut log = vec![0; 0x1000];
        log[..4].copy_from_slice(&0x0111_0003_u32.to_le_bytes());
        log[8..12].copy_from_slice(&u32::try_from(changes.len()).unwrap().to_le_bytes());
        let sum = crc(&log[..34], 4);
        log[4..8].copy_from_slice(&sum.to_le_bytes());
        for (index, (place, bytes)) in changes.iter().enumerate() {
            let mut entry = place.to_le_bytes().to_vec();
            entry.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
            entry.extend(u32::try_from(log.len()).unwrap().to_le_bytes());
            entry.extend([0; 8]);
            let mut sum = Crc::new();
            sum.update(bytes);
            entry.extend(sum.sum().to_le_bytes());
            let sum = crc(&entry, 20);
            entry[20..24].copy_from_slice(&sum.to_le_bytes());
            log[34 + index * 28..][..28].copy_from_slice(&entry);
            log.extend_from_slice(bytes);
        }
        file.extend(log);
        for at in [0, SECOND_HEADER] {
            file[at + 26..at + 34].copy_from_slice(&start.to_le_bytes());
            let sum = crc(&file[at..at + HEADER_LENGTH], 4);
            file[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// A text as it is kept.
    pub(crate) fn string(text: &str) -> Vec<u8> {
        let units: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        u32::try_from(units.len()).unwrap().to_le_bytes().into_iter().chain(units).collect()
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes, "x.vmcx").unwrap_err().to_string()
    }

    #[test]
    fn damaged_files_are_refused_with_their_offset() {
        let good = write(&[("a", NODE, &[0; 12]), ("a/b", INTEGER, &7_u64.to_le_bytes())]);
        let root = parse(&good, "x.vmcx").unwrap();
        assert_eq!(root.child("a").unwrap().number("b"), Some(7));
        let broken = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            message(&bytes)
        };
        assert!(
            parse(
                &{
                    let mut one = good.clone();
                    one[9] = 7;
                    one
                },
                "x"
            )
            .is_ok()
        );
        assert_eq!(
            broken(OBJECT_TABLE + 14),
            "x.vmcx: The entry of the object table is damaged (at offset 0x2008)"
        );
        assert_eq!(
            broken(0x300b + ENTRY_HEADER),
            "x.vmcx: The key is damaged: its checksum is wrong (at offset 0x300a)"
        );
        assert_eq!(
            message(&good[..0x3000]),
            "x.vmcx: The key table lies outside of the file (at offset 0x2008)"
        );
        assert_eq!(
            message(&good[..30]),
            "x.vmcx: Expected a header of HyperVStorage: both are damaged (at offset 0x0)"
        );
        assert_eq!(message(&good[..0x2000]), "x.vmcx: The file ends too early (at offset 0x2004)");
        let unknown = write(&[("a", 77, &[])]);
        assert!(message(&unknown).starts_with("x.vmcx: The key's type 77 is not known"));
        let short = write(&[("a", STRING, &[9, 0, 0, 0, 1])]);
        assert!(message(&short).starts_with("x.vmcx: The key's value is shorter than its type"));
    }
}
