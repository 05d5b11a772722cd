//! btrfs on one device or several (btrfs documentation, "On-disk Format"). All numbers are little-endian.

mod chunk;
mod data;
mod dir;
mod replay;
mod tree;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use self::chunk::{Chunks, DeviceId, Run};
use self::dir::DirItem;
use self::replay::Changes;
use self::tree::{Key, Root};
use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::checksum::crc32c;
use crate::parity::{Share, restore};
use crate::volume::{Volume, at, read, text_of, uuid_of};
use crate::{Error, Result};

const SUPERBLOCK: u64 = 0x10000;
/// Tree of what is mounted as subvolume 5.
const FS_TREE: u64 = 5;
/// First inode of every subvolume.
const FIRST_INODE: u64 = 256;
/// In a snapshot, a subvolume that was below its original is an empty folder of this number.
const EMPTY_FOLDER: u64 = 2;
const INODE_ITEM: u8 = 1;
const INODE_REF: u8 = 12;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const ROOT_ITEM: u8 = 132;
/// Blocks of metadata that are kept.
const MAX_CACHED: usize = 1024;
/// Features that change nothing that is read here, or that are understood: mixed references, default subvolume, mixed groups,
/// lzo, zstd, big metadata, extended references, RAID 5 and 6, skinny metadata, no holes, metadata UUID, RAID 1 with
/// three and four copies, simple quotas.
const INCOMPAT_KNOWN: u64 = 0xfff | 1 << 16;
/// Features that are not, as `mkfs.btrfs -O` calls them.
const INCOMPAT_NAMED: [(u64, &str); 3] =
    [(1 << 12, "zoned"), (1 << 13, "extent-tree-v2"), (1 << 14, "raid-stripe-tree")];

struct Btrfs {
    devices: HashMap<DeviceId, Arc<dyn Volume>>,
    node_size: usize,
    sector: usize,
    chunks: Chunks,
    root_tree: Root,
    root_directory: u64,
    cache: RefCell<HashMap<u64, Rc<Vec<u8>>>>,
    subvolumes: RefCell<HashMap<u64, Root>>,
    /// What the log says, by subvolume.
    changes: HashMap<u64, Changes>,
    uuid: String,
    label: String,
    notes: Vec<String>,
}

/// A file: its subvolume, and its number there.
type Id = (u64, u64);

/// Opens the file system on `volume`, which is all of it.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    open_spread(&volume, std::slice::from_ref(&volume))
}

/// On so many devices lies the file system that begins with these bytes.
pub fn devices_of(start: &[u8]) -> u64 {
    start.get(SUPERBLOCK as usize..).and_then(|bytes| at::le64(bytes, 136)).unwrap_or(0)
}

/// Opens the file system that `volume` is a part of. `all` may hold others as well.
pub fn open_spread(
    volume: &Arc<dyn Volume>,
    all: &[Arc<dyn Volume>],
) -> Result<Rc<dyn FileSystem>> {
    let mut bytes = superblock(&**volume)?;
    let mut devices: HashMap<DeviceId, Arc<dyn Volume>> = HashMap::new();
    let generation = |bytes: &[u8]| at::le64(bytes, 72);
    let id = |bytes: &[u8]| bytes[32..48].to_vec();
    let others: Vec<_> =
        all.iter().filter_map(|other| Some((superblock(&**other).ok()?, other))).collect();
    let these = || others.iter().filter(|(other, _)| id(other) == id(&bytes));
    let newest = these().max_by_key(|(other, _)| generation(other));
    let newest = newest.map_or_else(|| bytes.clone(), |(newest, _)| newest.clone());
    for (other, volume) in &others {
        // One that was not there for a while has old data. What a seed device has does not change.
        let is_old = id(other) == id(&newest) && generation(other) != generation(&newest);
        if let Some(device) = other[267..].first_chunk().filter(|_| !is_old) {
            devices.entry(*device).or_insert_with(|| Arc::clone(volume));
        }
    }
    bytes = newest;
    let word = |offset| at::le64(&bytes, offset).unwrap_or(0);
    let half = |offset| at::le32(&bytes, offset).unwrap_or(0);
    let unknown = word(188) & !INCOMPAT_KNOWN;
    if unknown != 0 {
        let named = INCOMPAT_NAMED.iter().find(|(bit, _)| unknown & bit != 0);
        let why = match named {
            Some((_, name)) => format!("it has the feature {name}"),
            None => format!("it has features that are not known here: {unknown:#x}"),
        };
        return Err(Error::unsupported("btrfs file system", why));
    }
    let system = bytes.get(811..).and_then(|rest| rest.get(..half(160).min(2048) as usize));
    let mut fs = Btrfs {
        node_size: half(148) as usize,
        sector: half(144) as usize,
        chunks: Chunks::of_system(system.unwrap_or_default())
            .ok_or_else(|| damaged("its chunks"))?,
        root_tree: Root { address: word(80), level: bytes[198] },
        root_directory: word(128),
        cache: RefCell::default(),
        subvolumes: RefCell::default(),
        changes: HashMap::new(),
        uuid: bytes[32..].first_chunk().map(uuid_of).unwrap_or_default(),
        label: text_of(&bytes[299..555]),
        notes: Vec::new(),
        devices,
    };
    let chunk_root = Root { address: word(88), level: bytes[199] };
    let mut chunks = fs.chunks.clone();
    fs.each_item(chunk_root, Key::MIN, &mut |key, item| {
        chunks.add(key, item).ok_or_else(|| damaged("a chunk"))?;
        Ok(true)
    })?;
    fs.chunks = chunks;
    let missing = fs.chunks.devices().iter().filter(|id| !fs.devices.contains_key(*id)).count();
    if missing > 0 {
        fs.notes.push(format!("{missing} of its {} devices cannot be used", word(136)));
    }
    let log = Root { address: word(96), level: bytes[200] };
    if log.address != 0 {
        match replay::replay(&fs, log) {
            Ok(changes) => fs.changes = changes,
            Err(error) => fs.notes.push(format!(
                "it was not unmounted, and its log could not be replayed: {}",
                super::error_text(&error)
            )),
        }
    }
    Ok(Rc::new(Walk::new(fs)))
}

