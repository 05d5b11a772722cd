//! From a boot loader's entry to what a machine with virtio devices boots.

mod appended;
mod linux;

use serde::Serialize;

use crate::guest::Guest;
use crate::loader::{BootEntry, FileRef};
use crate::{Error, Result};

/// How a guest is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootPlan {
    /// A Linux kernel with what it is given.
    Linux(Box<LinuxBoot>),
    /// By firmware that starts the boot loader on the disk.
    Firmware {
        /// Which one.
        kind: Firmware,
        /// Why nothing else is possible.
        reason: String,
    },
}

/// Kinds of firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A BIOS, which starts the first sector of a disk.
    Bios,
    /// UEFI, which starts a program on the EFI system partition.
    Uefi,
}

/// A kernel with what it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxBoot {
    /// Title of the entry.
    pub title: String,
    /// The kernel's release, as `uname -r` prints it, if its file says so.
    pub release: Option<String>,
    /// The kernel's file.
    pub kernel: Vec<u8>,
    /// The initial RAM disk: the guest's own, and what was appended.
    pub initrd: Option<Vec<u8>>,
    /// The command line.
    pub cmdline: String,
    /// Drivers that its initial RAM disk lacks and that were appended.
    pub added_modules: Vec<String>,
    /// What differs from how the guest was started elsewhere, in sentences.
    pub notes: Vec<String>,
}

/// What a plan is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// The device that the guest's console is on, such as `ttyS0`.
    pub console: Option<String>,
    /// The entry by its title, id or number; the default one otherwise.
    pub entry: Option<String>,
    /// Names that network cards had before.
    pub nics: Vec<NicName>,
}

/// A network card that keeps its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicName {
    /// Its address, in hexadecimal with colons.
    pub mac: String,
    /// Its name, such as `ens192`.
    pub name: String,
}

impl Guest {
    /// How it is started on a machine with virtio devices.
    pub fn plan(&self, options: &PlanOptions) -> Result<BootPlan> {
        let Some(entry) = self.entry(options.entry.as_deref())? else {
            let mut why = "no boot loader's menu and no kernel was found on its disks".to_owned();
            if let Some(name) = self.sealed() {
                why += &format!(", of which {name} is encrypted");
            }
            return Ok(self.firmware(&why));
        };
        if entry.kernel.is_none() {
            let what = entry.note.as_deref().unwrap_or("it starts no kernel");
            return Ok(self.firmware(&format!("of its entry {:?}, {what}", entry.title)));
        }
        if let Some(architecture) = self.os.as_ref().and_then(|os| os.architecture)
            && !matches!(architecture, "x86_64" | "i686" | "x32")
        {
            return Err(Error::unsupported(
                "system",
                format!("it is made for {architecture} processors"),
            ));
        }
        match self.linux(&entry, options) {
            Err(Error::NotFound(missing)) if options.entry.is_none() => {
                // A kernel that was removed without the menu being told.
                let other = self.entries().find(|other| {
                    *other != &entry
                        && other.kernel.as_ref().is_some_and(|k| k.exists(&self.devices))
                });
                let Some(other) = other else { return Err(Error::NotFound(missing)) };
                let mut boot = self.linux(other, options)?;
                boot.notes.push(format!(
                    "The menu's default entry names {missing}, which is not there: {:?} is started instead.",
                    other.title
                ));
                Ok(BootPlan::Linux(Box::new(boot)))
            }
            other => Ok(BootPlan::Linux(Box::new(other?))),
        }
    }

    fn entries(&self) -> impl Iterator<Item = &BootEntry> {
        self.menu.iter().flat_map(|menu| &menu.entries)
    }

    /// The entry of that name, or the default one; `None` if there is nothing to start.
    fn entry(&self, wanted: Option<&str>) -> Result<Option<BootEntry>> {
        let Some(wanted) = wanted else {
            let default = self.menu.as_ref().and_then(|menu| menu.entries.get(menu.default?));
            return Ok(default.cloned().or_else(|| self.kernel_in_root()));
        };
        let is_it =
            |entry: &&BootEntry| entry.title == wanted || entry.id.as_deref() == Some(wanted);
        let by_number = || self.entries().nth(wanted.parse::<usize>().ok()?);
        let found = self.entries().find(is_it).or_else(by_number);
        found.cloned().map(Some).ok_or_else(|| Error::NotFound(format!("boot entry {wanted:?}")))
    }

    /// Without a boot loader, the newest kernel in the root's /boot: images for hypervisors that bring their own.
    fn kernel_in_root(&self) -> Option<BootEntry> {
        let root = self.root.as_ref()?;
        let found = &self.storage.volumes[root.volume].report;
        let device = self
            .devices
            .iter()
            .position(|device| device.uuid == found.uuid && device.part_uuid == found.part_uuid)?;
        let place = |path: &str| {
            let resolved = root.tree.resolve(path, true).ok()?;
            let folder = root.folder.trim_end_matches('/');
            Some(FileRef { device, path: format!("{folder}{resolved}"), section: None })
        };
        let names = root.tree.names("/boot");
        let newest = |prefix: &str| {
            let versions = names.iter().filter_map(|name| name.strip_prefix(prefix));
            versions.max_by(|left, right| crate::loader::compare_versions(left, right))
        };
        let version = newest("vmlinuz-").or_else(|| newest("kernel-"))?;
        let initrds = [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
            format!("initramfs-{version}"),
        ];
        let initrd = initrds.iter().find(|name| names.contains(name));
        let kernel = ["vmlinuz-", "kernel-"].map(|prefix| format!("/boot/{prefix}{version}"));
        let kernel = kernel.iter().find(|path| root.tree.is_file(path))?;
        let device = match &found.uuid {
            Some(uuid) if initrd.is_some() => format!("UUID={uuid}"),
            _ => format!("/dev/{}", found.name),
        };
        Some(BootEntry {
            title: format!("Linux {version}"),
            id: None,
            kernel: place(kernel),
            initrds: initrd.and_then(|name| place(&format!("/boot/{name}"))).into_iter().collect(),
            cmdline: match root.folder.trim_matches('/') {
                "" => format!("root={device} ro"),
                // The default subvolume may be another one.
                subvolume => format!("root={device} ro rootflags=subvol={subvolume}"),
            },
            note: None,
        })
    }

    /// A volume that nobody can look into.
    fn sealed(&self) -> Option<&str> {
        let volumes = &self.storage.volumes;
        volumes.iter().find(|found| found.is_encrypted()).map(|found| found.report.name.as_str())
    }

    fn firmware(&self, reason: &str) -> BootPlan {
        let is_uefi =
            self.devices.iter().any(|device| device.is_esp && device.tree.is_folder("/EFI"));
        let kind = if is_uefi { Firmware::Uefi } else { Firmware::Bios };
        BootPlan::Firmware { kind, reason: reason.to_owned() }
    }
}
