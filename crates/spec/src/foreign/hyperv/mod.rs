//! Hyper-V: `.vmcx` (since Windows Server 2016) and the XML of its predecessors, and the layout of its folders.
//!
//! Both hold the same tree of keys, which Microsoft does not document: names and meanings are those of files that
//! Hyper-V wrote.

mod log;
mod storage;
mod tree;

use std::collections::HashMap;
use std::path::Path;

use super::description::{
    Bus, Description, Drive, DriveKind, FileRef, FirmwareKind, Level, NetworkCard, Platform,
    SerialPort, Snapshot, mac, utc,
};
use super::folder::Folder;
use super::text;
use super::xml::Element;
use crate::{Result, Smbios, Uuid};
pub(crate) use storage::{fuzz, is_storage};
use tree::{Node, Value};

/// Folders of a VM beside each other.
const FOLDERS: [&str; 3] = ["Virtual Hard Disks", "Virtual Machines", "Snapshots"];
/// Properties about when it ran last, and for clusters.
const BOOKKEEPING: [&str; 5] = [
    "highly_available",
    "last_powered_off_time",
    "last_powered_on_time",
    "last_state_change_time",
    "type_id",
];
/// Shares of the host's processors.
const SCHEDULING: [&str; 6] =
    ["cpu_group_guid", "cpu_group_id", "limit", "reservation", "vnuma", "weight"];
/// The files of so many checkpoints are read.
const MOST_CHECKPOINTS: usize = 200;

/// Reads a `.vmcx`.
pub(crate) fn read(bytes: &[u8], path: &Path, folder: &Folder) -> Result<Description> {
    interpret(&storage::parse(bytes, &path.display().to_string())?, "vmcx", path, folder)
}

/// Reads the XML of Windows Server 2008 to 2012 R2.
pub(crate) fn read_xml(root: &Element, path: &Path, folder: &Folder) -> Result<Description> {
    interpret(&tree::from_xml(root), "hyperv-xml", path, folder)
}

/// Adds the checkpoints whose files lie beside the VM's.
pub(crate) fn add_checkpoints(folder: &Folder, vm: &mut Description) -> Result<()> {
    let Some(path) = folder.find("Snapshots") else { return Ok(()) };
    if !path.is_dir() {
        return Ok(());
    }
    let names = Folder::new(&path, false)?.names()?;
    for name in names
        .iter()
        .filter(|name| name.to_ascii_lowercase().ends_with(".vmcx"))
        .take(MOST_CHECKPOINTS)
    {
        let Some(file) = folder.find(Path::new("Snapshots").join(name)) else { continue };
        let root = storage::parse(&text::read_file(&file)?, &file.display().to_string())?;
        let properties = root.child("properties");
        let value = |key: &str| properties.and_then(|one| one.text(key));
        vm.snapshots.push(Snapshot {
            id: value("global_id").unwrap_or_else(|| name.trim_end_matches(".vmcx").to_owned()),
            name: value("name").unwrap_or_default(),
            description: value("notes"),
            created: properties.and_then(|one| one.child("creation_time")).and_then(moment),
            parent: None,
            current: false,
        });
    }
    Ok(())
}

/// The folder of a VM whose description lies in `Virtual Machines` or `Snapshots` is the one above.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let own = path.parent().unwrap_or(Path::new(""));
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    let inner = ["Virtual Machines", "Snapshots"].iter().any(|one| name.eq_ignore_ascii_case(one));
    if inner { own.parent().unwrap_or(Path::new("")) } else { own }
}

fn interpret(root: &Node, form: &str, path: &Path, folder: &Folder) -> Result<Description> {
    let mut vm = Description::new(Platform::Hyperv, form, path);
    let properties = root.child("properties");
    let Some(settings) = root.child("settings") else {
        return Err(text::error(
            path,
            "It has no settings: this is a VM's runtime state, its description is the .vmcx of the same name",
        ));
    };
    if let Some(properties) = properties {
        vm.name = properties.text("name");
        vm.annotation = properties.text("notes");
        vm.uuid =
            properties.text("global_id").map(|id| id.trim_matches(['{', '}']).to_ascii_lowercase());
        vm.version = properties
            .number("version")
            .map(|version| format!("{}.{}", version >> 8, version & 0xff));
        properties.child("creation_time").inspect(|one| one.see());
    }
    let generation = properties.and_then(|one| one.number("subtype")).unwrap_or(0) + 1;
    vm.machine = Some(format!("generation {generation}"));
    vm.firmware.kind = Some(if generation >= 2 { FirmwareKind::Uefi } else { FirmwareKind::Bios });
    processors_and_memory(settings, &mut vm);
    let kinds = kinds(root);
    for device in root.children() {
        self::device(&kinds, device, folder, &mut vm);
    }
    if let Some(state) = root.child("savedstate") {
        let file = state.text("memlocation").or_else(|| state.text("vsvlocation"));
        vm.saved_state = file.map(|file| folder.locate(&file, &FOLDERS)).filter(FileRef::is_usable);
    }
    // What the host does with the VM, and how much it lets it have.
    for name in ["global_settings", "manifest", "metrics"] {
        root.child(name).inspect(|one| one.skip());
    }
    properties.inspect(|one| one.skip_children(&BOOKKEEPING));
    settings.skip_children(&["global", "guest_controlled_cache_types", "topology", "vnuma"]);
    vm.unread = root.unread();
    vm.checked()
}

