//! Everything about the guest on a set of disks.

use std::rc::Rc;
use std::sync::Arc;

use disk::Disk;
use serde::Serialize;

use crate::fs::FileSystem;
use crate::loader::{self, Device, Menu};
use crate::names;
use crate::os::{self, Os};
use crate::storage::{DiskReport, Found, Storage, VolumeReport};
use crate::tree::Tree;
use crate::windows::{self, RegistryPlan};

/// An opened guest.
pub struct Guest {
    pub(crate) storage: Storage,
    pub(crate) devices: Vec<Device>,
    pub(crate) menu: Option<Menu>,
    pub(crate) root: Option<Root>,
    pub(crate) os: Option<Os>,
}

/// The guest's root.
pub(crate) struct Root {
    /// Index of its volume.
    pub volume: usize,
    pub tree: Tree,
    /// The folder of its file system, `/` but for btrfs.
    pub folder: String,
}

/// What is printed of a guest. The fields are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its disks, in the order in which they were given.
    pub disks: Vec<DiskReport>,
    /// Partitions and volumes.
    pub volumes: Vec<VolumeReport>,
    /// What is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// The volume that its root is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// How it is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Menu>,
}

impl Report {
    /// The volume that a name by a controller means: `/dev/sda1` is `vda1`.
    fn volume_of(&self, device: &str) -> Option<&VolumeReport> {
        let name = names::on_virtio(device)?;
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The volume that a word of the kernel's command line means by a name by a controller, such as `root=/dev/sda2`. A
    /// root of a name that is not here, after another order of the disks, is the one that was found.
    pub fn volume_of_word(&self, key: &str, device: &str) -> Option<&VolumeReport> {
        names::on_virtio(device)?;
        let root = || self.root_volume().filter(|_| matches!(key, "root" | "real_root"));
        self.volume_of(device).or_else(root)
    }

    /// The volume that the root is on.
    fn root_volume(&self) -> Option<&VolumeReport> {
        let root = self.root.as_deref()?;
        self.volumes.iter().find(|volume| volume.name == root)
    }

    /// The devices that the guest's fstab names by their controller, and the volumes that they are here.
    ///
    /// Xen gives a guest partitions as disks of their own, `xvda2` without an `xvda`. Of those the root is known, and
    /// the swap space, if there is one only.
    pub fn named_by_controller(&self) -> impl Iterator<Item = (&str, &VolumeReport)> {
        self.os.iter().flat_map(|os| &os.fstab).filter_map(|line| {
            names::on_virtio(&line.spec)?;
            let alone = || match (line.path.as_str(), line.kind.as_str()) {
                ("/", _) => self.root_volume(),
                (_, "swap") => self.only_swap(),
                _ => None,
            };
            Some((line.spec.as_str(), self.volume_of(&line.spec).or_else(alone)?))
        })
    }

    fn only_swap(&self) -> Option<&VolumeReport> {
        let is_swap = |volume: &&VolumeReport| volume.content.as_deref() == Some("swap");
        let mut found = self.volumes.iter().filter(is_swap);
        found.next().filter(|_| found.next().is_none())
    }
}

impl Guest {
    /// Looks into `disks`, the one that is started from first.
    pub fn open(disks: &[Arc<dyn Disk>]) -> Self {
        let storage = Storage::open(disks);
        let devices = storage.devices();
        let menu = loader::menu(&devices);
        let default = menu.as_ref().and_then(|menu| menu.entries.get(menu.default?));
        let cmdline = default.map_or("", |entry| entry.cmdline.as_str());
        let root = find_root(&storage.volumes, cmdline);
        let os = root.as_ref().map(|root| os::look(&root.tree));
        let mut guest = Self { storage, devices, menu, root, os };
        guest.mount_all();
        guest
    }

    /// Its files, with everything mounted that its fstab names; `None` if no root was found.
    pub fn tree(&self) -> Option<&Tree> {
        self.root.as_ref().map(|root| &root.tree)
    }

    /// What is installed, if anything was found.
    pub fn os(&self) -> Option<&Os> {
        self.os.as_ref()
    }

