//! What of a foreign VM is run here, and what will differ.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::description::{
    Architecture, Bus, Description, Drive, DriveKind, FileRef, FileState, FirmwareKind, Level,
    NetworkCard, Note, Platform, SharedFolder, Unread, Virtualization,
};
use super::folder::Folder;
use crate::{
    Boot, Disk, Error, MAX_CPUS, Memory, Nic, NicKind, Place, Result, Share, Size, VmSpec,
};

impl Description {
    /// Our own description in these terms.
    pub(crate) fn from_spec(spec: VmSpec, path: &Path, folder: &Folder) -> Self {
        let mut vm = Self::new(Platform::Omnivisor, "toml", path);
        // Our own files may name what they want: they are written by whoever runs them.
        let file = |path: &Path| folder.trusted(path);
        vm.name = spec.name;
        vm.cpus = spec.cpus.into();
        vm.uuid = spec.smbios.uuid.map(String::from);
        vm.smbios = spec.smbios;
        vm.memory.size = spec.memory.size.map(|size| size.0);
        vm.memory.hugepages = spec.memory.hugepages.unwrap_or(false);
        vm.boot.kernel = spec.boot.kernel.as_deref().map(file);
        vm.boot.initrd = spec.boot.initrd.as_deref().map(file);
        vm.boot.cmdline = spec.boot.cmdline;
        for (unit, disk) in (0..).zip(spec.disks) {
            let mut drive = Drive::new(DriveKind::Disk, Bus::Virtio, 0, unit);
            drive.file = Some(file(&disk.path));
            (drive.format, drive.serial) = (disk.format, disk.serial);
            (drive.readonly, drive.volatile) = (disk.readonly, disk.discard);
            vm.drives.push(drive);
        }
        for (index, nic) in (0..).zip(spec.nics.unwrap_or_default()) {
            vm.nics.push(NetworkCard {
                index,
                model: Some("virtio".into()),
                mac: nic.mac,
                connection: Some(if nic.kind() == NicKind::Tap { "tap" } else { "user" }.into()),
                network: nic.tap,
                mtu: nic.mtu,
                forwards: nic.forwards,
                connected: true,
                ..NetworkCard::default()
            });
        }
        for (key, value) in [
            ("image", spec.image),
            ("vsock", spec.vsock.map(|vsock| vsock.path.display().to_string())),
        ] {
            vm.unread.extend(value.map(|value| Unread { line: None, key: key.into(), value }));
        }
        for share in spec.shares {
            vm.shares.push(SharedFolder {
                name: share.tag(),
                path: share.dir.display().to_string(),
                writable: !share.readonly,
                virtio: Some(folder.trusted(&share.dir)),
            });
        }
        vm
    }

    /// The VM as it is run here: the disks that are there when it starts, in order of the boot, and one card of the
    /// user-mode network for each of its own. [`differences`](Self::differences) tells the rest.
    ///
    /// # Errors
    /// The guest cannot run here at all, or disks are missing, lie where nobody has allowed it, are encrypted, or are no files of this
    /// computer: all of that at once.
    pub fn to_spec(&self) -> Result<VmSpec> {
        let all = self.notes.iter().cloned().chain(self.differences());
        let obstacles = all.filter(|note| note.level == Level::Obstacle);
        let mut problems: Vec<String> = obstacles.map(|note| note.message).collect();
        let mut spec = VmSpec {
            name: self.name.as_deref().map(usable_name),
            cpus: self.cpus.to_cpus(),
            memory: Memory {
                size: self.memory.size.map(Size),
                hugepages: self.memory.hugepages.then_some(true),
                ..Memory::default()
            },
            smbios: self.smbios.clone(),
            ..VmSpec::default()
        };
        if let Some(kernel) = &self.boot.kernel {
            spec.boot = Boot {
                kernel: usable(kernel, &mut problems),
                initrd: self.boot.initrd.as_ref().and_then(|file| usable(file, &mut problems)),
                cmdline: self.boot.cmdline.clone(),
            };
        }
        let mut drives: Vec<_> = self
            .drives
            .iter()
            .filter(|drive| {
                matches!(drive.kind, DriveKind::Disk | DriveKind::Cdrom) && drive.connected
            })
            .filter(|drive| {
                drive.kind == DriveKind::Disk || drive.file.as_ref().is_some_and(FileRef::is_usable)
            })
            .collect();
        // The disk that the firmware starts from is the first one; CD-ROMs never come before disks.
        drives.sort_by_key(|drive| {
            (drive.kind == DriveKind::Cdrom, drive.boot_order.unwrap_or(u32::MAX))
        });
        for drive in drives {
            let Some(file) = &drive.file else { continue };
            if drive.encrypted {
                problems.push(format!("The disk `{}` is encrypted", file.written));
                continue;
            }
            let path = drive.disk_path().or_else(|| usable(file, &mut problems));
            let Some(path) = path else { continue };
            spec.disks.push(Disk {
                within: self.folder_of(drive),
                path,
                // A CD-ROM's content is never anything else, whatever it looks like.
                format: if drive.kind == DriveKind::Cdrom {
                    Some("raw".into())
                } else {
                    drive.format.clone()
                },
                discard: drive.volatile,
                readonly: drive.readonly || drive.kind == DriveKind::Cdrom,
                serial: drive.serial.clone().filter(|serial| serial.len() <= 20),
                ..Disk::default()
            });
        }
        let shares = self.shares.iter().filter_map(|share| {
            let dir = share.usable()?.to_owned();
            Some(Share { dir, tag: Some(share.name.clone()), readonly: !share.writable })
        });
        spec.shares = shares.collect();
        let cards = self.nics.iter().filter(|nic| nic.connected).map(|nic| Nic {
            kind: Some(NicKind::User),
            mac: nic.mac.filter(|mac| !mac.is_multicast()),
            // By the slot that VMware's ACPI tells (systemd.net-naming-scheme).
            name: nic.slot.map(|slot| format!("ens{slot}")),
            forwards: nic.forwards.clone(),
            mtu: nic.mtu.filter(|mtu| *mtu >= 68),
            ..Nic::default()
        });
        spec.nics = Some(cards.collect());
        if problems.is_empty() {
            return Ok(spec);
        }
        let place = Place { file: self.file.display().to_string(), position: None };
        Err(Error::File { place, message: problems.join(". ") })
    }

