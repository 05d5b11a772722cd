//! What a description of any platform says, in neutral terms.

mod devices;
mod machine;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Place, Result, Smbios};

pub use devices::{
    Bus, Controller, Drive, DriveKind, FileRef, FileState, NetworkCard, OtherDevice, SerialPort,
    SharedFolder,
};
pub use machine::{
    Architecture, DirectBoot, Firmware, FirmwareKind, MemoryAmount, Processors, Virtualization,
};
pub(crate) use text::mac;
pub use text::utc;

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
    /// What it told its guest about itself, as Linux showed it.
    pub smbios: Smbios,
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
    /// The ways in which the guest can be told them, in OVF's words.
    pub transports: Vec<String>,
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

    /// What its firmware tells the guest where that is the VM's own UUID in the order of its text.
    pub(crate) fn smbios_of_uuid(&self) -> Smbios {
        let uuid = self.uuid.as_ref().and_then(|uuid| uuid.parse().ok());
        Smbios { uuid, ..Smbios::default() }
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
