//! ISO 9660 (ECMA-119) with the names of Rock Ridge (IEEE P1282) or Joliet. Numbers are there in both byte orders.

use std::rc::Rc;
use std::sync::Arc;

use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::volume::{Volume, at, read};
use crate::{Error, Result};

const SECTOR: u64 = 2048;
/// Sector of the first volume descriptor.
const DESCRIPTORS: u64 = 16;
/// Largest folder.
const MAX_FOLDER: u64 = 64 << 20;
/// Most areas with more of an entry's Rock Ridge fields.
const MAX_CONTINUATIONS: usize = 16;
/// Most parts of a large file.
const MAX_PARTS: usize = 4096;

struct Iso {
    volume: Arc<dyn Volume>,
    root: Id,
    /// Names are in UTF-16.
    is_joliet: bool,
    /// Bytes before Rock Ridge's fields, if there are any.
    rock_ridge: Option<usize>,
    uuid: Option<String>,
    label: String,
}

/// Where a file lies, and what is known of it.
#[derive(Clone)]
struct Id(Rc<Record>);

struct Record {
    name: String,
    /// First bytes and lengths: large files have several.
    parts: Vec<(u64, u64)>,
    kind: Kind,
    mode: u16,
    target: Option<String>,
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    let mut primary = None;
    let mut joliet = None;
    for sector in DESCRIPTORS..DESCRIPTORS + 64 {
        let bytes = read(&*volume, sector * SECTOR, SECTOR as usize)?;
        if &bytes[1..6] != b"CD001" {
            break;
        }
        match bytes[0] {
            1 if primary.is_none() => primary = Some(bytes),
            // The escape sequences of the three levels of UCS-2.
            2 if matches!(&bytes[88..91], b"%/@" | b"%/C" | b"%/E") => joliet = Some(bytes),
            255 => break,
            _ => {}
        }
    }
    let primary = primary.ok_or_else(|| damaged("its volume descriptor"))?;
    let label = String::from_utf8_lossy(&primary[40..72]).trim_end().to_owned();
    // blkid's: the time of a change or of creation.
    let is_time = |time: &&[u8]| time[..16].iter().all(u8::is_ascii_digit) && time[..4] != *b"0000";
    let time = [&primary[830..847], &primary[813..830]].into_iter().find(is_time);
    let uuid = time.map(|time| {
        let digits = String::from_utf8_lossy(&time[..16]).into_owned();
        let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
        parts.map(|range| digits[range].to_owned()).join("-")
    });
    let mut iso =
        Iso { root: root(&primary)?, volume, is_joliet: false, rock_ridge: None, uuid, label };
    iso.rock_ridge = iso.find_rock_ridge()?;
    if let Some(joliet) = joliet.filter(|_| iso.rock_ridge.is_none()) {
        iso.root = root(&joliet)?;
        iso.is_joliet = true;
    }
    Ok(Rc::new(Walk::new(iso)))
}

/// The root folder's record in a volume descriptor.
fn root(descriptor: &[u8]) -> Result<Id> {
    let bad = || damaged("its root");
    let record = &descriptor[156..190];
    let (start, length) = at::le32(record, 2).zip(at::le32(record, 10)).ok_or_else(bad)?;
    let parts = vec![(u64::from(start) * SECTOR, u64::from(length))];
    let kind = Kind::Folder;
    Ok(Id(Rc::new(Record { name: String::new(), parts, kind, mode: 0o555, target: None })))
}

/// What Rock Ridge says of an entry.
#[derive(Default)]
struct RockRidge {
    name: Option<Vec<u8>>,
    mode: Option<u32>,
    target: Option<Vec<u8>>,
    /// Where a folder lies that was moved up.
    moved_to: Option<u64>,
    /// It is such a folder, which is seen elsewhere.
    is_moved: bool,
}

impl Iso {
    fn folder(&self, id: &Id) -> Result<Vec<u8>> {
        let length: u64 = id.0.parts.iter().map(|part| part.1).sum();
        if length > MAX_FOLDER {
            return Err(damaged("a folder"));
        }
        self.content(id, length)
    }

