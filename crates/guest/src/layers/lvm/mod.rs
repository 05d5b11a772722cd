//! LVM2: linear, striped, mirrored, thin and cached volumes, RAID and snapshots.

mod raid;
mod text;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use self::raid::{first_of, layout_of};
use self::text::{Section, Value};
use super::snapshot::Snapshot;
use super::thin::Thin;
use super::{Piece, Pieces, Place};
use crate::fs::error_text;
use crate::volume::{Volume, at, read, text_of};
use crate::{Error, Result};

const SECTOR: u64 = 512;
/// Largest metadata.
const MAX_TEXT: u64 = 16 << 20;
/// Most segments of a group, those of volumes that others are made of each time.
const MAX_SEGMENTS: u64 = 1 << 18;
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
    /// What should be known about its state.
    pub notes: Vec<String>,
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
    let root = Section::of(&text).ok_or_else(|| damaged("its metadata"))?;
    let group = root.sections.into_iter().next();
    Ok(group)
}

/// The logical volumes of all groups on these physical volumes.
pub fn logical(physical: &[Physical]) -> Vec<Logical> {
    // Each physical volume has a copy: the one with the highest number counts.
    // Copies of a disk may have given two groups one name.
    let mut groups: BTreeMap<(&str, Option<&str>), &Section> = BTreeMap::new();
    for (name, group) in physical.iter().filter_map(|volume| volume.group.as_ref()) {
        let newest = groups.entry((name, group.texts("id").next())).or_insert(group);
        if group.number("seqno") > newest.number("seqno") {
            *newest = group;
        }
    }
    let mut found = Vec::new();
    for ((name, _), group) in groups {
        let left = Cell::new(MAX_SEGMENTS);
        let reader = Group { group, physical, left, notes: RefCell::default() };
        let Some(volumes) = group.sections.get("logical_volumes") else { continue };
        for (volume, section) in &volumes.sections {
            // Parts of others, such as the halves of a mirror, are not visible.
            let is_visible = section.texts("status").any(|status| status == "VISIBLE");
            if is_visible {
                let first = section.sections.get("segment1");
                let text = |name| first.and_then(|first| first.texts(name).next());
                let shown = match text("type") {
                    // A pool of thin volumes is not a volume itself, nor is a cache that nothing uses.
                    Some("thin-pool" | "cache-pool") => continue,
                    // A snapshot is known by the name of its store, which is hidden in turn.
                    Some("snapshot") => text("cow_store").or_else(|| text("merging_store")),
                    _ => None,
                };
                let volume_of = reader.volume(volumes, section, 4);
                found.push(Logical {
                    group: name.to_owned(),
                    name: shown.unwrap_or(volume).to_owned(),
                    volume: volume_of,
                    notes: reader.notes.take(),
                });
            }
        }
    }
    found
}

struct Group<'a> {
    group: &'a Section,
    physical: &'a [Physical],
    /// Segments that may still be looked at: volumes may be made of each other, each many times.
    left: Cell<u64>,
    /// What should be known about the volume that is being put together.
    notes: RefCell<Vec<String>>,
}

impl Group<'_> {
    fn volume(&self, volumes: &Section, section: &Section, depth: u32) -> Opened {
        let bad = || "its metadata is damaged".to_owned();
        let extent =
            self.group.number("extent_size").and_then(|sectors| sectors.checked_mul(SECTOR));
        let extent = extent.filter(|&extent| extent > 0).ok_or_else(bad)?;
        let mut pieces = Vec::new();
        for index in 1..=section.number("segment_count").ok_or_else(bad)? {
            self.left.set(self.left.get().checked_sub(1).ok_or_else(bad)?);
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
                "raid1" if depth > 0 => {
                    (vec![(self.mirror(volumes, segment, depth - 1)?, 0)], length.max(1))
                }
                // Any half of a mirror is as good as the other.
                "mirror" if depth > 0 => {
                    let images = segment.texts("mirrors");
                    let images = images.map(|name| self.named(volumes, name, depth - 1));
                    (vec![(first_of(images)?, 0)], length.max(1))
                }
                "cache" | "cache+CACHE_USES_CACHEVOL" if depth > 0 => {
                    (vec![(self.cached(volumes, segment, depth - 1)?, 0)], length.max(1))
                }
                other
                    if let Some(layout) = layout_of(other)
                        && depth > 0 =>
                {
                    (vec![(self.raid(volumes, segment, layout, depth - 1)?, 0)], length.max(1))
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

    /// A volume that has a cache: as it is without, if whatever is written goes through that.
    fn cached(&self, volumes: &Section, segment: &Section, depth: u32) -> Opened {
        let pool = segment.texts("cache_pool").next().and_then(|name| volumes.sections.get(name));
        let pool = pool.and_then(|pool| pool.sections.get("segment1"));
        let mode = |section: &Section| section.texts("cache_mode").next().map(str::to_owned);
        let mode = mode(segment).or_else(|| pool.and_then(mode));
        if mode.as_deref().is_none_or(|mode| mode == "writeback") {
            return Err("what was written to its cache only is not read".into());
        }
        let origin = segment.texts("origin").next().unwrap_or("");
        self.named(volumes, origin, depth)
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

fn damaged(why: &str) -> Error {
    Error::damaged("LVM physical volume", why)
}
