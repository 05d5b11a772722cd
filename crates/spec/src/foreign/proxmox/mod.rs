//! Proxmox VE: `/etc/pve/qemu-server/ID.conf`, and the same text in the archives of `vzdump`.
//!
//! Sources: qm.conf(5); "Storage" in the administration guide of Proxmox VE.

mod backup;
mod devices;
mod storage;
mod syntax;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::description::{
    Architecture, Bus, Description, Drive, FileRef, FirmwareKind, Level, Platform, Processors,
    SharedFolder, Snapshot, Unread, Virtualization, utc,
};
use super::folder::Folder;
use crate::Result;
use storage::Volumes;
use syntax::{Entry, Section, Text};

pub(crate) use backup::{is_backup, read_backup};
pub(crate) use syntax::looks_right;

/// The state to which the VM is changed when it is started the next time.
const PENDING: &str = "PENDING";
/// Where the first cards of a machine `pc` are, by which guests name them: `ens18` (`PCI.pm` of qemu-server). Those of a `q35` are
/// behind a bridge.
const FIRST_SLOT: u32 = 18;
const CARDS_WITH_SLOT: u32 = 6;
/// More snapshots are not listed.
const MOST_SNAPSHOTS: usize = 1000;

/// Settings that say how the product treats the VM, or what a machine here has anyway.
const KNOWN: &[&str] = &[
    "acpi",
    "affinity",
    "agent",
    "allow-ksm",
    "autostart",
    "cipassword",
    "ciupgrade",
    "citype",
    "ciuser",
    "cicustom",
    "cpulimit",
    "cpuunits",
    "digest",
    "freeze",
    "hookscript",
    "hotplug",
    "ipconfig",
    "keephugepages",
    "keyboard",
    "kvm",
    "localtime",
    "meta",
    "migrate_downtime",
    "migrate_speed",
    "nameserver",
    "numa",
    "onboot",
    "parent",
    "protection",
    "reboot",
    "rng",
    "runningcpu",
    "runningmachine",
    "running-nets-host-mtu",
    "searchdomain",
    "shares",
    "spice_enhancements",
    "sshkeys",
    "startdate",
    "startup",
    "tablet",
    "tags",
    "tdf",
    "unused",
    "vmgenid",
    "vmstate",
    "vmstatestorage",
];

/// Reads a VM's configuration.
pub(crate) fn read(bytes: &str, path: &Path, folder: &Folder) -> Result<Description> {
    let volumes = Volumes::of_host(folder, path);
    let mut vm = of_text(bytes, path, &|volume| volumes.locate(volume, folder))?;
    if vm.name.is_none() {
        // As the product shows a VM without a name.
        vm.name = path.file_stem().map(|id| format!("VM {}", id.to_string_lossy()));
    }
    Ok(vm)
}

/// Reads a VM's configuration whose volumes are found by `locate`.
fn of_text(text: &str, path: &Path, locate: &dyn Fn(&str) -> FileRef) -> Result<Description> {
    let text = Text::parse(text, &path.display().to_string())?;
    let mut vm = Description::new(Platform::Qemu, "Proxmox VE", path);
    let main = &text.main;
    vm.annotation = main.comment.clone();
    vm.firmware.kind = Some(FirmwareKind::Bios);
    let mut sockets = None;
    let mut scsi = None;
    let mut order = Vec::new();
    for entry in &main.entries {
        let value = entry.value.as_str();
        match (entry.word(), entry.index()) {
            ("name", _) => vm.name = Some(value.into()),
            ("description", _) => vm.annotation = Some(syntax::decoded(value)),
            ("arch", _) => vm.architecture = Architecture::named(value),
            ("ostype", _) => vm.guest_os = Some(value.into()),
            ("machine", _) => vm.machine = entry.options("type").main(),
            ("memory", _) => {
                let size = entry.options("current").main().unwrap_or_default();
                vm.memory.size = Some(mebibytes(entry, &size)?);
            }
            // 0 is no ballooning.
            ("balloon", _) => {
                vm.memory.minimum = Some(mebibytes(entry, value)?).filter(|least| *least > 0);
            }
            ("hugepages", _) => vm.memory.hugepages = true,
            ("sockets", _) => sockets = Some(entry.number(value)?),
            ("cores", _) => vm.cpus.cores = Some(entry.number(value)?),
            ("vcpus", _) => vm.cpus.count = Some(entry.number(value)?),
            ("cpu", _) => vm.cpus.model = entry.options("cputype").main(),
            ("bios", _) if value == "ovmf" => vm.firmware.kind = Some(FirmwareKind::Uefi),
            ("bios", _) => {}
            ("efidisk", _) => {
                let options = entry.options("file");
                vm.firmware.nvram = options.get("file").map(locate);
                vm.firmware.secure_boot = Some(options.get("pre-enrolled-keys") == Some("1"));
            }
            ("tpmstate", _) => {
                let version = entry.options("file").get("version").unwrap_or("v1.2").to_owned();
                vm.tpm = Some(version.trim_start_matches('v').to_owned());
            }
            ("smbios", _) => identity(entry, &mut vm),
            ("scsihw", _) => scsi = Some(value.to_owned()),
            ("boot" | "bootdisk", _) => order.extend(boot_order(entry)),
            ("scsi" | "sata" | "ide" | "virtio", Some(index)) => {
                let drive = devices::drive(entry, index, locate, &mut vm.unread);
                vm.controller(drive.bus, drive.controller, None);
                vm.drives.push(drive);
            }
            ("net", Some(index)) => {
                vm.nics.push(devices::card(entry, index, &mut vm.unread));
            }
            ("serial", Some(index)) => vm.serials.push(devices::serial(index, value)),
            ("virtiofs", Some(_)) => vm.shares.push(SharedFolder {
                name: entry.options("dirid").main().unwrap_or_default(),
                ..SharedFolder::default()
            }),
            ("rootfs", _) => vm.virtualization = Virtualization::Container,
            ("lock", _) => vm.note(
                Level::Warning,
                format!("It is locked ({value}): Proxmox VE may be at work on it, or was stopped in that"),
            ),
            ("template", _) if value == "1" => {
                vm.note(Level::Info, "It is a template, of which others may be linked clones");
            }
            (word, _) => {
                if !devices::other(word, value, &mut vm) && !KNOWN.contains(&word) {
                    vm.unread.push(entry.unread(value));
                }
            }
        }
    }
    vm.cpus = processors(sockets, &vm.cpus);
    if vm.memory.size.is_none() {
        // What it has that says nothing.
        vm.memory.size = Some(512 << 20);
    }
    if scsi.is_some() && vm.drives.iter().any(|drive| drive.bus == Bus::Scsi) {
        vm.controller(Bus::Scsi, 0, scsi);
    }
    let is_pc = vm.machine.as_ref().is_none_or(|machine| !machine.contains("q35"));
    for card in vm.nics.iter_mut().filter(|card| is_pc && card.index < CARDS_WITH_SLOT) {
        card.slot = Some(FIRST_SLOT + card.index);
    }
    for (place, name) in (1..).zip(&order) {
        start_from(name, place, &mut vm);
    }
    vm.boot.order = order;
    snapshots(&text, &mut vm);
    vm.checked()
}

