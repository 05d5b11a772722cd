//! FAT12, FAT16 and FAT32 with long names (Microsoft's "FAT: General Overview of On-Disk Format").

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::layers::{Piece, Pieces};
use crate::volume::{Volume, at, read};
use crate::{Error, Result};

const ENTRY: usize = 32;
/// Largest FAT that is held in memory: that of 2^28 clusters of FAT32 has four bytes each.
const MAX_FAT: u64 = 64 << 20;
/// So many bytes are read at once, in whole clusters: damage is found before much memory is taken.
const LONGEST_READ: u64 = 1 << 20;
const READ_ONLY: u8 = 0x01;
const VOLUME_LABEL: u8 = 0x08;
const FOLDER: u8 = 0x10;
/// Attributes of an entry that holds a part of a long name.
const LONG_NAME: u8 = 0x0f;

struct Fat {
    volume: Arc<dyn Volume>,
    kind: Width,
    cluster: u64,
    /// Where cluster 2 begins.
    data: u64,
    clusters: u32,
    table: Vec<u8>,
    root: Place,
    serial: u32,
    label: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where content lies.
#[derive(Clone, Copy)]
enum Place {
    /// In a chain of clusters; none if 0.
    Chain(u32),
    /// The root folder of FAT12 and FAT16.
    Fixed { offset: u64, length: u64 },
}

#[derive(Clone)]
struct Node {
    name: String,
    place: Place,
    attributes: u8,
    length: u32,
}

/// The boot sector looks like one of FAT.
pub fn is_fat(start: &[u8]) -> bool {
    Geometry::of(start).is_some()
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    let sector = read(&*volume, 0, 512)?;
    let geometry = Geometry::of(&sector).ok_or_else(|| damaged("its boot sector"))?;
    let fat_length = geometry.fat_length;
    if fat_length > MAX_FAT || geometry.data > volume.len() {
        return Err(damaged("its sizes contradict its volume's"));
    }
    let table = read(&*volume, geometry.fat, fat_length as usize)?;
    let is_wide = geometry.kind == Width::Fat32;
    let extended = if is_wide { 64 } else { 36 };
    let mut fat = Fat {
        kind: geometry.kind,
        cluster: geometry.cluster,
        data: geometry.data,
        clusters: geometry.clusters,
        table,
        root: geometry.root,
        serial: at::le32(&sector, extended + 3).unwrap_or(0),
        label: String::new(),
        volume,
    };
    // The label in the root folder counts; the one in the boot sector is often stale.
    let names = fat.nodes(&fat.root())?;
    if let Some(node) =
        names.iter().find(|node| node.attributes & (VOLUME_LABEL | FOLDER) == VOLUME_LABEL)
    {
        fat.label = node.name.replace('.', "");
    }
    Ok(Rc::new(Walk::new(fat)))
}

struct Geometry {
    kind: Width,
    cluster: u64,
    fat: u64,
    fat_length: u64,
    data: u64,
    clusters: u32,
    root: Place,
}

impl Geometry {
    fn of(sector: &[u8]) -> Option<Self> {
        let bytes = u64::from(at::le16(sector, 11)?);
        let per_cluster = u64::from(at::u8(sector, 13)?);
        let reserved = u64::from(at::le16(sector, 14)?);
        let fats = u64::from(at::u8(sector, 16)?);
        let root_entries = u64::from(at::le16(sector, 17)?);
        let plausible = at::le16(sector, 510)? == 0xaa55
            && matches!(sector[0], 0xeb | 0xe9)
            && matches!(bytes, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&fats)
            && at::u8(sector, 21)? >= 0xf0;
        if !plausible {
            return None;
        }
        let either = |short: u16, long: u32| match short {
            0 => u64::from(long),
            short => short.into(),
        };
        let sectors = either(at::le16(sector, 19)?, at::le32(sector, 32)?);
        let fat_sectors = either(at::le16(sector, 22)?, at::le32(sector, 36)?);
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(bytes);
        let root_at = reserved + fats * fat_sectors;
        let data = root_at + root_sectors;
        let clusters = u32::try_from(sectors.checked_sub(data)? / per_cluster).ok()?;
        let kind = match clusters {
            _ if root_entries == 0 => Width::Fat32,
            0..4085 => Width::Fat12,
            _ => Width::Fat16,
        };
        let root = match kind {
            Width::Fat32 => Place::Chain(at::le32(sector, 44)?),
            _ => Place::Fixed { offset: root_at * bytes, length: root_sectors * bytes },
        };
        Some(Self {
            kind,
            cluster: per_cluster * bytes,
            fat: reserved * bytes,
            fat_length: fat_sectors * bytes,
            data: data * bytes,
            clusters,
            root,
        })
    }
}

impl Fat {
    fn next(&self, cluster: u32) -> Option<u32> {
        let index = cluster as usize;
        let (value, end) = match self.kind {
            Width::Fat12 => {
                let pair = at::le16(&self.table, index + index / 2)?;
                (u32::from(if index.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            Width::Fat16 => (at::le16(&self.table, index * 2)?.into(), 0xfff8),
            Width::Fat32 => (at::le32(&self.table, index * 4)? & 0x0fff_ffff, 0x0fff_fff8),
        };
        (value < end).then_some(value)
    }

    /// Where the first `limit` bytes of a place lie: offsets and lengths.
    fn runs(&self, place: Place, limit: u64) -> Result<Vec<(u64, u64)>> {
        let first = match place {
            Place::Fixed { offset, length } => return Ok(vec![(offset, length.min(limit))]),
            Place::Chain(first) => first,
        };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut next = (first != 0).then_some(first);
        let (mut steps, mut found) = (0, 0);
        while let Some(cluster) = next
            && found < limit
        {
            steps += 1;
            let index = cluster.checked_sub(2).filter(|&index| index < self.clusters);
            let Some(index) = index.filter(|_| steps <= self.clusters) else {
                return Err(damaged("a chain of clusters leads astray"));
            };
            let length = self.cluster.min(limit - found);
            let offset = self.data + u64::from(index) * self.cluster;
            match runs.last_mut().filter(|(start, length)| start + length == offset) {
                Some(run) => run.1 += length,
                None => runs.push((offset, length)),
            }
            found += length;
            next = self.next(cluster);
        }
        Ok(runs)
    }

    /// The content of a place, at most `limit` bytes of it.
    fn content(&self, place: Place, limit: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        for (offset, length) in self.runs(place, limit)? {
            for start in (0..length).step_by(LONGEST_READ as usize) {
                let part = (length - start).min(LONGEST_READ) as usize;
                content.extend(read(&*self.volume, offset + start, part)?);
            }
        }
        Ok(content)
    }

    fn nodes(&self, folder: &Node) -> Result<Vec<Node>> {
        let bytes = self.content(folder.place, (MAX_ENTRIES * ENTRY) as u64)?;
        let mut nodes = Vec::new();
        let mut long = LongName::default();
        for entry in bytes.chunks_exact(ENTRY) {
            let attributes = entry[11];
            match entry[0] {
                0 => break,
                0xe5 => {
                    long = LongName::default();
                    continue;
                }
                _ if attributes & 0x3f == LONG_NAME => {
                    long.add(entry);
                    continue;
                }
                _ => {}
            }
            let short = short_name(entry);
            let name = std::mem::take(&mut long).finish(entry).unwrap_or(short);
            if matches!(name.as_str(), "." | "..") || name.contains(['/', '\0']) {
                continue;
            }
            let word = |offset| u32::from(u16::from_le_bytes([entry[offset], entry[offset + 1]]));
            let high = if self.kind == Width::Fat32 { word(20) } else { 0 };
            nodes.push(Node {
                name,
                place: Place::Chain(high << 16 | word(26)),
                attributes,
                length: word(30) << 16 | word(28),
            });
        }
        Ok(nodes)
    }

    fn files(&self, folder: &Node) -> Result<impl Iterator<Item = Node>> {
        let is_file = |node: &Node| node.attributes & VOLUME_LABEL == 0;
        Ok(self.nodes(folder)?.into_iter().filter(is_file))
    }
}

impl Nodes for Fat {
    type Id = Node;

    fn kind(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> Option<String> {
        Some(format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff))
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn root(&self) -> Node {
        Node { name: String::new(), place: self.root, attributes: FOLDER, length: 0 }
    }

    fn child(&self, folder: &Node, name: &str) -> Result<Option<Node>> {
        let wanted = name.to_lowercase();
        Ok(self.files(folder)?.find(|node| node.name.to_lowercase() == wanted))
    }

    fn list(&self, folder: &Node) -> Result<Vec<Entry>> {
        let entry = |node: Node| Entry { kind: kind_of(&node), name: node.name };
        Ok(self.files(folder)?.map(entry).collect())
    }

    fn stat(&self, file: &Node) -> Result<Metadata> {
        let mode = if file.attributes & READ_ONLY != 0 { 0o555 } else { 0o755 };
        Ok(Metadata { kind: kind_of(file), length: file.length.into(), mode })
    }

    fn pieces(&self, file: &Node) -> Result<Option<Arc<dyn Volume>>> {
        let length = u64::from(file.length);
        let mut pieces = Vec::new();
        let mut start = 0;
        for (offset, length) in self.runs(file.place, length)? {
            let on = vec![(Arc::clone(&self.volume), offset)];
            pieces.push(Piece { start, length, stripe: length, on });
            start += length;
        }
        let pieces = Pieces::new(pieces).filter(|pieces| pieces.len() == length);
        Ok(pieces.map(|pieces| Arc::new(pieces) as Arc<dyn Volume>))
    }

    fn content(&self, file: &Node, length: u64) -> Result<Vec<u8>> {
        let content = Self::content(self, file.place, length)?;
        if (content.len() as u64) < length {
            return Err(damaged("a file is shorter than its length"));
        }
        Ok(content)
    }
}

fn kind_of(node: &Node) -> Kind {
    if node.attributes & FOLDER != 0 { Kind::Folder } else { Kind::File }
}

/// The parts of a long name, which come last first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
    next: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        const LAST: u8 = 0x40;
        let number = entry[0] & 0x3f;
        if entry[0] & LAST != 0 {
            *self = Self { units: Vec::new(), checksum: entry[13], next: number };
        }
        if number == 0 || number != self.next || entry[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.next = number - 1;
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        let part = places.map(|place| u16::from_le_bytes([entry[place], entry[place + 1]]));
        self.units.splice(0..0, part);
    }

    /// The name, if its parts are complete and belong to the short one.
    fn finish(self, entry: &[u8]) -> Option<String> {
        let checksum =
            entry[..11].iter().fold(0_u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte));
        if self.units.is_empty() || self.next != 0 || checksum != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|&unit| unit == 0).unwrap_or(self.units.len());
        Some(String::from_utf16_lossy(&self.units[..end]))
    }
}

fn short_name(entry: &[u8]) -> String {
    // Windows NT: the base or the extension is in lower case.
    const LOWER: [u8; 2] = [0x08, 0x10];
    let part = |range: Range<usize>, lower: u8| {
        let mut bytes = entry[range].to_vec();
        // A name whose first byte would say that it was removed.
        if bytes[0] == 0x05 {
            bytes[0] = 0xe5;
        }
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if entry[12] & lower != 0 { text.to_lowercase() } else { text }
    };
    let (base, extension) = (part(0..8, LOWER[0]), part(8..11, LOWER[1]));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

fn damaged(why: &str) -> Error {
    Error::damaged("FAT file system", why)
}
