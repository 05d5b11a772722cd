//! From disks to file systems: partitions and what is put together from them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use disk::Disk;
use serde::Serialize;

use crate::fs::{self, Content, FileSystem};
use crate::layers::{firmware, lvm, md};
use crate::loader::Device;
use crate::partition::{self, TableKind};
use crate::tree::Tree;
use crate::volume::{Numbered, Volume};

/// Most volumes that are looked at, all disks together.
const MAX_VOLUMES: usize = 1024;
/// Most that a read of a volume may cost.
const MAX_COST: u64 = 1 << 14;

/// What is on the disks.
#[derive(Default)]
pub struct Storage {
    pub disks: Vec<DiskReport>,
    pub volumes: Vec<Found>,
    /// Volumes with whole file systems or parts of them that may lie on several, by their place in `volumes`.
    spread: Vec<(usize, Arc<dyn Volume>)>,
}

/// A disk's partition table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// Its length in bytes.
    pub length: u64,
    /// How it is divided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableKind>,
    /// What should be known about its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A partition, a whole disk without partitions, or a volume made of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// What Linux calls it on virtio disks in this order: `vda1`, or `mapper/vg-lv`.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// What is on it, as blkid calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// What Linux calls LABEL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What Linux calls UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What Linux calls PARTUUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_uuid: Option<String>,
    /// What Linux calls PARTLABEL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_label: Option<String>,
    /// It is an EFI system partition.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_esp: bool,
    /// What should be known about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A volume with its file system.
pub struct Found {
    pub report: VolumeReport,
    /// GRUB's name.
    pub grub: String,
    pub fs: Option<Rc<dyn FileSystem>>,
}

impl Found {
    /// What is on it can only be read with a passphrase.
    pub fn is_encrypted(&self) -> bool {
        self.report.content.as_deref().is_some_and(fs::is_encrypted)
    }
}

/// A volume that has not been looked at.
struct Pending {
    volume: Arc<dyn Volume>,
    report: VolumeReport,
    grub: String,
    /// What a read of it costs at most: the places that it leads to, doubled by each layer.
    cost: u64,
}

impl Storage {
    /// Looks into `disks`, the one that is started from first.
    pub fn open(disks: &[Arc<dyn Disk>]) -> Self {
        let numbered = |(index, disk): (usize, &Arc<dyn Disk>)| -> Arc<dyn Volume> {
            Arc::new(Numbered(index, Arc::clone(disk)))
        };
        let volumes = disks.iter().enumerate().map(numbered);
        Self::of_volumes(volumes.collect())
    }

    /// Looks into volumes as if they were disks.
    pub fn of_volumes(disks: Vec<Arc<dyn Volume>>) -> Self {
        let mut storage = Self::default();
        let mut pending = VecDeque::new();
        for (index, disk) in disks.into_iter().enumerate() {
            storage.add_disk(index, disk, &mut pending);
        }
        let mut layers = Layers::default();
        loop {
            while let Some(next) = pending.pop_front() {
                if storage.volumes.len() == MAX_VOLUMES {
                    storage.join();
                    return storage;
                }
                let is_part = layers.add(&next);
                storage.look_at(next, is_part);
            }
            // Arrays first: a volume group may lie on one.
            if !layers.assemble(&mut pending, &mut storage) {
                storage.join();
                return storage;
            }
        }
    }

