//! LVM2: linear, striped, mirrored and thin volumes, and snapshots. Its metadata is a text (lvm2's `man lvm.conf` describes the syntax).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::snapshot::Snapshot;
use super::thin::Thin;
use super::{Piece, Pieces, Place};
use crate::fs::error_text;
use crate::volume::{Volume, at, read, text_of};
use crate::{Error, Result};

const SECTOR: u64 = 512;
/// Largest metadata.
const MAX_TEXT: u64 = 16 << 20;
const MAX_DEPTH: usize = 16;
/// Most segments of a logical volume.
const MAX_SEGMENTS: u64 = 65_536;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// A physical volume with its copy of the metadata.
pub struct Physical {
    pub volume: Arc<dyn Volume>,
    id: String,
    /// The group's name and content; none in a volume without metadata of its own.
    group: Option<(String, Section)>,
}

/// What was found of a logical volume.
pub struct Logical {
    pub group: String,
    pub name: String,
    /// It, or why it cannot be read.
    pub volume: Opened,
}

/// A volume, or why it cannot be read.
type Opened = std::result::Result<Arc<dyn Volume>, String>;

/// Reads the label and the metadata of a physical volume.
pub fn physical(volume: &Arc<dyn Volume>) -> Result<Physical> {
    let bytes = read(&**volume, 0, 4 * SECTOR as usize)?;
    let is_label =
        |sector: &&[u8]| sector.starts_with(b"LABELONE") && sector[24..].starts_with(b"LVM2 001");
    let label = bytes.chunks_exact(SECTOR as usize).find(is_label);
    let label = label.ok_or_else(|| damaged("its label"))?;
    let header = at::le32(label, 20).and_then(|offset| label.get(offset as usize..));
    let header = header.ok_or_else(|| damaged("its label"))?;
    let id = header.get(..32).map(text_of).ok_or_else(|| damaged("its label"))?;
    // Two lists of places, each with zeroes behind it: of data, and of metadata.
    let mut lists = header.get(40..).unwrap_or_default().chunks_exact(16);
    let pair = |bytes: &[u8]| (at::le64(bytes, 0).unwrap_or(0), at::le64(bytes, 8).unwrap_or(0));
    lists.by_ref().take_while(|bytes| pair(bytes).0 != 0).for_each(drop);
    let mut group = None;
    for (start, _) in lists.map(pair).take_while(|(start, _)| *start != 0) {
        if group.is_none() {
            group = area(&**volume, start)?;
        }
    }
    Ok(Physical { volume: Arc::clone(volume), id, group })
}

/// The metadata in an area, which is a ring behind its first sector.
fn area(volume: &dyn Volume, start: u64) -> Result<Option<(String, Section)>> {
    let header = read(volume, start, SECTOR as usize)?;
    let word = |offset| at::le64(&header, offset).unwrap_or(0);
    if header[4..20] != *AREA_MAGIC {
        return Err(damaged("a metadata area"));
    }
    let (size, offset, length) = (word(32), word(40), word(48));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_TEXT || offset < SECTOR || offset >= size || length > size - SECTOR {
        return Err(damaged("a metadata area"));
    }
    let first = length.min(size - offset);
    let mut text = read(volume, start.saturating_add(offset), first as usize)?;
    text.extend(read(volume, start.saturating_add(SECTOR), (length - first) as usize)?);
    let text = text_of(&text);
    let root = Parser { rest: &text }.section(0).ok_or_else(|| damaged("its metadata"))?;
    let group = root.sections.into_iter().next();
    Ok(group)
}

/// The logical volumes of all groups on these physical volumes.
pub fn logical(physical: &[Physical]) -> Vec<Logical> {
    // Each physical volume has a copy: the one with the highest number counts.
    let mut groups: BTreeMap<&str, &Section> = BTreeMap::new();
    for (name, group) in physical.iter().filter_map(|volume| volume.group.as_ref()) {
        let newest = groups.entry(name).or_insert(group);
        if group.number("seqno") > newest.number("seqno") {
            *newest = group;
        }
    }
    let mut found = Vec::new();
    for (name, group) in groups {
        let reader = Group { group, physical };
        let Some(volumes) = group.sections.get("logical_volumes") else { continue };
        for (volume, section) in &volumes.sections {
            // Parts of others, such as the halves of a mirror, are not visible.
            let is_visible = section.texts("status").any(|status| status == "VISIBLE");
            if is_visible {
                let first = section.sections.get("segment1");
                let text = |name| first.and_then(|first| first.texts(name).next());
                let shown = match text("type") {
                    // A pool of thin volumes is not a volume itself.
                    Some("thin-pool") => continue,
                    // A snapshot is known by the name of its store, which is hidden in turn.
                    Some("snapshot") => text("cow_store").or_else(|| text("merging_store")),
                    _ => None,
                };
                let volume_of = reader.volume(volumes, section, 4);
                found.push(Logical {
                    group: name.to_owned(),
                    name: shown.unwrap_or(volume).to_owned(),
                    volume: volume_of,
                });
            }
        }
    }
    found
}