    /// The folder in which a drive's images may lie: the VM's, since a snapshot's parents lie in other folders of
    /// it, or one above it in which the parents lie that the description names, if that was allowed.
    fn folder_of(&self, drive: &Drive) -> Option<PathBuf> {
        let mut folder = self.folder.clone()?;
        let named = drive.parents.iter().filter(|parent| parent.is_usable());
        for parent in named.filter_map(FileRef::disk_path) {
            while !parent.starts_with(&folder) && folder.pop() {}
        }
        Some(folder)
    }

    /// Sentences about what will not be as it was when this VM runs here.
    pub fn differences(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        // Our own runs as it says.
        if self.platform == Platform::Omnivisor {
            return notes;
        }
        let mut note = |level, message: String| notes.push(Note { level, message });
        match &self.architecture {
            Architecture::X86_64 | Architecture::X86 => {}
            other => note(
                Level::Obstacle,
                format!(
                    "The guest is made for {} processors; only x86 guests run here",
                    other.name()
                ),
            ),
        }
        if self.virtualization == Virtualization::Container {
            note(Level::Obstacle, "It is a container without a kernel of its own".into());
        }
        if !self.properties.is_empty() && !self.transports.is_empty() && !self.wants_environment() {
            note(
                Level::Warning,
                format!(
                    "The guest does not learn its package's properties: it asks for them by {} alone",
                    self.transports.join(", ")
                ),
            );
        }
        if self.virtualization == Virtualization::Pv {
            note(
                Level::Warning,
                "Xen PV runs as an ordinary machine here: the guest's kernel must be able to do without Xen".into(),
            );
        }
        // Xen's PV guests have no firmware.
        if self.boot.kernel.is_none() && self.virtualization == Virtualization::Full {
            let kind = self.firmware.kind.unwrap_or(FirmwareKind::Bios).title();
            note(
                Level::Info,
                format!(
                    "Its {kind} is not run: Linux is started directly from its disk, other systems need firmware"
                ),
            );
        }
        if self.firmware.secure_boot == Some(true) {
            note(Level::Warning, "Secure Boot is not in force".into());
        }
        if self.tpm.is_some() {
            note(Level::Warning, "There is no TPM: what is sealed to it stays locked".into());
        }
        if self.cpus.count.is_some_and(|count| count > MAX_CPUS) {
            note(Level::Warning, format!("It gets {MAX_CPUS} processors, the most there are"));
        }
        let wanted = self.cpus.divided(self.cpus.count.unwrap_or(1).min(MAX_CPUS));
        if wanted.topology().is_none() {
            let message = format!(
                "Its {} processors are cores of one socket: they cannot be {}",
                wanted.count(),
                wanted.division()
            );
            note(Level::Info, message);
        }
        if let Some(most) = self.memory.maximum.filter(|most| Some(*most) > self.memory.size) {
            note(Level::Info, format!("Its memory does not grow to {} while it runs", Size(most)));
        }
        if self.cpus.nested == Some(true) {
            note(Level::Warning, "The guest cannot be a hypervisor itself".into());
        }
        if self.saved_state.is_some() {
            note(
                Level::Warning,
                "It is suspended: it starts anew here, as after a loss of power".into(),
            );
        }
        let buses: BTreeSet<_> = self
            .drives
            .iter()
            .filter(|drive| drive.kind == DriveKind::Disk && drive.bus != Bus::Virtio)
            .map(|drive| self.controller_name(drive.bus, drive.controller))
            .collect();
        if !buses.is_empty() {
            note(
                Level::Info,
                format!(
                    "Disks are on virtio instead of {}: a guest without that driver finds none",
                    join(buses)
                ),
            );
        }
        let models: BTreeSet<_> = self
            .nics
            .iter()
            .filter_map(|nic| nic.model.clone())
            .filter(|model| !model.to_ascii_lowercase().starts_with("virtio"))
            .collect();
        if !models.is_empty() {
            note(Level::Info, format!("Network cards are virtio instead of {}", join(models)));
        }
        let networks: BTreeSet<_> = self.nics.iter().filter_map(other_network).collect();
        if !networks.is_empty() {
            note(
                Level::Info,
                format!(
                    "Network cards are on a network of their own with DHCP, behind this computer's address, instead of {}",
                    join(networks)
                ),
            );
        }
        for nic in self.nics.iter().filter(|nic| !nic.connected) {
            note(
                Level::Info,
                format!("The network card {} is not connected, and not there", nic.index),
            );
        }
        for drive in self.drives.iter().filter(|drive| drive.kind == DriveKind::Passthrough) {
            let address = drive.address();
            note(
                Level::Warning,
                format!("The drive {address} is a device of its host, which is not there"),
            );
        }
        let mut kinds: BTreeSet<_> =
            self.devices.iter().map(|device| device.kind.clone()).collect();
        let is_floppy = |drive: &Drive| drive.kind == DriveKind::Floppy && drive.file.is_some();
        if self.drives.iter().any(is_floppy) {
            kinds.insert("floppy".into());
        }
        for share in self.shares.iter().filter(|share| share.usable().is_none()) {
            let refused =
                share.virtio.as_ref().is_some_and(|file| file.state == FileState::Refused);
            let help = if refused { " (--allow-outside)" } else { "" };
            kinds.insert(format!("shared folder {}{help}", share.name));
        }
        let others = self.serials.iter().filter(|serial| serial.index > 0);
        kinds.extend(others.map(|serial| format!("COM{}", u64::from(serial.index) + 1)));
        if !kinds.is_empty() {
            note(Level::Info, format!("Not there: {}", join(kinds)));
        }
        notes
    }