fn mebibytes(entry: &Entry, text: &str) -> Result<u64> {
    let count: u32 = entry.number(text)?;
    Ok(u64::from(count) << 20)
}

/// Without a word there is one socket with one core.
fn processors(sockets: Option<u32>, said: &Processors) -> Processors {
    let (sockets, cores) = (sockets.unwrap_or(1), said.cores.unwrap_or(1));
    let all = sockets.saturating_mul(cores);
    let count = said.count.unwrap_or(all);
    Processors {
        count: Some(count),
        maximum: (count < all).then_some(all),
        sockets: Some(sockets),
        cores: Some(cores),
        ..said.clone()
    }
}

/// `smbios1`, whose texts may be in base64.
fn identity(entry: &Entry, vm: &mut Description) {
    use base64::Engine as _;
    let options = entry.options("uuid");
    let is_encoded = options.get("base64") == Some("1");
    vm.uuid = options.get("uuid").map(str::to_owned);
    vm.smbios = vm.smbios_of_uuid();
    vm.smbios.serial = options.get("serial").and_then(|text| match is_encoded {
        true => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            String::from_utf8(bytes).ok()
        }
        false => Some(text.to_owned()),
    });
    for name in ["manufacturer", "product", "version", "sku", "family"] {
        vm.unread.extend(
            options.get(name).map(|value| Unread {
                key: format!("{}.{name}", entry.key),
                ..entry.unread(value)
            }),
        );
    }
}

/// What is started from, in its order. `boot: cdn` is older: classes of devices, of which `bootdisk` names the disk.
fn boot_order(entry: &Entry) -> Vec<String> {
    match entry.word() {
        "bootdisk" => vec![entry.value.clone()],
        _ => {
            let order = entry.options("legacy").get("order").unwrap_or_default().to_owned();
            order.split(';').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
    }
}

fn start_from(name: &str, place: u32, vm: &mut Description) {
    let (word, index) = syntax::numbered(name);
    let Some(index) = index else { return };
    if word == "net" {
        let card = vm.nics.iter_mut().find(|card| card.index == index);
        card.into_iter().for_each(|card| card.boot_order = Some(place));
        return;
    }
    let place_of = |drive: &Drive| (drive.bus, drive.controller, drive.unit);
    let Some(wanted) = devices::place(word, index) else { return };
    let drive = vm.drives.iter_mut().find(|drive| place_of(drive) == wanted);
    drive.into_iter().for_each(|drive| drive.boot_order = Some(place));
}

fn snapshots(text: &Text, vm: &mut Description) {
    let current = text.main.get("parent");
    for section in text.sections.iter().take(MOST_SNAPSHOTS) {
        let Section { name, comment, .. } = section;
        if name == PENDING {
            let keys: Vec<_> = section.entries.iter().map(|entry| entry.key.as_str()).collect();
            vm.note(
                Level::Warning,
                format!(
                    "Changes wait for its next start there, and are not taken: {}",
                    keys.join(", ")
                ),
            );
        }
        // `[special:...]` and whatever else the product keeps.
        let Some(time) = section.get("snaptime") else { continue };
        vm.snapshots.push(Snapshot {
            id: name.clone(),
            name: name.clone(),
            description: comment.clone(),
            created: time.parse().ok().map(utc),
            parent: section.get("parent").map(str::to_owned),
            current: current == Some(name),
        });
    }
}