    /// The file systems that were opened, with the names of their volumes.
    pub fn file_systems(&self) -> impl Iterator<Item = (&str, &dyn FileSystem)> {
        let volumes = self.storage.volumes.iter();
        volumes.filter_map(|found| Some((found.report.name.as_str(), found.fs.as_deref()?)))
    }

    /// What must change in a Windows guest's registry before it starts on AHCI or NVMe; `None` for other guests.
    pub fn registry_plan(&self) -> Option<RegistryPlan> {
        let root = self.root.as_ref().filter(|root| windows::is_windows(&root.tree))?;
        Some(windows::plan(&root.tree))
    }

    /// What is printed of it.
    pub fn report(&self) -> Report {
        Report {
            disks: self.storage.disks.clone(),
            volumes: self.storage.volumes.iter().map(|found| found.report.clone()).collect(),
            os: self.os.clone(),
            root: self
                .root
                .as_ref()
                .map(|root| self.storage.volumes[root.volume].report.name.clone()),
            boot: self.menu.clone(),
        }
    }

    /// Mounts what the fstab names and is a file system that was opened.
    fn mount_all(&mut self) {
        let (Some(root), Some(os)) = (&mut self.root, &self.os) else { return };
        let mut lines: Vec<_> = os.fstab.iter().filter(|line| line.path.starts_with('/')).collect();
        lines.sort_by_key(|line| line.path.len());
        for line in lines.into_iter().filter(|line| line.path != "/") {
            let Some(index) = names::find(&self.storage.volumes, &line.spec) else { continue };
            let Some(fs) = self.storage.volumes.get(index).and_then(|found| found.fs.clone())
            else {
                continue;
            };
            let folder = line.option("subvol").map_or_else(|| fs.default_folder(), str::to_owned);
            if root.tree.is_folder(&line.path) {
                root.tree.mount(&line.path, fs, &folder);
            }
        }
    }
}

/// The root that the command line names, or the first one that looks like one.
fn find_root(volumes: &[Found], cmdline: &str) -> Option<Root> {
    let word = |name: &str| {
        cmdline
            .split_whitespace()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .next_back()
    };
    let subvolume = word("rootflags")
        .and_then(|flags| flags.split(',').find_map(|flag| flag.strip_prefix("subvol=")));
    let named = word("root").and_then(|name| names::find(volumes, name));
    let order = named.into_iter().chain((0..volumes.len()).filter(|index| Some(*index) != named));
    for volume in order {
        let Some(fs) = &volumes[volume].fs else { continue };
        let default = fs.default_folder();
        let known = ["/@", "/root", "/@rootfs", "/"].map(str::to_owned);
        let folders = subvolume.map(str::to_owned).into_iter().chain([default]).chain(known);
        for folder in folders {
            let tree = Tree::new(Rc::clone(fs), &folder);
            // OSTree's initial RAM disk takes a folder of that for the root.
            let deployed = word("ostree").and_then(|path| tree.resolve(path, true).ok());
            for folder in deployed
                .map(|path| format!("{}{path}", folder.trim_end_matches('/')))
                .into_iter()
                .chain([folder])
            {
                let tree = Tree::new(Rc::clone(fs), &folder);
                if os::is_root(&tree) {
                    return Some(Root { volume, tree, folder });
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn the_root_is_the_deployment_that_ostree_is_told() {
        let deployed = "/root/ostree/deploy/fedora/deploy/abc.0/usr/lib/os-release";
        let fs: Rc<dyn FileSystem> = Rc::new(Files::new(&[
            (deployed, "ID=fedora\n"),
            ("/root/ostree/boot.1/fedora/def/0", "-> ../../../deploy/fedora/deploy/abc.0"),
        ]));
        let volumes =
            [Found { report: VolumeReport::default(), grub: "hd0,gpt3".into(), fs: Some(fs) }];
        let root = |words: &str| find_root(&volumes, words).map(|root| root.folder);
        let words = "root=UUID=1 rootflags=subvol=root ostree=/ostree/boot.1/fedora/def/0";
        let folder = "root/ostree/deploy/fedora/deploy/abc.0";
        assert_eq!(root(words).as_deref(), Some(folder));
        assert_eq!(root("root=UUID=1 ostree=/ostree/boot.1/fedora/gone/0"), None);
    }
}