/// The superblock of a device.
fn superblock(volume: &dyn Volume) -> Result<Vec<u8>> {
    let bytes = read(volume, SUPERBLOCK, 4096)?;
    let half = |offset| at::le32(&bytes, offset).unwrap_or(0);
    let (node_size, sector) = (half(148), half(144));
    let plausible = bytes[64..72] == *b"_BHRfS_M"
        && node_size.is_power_of_two()
        && (4096..=65536).contains(&node_size)
        && sector.is_power_of_two()
        && (512..=65536).contains(&sector);
    plausible.then_some(bytes).ok_or_else(|| damaged("its superblock"))
}

impl Btrfs {
    /// Fills `buffer` from a logical address on.
    fn read_at(&self, buffer: &mut [u8], address: u64) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let place = address.checked_add(done as u64).ok_or_else(|| damaged("an address"))?;
            let run = self.chunks.locate(place, (buffer.len() - done) as u64);
            let run = run.ok_or_else(|| damaged("an address"))?;
            self.read_run(&mut buffer[done..done + run.length as usize], &run)?;
            done += run.length as usize;
        }
        Ok(())
    }

    /// Fills `target` from the first copy that can be read, or by what makes up for it.
    fn read_run(&self, target: &mut [u8], run: &Run) -> Result<()> {
        let mut found =
            Err(Error::unsupported("btrfs file system", "one of its devices is not there"));
        for (device, place) in &run.copies {
            let Some(volume) = self.devices.get(device) else { continue };
            found = volume.read_at(target, *place);
            if found.is_ok() {
                return found;
            }
        }
        let Some(row) = &run.row else { return found };
        let share = |&(role, device, place): &(_, DeviceId, u64)| Share {
            role,
            at: self.devices.get(&device).map(|volume| (&**volume, place)),
        };
        restore(target, row.column, &row.shares.iter().map(share).collect::<Vec<_>>())
    }

    /// The tree of a subvolume.
    fn subvolume(&self, id: u64) -> Result<Root> {
        if let Some(root) = self.subvolumes.borrow().get(&id) {
            return Ok(*root);
        }
        let mut found = None;
        self.each_item(self.root_tree, Key::new(id, ROOT_ITEM, 0), &mut |key, item| {
            if (key.object, key.kind) == (id, ROOT_ITEM) {
                found = Root::of_item(item);
            }
            Ok(false)
        })?;
        let root = found.ok_or_else(|| damaged("a subvolume"))?;
        if self.subvolumes.borrow().len() < MAX_CACHED {
            self.subvolumes.borrow_mut().insert(id, root);
        }
        Ok(root)
    }

    fn inode(&self, (tree, inode): Id) -> Result<(u32, u64)> {
        let mode_and_size = |item: &[u8]| at::le32(item, 52).zip(at::le64(item, 16));
        let logged = self.changes.get(&tree).and_then(|changes| changes.inodes.get(&inode));
        let mut found = logged.and_then(|item| mode_and_size(item));
        if found.is_none() {
            let root = self.subvolume(tree)?;
            self.each_item(root, Key::new(inode, INODE_ITEM, 0), &mut |key, item| {
                if (key.object, key.kind) == (inode, INODE_ITEM) {
                    found = mode_and_size(item);
                }
                Ok(false)
            })?;
        }
        found.ok_or_else(|| damaged("an inode"))
    }

    /// The path of a subvolume from the top level.
    fn path_of(&self, mut id: u64) -> Result<String> {
        const ROOT_BACKREF: u8 = 144;
        let mut path = String::new();
        for _ in 0..32 {
            if id == FS_TREE {
                return Ok(if path.is_empty() { "/".into() } else { path });
            }
            let mut found = None;
            self.each_item(self.root_tree, Key::new(id, ROOT_BACKREF, 0), &mut |key, item| {
                if (key.object, key.kind) == (id, ROOT_BACKREF) {
                    let name =
                        item.get(18..).map(|name| String::from_utf8_lossy(name).into_owned());
                    found = at::le64(item, 0)
                        .zip(name)
                        .map(|(folder, name)| (key.offset, folder, name));
                }
                Ok(false)
            })?;
            let (parent, mut folder, name) = found.ok_or_else(|| damaged("a subvolume"))?;
            path = format!("/{name}{path}");
            // Folders between the two.
            for _ in 0..64 {
                if folder == FIRST_INODE {
                    break;
                }
                let mut above = None;
                let root = self.subvolume(parent)?;
                self.each_item(root, Key::new(folder, INODE_REF, 0), &mut |key, item| {
                    if (key.object, key.kind) == (folder, INODE_REF) {
                        let length = usize::from(at::le16(item, 8).unwrap_or(0));
                        let name = item.get(10..).and_then(|rest| rest.get(..length));
                        above = name
                            .map(|name| (key.offset, String::from_utf8_lossy(name).into_owned()));
                    }
                    Ok(false)
                })?;
                let (next, name) = above.ok_or_else(|| damaged("a folder"))?;
                path = format!("/{name}{path}");
                folder = next;
            }
            id = parent;
        }
        Err(damaged("a subvolume"))
    }

    /// The subvolume that is mounted if none is named.
    fn default_subvolume(&self) -> Result<u64> {
        let mut found = FS_TREE;
        self.each_item(
            self.root_tree,
            Key::new(self.root_directory, DIR_ITEM, 0),
            &mut |key, item| {
                if (key.object, key.kind) != (self.root_directory, DIR_ITEM) {
                    return Ok(false);
                }
                if let Some((item, _)) = DirItem::of(item, 0)
                    && item.name == b"default"
                {
                    found = item.id.0;
                }
                Ok(true)
            },
        )?;
        Ok(found)
    }
}