    fn add_disk(&mut self, index: usize, disk: Arc<dyn Volume>, pending: &mut VecDeque<Pending>) {
        let name = format!("vd{}", letters(index));
        let grub = format!("hd{index}");
        let notes = firmware::note(&*disk).into_iter().collect();
        let mut report = DiskReport { length: disk.len(), table: None, notes };
        let table = match partition::read(&*disk) {
            Ok(table) => table,
            Err(error) => {
                report.notes.push(fs::error_text(&error));
                None
            }
        };
        let mut partitions = Vec::new();
        let mut kind = "";
        if let Some(table) = table {
            report.table = Some(table.kind);
            report.notes.extend(table.notes);
            partitions = table.partitions;
            kind = match table.kind {
                TableKind::Gpt => "gpt",
                TableKind::Mbr => "msdos",
            };
        }
        if partitions.is_empty() {
            pending.push_back(Pending {
                report: VolumeReport {
                    name: name.clone(),
                    length: disk.len(),
                    ..VolumeReport::default()
                },
                grub: grub.clone(),
                volume: Arc::clone(&disk),
                cost: 1,
            });
        }
        for partition in partitions {
            let volume = Arc::new(partition.on(&disk));
            pending.push_back(Pending {
                report: VolumeReport {
                    name: format!("{name}{}", partition.number),
                    length: volume.len(),
                    is_esp: partition.is_esp(),
                    part_uuid: partition.uuid,
                    part_label: partition.name,
                    ..VolumeReport::default()
                },
                grub: format!("{grub},{kind}{}", partition.number),
                volume,
                cost: 1,
            });
        }
        self.disks.push(report);
    }

    /// Opens what is on a volume, unless that is a part of an array, which may begin with anything.
    fn look_at(&mut self, pending: Pending, is_part: bool) {
        let Pending { volume, mut report, grub, .. } = pending;
        let mut opened = None;
        let content = if is_part {
            report.content = Some("linux_raid_member".into());
            Content::Unknown
        } else {
            fs::open(Arc::clone(&volume))
        };
        match content {
            Content::FileSystem(fs) => {
                if fs.kind() == "btrfs" {
                    self.spread.push((self.volumes.len(), volume));
                }
                report.content = Some(fs.kind().to_owned());
                report.label = fs.label();
                report.uuid = fs.uuid();
                report.notes.extend(fs.notes());
                opened = Some(fs);
            }
            Content::Other(other) | Content::Part(other) => {
                if matches!(other.kind, "btrfs" | "xfs" | fs::XFS_LOG) {
                    self.spread.push((self.volumes.len(), volume));
                }
                report.content = Some(other.kind.to_owned());
                report.label = other.label;
                report.uuid = other.uuid;
                report.notes.extend(other.note);
            }
            Content::Unknown => {}
        }
        self.volumes.push(Found { report, grub, fs: opened });
    }

    /// Opens the file systems that lie on several volumes; each of these is the whole, as it is for `mount`.
    fn join(&mut self) {
        let all: Vec<_> = self.spread.iter().map(|(_, volume)| Arc::clone(volume)).collect();
        let mut joined: Vec<(Option<String>, Rc<dyn FileSystem>)> = Vec::new();
        for (index, part) in std::mem::take(&mut self.spread) {
            let found = &mut self.volumes[index];
            let is_log = found.report.content.as_deref() == Some(fs::XFS_LOG);
            if found.fs.is_some() || is_log || !found.report.notes.is_empty() {
                continue;
            }
            // Of btrfs only, every part leads to the whole.
            let is_known = |fs: &Rc<dyn FileSystem>| fs.kind() == "btrfs";
            let known = joined.iter().find(|(uuid, fs)| *uuid == found.report.uuid && is_known(fs));
            let fs = match known {
                Some((_, fs)) => Rc::clone(fs),
                None => match fs::open_spread(&part, &all) {
                    Ok(fs) => fs,
                    Err(error) => {
                        found.report.notes.push(fs::error_text(&error));
                        continue;
                    }
                },
            };
            joined.push((found.report.uuid.clone(), Rc::clone(&fs)));
            found.report.notes.extend(fs.notes());
            found.fs = Some(fs);
        }
    }

    /// The file systems as boot loaders see them.
    pub fn devices(&self) -> Vec<Device> {
        let device = |found: &Found| {
            Some(Device {
                name: found.grub.clone(),
                tree: Tree::new(Rc::clone(found.fs.as_ref()?), "/"),
                uuid: found.report.uuid.clone(),
                label: found.report.label.clone(),
                part_uuid: found.report.part_uuid.clone(),
                is_esp: found.report.is_esp,
            })
        };
        self.volumes.iter().filter_map(device).collect()
    }
}