    fn controller_name(&self, bus: Bus, index: u32) -> String {
        let model = self
            .controllers
            .iter()
            .find(|one| one.bus == bus && one.index == index)
            .and_then(|one| one.model.clone());
        match model {
            Some(model) if !model.eq_ignore_ascii_case(bus.name()) => {
                format!("{} ({model})", bus.name())
            }
            _ => bus.name().into(),
        }
    }
}

/// What a card is connected to, unless that is such a network as it gets here.
fn other_network(nic: &NetworkCard) -> Option<String> {
    let connection = nic.connection.as_deref()?;
    let network = nic.network.as_deref().unwrap_or_default();
    let is_nat = matches!(connection, "nat" | "natnetwork" | "shared" | "user" | "slirp" | "passt")
        || ["nat", "default"].iter().any(|name| network.eq_ignore_ascii_case(name));
    let words = [connection, network].join(" ");
    (nic.connected && !is_nat).then(|| words.trim_end().to_owned())
}

/// The path of a file; otherwise why it cannot be used is one of the problems.
fn usable(file: &FileRef, problems: &mut Vec<String>) -> Option<PathBuf> {
    let name = &file.written;
    problems.push(match file.state {
        FileState::Present | FileState::Moved => match &file.path {
            Some(path) => return Some(path.clone()),
            None => format!("The file `{name}` has no path"),
        },
        FileState::Member => {
            format!("The file `{name}` is inside an archive, which a description cannot name")
        }
        FileState::Missing => format!("The file `{name}` is not there"),
        FileState::Refused => {
            format!("The file `{name}` lies outside of the VM's folder, which is not allowed")
        }
        FileState::Remote => format!("`{name}` is not a file of this computer"),
    });
    None
}

/// The name without what [`VmSpec::validate`] refuses.
fn usable_name(name: &str) -> String {
    let name = name.trim().replace(|letter: char| letter == '/' || letter.is_control(), "-");
    let end = (0..=name.len().min(128)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    match &name[..end] {
        "" | "." | ".." => "vm".into(),
        name => name.into(),
    }
}

fn join(words: BTreeSet<String>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}