struct Group<'a> {
    group: &'a Section,
    physical: &'a [Physical],
}

impl Group<'_> {
    fn volume(&self, volumes: &Section, section: &Section, depth: u32) -> Opened {
        let bad = || "its metadata is damaged".to_owned();
        let extent =
            self.group.number("extent_size").and_then(|sectors| sectors.checked_mul(SECTOR));
        let extent = extent.filter(|&extent| extent > 0).ok_or_else(bad)?;
        let count = section.number("segment_count").filter(|&count| count <= MAX_SEGMENTS);
        let mut pieces = Vec::new();
        for index in 1..=count.ok_or_else(bad)? {
            let segment = section.sections.get(&format!("segment{index}")).ok_or_else(bad)?;
            let bytes = |name| segment.number(name).and_then(|extents| extents.checked_mul(extent));
            let start = bytes("start_extent").ok_or_else(bad)?;
            let length = bytes("extent_count").ok_or_else(bad)?;
            let kind = segment.texts("type").next().unwrap_or("");
            let (on, stripe) = match kind {
                "striped" => {
                    let stripe = segment.number("stripe_size").unwrap_or(1).checked_mul(SECTOR);
                    (
                        self.places(segment, extent)?,
                        stripe.filter(|&stripe| stripe > 0).ok_or_else(bad)?,
                    )
                }
                // Any half of a mirror is as good as the other.
                "thin" if depth > 0 => {
                    let thin = self.thin(volumes, segment, length, depth - 1)?;
                    (vec![(thin, 0)], length.max(1))
                }
                "snapshot" if depth > 0 => {
                    let snapshot = self.snapshot(volumes, segment, depth - 1)?;
                    (vec![(snapshot, 0)], length.max(1))
                }
                "raid0" | "raid0_meta" if depth > 0 => {
                    let stripe = segment.number("stripe_size").unwrap_or(0).checked_mul(SECTOR);
                    let images = segment.texts("raids").chain(segment.texts("raid0_lvs"));
                    let images = images.filter(|name| !name.contains("_rmeta_"));
                    let images = images.map(|name| Ok((self.named(volumes, name, depth - 1)?, 0)));
                    let images = images.collect::<std::result::Result<Vec<_>, String>>()?;
                    (images, stripe.filter(|&stripe| stripe > 0).ok_or_else(bad)?)
                }
                "raid1" | "mirror" if depth > 0 => {
                    let list = if kind == "raid1" { "raids" } else { "mirrors" };
                    let images = segment.texts(list).filter(|name| !name.contains("_rmeta_"));
                    let mut why = "none of its mirrors is there".to_owned();
                    let mut whole = None;
                    for image in images {
                        match self.named(volumes, image, depth - 1) {
                            Ok(volume) => {
                                whole = Some(volume);
                                break;
                            }
                            Err(error) => why = error,
                        }
                    }
                    (vec![(whole.ok_or(why)?, 0)], length.max(1))
                }
                other => return Err(format!("volumes of the type {other:?} are not read")),
            };
            pieces.push(Piece { start, length, stripe, on });
        }
        Pieces::new(pieces).map(|pieces| Arc::new(pieces) as Arc<dyn Volume>).ok_or_else(bad)
    }

    /// The volume with this name.
    fn named(&self, volumes: &Section, name: &str, depth: u32) -> Opened {
        let section = volumes.sections.get(name);
        self.volume(volumes, section.ok_or_else(|| format!("there is no volume {name}"))?, depth)
    }

    /// A thin volume in its pool.
    fn thin(&self, volumes: &Section, segment: &Section, length: u64, depth: u32) -> Opened {
        let bad = || "its metadata is damaged".to_owned();
        let text = |section: &Section, name| section.texts(name).next().map(str::to_owned);
        let name = text(segment, "thin_pool").ok_or_else(bad)?;
        let pool = volumes.sections.get(&name).and_then(|pool| pool.sections.get("segment1"));
        let pool = pool.ok_or_else(bad)?;
        let part = |name| self.named(volumes, &text(pool, name).ok_or_else(bad)?, depth);
        let (metadata, data) = (part("metadata")?, part("pool")?);
        let origin = text(segment, "external_origin");
        let origin = origin.map(|name| self.named(volumes, &name, depth)).transpose()?;
        let device = segment.number("device_id").ok_or_else(bad)?;
        let thin = Thin::open(metadata, data, device, length, origin);
        Ok(Arc::new(thin.map_err(|error| error_text(&error))?))
    }

    fn snapshot(&self, volumes: &Section, segment: &Section, depth: u32) -> Opened {
        let mut stores = segment.texts("cow_store").chain(segment.texts("merging_store"));
        let names = segment.texts("origin").next().zip(stores.next());
        let (origin, store) = names.ok_or_else(|| "its metadata is damaged".to_owned())?;
        let origin = self.named(volumes, origin, depth)?;
        let snapshot = Snapshot::open(origin, self.named(volumes, store, depth)?);
        Ok(Arc::new(snapshot.map_err(|error| error_text(&error))?))
    }

    /// Where the stripes of a segment begin.
    fn places(&self, segment: &Section, extent: u64) -> std::result::Result<Vec<Place>, String> {
        let bad = || "its metadata is damaged".to_owned();
        let Some(Value::List(list)) = segment.values.get("stripes") else { return Err(bad()) };
        let physical = self.group.sections.get("physical_volumes").ok_or_else(bad)?;
        let mut places = Vec::new();
        for pair in list.chunks_exact(2) {
            let (Value::Text(name), Value::Number(start)) = (&pair[0], &pair[1]) else {
                return Err(bad());
            };
            let section = physical.sections.get(name).ok_or_else(bad)?;
            let id = section.texts("id").next().unwrap_or("").replace('-', "");
            let missing = || format!("its physical volume {name} is not there");
            let found = self.physical.iter().find(|volume| volume.id == id).ok_or_else(missing)?;
            let first = section.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR));
            let offset = start.checked_mul(extent).zip(first).and_then(|(a, b)| a.checked_add(b));
            places.push((Arc::clone(&found.volume), offset.ok_or_else(bad)?));
        }
        Ok(places)
    }
}

