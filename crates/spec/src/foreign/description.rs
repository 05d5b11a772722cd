//! What a description of any platform says, in neutral terms.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, MacAddress, Place, Result};

/// One VM as its platform describes it. [`to_spec`](Self::to_spec) makes of it what is run here;
/// [`differences`](Self::differences) tells what will not be as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Whose VM it is.
    pub platform: Platform,
    /// The form of its description, such as `vmx` or `ovf`.
    pub format: String,
    /// The version of that form or of the virtual hardware, as it is written there.
    pub version: Option<String>,
    /// The program that wrote it.
    pub product: Option<String>,
    /// The file that was read.
    pub file: PathBuf,
    /// The VM's folder, in which the files that it is made of may lie; absent if none was looked at.
    pub folder: Option<PathBuf>,
    /// Files beside it that were read, too, or belong to it.
    pub companions: Vec<PathBuf>,
    /// The VM's name.
    pub name: Option<String>,
    /// Its identity, in the form of a UUID.
    pub uuid: Option<String>,
    /// What its owner wrote about it.
    pub annotation: Option<String>,
    /// The guest's operating system in the platform's words.
    pub guest_os: Option<String>,
    /// The processor that the guest was made for.
    pub architecture: Architecture,
    /// How the platform virtualizes it.
    pub virtualization: Virtualization,
    /// Chipset, machine type or generation, in the platform's words.
    pub machine: Option<String>,
    /// What starts the guest.
    pub firmware: Firmware,
    /// Its trusted platform module: the version, or an empty text.
    pub tpm: Option<String>,
    /// Its processors.
    pub cpus: Processors,
    /// Its memory.
    pub memory: MemoryAmount,
    /// What it starts with, if not with firmware.
    pub boot: DirectBoot,
    /// What drives are connected to.
    pub controllers: Vec<Controller>,
    /// Disks, CD-ROMs and floppies, in the order in which the description has them.
    pub drives: Vec<Drive>,
    /// Network cards.
    pub nics: Vec<NetworkCard>,
    /// Serial ports.
    pub serials: Vec<SerialPort>,
    /// Folders of the host that the guest sees.
    pub shares: Vec<SharedFolder>,
    /// Other devices.
    pub devices: Vec<OtherDevice>,
    /// What whoever deploys the VM may set.
    pub properties: Vec<Property>,
    /// Deployment options that could have been chosen.
    pub configurations: Vec<Configuration>,
    /// States that were kept.
    pub snapshots: Vec<Snapshot>,
    /// The VM is suspended: this file holds its memory.
    pub saved_state: Option<FileRef>,
    /// What should be known about it.
    pub notes: Vec<Note>,
    /// What the description says and nobody here understands.
    pub unread: Vec<Unread>,
}

/// Whose VM it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Our own.
    #[default]
    Omnivisor,
    /// ESXi, Workstation, Fusion, Player and their ancestors.
    Vmware,
    /// An OVF package that names neither of the known products.
    Ovf,
    /// VirtualBox.
    Virtualbox,
    /// Hyper-V.
    Hyperv,
    /// Parallels Desktop.
    Parallels,
    /// Xen, XenServer and XCP-ng.
    Xen,
    /// QEMU and KVM, by libvirt.
    Qemu,
}

/// The processor that a guest was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    #[serde(rename = "x86_64")]
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit Arm.
    Arm64,
    /// Another one, by its name.
    Other(String),
}

/// How a guest is virtualized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Virtualization {
    /// As a whole computer with firmware.
    #[default]
    Full,
    /// Xen's paravirtualization: a kernel that knows it.
    Pv,
    /// Xen's PV in a hardware container.
    Pvh,
    /// A container that shares the host's kernel.
    Container,
}

/// What starts a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Firmware {
    /// Its kind; absent if the description leaves it to the platform.
    pub kind: Option<FirmwareKind>,
    /// Whether only signed programs start; absent if the description does not say.
    pub secure_boot: Option<bool>,
    /// Whose signatures count.
    pub template: Option<String>,
    /// Its program, if the description names one.
    pub loader: Option<String>,
    /// Its variables.
    pub nvram: Option<FileRef>,
}