    /// The first entry of the root says whether there are Rock Ridge's fields, and how many bytes are before them.
    fn find_rock_ridge(&self) -> Result<Option<usize>> {
        let folder = self.folder(&self.root)?;
        let length = usize::from(at::u8(&folder, 0).unwrap_or(0));
        let fields = folder.get(34..length).unwrap_or_default();
        let is_there = fields.starts_with(b"SP\x07\x01\xbe\xef");
        Ok(is_there.then(|| usize::from(at::u8(fields, 6).unwrap_or(0))))
    }

    /// The entries of a folder, without those of itself and of the one above.
    fn records(&self, id: &Id) -> Result<Vec<Record>> {
        const IS_FOLDER: u8 = 2;
        const IS_ASSOCIATED: u8 = 4;
        const GOES_ON: u8 = 0x80;
        let bad = || damaged("a folder");
        let folder = self.folder(id)?;
        let mut records = Vec::new();
        let mut parts: Vec<(u64, u64)> = Vec::new();
        let mut place = 0;
        while place < folder.len() {
            let length = usize::from(folder[place]);
            if length == 0 {
                // Entries do not cross sectors.
                place = (place + 1).next_multiple_of(SECTOR as usize);
                continue;
            }
            let record = folder.get(place..place + length).filter(|bytes| bytes.len() >= 34);
            let record = record.ok_or_else(bad)?;
            place += length;
            let (flags, name_length) = (record[25], usize::from(record[32]));
            let name = record.get(33..33 + name_length).ok_or_else(bad)?;
            if matches!(name, [0 | 1]) || flags & IS_ASSOCIATED != 0 {
                continue;
            }
            let word = |at| at::le32(record, at).map(u64::from).ok_or_else(bad);
            // An extended attribute record lies before the content.
            let start = (word(2)? + u64::from(record[1])) * SECTOR;
            parts.push((start, word(10)?));
            if flags & GOES_ON != 0 {
                if parts.len() == MAX_PARTS {
                    return Err(bad());
                }
                continue;
            }
            let mut more = RockRidge::default();
            if let Some(skip) = self.rock_ridge {
                let fields = 33 + name_length + (name_length + 1) % 2 + skip;
                self.fields(record.get(fields..).unwrap_or_default(), &mut more)?;
            }
            let is_folder = flags & IS_FOLDER != 0 || more.moved_to.is_some();
            let plain = if is_folder { Kind::Folder } else { Kind::File };
            let kind = match more.mode {
                Some(mode) if more.moved_to.is_none() => Kind::of_mode(mode),
                _ => plain,
            };
            let mut parts = std::mem::take(&mut parts);
            if let Some(sector) = more.moved_to {
                parts = self.moved(sector)?;
            }
            if more.is_moved {
                continue;
            }
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            records.push(Record {
                name: more.name.map_or_else(|| self.plain_name(name), text),
                parts,
                kind,
                mode: more.mode.map_or(0o555, |mode| (mode & 0o7777) as u16),
                target: more.target.map(text),
            });
            if records.len() > MAX_ENTRIES {
                return Err(bad());
            }
        }
        Ok(records)
    }

    /// A folder that was moved up since it was too deep: its first entry is its own.
    fn moved(&self, sector: u64) -> Result<Vec<(u64, u64)>> {
        let start = sector * SECTOR;
        let first = read(&*self.volume, start, 34)?;
        let length = at::le32(&first, 10).ok_or_else(|| damaged("a folder"))?;
        Ok(vec![(start, length.into())])
    }

    /// A name without Rock Ridge: its version is not part of it.
    fn plain_name(&self, name: &[u8]) -> String {
        let mut text = if self.is_joliet {
            let units = name.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
            String::from_utf16_lossy(&units.collect::<Vec<_>>())
        } else {
            // As Linux shows them.
            String::from_utf8_lossy(name).to_lowercase()
        };
        if let Some((before, version)) = text.rsplit_once(';')
            && version.chars().all(|c| c.is_ascii_digit())
        {
            text.truncate(before.len());
        }
        if text.ends_with('.') {
            text.pop();
        }
        text.replace('/', "_")
    }