fn processors_and_memory(settings: &Node, vm: &mut Description) {
    if let Some(processors) = settings.child("processors") {
        vm.cpus.count = processors.number("count").and_then(|count| u32::try_from(count).ok());
        let threads = processors.number("hwthreads").and_then(|count| u32::try_from(count).ok());
        vm.cpus.threads = threads.filter(|count| *count > 0);
        vm.cpus.nested =
            processors.child("nested_virtualization").and_then(|one| one.flag("enabled"));
        processors.skip_children(&SCHEDULING);
    }
    if let Some(bank) = settings.child("memory").and_then(|memory| memory.child("bank")) {
        let mebibytes = |key: &str| {
            bank.number(key)
                .and_then(|size| u64::try_from(size).ok())
                .map(|size| size.saturating_mul(1 << 20))
        };
        let (size, least, most) = (mebibytes("size"), mebibytes("reservation"), mebibytes("limit"));
        vm.memory.size = size;
        bank.skip_children(&["backing_type", "priority", "target_memory_buffer"]);
        // Without dynamic memory these mean nothing.
        if bank.flag("dynamic_memory_enabled") == Some(true) {
            (vm.memory.minimum, vm.memory.maximum) = (least, most);
        }
    }
    if let Some(security) = settings.child("security") {
        if security.flag("tpm_enabled") == Some(true) {
            vm.tpm = Some("2.0".into());
        }
        if security.flag("shielding_requested") == Some(true) {
            vm.note(
                Level::Obstacle,
                "It is a shielded VM: its disks are encrypted for the hosts that may run it",
            );
        }
    }
}

/// What devices are, by the GUIDs of their instances in lower case.
fn kinds(root: &Node) -> HashMap<String, String> {
    let entries = root.child("manifest").into_iter().flat_map(Node::children);
    let pairs = entries.filter_map(|one| Some((one.text("instance")?, one.text("name")?)));
    pairs.map(|(id, name)| (id.trim_matches(['{', '}']).to_ascii_lowercase(), name)).collect()
}