/// `name { ... }`: values and further sections.
#[derive(Debug, Default)]
struct Section {
    values: HashMap<String, Value>,
    sections: BTreeMap<String, Section>,
}

#[derive(Debug, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Section {
    fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A text, or the texts of a list.
    fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = match self.values.get(name) {
            Some(Value::List(list)) => list.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        values.iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// What is in braces, or all of it at depth 0.
    fn section(&mut self, depth: usize) -> Option<Section> {
        let mut section = Section::default();
        loop {
            self.skip();
            if depth > 0 && self.takes('}') || depth == 0 && self.rest.is_empty() {
                return Some(section);
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
            let end = self.rest.find(|c| !is_name(c)).filter(|&end| end > 0)?;
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            self.skip();
            if self.takes('{') {
                if depth == MAX_DEPTH {
                    return None;
                }
                section.sections.insert(name.to_owned(), self.section(depth + 1)?);
            } else if self.takes('=') {
                section.values.insert(name.to_owned(), self.value(0)?);
            } else {
                return None;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip();
        if self.takes('"') {
            let mut text = String::new();
            let mut chars = self.rest.char_indices();
            loop {
                match chars.next()? {
                    (end, '"') => {
                        self.rest = &self.rest[end + 1..];
                        return Some(Value::Text(text));
                    }
                    (_, '\\') => text.push(chars.next()?.1),
                    (_, other) => text.push(other),
                }
            }
        }
        if self.takes('[') {
            let mut list = Vec::new();
            loop {
                self.skip();
                if self.takes(']') {
                    return Some(Value::List(list));
                }
                if depth == MAX_DEPTH {
                    return None;
                }
                list.push(self.value(depth + 1)?);
                self.skip();
                self.takes(',');
            }
        }
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && !"-.".contains(c))?;
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        // Negative numbers and fractions do not matter.
        (!number.is_empty()).then(|| Value::Number(number.parse().unwrap_or(0)))
    }

    fn takes(&mut self, wanted: char) -> bool {
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("LVM physical volume", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn metadata_is_parsed() {
        let text = "# Generated\nvg0 {\nid = \"a-b\"\nseqno = 7\nstatus = [\"RESIZEABLE\", \"READ\"]\n\
                    physical_volumes {\n\npv0 {\ndevice = \"/dev/\\\"x\" # Hint\nstripes = [ \"pv0\", 0 ]\n}\n}\n}\ncontents = \"Text\"\n";
        let root = Parser { rest: text }.section(0).unwrap();
        let group = &root.sections["vg0"];
        assert_eq!(group.number("seqno"), Some(7));
        assert_eq!(group.texts("status").collect::<Vec<_>>(), ["RESIZEABLE", "READ"]);
        let volume = &group.sections["physical_volumes"].sections["pv0"];
        assert_eq!(volume.texts("device").next(), Some("/dev/\"x"));
        let list = Value::List(vec![Value::Text("pv0".into()), Value::Number(0)]);
        assert_eq!(volume.values["stripes"], list);
        assert!(Parser { rest: &"a {".repeat(5000) }.section(0).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "[a-c{}=\\[\\]\"\\\\#,\n 0-9]{0,200}") {
            let _ = Parser { rest: &text }.section(0);
        }
    }
}