    /// Rock Ridge's fields, which may go on elsewhere.
    fn fields(&self, bytes: &[u8], found: &mut RockRidge) -> Result<()> {
        let mut area = bytes.to_vec();
        let mut link = Vec::new();
        let mut link_goes_on = false;
        for _ in 0..MAX_CONTINUATIONS {
            let mut next = None;
            let mut rest = &area[..];
            while rest.len() >= 4 {
                let length = usize::from(rest[2]);
                let Some(field) = rest.get(..length).filter(|field| field.len() >= 4) else {
                    break;
                };
                rest = &rest[length..];
                let value = &field[4..];
                match &field[..2] {
                    b"PX" => found.mode = at::le32(value, 0),
                    b"NM" => {
                        // Flags for `.` and `..`, which have no name of their own.
                        let name = found.name.get_or_insert_default();
                        name.extend_from_slice(value.get(1..).unwrap_or_default());
                    }
                    b"SL" => {
                        link_fields(value, &mut link, &mut link_goes_on);
                        found.target = Some(link.clone());
                    }
                    b"CL" => found.moved_to = at::le32(value, 0).map(u64::from),
                    b"RE" => found.is_moved = true,
                    b"CE" => {
                        let word = |place| at::le32(value, place).map(u64::from);
                        next = word(0).zip(word(8)).zip(word(16));
                    }
                    b"ST" => break,
                    _ => {}
                }
            }
            let Some(((sector, offset), length)) = next else { break };
            if length > SECTOR * 4 {
                return Err(damaged("an entry"));
            }
            area = read(&*self.volume, sector * SECTOR + offset, length as usize)?;
        }
        Ok(())
    }
}

/// The parts of a symbolic link's target in one field.
fn link_fields(value: &[u8], link: &mut Vec<u8>, goes_on: &mut bool) {
    let mut parts = value.get(1..).unwrap_or_default();
    while let [flags, length, rest @ ..] = parts {
        let (text, after) = rest.split_at_checked(usize::from(*length)).unwrap_or((rest, &[]));
        if !*goes_on && !link.is_empty() && !link.ends_with(b"/") {
            link.push(b'/');
        }
        match flags & 0xe {
            2 => link.push(b'.'),
            4 => link.extend(b".."),
            8 => link.extend(b"/"),
            _ => link.extend(text),
        }
        *goes_on = flags & 1 != 0;
        parts = after;
    }
}

impl Nodes for Iso {
    type Id = Id;

    fn kind(&self) -> &'static str {
        "iso9660"
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn root(&self) -> Id {
        self.root.clone()
    }

    fn child(&self, folder: &Id, name: &str) -> Result<Option<Id>> {
        let found = self.records(folder)?.into_iter().find(|record| record.name == name);
        Ok(found.map(|record| Id(Rc::new(record))))
    }

    fn list(&self, folder: &Id) -> Result<Vec<Entry>> {
        let entry = |record: Record| Entry { name: record.name, kind: record.kind };
        Ok(self.records(folder)?.into_iter().map(entry).collect())
    }

    fn stat(&self, file: &Id) -> Result<Metadata> {
        let length = match &file.0.target {
            Some(target) => target.len() as u64,
            None => file.0.parts.iter().map(|part| part.1).sum(),
        };
        Ok(Metadata { kind: file.0.kind, length, mode: file.0.mode })
    }

    fn content(&self, file: &Id, length: u64) -> Result<Vec<u8>> {
        if length > self.volume.len() {
            return Err(damaged("a length"));
        }
        let mut content = Vec::new();
        for (start, part) in &file.0.parts {
            let count = (*part).min(length - content.len() as u64);
            content.extend(read(&*self.volume, *start, count as usize)?);
        }
        Ok(content)
    }

    fn target(&self, link: &Id, _: u64) -> Result<Vec<u8>> {
        let target = link.0.target.as_ref().ok_or_else(|| damaged("a symbolic link"))?;
        Ok(target.clone().into_bytes())
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("ISO 9660 file system", why)
}