/// A device is a key of its instance's GUID; the manifest tells what it is.
fn device(kinds: &HashMap<String, String>, device: &Node, folder: &Folder, vm: &mut Description) {
    let instance = device.name.strip_prefix('_').and_then(|name| name.strip_suffix('_'));
    let Some(instance) = instance else { return };
    let kind = kinds.get(&instance.to_ascii_lowercase()).map(String::as_str).unwrap_or_default();
    device.skip_children(&["VDEVVersion", "ChannelInstanceGuid", "VpciInstanceGuid"]);
    if kind.contains("IDE Controller") {
        drives(device, Bus::Ide, folder, vm);
    } else if kind.contains("SCSI Controller") {
        drives(device, Bus::Scsi, folder, vm);
    } else if kind.contains("Floppy Controller") {
        drives(device, Bus::Floppy, folder, vm);
    } else if kind.contains("Ethernet") {
        network_card(device, kind.contains("Emulated"), vm);
    } else if kind.contains("Serial Controller") || kind.contains("Serial Port") {
        for (index, port) in (0..).zip(device.children().filter(|one| one.name.starts_with("port")))
        {
            if let Some(target) = port.text("connection") {
                vm.serials.push(SerialPort {
                    index,
                    backend: Some("pipe".into()),
                    target: Some(target),
                });
            }
        }
    } else if kind.contains("Virtual BIOS") || device.child("secure_boot_enabled").is_some() {
        vm.firmware.secure_boot = device
            .flag("secure_boot_enabled")
            .filter(|_| vm.firmware.kind == Some(FirmwareKind::Uefi));
        let template = device.text("secure_boot_template_id");
        vm.firmware.template =
            template.filter(|id| id.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0'));
        let order = device.child("boot").into_iter().flat_map(Node::children);
        vm.boot.order = order.filter_map(Node::own_text).collect();
        device.skip_children(&["base_board", "chassis", "num_lock", "pause_after_boot_failure"]);
        vm.smbios = Smbios {
            // The tables of generation 1 are of a version that Linux reads as if they were big-endian (cloud-init turns
            // the UUID around on Azure for the same reason).
            uuid: device.text("bios_guid").and_then(|id| id.parse().ok()).map(|uuid: Uuid| {
                if vm.firmware.kind == Some(FirmwareKind::Bios) { uuid.swapped() } else { uuid }
            }),
            serial: device.text("bios_serial_number").filter(|serial| !serial.is_empty()),
            ..Smbios::default()
        };
    } else if kind.contains("TPM") {
        vm.tpm = Some("2.0".into());
        device.skip();
    } else if ["Video", "Mouse", "Keyboard", "Rdp", "RDP"].iter().any(|part| kind.contains(part)) {
        device.skip();
    }
}

fn drives(device: &Node, bus: Bus, folder: &Folder, vm: &mut Description) {
    for controller in device.children().filter(|one| one.name.starts_with("controller")) {
        let used = vm.controllers.iter().filter(|one| one.bus == bus).count();
        let index = u32::try_from(used).unwrap_or(u32::MAX);
        vm.controller(bus, index, Some("Hyper-V".into()));
        for place in controller.children() {
            let Some(unit) =
                place.name.strip_prefix("drive").and_then(|number| number.parse().ok())
            else {
                continue;
            };
            let (kind, file) = (place.text("type").unwrap_or_default(), place.text("pathname"));
            let kind = match kind.as_str() {
                "ISO" | "ATAPI" => DriveKind::Cdrom,
                "VFD" => DriveKind::Floppy,
                "NONE" | "" if file.is_none() => continue,
                "PHYSICAL" | "PHD" => DriveKind::Passthrough,
                _ => DriveKind::Disk,
            };
            let mut drive = Drive::new(kind, bus, index, unit);
            drive.readonly = kind == DriveKind::Cdrom;
            if kind == DriveKind::Disk {
                drive.format = file.as_deref().and_then(format).map(str::to_owned);
            }
            drive.file = file
                .filter(|_| kind != DriveKind::Passthrough)
                .map(|file| folder.locate(&file, &FOLDERS));
            place.skip_children(&[
                "iops_limit",
                "iops_reservation",
                "weight",
                "qos_policy_id",
                "pool_id",
                "caching_mode",
                "ignore_flushes",
                "persistent_reservations_supported",
                "write_hardening_method",
            ]);
            vm.drives.push(drive);
        }
    }
}

fn format(name: &str) -> Option<&'static str> {
    match name.rsplit('.').next()?.to_ascii_lowercase().as_str() {
        "vhdx" | "avhdx" | "vhds" => Some("vhdx"),
        "vhd" | "avhd" => Some("vhd"),
        _ => None,
    }
}

fn network_card(device: &Node, emulated: bool, vm: &mut Description) {
    let address = device.text("MacAddress").as_deref().and_then(mac);
    let connection = device.child("Connection");
    let network = ["SwitchName", "AltSwitchName"].iter().find_map(|key| {
        device.text(key).or_else(|| connection.and_then(|connection| connection.text(key)))
    });
    vm.nics.push(NetworkCard {
        index: u32::try_from(vm.nics.len()).unwrap_or(u32::MAX),
        model: Some(if emulated { "tulip" } else { "netvsc" }.into()),
        // Zeros until the VM starts for the first time.
        mac: address.filter(|address| address.0 != [0; 6]),
        connection: Some("switch".into()),
        network,
        connected: device.flag("IsConnected").unwrap_or(true),
        ..NetworkCard::default()
    });
    device.flag("MacAddressIsStatic");
    device.text("FriendlyName");
    device.skip_children(&[
        "AllowPacketDirect",
        "ClusterMonitored",
        "DeviceNamingEnabled",
        "InterruptModerationDisabled",
        "MediaType",
        "NumaAwarePlacement",
        "PortName",
    ]);
}

/// A FILETIME: tenths of microseconds since 1601.
fn moment(node: &Node) -> Option<String> {
    let Some(Value::Bytes(bytes)) = node.value() else { return None };
    let ticks = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (ticks / 10_000_000).checked_sub(11_644_473_600).filter(|seconds| *seconds < 1 << 36).map(utc)
}

#[cfg(test)]
mod tests;