/// Kinds of firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// A PC's.
    Bios,
    /// UEFI.
    Uefi,
}

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Processors {
    /// How many; absent if the description leaves it to the platform.
    pub count: Option<u32>,
    /// How many can be added while it runs, those that it has included.
    pub maximum: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Cores of each socket.
    pub cores: Option<u32>,
    /// Threads of each core.
    pub threads: Option<u32>,
    /// The model, in the platform's words.
    pub model: Option<String>,
    /// Whether the guest can be a hypervisor itself.
    pub nested: Option<bool>,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryAmount {
    /// How much it starts with.
    pub size: Option<u64>,
    /// How little the platform may leave to it.
    pub minimum: Option<u64>,
    /// How much the platform may give to it.
    pub maximum: Option<u64>,
    /// Whether huge pages are asked for.
    pub hugepages: bool,
}

/// A kernel or boot loader outside of the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: Option<FileRef>,
    /// The initial file system.
    pub initrd: Option<FileRef>,
    /// What the kernel is told.
    pub cmdline: Option<String>,
    /// The program on the host that takes a kernel out of a disk, such as `pygrub`.
    pub bootloader: Option<String>,
    /// What is tried in turn, in the platform's words.
    pub order: Vec<String>,
}

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// For a member of an archive: where it begins there, in bytes. `path` is the archive.
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

/// A value that whoever deploys a VM may set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Property {
    /// Its full name.
    pub key: String,
    /// Its type, in OVF's words.
    pub kind: Option<String>,
    /// Its value if nobody sets one.
    pub value: Option<String>,
    /// What it is for.
    pub label: Option<String>,
    /// Whether whoever deploys the VM is asked for it.
    pub user_configurable: bool,
}

/// A deployment option.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// By which it is chosen.
    pub id: String,
    /// What it is called.
    pub label: Option<String>,
    /// Whether it is the one that was taken.
    pub chosen: bool,
}

/// A state that was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its owner wrote about it.
    pub description: Option<String>,
    /// When it was made, as the platform writes it.
    pub created: Option<String>,
    /// The state that it came from.
    pub parent: Option<String>,
    /// Whether the present state came from it.
    pub current: bool,
}

/// Something that should be known about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How much it matters.
    pub level: Level,
    /// A sentence.
    pub message: String,
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Info,
    /// Something may not be as the owner expects.
    Warning,
    /// The VM cannot be run here as it is.
    Obstacle,
}

/// What a description says and nobody here understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// The line, counted from 1; absent in binary files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Its key, or its path in the document.
    pub key: String,
    /// Its value, if it is short.
    pub value: String,
}

/// So many settings that are not understood are listed.
pub(crate) const MOST_UNREAD: usize = 10_000;
/// More is no VM but an attack on whoever reads it.
const MOST_DEVICES: usize = 4096;
/// The most processors that any platform offers is less.
const MOST_CPUS: u32 = 4096;
/// 64 TiB, what 46 address bits reach: more than any platform gives.
const MOST_MEMORY: u64 = 1 << 46;

impl Description {
    /// A description with nothing in it.
    pub(crate) fn new(platform: Platform, format: &str, file: impl Into<PathBuf>) -> Self {
        Self { platform, format: format.into(), file: file.into(), ..Self::default() }
    }

    /// Adds a note.
    pub(crate) fn note(&mut self, level: Level, message: impl Into<String>) {
        self.notes.push(Note { level, message: message.into() });
    }

    /// Adds a device of which nothing more is known.
    pub(crate) fn device(&mut self, kind: &str, model: Option<String>) {
        self.devices.push(OtherDevice { kind: kind.into(), model });
    }

    /// The controller of this bus and number, which is made if the description had not spoken of it.
    pub(crate) fn controller(&mut self, bus: Bus, index: u32, model: Option<String>) {
        if let Some(known) =
            self.controllers.iter_mut().find(|one| one.bus == bus && one.index == index)
        {
            known.model = model.or(known.model.take());
        } else if self.controllers.len() <= MOST_DEVICES {
            // Past the limit all is refused in the end.
            self.controllers.push(Controller { bus, index, model, slot: None });
        }
    }