/// Members of what is made of several volumes.
#[derive(Default)]
struct Layers {
    physical: Vec<lvm::Physical>,
    /// What reads of all these cost together.
    physical_cost: u64,
    /// With what reads of them cost.
    members: Vec<(md::Member, u64)>,
}

impl Layers {
    /// Remembers a volume that is part of another one; whether there is nothing to be seen on it alone.
    fn add(&mut self, pending: &Pending) -> bool {
        let Some(member) = md::member(&pending.volume) else {
            if let Ok(physical) = lvm::physical(&pending.volume) {
                self.physical.push(physical);
                self.physical_cost += pending.cost;
            }
            return false;
        };
        let is_part = !member.is_alike();
        self.members.push((member, pending.cost));
        is_part
    }

    /// Puts together what is complete, once; whether there is anything new to look at.
    fn assemble(&mut self, pending: &mut VecDeque<Pending>, storage: &mut Storage) -> bool {
        let mut members = std::mem::take(&mut self.members);
        if members.is_empty() {
            let cost = std::mem::take(&mut self.physical_cost);
            for logical in lvm::logical(&std::mem::take(&mut self.physical)) {
                let doubled = |name: &str| name.replace('-', "--");
                let full = format!("{}-{}", doubled(&logical.group), doubled(&logical.name));
                let grub = format!("lvm/{full}");
                let (name, notes) = (format!("mapper/{full}"), logical.notes);
                let report = VolumeReport { name, notes, ..VolumeReport::default() };
                add(report, grub, logical.volume, cost, pending, storage);
            }
            return !pending.is_empty();
        }
        while let Some((first, _)) = members.first() {
            let array = first.array.clone();
            let (these, others): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|(member, _)| member.array == array);
            members = others;
            let (these, costs): (Vec<_>, Vec<u64>) = these.into_iter().unzip();
            let name = &these[0].name;
            let is_number = !name.is_empty() && name.chars().all(|c| c.is_ascii_digit());
            let linux = if is_number { format!("md{name}") } else { format!("md/{name}") };
            let report = VolumeReport { name: linux, ..VolumeReport::default() };
            let (grub, cost) = (format!("md/{name}"), costs.iter().sum());
            add(report, grub, md::assemble(&these), cost, pending, storage);
        }
        true
    }
}

/// A volume that was put together, or one that could not be. `below` is what reads of what it is made of cost together.
fn add(
    mut report: VolumeReport,
    grub: String,
    volume: Result<Arc<dyn Volume>, String>,
    below: u64,
    pending: &mut VecDeque<Pending>,
    storage: &mut Storage,
) {
    let cost = below * 2;
    let volume = volume.and_then(|volume| {
        // Volumes may be made to lie on each other, again and again.
        let is_plain = cost <= MAX_COST;
        is_plain.then_some(volume).ok_or_else(|| "it lies on too many others".to_owned())
    });
    match volume {
        Ok(volume) => {
            report.length = volume.len();
            pending.push_back(Pending { volume, report, grub, cost });
        }
        Err(why) => {
            report.notes.push(why);
            if storage.volumes.len() < MAX_VOLUMES {
                storage.volumes.push(Found { report, grub, fs: None });
            }
        }
    }
}

/// `a` to `z`, then `aa`.
fn letters(mut index: usize) -> String {
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'a' + (index % 26) as u8));
        match (index / 26).checked_sub(1) {
            Some(next) => index = next,
            None => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;

    /// A member of RAID 6 with one of three members, whose content begins with the same, and so on.
    #[test]
    fn arrays_that_lie_on_each_other_have_an_end() {
        let disk = fuzz::disk_of(include_bytes!("../../../fuzz/seeds/guest_storage/md-raid6"));
        let storage = Storage::of_volumes(vec![disk]);
        let last = &storage.volumes.last().unwrap().report;
        assert_eq!(last.notes, ["it lies on too many others"]);
        assert!(storage.volumes.len() < 20);
    }

    #[test]
    fn disks_have_linuxs_letters() {
        assert_eq!([0, 25, 26, 701, 702].map(letters), ["a", "z", "aa", "zz", "aaa"]);
    }
}