impl Nodes for Btrfs {
    type Id = Id;

    fn kind(&self) -> &'static str {
        "btrfs"
    }

    fn uuid(&self) -> Option<String> {
        Some(self.uuid.clone())
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn root(&self) -> Id {
        (FS_TREE, FIRST_INODE)
    }

    fn child(&self, folder: &Id, name: &str) -> Result<Option<Id>> {
        if let Some(mut entries) = self.logged_entries(*folder) {
            let found = entries.find(|entry| entry.name == name.as_bytes());
            return found.map(|entry| self.target_of(folder.0, &entry)).transpose();
        }
        let hash = u64::from(crc32c(!1, name.as_bytes()));
        let mut found = None;
        let from = Key::new(folder.1, DIR_ITEM, hash);
        self.each_entry(*folder, from, &mut |key, item| {
            if key.offset == hash && item.name == name.as_bytes() {
                found = Some(self.target_of(folder.0, &item)?);
            }
            Ok(key.offset == hash && found.is_none())
        })?;
        Ok(found)
    }

    fn list(&self, folder: &Id) -> Result<Vec<Entry>> {
        let entry = |item: &DirItem<'_>| Entry {
            name: String::from_utf8_lossy(item.name).into(),
            kind: item.kind,
        };
        if let Some(entries) = self.logged_entries(*folder) {
            return Ok(entries.map(|item| entry(&item)).collect());
        }
        let mut entries = Vec::new();
        self.each_entry(*folder, Key::new(folder.1, DIR_INDEX, 0), &mut |_, item| {
            entries.push(entry(&item));
            Ok(entries.len() < MAX_ENTRIES)
        })?;
        Ok(entries)
    }

    fn stat(&self, file: &Id) -> Result<Metadata> {
        if file.1 == EMPTY_FOLDER {
            return Ok(Metadata { kind: Kind::Folder, length: 0, mode: 0o755 });
        }
        let (mode, length) = self.inode(*file)?;
        Ok(Metadata { kind: Kind::of_mode(mode), length, mode: (mode & 0o7777) as u16 })
    }

    fn content(&self, file: &Id, length: u64) -> Result<Vec<u8>> {
        self.content_of(*file, length)
    }

    fn default_folder(&self) -> String {
        let path = self.default_subvolume().and_then(|id| self.path_of(id));
        path.unwrap_or_else(|_| "/".into())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn damaged(why: &str) -> Error {
    Error::damaged("btrfs file system", why)
}
