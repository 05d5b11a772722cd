//! From a boot loader's entry to what a machine with virtio devices boots.

use image::Archive;
use serde::Serialize;

use crate::guest::Guest;
use crate::initrd::{Contents, module_name};
use crate::loader::{BootEntry, FileRef};
use crate::modules::Modules;
use crate::volume::{at, text_of};
use crate::{Error, Result, names};

/// Largest kernel.
const MAX_KERNEL: u64 = 512 << 20;
/// Largest initial RAM disk.
const MAX_INITRD: u64 = 1 << 30;
/// What a guest needs to reach its root on a virtio disk.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where our program is in what is appended; its name tells it what to do.
const CHAIN: &str = "omnivisor/init";
/// Its list of modules.
const MODULE_LIST: &str = "etc/omnivisor/modules";
/// Before an appended archive: the kernel begins archives at multiples of 4.
const ALIGNMENT: usize = 512;

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

    fn linux(&self, entry: &BootEntry, options: &PlanOptions) -> Result<LinuxBoot> {
        let missing = || Error::NotFound("kernel".into());
        let kernel = entry.kernel.as_ref().ok_or_else(missing)?.read(&self.devices, MAX_KERNEL)?;
        let mut initrd = Vec::new();
        for file in &entry.initrds {
            pad(&mut initrd, 4);
            initrd.extend(file.read(&self.devices, MAX_INITRD)?);
        }
        let mut boot = LinuxBoot {
            title: entry.title.clone(),
            release: release_of(&kernel),
            kernel,
            initrd: None,
            cmdline: entry.cmdline.clone(),
            added_modules: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(name) = self.sealed().filter(|_| self.root.is_none()) {
            boot.notes.push(format!(
                "{name} is encrypted: no driver that the guest's initial RAM disk lacks can be taken from it."
            ));
        }
        self.rewrite_root(&mut boot);
        add_console(&mut boot, options.console.as_deref());
        let mut archive = Archive::default();
        let mut is_needed = false;
        if !initrd.is_empty() {
            is_needed |=
                self.add_modules(&mut boot, &initrd, &mut archive, !options.nics.is_empty())?;
        }
        if !initrd.is_empty() && !options.nics.is_empty() {
            is_needed = true;
            add_names(&options.nics, &mut archive)?;
        }
        let links = self.renamed_devices();
        if !initrd.is_empty() && !links.is_empty() {
            is_needed = true;
            add_links(&links, &mut boot, &mut archive)?;
        }
        if is_needed {
            pad(&mut initrd, ALIGNMENT);
            archive.write_to(&mut initrd)?;
        }
        boot.initrd = (!initrd.is_empty()).then_some(initrd);
        Ok(boot)
    }

    /// Devices that are named by their controller have other names on virtio.
    fn rewrite_root(&self, boot: &mut LinuxBoot) {
        let root =
            self.root.as_ref().map(|root| self.storage.volumes[root.volume].report.name.clone());
        let words = boot.cmdline.split_whitespace().map(|word| {
            let Some((key, value)) = word.split_once('=') else { return word.to_owned() };
            if !matches!(key, "root" | "resume" | "rd.luks.name" | "real_root") {
                return word.to_owned();
            }
            let Some(name) = names::on_virtio(value) else { return word.to_owned() };
            let is_there = self.storage.volumes.iter().any(|found| found.report.name == name);
            let name = match (&root, is_there, key) {
                (_, true, _) => name,
                // Another order of the disks, or a name that never was.
                (Some(root), false, "root" | "real_root") => root.clone(),
                _ => name,
            };
            let new = format!("{key}=/dev/{name}");
            if new != word {
                boot.notes.push(format!("{word} of the command line becomes {new}."));
            }
            new
        });
        boot.cmdline = words.collect::<Vec<_>>().join(" ");
    }

    /// Puts the guest's virtio modules into `archive` if its initial RAM disk lacks them; whether it does.
    fn add_modules(
        &self,
        boot: &mut LinuxBoot,
        initrd: &[u8],
        archive: &mut Archive,
        with_network: bool,
    ) -> Result<bool> {
        let (Some(root), Some(release)) = (&self.root, boot.release.as_deref()) else {
            return Ok(false);
        };
        let modules = match Modules::of(&root.tree, release) {
            Ok(modules) => modules,
            // A kernel without modules has its drivers built in, or none.
            Err(Error::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let contents = Contents::of(initrd)?;
        let mut paths: Vec<String> = Vec::new();
        let network = with_network.then_some("virtio_net");
        for driver in DRIVERS.into_iter().chain(network) {
            match modules.closure(driver) {
                Some(closure) => {
                    for path in closure {
                        if !paths.contains(&path) {
                            paths.push(path);
                        }
                    }
                }
                None => {
                    let text = format!("The guest's kernel {release} has no driver {driver}.");
                    boot.notes.push(text);
                }
            }
        }
        let is_there =
            |path: &String| module_name(path).is_none_or(|name| contents.modules.contains(&name));
        if paths.iter().all(is_there) || !contents.has_init {
            return Ok(false);
        }
        let mut list = String::new();
        let mut names = Vec::new();
        for path in &paths {
            let Some(name) = module_name(path) else { continue };
            let place = format!("omnivisor/{name}.ko");
            archive.file(&place, 0o600, modules.read(path)?)?;
            list.push_str(&format!("/{place}\n"));
            names.push(name);
        }
        archive.file(MODULE_LIST, 0o600, list)?;
        archive.file(CHAIN, 0o700, image::AGENT)?;
        boot.cmdline = format!("{} rdinit=/{CHAIN}", boot.cmdline);
        boot.notes.push(format!(
            "The guest's initial RAM disk lacks drivers, which are added in memory: {}.",
            names.join(", ")
        ));
        boot.added_modules = names;
        Ok(true)
    }

    /// The devices that the guest's fstab names by their controller, and what they are called here.
    fn renamed_devices(&self) -> Vec<(String, String)> {
        let lines = self.os.iter().flat_map(|os| &os.fstab);
        let renamed = lines.filter_map(|line| {
            let here = names::on_virtio(&line.spec)?;
            let former = line.spec.strip_prefix("/dev/")?.to_owned();
            let is_there = self.storage.volumes.iter().any(|found| found.report.name == here);
            (is_there && former != here).then_some((former, here))
        });
        renamed.collect()
    }
}

/// Where the rules wait in the initial RAM disk.
const LINK_RULES: &str = "etc/omnivisor/60-omnivisor-links.rules";

/// Links with the former names of devices: rules for udev in the initial RAM disk, which hands them on to the
/// root's udev by /run, so that systemd finds the devices that it waits for.
fn add_links(
    links: &[(String, String)],
    boot: &mut LinuxBoot,
    archive: &mut Archive,
) -> Result<()> {
    let rules: String = links
        .iter()
        .map(|(former, here)| {
            format!("SUBSYSTEM==\"block\", KERNEL==\"{here}\", SYMLINK+=\"{former}\"\n")
        })
        .collect();
    let hand_on = format!(
        "SUBSYSTEM==\"block\", KERNEL==\"vd*\", RUN+=\"/bin/sh -c 'mkdir -p /run/udev/rules.d; \
         cp /{LINK_RULES} /run/udev/rules.d/'\"\n"
    );
    archive.file(
        "etc/udev/rules.d/60-omnivisor-links.rules",
        0o644,
        format!("{rules}{hand_on}"),
    )?;
    archive.file(LINK_RULES, 0o644, rules)?;
    for (former, here) in links {
        boot.notes
            .push(format!("The guest's fstab names /dev/{former}, which leads to /dev/{here}."));
    }
    Ok(())
}

/// Appends the machine's console if the command line does not name it; the last one is where init speaks.
fn add_console(boot: &mut LinuxBoot, console: Option<&str>) {
    let Some(console) = console else { return };
    let is_last = |word: &str| {
        word.strip_prefix("console=").map(|value| value.split(',').next() == Some(console))
    };
    if boot.cmdline.split_whitespace().filter_map(is_last).next_back() != Some(true) {
        boot.cmdline = format!("{} console={console}", boot.cmdline).trim_start().to_owned();
        boot.notes.push(format!("The guest's console is {console}."));
    }
}

/// Link files for udev in the initial RAM disk, which renames cards before the root's own rules see them.
fn add_names(nics: &[NicName], archive: &mut Archive) -> Result<()> {
    for (index, nic) in nics.iter().enumerate() {
        let is_mac = |c: char| c.is_ascii_hexdigit() || c == ':';
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if !nic.mac.chars().all(is_mac) || nic.name.is_empty() || !nic.name.chars().all(is_name) {
            continue;
        }
        let text = format!("[Match]\nMACAddress={}\n\n[Link]\nName={}\n", nic.mac, nic.name);
        archive.file(&format!("etc/systemd/network/00-omnivisor-{index}.link"), 0o644, text)?;
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

/// The release of a bzImage (Linux x86 boot protocol, `kernel_version`).
fn release_of(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let start = usize::from(at::le16(kernel, 0x20e)?) + 0x200;
    let text = text_of(kernel.get(start..)?.get(..256)?);
    text.split_whitespace().next().map(str::to_owned)
}
