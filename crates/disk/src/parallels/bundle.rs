//! DiskDescriptor.xml, which says what a bundle consists of (QEMU, docs/interop/prl-xml.txt, and what
//! Parallels Desktop writes beyond it: split disks).

use quick_xml::Reader;
use quick_xml::events::Event;

use super::{damaged, unsupported};
use crate::{Result, SECTOR_SIZE};

/// Longest descriptor that is read.
pub(super) const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Most storages, images and snapshots.
const MAX_ITEMS: usize = 4096;
/// The snapshot that the guest writes to unless another one is named.
const DEFAULT_TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
/// What the first snapshot names as its parent.
const NO_PARENT: &str = "{00000000-0000-0000-0000-000000000000}";

/// What a bundle consists of.
#[derive(Debug, Default)]
pub(super) struct Descriptor {
    pub sectors: u64,
    pub storages: Vec<Storage>,
    top: Option<String>,
    /// Snapshots with their parents.
    shots: Vec<(String, String)>,
    padding: u64,
}

/// A part of the disk.
#[derive(Debug, Default)]
pub(super) struct Storage {
    /// In sectors.
    pub start: u64,
    pub end: u64,
    pub images: Vec<Image>,
}

/// A part's state in one snapshot.
#[derive(Debug, Default)]
pub(super) struct Image {
    guid: String,
    pub kind: String,
    pub file: String,
}

impl Descriptor {
    pub fn parse(text: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(text).map_err(|_| damaged("its descriptor is no text"))?;
        let mut reader = Reader::from_str(text);
        let mut found = Self::default();
        let mut path: Vec<String> = Vec::new();
        let mut value = String::new();
        loop {
            let event = reader.read_event();
            let event =
                event.map_err(|error| damaged(format!("its descriptor is no XML: {error}")))?;
            match event {
                Event::Start(start) => {
                    path.push(start.name().as_ref().to_owned());
                    if path.len() > 32 {
                        return Err(damaged("its descriptor is nested too deeply"));
                    }
                    found.open(path.last().map_or("", String::as_str), path.len())?;
                    value.clear();
                }
                Event::Text(text) => value.push_str(&text),
                Event::GeneralRef(name) => value.push_str(match &*name {
                    "amp" => "&",
                    "lt" => "<",
                    "gt" => ">",
                    "quot" => "\"",
                    "apos" => "'",
                    _ => return Err(damaged("its descriptor has a character that is not known")),
                }),
                Event::End(_) => {
                    let parent = path.len().checked_sub(2).map_or("", |index| &path[index]);
                    let name = path.last().map_or("", String::as_str);
                    found.set(parent, name, value.trim())?;
                    path.pop();
                    value.clear();
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if found.padding != 0 {
            return Err(unsupported("its descriptor asks for padding"));
        }
        Ok(found)
    }

    fn open(&mut self, name: &str, depth: usize) -> Result<()> {
        match name {
            "Parallels_disk_image" | "Parallels_disk_Image" if depth == 1 => {}
            _ if depth == 1 => return Err(damaged("its descriptor is about something else")),
            "Storage" => self.storages.push(Storage::default()),
            "Image" => {
                let storage = self.storages.last_mut();
                storage.ok_or_else(orphan)?.images.push(Image::default());
            }
            "Shot" => self.shots.push((String::new(), NO_PARENT.to_owned())),
            _ => {}
        }
        let images: usize = self.storages.iter().map(|storage| storage.images.len()).sum();
        if self.storages.len().max(images).max(self.shots.len()) > MAX_ITEMS {
            return Err(damaged("its descriptor lists too much"));
        }
        Ok(())
    }

    fn set(&mut self, parent: &str, name: &str, value: &str) -> Result<()> {
        let number = || -> Result<u64> {
            value.parse().map_err(|_| damaged(format!("its descriptor has {value:?} for {name}")))
        };
        match (parent, name) {
            ("Disk_Parameters", "Disk_size") => self.sectors = number()?,
            ("Disk_Parameters", "Padding") => self.padding = number()?,
            ("Storage", "Start") => self.storages.last_mut().ok_or_else(orphan)?.start = number()?,
            ("Storage", "End") => self.storages.last_mut().ok_or_else(orphan)?.end = number()?,
            ("Image", "GUID") => self.image()?.guid = value.to_ascii_lowercase(),
            ("Image", "Type") => value.clone_into(&mut self.image()?.kind),
            ("Image", "File") => value.clone_into(&mut self.image()?.file),
            ("Snapshots", "TopGUID") => self.top = Some(value.to_ascii_lowercase()),
            ("Shot", "GUID") => {
                self.shots.last_mut().ok_or_else(orphan)?.0 = value.to_ascii_lowercase();
            }
            ("Shot", "ParentGUID") => {
                self.shots.last_mut().ok_or_else(orphan)?.1 = value.to_ascii_lowercase();
            }
            _ => {}
        }
        Ok(())
    }

    fn image(&mut self) -> Result<&mut Image> {
        let storage = self.storages.last_mut();
        storage.and_then(|storage| storage.images.last_mut()).ok_or_else(orphan)
    }

    /// The snapshots from one of them, or from the present state, to the first one.
    pub fn chain(&self, snapshot: Option<&str>) -> Result<Vec<&str>> {
        let top = snapshot.map(str::to_ascii_lowercase);
        let top = top.as_deref().or(self.top.as_deref()).unwrap_or(DEFAULT_TOP);
        let find = |guid: &str| self.shots.iter().find(|(found, _)| found == guid);
        let mut shot = find(top).ok_or_else(|| unsupported(format!("it has no snapshot {top}")))?;
        let mut chain = vec![shot.0.as_str()];
        while shot.1 != NO_PARENT {
            let missing = || damaged(format!("the snapshot {} is missing", shot.1));
            shot = find(&shot.1).ok_or_else(missing)?;
            if chain.len() >= self.shots.len() {
                return Err(damaged("its snapshots lead back to themselves"));
            }
            chain.push(&shot.0);
        }
        Ok(chain)
    }

    /// All snapshots but the present state.
    pub fn snapshots(&self) -> impl Iterator<Item = &str> {
        let top = self.top.as_deref().unwrap_or(DEFAULT_TOP);
        self.shots.iter().map(|(guid, _)| guid.as_str()).filter(move |guid| *guid != top)
    }
}

impl Storage {
    /// Its state in a snapshot.
    pub fn image(&self, guid: &str) -> Result<&Image> {
        let found = self.images.iter().find(|image| image.guid == guid);
        found.ok_or_else(|| damaged(format!("a part of its disk has no image {guid}")))
    }

    /// Its length in bytes.
    pub fn length(&self) -> Option<u64> {
        self.end.checked_sub(self.start)?.checked_mul(SECTOR_SIZE)
    }
}

fn orphan() -> crate::Error {
    damaged("its descriptor has elements in the wrong places")
}
