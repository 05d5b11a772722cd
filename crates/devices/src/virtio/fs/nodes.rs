//! The files that the guest knows, by number.
//!
//! A node is a name in another node, and the inode that was found there. Its descriptor is opened, step by
//! step from the root and never through a symbolic link, when it is needed, and kept as long as
//! there are not too many; so a guest may know a million files of a host that allows a process a
//! thousand descriptors, and a saved guest finds its files again. A file whose name the guest takes
//! away is held open.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::wire::ROOT_ID;

/// Nodes that a guest may know; each takes about 200 bytes of the host.
const MOST_NODES: usize = 1 << 22;
/// Folders inside of each other at most: PATH_MAX has no room for more.
const MOST_DEPTH: usize = 2048;

/// What makes an inode itself. With its kind, since numbers of removed files are given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: u64,
    inode: u64,
    format: u32,
}

/// By what a changed file is known: its size, and seconds and nanoseconds of both changes.
type Stamp = (i64, [i64; 4]);

pub(super) struct Nodes {
    root: Arc<OwnedFd>,
    table: Mutex<Table>,
    /// Descriptors kept at most, of named nodes and of nameless ones.
    budget: usize,
}

#[derive(Default)]
struct Table {
    nodes: HashMap<u64, Node>,
    ids: HashMap<Key, u64>,
    next: u64,
    /// Nodes with a descriptor that can be opened again, the oldest first.
    cached: VecDeque<u64>,
    nameless: usize,
    /// Devices in the order of their appearance; the root's is the first.
    devices: Vec<u64>,
}

struct Node {
    parent: u64,
    name: CString,
    key: Key,
    kind: FileType,
    /// A file system of the kernel is mounted there, which is not shared.
    sealed: bool,
    /// What the guest was told of it and has not forgotten.
    lookups: u64,
    /// Nodes whose parent it is.
    children: u64,
    fd: Option<Arc<OwnedFd>>,
    /// What it was when the guest opened it last.
    seen: Option<Stamp>,
    /// The guest took its name away; only the descriptor leads to it.
    nameless: bool,
}

/// A node as a snapshot keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedNode {
    id: u64,
    parent: u64,
    name: SavedName,
    lookups: u64,
    /// It had no name when it was saved, so it cannot be found again.
    #[serde(default)]
    lost: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum SavedName {
    Text(String),
    Bytes(Vec<u8>),
}

impl Key {
    pub(super) fn of(stat: &Stat) -> Self {
        let format = FileType::from_raw_mode(stat.st_mode).as_raw_mode();
        Self { device: stat.st_dev, inode: stat.st_ino, format }
    }
}

impl Nodes {
    /// The nodes below the folder `root`, of which `budget` descriptors may be kept.
    pub(super) fn new(root: OwnedFd, budget: usize) -> Result<Self, Errno> {
        let key = Key::of(&rustix::fs::fstat(&root)?);
        let root = Arc::new(root);
        let table = Table::new(&root, key);
        Ok(Self { root, table: Mutex::new(table), budget })
    }

    /// Forgets all nodes but the root.
    pub(super) fn clear(&self) -> Result<(), Errno> {
        let key = Key::of(&rustix::fs::fstat(&self.root)?);
        *self.table() = Table::new(&self.root, key);
        Ok(())
    }

    /// A descriptor of node `id`, for its place only (O_PATH).
    pub(super) fn fd(&self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        let (mut fd, steps) = self.table().way_to(id)?;
        for (id, name, key) in steps.into_iter().rev() {
            let opened = open_place(&fd, &name).map_err(|_| Errno::STALE)?;
            if Key::of(&rustix::fs::fstat(&opened)?) != key {
                return Err(Errno::STALE);
            }
            fd = Arc::new(opened);
            self.table().keep(id, &fd, self.budget);
        }
        Ok(fd)
    }

