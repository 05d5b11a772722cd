//! Boot loaders: what their menus offer, and which entry they would start by themselves.

mod bls;
mod grub;
mod legacy;
mod pe;
mod syslinux;
mod systemd;
mod version;

use serde::Serialize;

use crate::tree::Tree;
use crate::{Error, Result};

pub use self::fuzz::fuzz_loader;
pub(crate) use self::version::compare as compare_versions;

/// A file system as boot loaders see it: alone, without what the guest would mount into it.
#[derive(Clone)]
pub struct Device {
    /// GRUB's name, such as `hd0,gpt2`.
    pub name: String,
    /// What is on it.
    pub tree: Tree,
    /// UUID of the file system.
    pub uuid: Option<String>,
    /// Label of the file system.
    pub label: Option<String>,
    /// PARTUUID.
    pub part_uuid: Option<String>,
    /// It is an EFI system partition.
    pub is_esp: bool,
}

impl Device {
    /// It has these files, and no name but GRUB's.
    #[cfg(test)]
    fn of(name: &str, tree: Tree) -> Self {
        Self { name: name.into(), tree, uuid: None, label: None, part_uuid: None, is_esp: false }
    }

    /// It is the one that GRUB means by this name; GRUB legacy and older versions of GRUB 2 leave out the kind of table.
    fn is_named(&self, name: &str) -> bool {
        let plain = |name: &str| name.replace("gpt", "").replace("msdos", "");
        plain(&self.name) == plain(name)
    }
}

/// A file on one of the devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileRef {
    /// Its index in the list of devices.
    #[serde(skip)]
    pub device: usize,
    /// Its path there.
    pub path: String,
    /// The section of a unified kernel image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<&'static str>,
}

impl FileRef {
    fn new(device: usize, path: impl Into<String>) -> Self {
        Self { device, path: path.into(), section: None }
    }

    fn section(&self, name: &'static str) -> Self {
        Self { section: Some(name), ..self.clone() }
    }

    /// Its content, of at most `limit` bytes.
    pub fn read(&self, devices: &[Device], limit: u64) -> Result<Vec<u8>> {
        let missing = || Error::NotFound(self.path.clone());
        let device = devices.get(self.device).ok_or_else(missing)?;
        let Some(name) = self.section else { return device.tree.read(&self.path, limit) };
        pe::section(&*device.tree.open(&self.path)?, name, limit).ok_or_else(|| {
            Error::damaged("unified kernel image", format!("it has no section {name}"))
        })
    }

    /// Whether it is there.
    pub fn exists(&self, devices: &[Device]) -> bool {
        devices.get(self.device).is_some_and(|device| device.tree.is_file(&self.path))
    }
}

/// What one entry of a boot loader's menu starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootEntry {
    /// What the menu shows, after the titles of the menus above it.
    pub title: String,
    /// By what configurations name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The kernel; none if it starts something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<FileRef>,
    /// Initial RAM disks, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initrds: Vec<FileRef>,
    /// Command line of the kernel.
    pub cmdline: String,
    /// What it starts instead of a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A boot loader's menu.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Menu {
    /// The boot loader.
    pub loader: &'static str,
    /// Its configuration, if that is one file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<FileRef>,
    /// All entries.
    pub entries: Vec<BootEntry>,
    /// The one that is started if nobody chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<usize>,
    /// What could not be understood.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The menu that the guest's firmware would lead to; `devices` begin with those of the disk that is started from.
pub fn menu(devices: &[Device]) -> Option<Menu> {
    let is_efi = devices.iter().any(|device| device.is_esp && device.tree.is_folder("/EFI"));
    let with_entries = |menu: Menu| (!menu.entries.is_empty()).then_some(menu);
    let systemd = || systemd::menu(devices);
    // systemd-boot's folder is often there with GRUB in front of it.
    let first = if systemd::is_installed(devices) { systemd() } else { None };
    first
        .and_then(with_entries)
        .or_else(|| grub::menu(devices, is_efi).and_then(with_entries))
        .or_else(|| syslinux::menu(devices).and_then(with_entries))
        .or_else(|| legacy::menu(devices).and_then(with_entries))
        .or_else(|| systemd().and_then(with_entries))
}

mod fuzz {
    use std::rc::Rc;

    use super::{Device, Tree, grub, legacy, pe, syslinux, systemd};
    use crate::files::Files;
    use crate::volume::Memory;

    /// Reads a text as every kind of configuration; must return whatever it says.
    pub fn fuzz_loader(bytes: &[u8]) {
        let files = Files::of_bytes(&[
            ("/boot/grub/grub.cfg", bytes),
            ("/boot/grub/grubenv", bytes),
            ("/boot/grub/menu.lst", bytes),
            ("/boot/loader/entries/a.conf", bytes),
            ("/loader/entries/b+1.conf", bytes),
            ("/loader/loader.conf", bytes),
            ("/EFI/Linux/a.efi", bytes),
            ("/extlinux/extlinux.conf", bytes),
        ]);
        let devices = [Device {
            name: "hd0,gpt1".into(),
            tree: Tree::new(Rc::new(files), "/"),
            uuid: Some("0123-4567".into()),
            label: None,
            part_uuid: None,
            is_esp: true,
        }];
        let _ = grub::menu(&devices, true);
        let _ = legacy::menu(&devices);
        let _ = syslinux::menu(&devices);
        let _ = systemd::menu(&devices);
        let _ = pe::section(&Memory(bytes.to_vec()), ".linux", 1 << 20);
    }
}