    /// The last thing that a reader does: refuses absurd numbers.
    pub(crate) fn checked(mut self) -> Result<Self> {
        if self.unread.len() > MOST_UNREAD {
            let message = format!(
                "{} settings are not understood; {MOST_UNREAD} are listed",
                self.unread.len()
            );
            self.unread.truncate(MOST_UNREAD);
            self.note(Level::Warning, message);
        }
        let wrong = |message: String| Error::File {
            place: Place { file: self.file.display().to_string(), position: None },
            message,
        };
        let Processors { count, maximum, sockets, cores, threads, .. } = self.cpus;
        for number in [count, maximum, sockets, cores, threads].into_iter().flatten() {
            if !(1..=MOST_CPUS).contains(&number) {
                return Err(wrong(format!(
                    "{number} processors are not between 1 and {MOST_CPUS}"
                )));
            }
        }
        // The most that could be plugged in is anybody's guess.
        if self.memory.size.max(self.memory.minimum).is_some_and(|size| size > MOST_MEMORY) {
            return Err(wrong("More memory than 64 TiB is absurd".into()));
        }
        let devices = [
            self.controllers.len(),
            self.drives.len(),
            self.nics.len(),
            self.serials.len(),
            self.devices.len(),
            self.snapshots.len(),
        ];
        if devices.iter().any(|count| *count > MOST_DEVICES) {
            return Err(wrong(format!("More than {MOST_DEVICES} devices or snapshots are absurd")));
        }
        if self.drives.iter().any(|drive| drive.capacity.is_some_and(|size| size > 1 << 62)) {
            return Err(wrong("A disk of more than 4 EiB is absurd".into()));
        }
        Ok(self)
    }
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

impl Platform {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Omnivisor => "Omnivisor",
            Self::Vmware => "VMware",
            Self::Ovf => "OVF",
            Self::Virtualbox => "VirtualBox",
            Self::Hyperv => "Hyper-V",
            Self::Parallels => "Parallels",
            Self::Xen => "Xen",
            Self::Qemu => "QEMU/KVM",
        }
    }
}

impl Architecture {
    /// From any of its usual names.
    pub(crate) fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "x86_64" | "amd64" | "x64" | "x86_64p" => Self::X86_64,
            "i386" | "i486" | "i586" | "i686" | "x86" | "x86_32" | "x86_32p" => Self::X86,
            "aarch64" | "arm64" => Self::Arm64,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// Its name as the kernel writes it.
    pub fn name(&self) -> &str {
        match self {
            Self::X86_64 => "x86_64",
            Self::X86 => "i686",
            Self::Arm64 => "aarch64",
            Self::Other(name) => name,
        }
    }
}

impl FirmwareKind {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        }
    }
}

/// A hardware address with or without separators.
pub(crate) fn mac(text: &str) -> Option<MacAddress> {
    let digits: String =
        text.trim().chars().filter(|letter| !matches!(letter, ':' | '-' | '.')).collect();
    if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let value = u64::from_str_radix(&digits, 16).ok()?;
    let [_, _, bytes @ ..] = value.to_be_bytes();
    Some(MacAddress(bytes))
}

/// Seconds since 1970 in the form of ISO 8601.
pub(crate) fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from the first of March of year 0, in eras of 400 years of 146,097 days each.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, after) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + after;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_everybody_writes_them() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), written);
        }
    }

    #[test]
    fn hardware_addresses_need_no_separators() {
        assert_eq!(mac("08002766C296").unwrap().to_string(), "08:00:27:66:c2:96");
        assert_eq!(mac("00-50-56-9a-9c-7a").unwrap().to_string(), "00:50:56:9a:9c:7a");
        assert_eq!(mac("0050569a9c7"), None);
        assert_eq!(mac("+050569a9c7a"), None);
    }
}