    /// A descriptor of folder `id`, in which names may be looked up.
    pub(super) fn folder(&self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        let table = self.table();
        let node = table.nodes.get(&id).ok_or(Errno::STALE)?;
        match node.kind {
            FileType::Directory if node.sealed => Err(Errno::NOENT),
            FileType::Directory => {
                drop(table);
                self.fd(id)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    /// What `id` is, and whether it is a folder whose content is not shared.
    pub(super) fn kind(&self, id: u64) -> Result<(FileType, bool), Errno> {
        let table = self.table();
        let node = table.nodes.get(&id).ok_or(Errno::STALE)?;
        Ok((node.kind, node.sealed))
    }

    /// The attributes of node `id`.
    pub(super) fn stat(&self, id: u64) -> Result<Stat, Errno> {
        let table = self.table();
        let node = table.nodes.get(&id).ok_or(Errno::STALE)?;
        if let Some(fd) = node.fd.clone() {
            drop(table);
            return rustix::fs::fstat(fd);
        }
        // Asking by name needs no descriptor.
        let (parent, name, key) = (node.parent, node.name.clone(), node.key);
        drop(table);
        let stat = stat_at(&*self.fd(parent)?, &name).map_err(|_| Errno::STALE)?;
        if Key::of(&stat) == key { Ok(stat) } else { Err(Errno::STALE) }
    }

    /// The node of what `name` in `parent` is, `stat`; the guest knows of it once more.
    pub(super) fn enter(&self, parent: u64, name: &CStr, stat: &Stat) -> Result<u64, Errno> {
        let key = Key::of(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let crosses = kind == FileType::Directory
            && self.table().nodes.get(&parent).is_some_and(|node| node.key.device != key.device);
        let sealed = crosses && is_of_kernel(&*self.fd(parent)?, name);
        let mut table = self.table();
        if !table.nodes.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        table.device_index(key.device);
        if let Some(id) = table.ids.get(&key).copied() {
            table.rename(id, parent, name);
            if let Some(node) = table.nodes.get_mut(&id) {
                node.lookups = node.lookups.saturating_add(1);
            }
            return Ok(id);
        }
        if table.nodes.len() >= MOST_NODES {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        let node = Node {
            parent,
            name: name.to_owned(),
            key,
            kind,
            sealed,
            lookups: 1,
            children: 0,
            fd: None,
            seen: None,
            nameless: false,
        };
        table.insert(id, node);
        Ok(id)
    }

    /// The guest forgets `count` of the times that it was told of `id`.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let mut table = self.table();
        if let Some(node) = table.nodes.get_mut(&id).filter(|_| id != ROOT_ID) {
            node.lookups = node.lookups.saturating_sub(count);
            table.collect(id);
        }
    }

    /// What `name` in `parent` is will be removed or replaced: if the guest knows it, it is held.
    pub(super) fn hold(&self, parent: u64, name: &CStr) {
        let Ok(stat) = self.folder(parent).and_then(|folder| stat_at(&folder, name)) else {
            return;
        };
        let Some(id) = self.table().ids.get(&Key::of(&stat)).copied() else { return };
        let Ok(fd) = self.fd(id) else { return };
        let mut table = self.table();
        // A guest that removes and holds more than this loses some of it, and nobody else does.
        if table.nameless >= self.budget {
            return;
        }
        if let Some(node) = table.nodes.get_mut(&id).filter(|node| !node.nameless) {
            node.fd = Some(fd);
            node.nameless = true;
            table.nameless += 1;
        }
    }

    /// What was found as `stat` has the name `name` in `parent` now.
    pub(super) fn moved(&self, stat: &Stat, parent: u64, name: &CStr) {
        let mut table = self.table();
        if let Some(id) = table.ids.get(&Key::of(stat)).copied()
            && table.nodes.contains_key(&parent)
        {
            table.rename(id, parent, name);
        }
    }

    /// Whether file `id`, which is `stat` now, has the content that it had when the guest opened it last.
    pub(super) fn is_unchanged(&self, id: u64, stat: &Stat) -> bool {
        let times =
            [stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64];
        let stamp = (stat.st_size, times);
        // A file that was just changed may change again before its time does.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let settled = now.tv_sec > stat.st_ctime.saturating_add(1);
        let mut table = self.table();
        let Some(node) = table.nodes.get_mut(&id) else { return false };
        std::mem::replace(&mut node.seen, settled.then_some(stamp)) == Some(stamp)
    }

    /// A number for the inode that is unique in the shared folder, though it may span several file systems.
    pub(super) fn inode_number(&self, device: u64, inode: u64) -> u64 {
        let index = self.table().device_index(device);
        inode ^ (index << 48)
    }

    /// All nodes but the root.
    pub(super) fn save(&self) -> Vec<SavedNode> {
        let table = self.table();
        let mut nodes: Vec<_> = table
            .nodes
            .iter()
            .filter(|(id, _)| **id != ROOT_ID)
            .map(|(id, node)| SavedNode {
                id: *id,
                parent: node.parent,
                name: SavedName::of(&node.name),
                lookups: node.lookups,
                lost: node.nameless,
            })
            .collect();
        nodes.sort_unstable_by_key(|node| node.id);
        nodes
    }

    /// Takes over saved nodes; what is not found any more is a stale file for the guest. An error says why
    /// the nodes cannot be.
    pub(super) fn restore(&self, saved: Vec<SavedNode>) -> Result<(), &'static str> {
        if saved.len() >= MOST_NODES {
            return Err("the guest knows too many files");
        }
        let mut waiting: HashMap<u64, SavedNode> = HashMap::with_capacity(saved.len());
        let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut next = ROOT_ID + 1;
        for node in saved {
            if node.id <= ROOT_ID || node.id >= u64::MAX / 2 {
                return Err("a file has an impossible number");
            }
            next = next.max(node.id + 1);
            children.entry(node.parent).or_default().push(node.id);
            if waiting.insert(node.id, node).is_some() {
                return Err("two files have one number");
            }
        }
        self.clear().map_err(|_| "the shared folder is not there")?;
        // From the root downwards, so that each finds its parent; who hangs on no root is left out.
        let mut todo = VecDeque::from([ROOT_ID]);
        while let Some(parent) = todo.pop_front() {
            for id in children.remove(&parent).unwrap_or_default() {
                let Some(node) = waiting.remove(&id) else { continue };
                let name = node.name.name().ok_or("a file has an impossible name")?;
                self.restore_node(&node, name);
                todo.push_back(id);
            }
        }
        self.table().next = next;
        Ok(())
    }

    fn restore_node(&self, saved: &SavedNode, name: CString) {
        let found = (!saved.lost)
            .then(|| self.folder(saved.parent).and_then(|folder| stat_at(&folder, &name)).ok())
            .flatten();
        let parent_device =
            self.table().nodes.get(&saved.parent).map_or(0, |parent| parent.key.device);
        // No inode has this key, so what was not found stays stale.
        let lost = Key { device: u64::MAX, inode: saved.id, format: 0 };
        let key = found.as_ref().map_or(lost, Key::of);
        let kind =
            found.as_ref().map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
        let crosses = kind == FileType::Directory && key.device != parent_device;
        let sealed =
            crosses && self.fd(saved.parent).is_ok_and(|parent| is_of_kernel(&parent, &name));
        let mut table = self.table();
        if found.is_some() {
            table.device_index(key.device);
        }
        let node = Node {
            parent: saved.parent,
            name,
            key,
            kind,
            sealed,
            lookups: saved.lookups,
            children: 0,
            fd: None,
            seen: None,
            nameless: false,
        };
        table.insert(saved.id, node);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn new(root: &Arc<OwnedFd>, key: Key) -> Self {
        let node = Node {
            parent: ROOT_ID,
            name: CString::default(),
            key,
            kind: FileType::Directory,
            sealed: false,
            lookups: 1,
            children: 0,
            fd: Some(Arc::clone(root)),
            seen: None,
            nameless: false,
        };
        Self {
            nodes: HashMap::from([(ROOT_ID, node)]),
            ids: HashMap::from([(key, ROOT_ID)]),
            next: ROOT_ID + 1,
            devices: vec![key.device],
            ..Self::default()
        }
    }

    /// The nearest node above `id`, or itself, that has a descriptor, and the steps from there, the last
    /// first.
    fn way_to(&self, id: u64) -> Result<Way, Errno> {
        let mut steps = Vec::new();
        let mut at = id;
        loop {
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            if let Some(fd) = &node.fd {
                return Ok((Arc::clone(fd), steps));
            }
            if steps.len() == MOST_DEPTH {
                return Err(Errno::STALE);
            }
            steps.push((at, node.name.clone(), node.key));
            at = node.parent;
        }
    }

    /// Keeps the descriptor of node `id`, and no more than `budget` of them.
    fn keep(&mut self, id: u64, fd: &Arc<OwnedFd>, budget: usize) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.fd.is_none()) else { return };
        node.fd = Some(Arc::clone(fd));
        self.cached.push_back(id);
        while self.cached.len() > budget {
            let oldest = self.cached.pop_front().and_then(|id| self.nodes.get_mut(&id));
            if let Some(node) = oldest.filter(|node| !node.nameless) {
                node.fd = None;
            }
        }
    }

    fn insert(&mut self, id: u64, node: Node) {
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children += 1;
        }
        self.ids.entry(node.key).or_insert(id);
        self.nodes.insert(id, node);
    }

    fn rename(&mut self, id: u64, parent: u64, name: &CStr) {
        let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT_ID) else { return };
        let old = std::mem::replace(&mut node.parent, parent);
        if node.name.as_c_str() != name {
            node.name = name.to_owned();
        }
        if node.nameless {
            // It has another name still.
            node.nameless = false;
            self.nameless -= 1;
            self.cached.push_back(id);
        }
        if old != parent {
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.children += 1;
            }
            self.release(old);
        }
    }

    /// One node less has `parent` as its parent.
    fn release(&mut self, parent: u64) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
            self.collect(parent);
        }
    }

    /// Removes node `id` if nothing refers to it, and then perhaps those above it.
    fn collect(&mut self, mut id: u64) {
        while id != ROOT_ID
            && let Some(node) = self.nodes.get(&id)
            && node.lookups == 0
            && node.children == 0
        {
            let Some(node) = self.nodes.remove(&id) else { return };
            if self.ids.get(&node.key) == Some(&id) {
                self.ids.remove(&node.key);
            }
            if node.nameless {
                self.nameless -= 1;
            }
            if let Some(parent) = self.nodes.get_mut(&node.parent) {
                parent.children = parent.children.saturating_sub(1);
            }
            id = node.parent;
        }
    }

    fn device_index(&mut self, device: u64) -> u64 {
        let index = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        index as u64
    }
}

