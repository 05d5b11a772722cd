//! Controllers, drives, network cards and what else a VM has.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::MacAddress;
use crate::check::LONGEST_TAG;

/// What drives are connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its bus.
    pub bus: Bus,
    /// Its number among those of its bus.
    pub index: u32,
    /// Its model, in the platform's words.
    pub model: Option<String>,
    /// Its PCI slot.
    pub slot: Option<u32>,
}

/// How a drive is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// SCSI of any model.
    #[default]
    Scsi,
    /// SATA.
    Sata,
    /// IDE.
    Ide,
    /// NVM Express.
    Nvme,
    /// Virtio block.
    Virtio,
    /// Xen's block device.
    Xen,
    /// USB.
    Usb,
    /// SD card.
    Sd,
    /// A floppy controller.
    Floppy,
    /// Generation of persistent memory.
    Pmem,
}

/// A disk, CD-ROM or floppy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drive {
    /// What it is.
    pub kind: DriveKind,
    /// Its bus.
    pub bus: Bus,
    /// The number of its controller.
    pub controller: u32,
    /// Its number at the controller.
    pub unit: u32,
    /// The name that the platform gives it in the guest.
    pub target: Option<String>,
    /// Its content; absent for an empty drive.
    pub file: Option<FileRef>,
    /// The content's format in the words of crate `disk`, if the description says it.
    pub format: Option<String>,
    /// The length of its content in bytes, if the description says it.
    pub capacity: Option<u64>,
    /// Whether the guest cannot write to it.
    pub readonly: bool,
    /// Whether its changes are forgotten at the end.
    pub volatile: bool,
    /// Whether several VMs may use it at once.
    pub shared: bool,
    /// Whether it is there when the VM starts.
    pub connected: bool,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// The content is compressed as a whole, by gzip.
    pub compressed: bool,
    /// The serial number that the guest reads.
    pub serial: Option<String>,
    /// Its PCI slot.
    pub slot: Option<u32>,
    /// Its place in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// The images that it is based on, nearest first, as far as the description names them.
    pub parents: Vec<FileRef>,
}

/// What a drive is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveKind {
    /// A hard disk.
    #[default]
    Disk,
    /// A CD-ROM or DVD.
    Cdrom,
    /// A floppy.
    Floppy,
    /// A device of the host that is passed through.
    Passthrough,
}

/// A file that a description names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// As it is written.
    pub written: String,
    /// Where it is, or would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether it can be used.
    pub state: FileState,
    /// For a member of an archive: where it begins there, in bytes, once that is unpacked. `path` is the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// For a member of an archive: its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// Whether a file that a description names can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It is there.
    Present,
    /// It is not where the description says, but one of its name is in the VM's folder.
    Moved,
    /// It is inside an archive.
    Member,
    /// It is not there.
    #[default]
    Missing,
    /// It lies outside of the VM's folder, which nobody has allowed.
    Refused,
    /// It is a source of the network or of a storage pool.
    Remote,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkCard {
    /// Its number in the description.
    pub index: u32,
    /// Its model, in the platform's words.
    pub model: Option<String>,
    /// Its hardware address; absent if the platform makes one.
    pub mac: Option<MacAddress>,
    /// How it is connected: `bridge`, `nat`, `network`, `user`, `internal` and other words of platforms.
    pub connection: Option<String>,
    /// To what it is connected: the name of a bridge or network.
    pub network: Option<String>,
    /// Its PCI slot, which gives it its name in the guest.
    pub slot: Option<u32>,
    /// Whether it is there when the VM starts.
    pub connected: bool,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<crate::Forward>,
    /// The largest payload of a frame.
    pub mtu: Option<u16>,
    /// Its place in the boot order, from 1.
    pub boot_order: Option<u32>,
}

/// A serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SerialPort {
    /// Its number: 0 is COM1.
    pub index: u32,
    /// What it is connected to: `file`, `pipe`, `pty`, `tcp` and other words of platforms.
    pub backend: Option<String>,
    /// The name of the file, pipe or address.
    pub target: Option<String>,
}

/// A folder of the host that the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedFolder {
    /// The guest's name for it.
    pub name: String,
    /// The folder.
    pub path: String,
    /// Whether the guest can write to it.
    pub writable: bool,
    /// Where it is here, if the guest mounts it by virtio-fs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio: Option<FileRef>,
}

impl SharedFolder {
    /// The folder to give to the guest, if it can be.
    pub(crate) fn usable(&self) -> Option<&Path> {
        let has_tag = (1..=LONGEST_TAG).contains(&self.name.len());
        let file =
            self.virtio.as_ref().filter(|file| has_tag && file.state == FileState::Present)?;
        file.path.as_deref().filter(|path| path.is_dir())
    }
}

/// A device of which nothing more is known here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherDevice {
    /// What it is: `sound`, `usb`, `display`, `parallel`, `pci` and others.
    pub kind: String,
    /// Its model, in the platform's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl FileRef {
    /// A file that the description names so.
    pub(crate) fn new(written: &str, path: Option<PathBuf>, state: FileState) -> Self {
        Self { written: written.into(), path, state, offset: None, length: None }
    }

    /// A source that is no file of this computer.
    pub(crate) fn remote(written: impl Into<String>) -> Self {
        Self { written: written.into(), state: FileState::Remote, ..Self::default() }
    }

    /// The path by which it is opened as a disk, which leads into an archive as into a folder.
    pub fn disk_path(&self) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        match self.state {
            FileState::Present | FileState::Moved => Some(path.clone()),
            FileState::Member => Some(path.join(self.written.trim_start_matches("./"))),
            _ => None,
        }
    }

    /// Whether it can be opened.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, FileState::Present | FileState::Moved | FileState::Member)
    }
}

impl Drive {
    /// A drive that is there when the VM starts.
    pub(crate) fn new(kind: DriveKind, bus: Bus, controller: u32, unit: u32) -> Self {
        Self { kind, bus, controller, unit, connected: true, ..Self::default() }
    }

    /// The path by which its file is opened as a disk; what gzip has compressed is opened as a folder of one file.
    pub fn disk_path(&self) -> Option<PathBuf> {
        let path = self.file.as_ref()?.disk_path()?;
        if !self.compressed {
            return Some(path);
        }
        let name = path.file_name()?.to_str()?;
        let inner = name.strip_suffix(".gz").unwrap_or(name);
        Some(path.join(inner))
    }

    /// Its place, such as `scsi0:1`.
    pub fn address(&self) -> String {
        format!("{}{}:{}", self.bus.name(), self.controller, self.unit)
    }
}

impl Bus {
    /// Its name in addresses and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scsi => "scsi",
            Self::Sata => "sata",
            Self::Ide => "ide",
            Self::Nvme => "nvme",
            Self::Virtio => "virtio",
            Self::Xen => "xen",
            Self::Usb => "usb",
            Self::Sd => "sd",
            Self::Floppy => "floppy",
            Self::Pmem => "pmem",
        }
    }
}
