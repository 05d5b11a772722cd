//! Where volumes lie: `STORAGE:NAME`, by `/etc/pve/storage.cfg`.

use std::path::Path;

use super::super::description::FileRef;
use super::super::folder::Folder;
use super::super::text;

/// The storages of a host.
pub(super) struct Volumes {
    storages: Vec<Storage>,
    /// The VM's number, by which its files' folder is called.
    id: String,
}

struct Storage {
    name: String,
    kind: String,
    /// The folder, group of volumes or pool.
    root: Option<String>,
}

/// Beside the VMs' folder, or that of the node.
const PLACES: [&str; 3] = ["storage.cfg", "../storage.cfg", "../../../storage.cfg"];
/// More storages are not read.
const MOST: usize = 10_000;

impl Volumes {
    /// Those of the host on which a configuration lies, or else those that the product's installer makes.
    pub fn of_host(folder: &Folder, path: &Path) -> Self {
        let file = PLACES.iter().find_map(|place| folder.find(place));
        let text = file.and_then(|file| text::read_file(&file).ok());
        let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { storages: text.map(|text| parse(&text)).unwrap_or_else(usual), id }
    }

    /// A volume: where its storage has it, or else in the VM's folder under its own name.
    pub fn locate(&self, volume: &str, folder: &Folder) -> FileRef {
        if volume.starts_with('/') {
            return folder.locate(volume, &[]);
        }
        let (storage, name) = volume.split_once(':').unwrap_or(("", volume));
        let known = self.storages.iter().find(|known| known.name == storage);
        let own = format!("images/{}", self.id);
        match known.and_then(|known| known.path(name)) {
            Some(path) => folder.locate(&path, &[&own]),
            None => {
                let last = name.rsplit('/').next().unwrap_or_default();
                let found = folder.locate(last, &[&own]);
                if found.is_usable() { found } else { FileRef::remote(volume) }
            }
        }
    }
}

impl Storage {
    /// The key that says where it is.
    fn root_key(&self) -> &'static str {
        match self.kind.as_str() {
            "lvm" | "lvmthin" => "vgname",
            "zfspool" => "pool",
            _ => "path",
        }
    }

    fn path(&self, name: &str) -> Option<String> {
        let root = self.root.as_ref()?;
        let last = name.rsplit('/').next().unwrap_or_default();
        Some(match self.kind.as_str() {
            "lvm" | "lvmthin" => format!("/dev/{root}/{last}"),
            "zfspool" => format!("/dev/zvol/{root}/{last}"),
            "dir" | "nfs" | "cifs" | "cephfs" | "glusterfs" | "btrfs" => match name.split_once('/')
            {
                Some(("iso", file)) => format!("{root}/template/iso/{file}"),
                Some(("import", file)) => format!("{root}/import/{file}"),
                // Of a linked clone, the volume that it is based on comes first.
                _ => {
                    let parts: Vec<_> = name.rsplit('/').take(2).collect();
                    let owner = parts.get(1)?;
                    match last.strip_suffix(".raw").filter(|_| self.kind == "btrfs") {
                        Some(volume) => format!("{root}/images/{owner}/{volume}/disk.raw"),
                        None => format!("{root}/images/{owner}/{last}"),
                    }
                }
            },
            _ => return None,
        })
    }
}

/// Those of the installer: on ext4 or XFS with LVM, or on ZFS.
fn usual() -> Vec<Storage> {
    let storage = |name: &str, kind: &str, root: &str| Storage {
        name: name.into(),
        kind: kind.into(),
        root: Some(root.into()),
    };
    vec![
        storage("local", "dir", "/var/lib/vz"),
        storage("local-lvm", "lvmthin", "pve"),
        storage("local-zfs", "zfspool", "rpool/data"),
        storage("local-btrfs", "btrfs", "/var/lib/pve/local-btrfs"),
    ]
}

/// `KIND: NAME`, and below it lines of `KEY VALUE` that are indented.
fn parse(text: &str) -> Vec<Storage> {
    let mut storages: Vec<Storage> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            let (key, value) = line.trim().split_once([' ', '\t']).unwrap_or_default();
            if let Some(storage) = storages.last_mut().filter(|storage| key == storage.root_key()) {
                storage.root = Some(value.trim().trim_end_matches('/').to_owned());
            }
        } else if storages.len() < MOST
            && let Some((kind, name)) = line.split_once(':')
        {
            let (kind, name) = (kind.trim().to_owned(), name.trim().to_owned());
            // Storages of a network are mounted here, unless they say where.
            let is_of_network = matches!(kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs");
            let root = is_of_network.then(|| format!("/mnt/pve/{name}"));
            storages.push(Storage { name, kind, root });
        }
    }
    storages
}