impl SavedName {
    fn of(name: &CStr) -> Self {
        match name.to_str() {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(name.to_bytes().to_owned()),
        }
    }

    fn name(&self) -> Option<CString> {
        match self {
            Self::Text(text) => checked_name(text.as_bytes()).ok(),
            Self::Bytes(bytes) => checked_name(bytes).ok(),
        }
    }
}

type Way = (Arc<OwnedFd>, Vec<(u64, CString, Key)>);

/// The name of something in a folder: one step, downwards.
pub(super) fn checked_name(bytes: &[u8]) -> Result<CString, Errno> {
    if bytes.len() > 255 {
        return Err(Errno::NAMETOOLONG);
    }
    if bytes.is_empty() || bytes.contains(&b'/') || matches!(bytes, b"." | b"..") {
        return Err(Errno::INVAL);
    }
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

/// The attributes of `name` in `folder`; of a symbolic link itself.
pub(super) fn stat_at(folder: &OwnedFd, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

/// The place `name` in `folder`, which is opened for nothing. The kernel holds to it that this leads to
/// no other folder.
fn open_place(folder: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), RESOLVE)
}

/// How a name may lead to a file: downwards, and through no link.
pub(super) const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Whether a file system of the kernel itself is mounted at `name`: it shows the host's processes and
/// hardware, and not files.
fn is_of_kernel(folder: &OwnedFd, name: &CStr) -> bool {
    let kind = open_place(folder, name).and_then(rustix::fs::fstatfs);
    // What cannot be asked is not shared either.
    kind.map_or(true, |kind| OF_KERNEL.contains(&(kind.f_type as u32)))
}

/// Magic numbers of `include/uapi/linux/magic.h`.
const OF_KERNEL: [u32; 20] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0000_1cd1, // devpts
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0x4249_4e4d, // binfmt_misc
    0x1980_0202, // mqueue
    0xf97c_ff8c, // selinuxfs
    0x6e73_6673, // nsfs
    0x0000_0187, // autofs
    0x6759_6969, // rpc_pipefs
    0x9584_58f6, // hugetlbfs
];
