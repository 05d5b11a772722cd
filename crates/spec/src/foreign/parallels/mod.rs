//! Parallels Desktop's `.pvm` bundles: `config.pvs`, with `Snapshots.xml` beside it.
//!
//! Parallels documents neither; keys and numbers are those of its SDK's enumerations and of files that it wrote. Mac OS keeps
//! a bundle as a folder.

use std::path::Path;

use super::description::{
    Architecture, Bus, Description, Drive, DriveKind, FirmwareKind, NetworkCard, Platform,
    SerialPort, SharedFolder, Snapshot, mac,
};
use super::folder::Folder;
use super::text;
use super::xml::{self, Element};
use crate::Result;

/// Reads a `config.pvs` and what lies beside it.
pub(crate) fn read(root: &Element, path: &Path, folder: &Folder) -> Result<Description> {
    let mut vm = parse(root, path, folder)?;
    if let Some(file) = folder.find("Snapshots.xml") {
        let snapshots = xml::parse(&text::read_file(&file)?, &file.display().to_string())?;
        for item in snapshots.children("SavedStateItem") {
            add_snapshots(item, None, &mut vm);
        }
        vm.companions.push(file);
    }
    vm.checked()
}

/// Reads a `config.pvs` alone.
pub(crate) fn parse(root: &Element, path: &Path, folder: &Folder) -> Result<Description> {
    let mut vm = Description::new(Platform::Parallels, "pvs", path);
    root.skip_attributes(&["dyn_lists"]);
    vm.version = root.string("schemaVersion");
    vm.product =
        root.child_text("AppVersion").map(|version| format!("Parallels Desktop {version}"));
    if let Some(identification) = root.child("Identification") {
        vm.name = identification.child_text("VmName").map(str::to_owned);
        vm.uuid = identification
            .child_text("VmUuid")
            .map(|uuid| uuid.trim_matches(['{', '}']).to_ascii_lowercase());
        vm.smbios = vm.smbios_of_uuid();
        // What else tells the VM from others.
        identification.skip();
    }
    if let Some(general) = root.at(&["Settings", "General"]) {
        vm.annotation = general.child_text("VmDescription").map(str::to_owned);
        let (kind, version) =
            (general.child_number::<u32>("OsType")?, general.child_number::<u32>("OsNumber")?);
        vm.guest_os = kind.map(|kind| guest(kind, version));
    }
    if let Some(bios) = root.at(&["Settings", "Startup", "Bios"]) {
        let uefi = bios.child_text("EfiEnabled") == Some("1");
        vm.firmware.kind = Some(if uefi { FirmwareKind::Uefi } else { FirmwareKind::Bios });
        vm.firmware.secure_boot =
            bios.child_text("EfiSecureBoot").map(|flag| flag != "0").filter(|_| uefi);
    }
    vm.firmware.nvram = folder.find("NVRAM.dat").map(|_| folder.locate("NVRAM.dat", &[]));
    let hardware = root
        .child("Hardware")
        .ok_or_else(|| root.error("Expected <Hardware> in <ParallelsVirtualMachine>"))?;
    if let Some(cpu) = hardware.child("Cpu") {
        vm.cpus.count = cpu.child_number("Number")?;
        vm.cpus.nested = cpu.child_text("VirtualizedHV").map(|flag| flag != "0");
        vm.architecture = match (cpu.child_text("Type"), cpu.child_text("Mode")) {
            (Some("1" | "arm" | "arm64"), _) => Architecture::Arm64,
            (_, Some("0")) => Architecture::X86,
            _ => Architecture::X86_64,
        };
        cpu.skip();
    }
    if let Some(memory) = hardware.child("Memory") {
        vm.memory.size =
            memory.child_number::<u64>("RAM")?.map(|size| size.saturating_mul(1 << 20));
        memory.skip();
    }
    if hardware
        .child("TpmChip")
        .and_then(|tpm| tpm.child_text("Type"))
        .is_some_and(|kind| kind != "0")
    {
        vm.tpm = Some("2.0".into());
    }
    hardware.skip_children(&["TpmChip"]);
    for (name, kind) in
        [("Hdd", DriveKind::Disk), ("CdRom", DriveKind::Cdrom), ("Fdd", DriveKind::Floppy)]
    {
        for device in hardware.children(name) {
            drive(device, kind, folder, &mut vm)?;
        }
    }
    for device in hardware.children("NetworkAdapter") {
        card(device, &mut vm)?;
    }
    for (index, device) in (0..).zip(hardware.children("Serial")) {
        if is_on(device) {
            let target = device.child_text("SystemName").map(str::to_owned);
            vm.serials.push(SerialPort { index, backend: None, target });
        }
        device.skip();
    }
    for (name, kind) in [
        ("Sound", "sound"),
        ("USB", "usb"),
        ("Video", "display"),
        ("Parallel", "parallel"),
        ("Printer", "printer"),
    ] {
        for device in hardware.children(name) {
            if is_on(device) {
                vm.device(kind, None);
            }
            device.skip();
        }
    }
    shares(root, &mut vm);
    vm.unread = root.unread();
    vm.checked()
}

fn is_on(device: &Element) -> bool {
    device.child_text("Enabled").is_none_or(|flag| flag != "0")
}

fn drive(device: &Element, kind: DriveKind, folder: &Folder, vm: &mut Description) -> Result<()> {
    let bus = match (kind, device.child_number::<u32>("InterfaceType")?) {
        (DriveKind::Floppy, _) => Bus::Floppy,
        (_, Some(0)) => Bus::Ide,
        (_, Some(1)) => Bus::Scsi,
        (_, Some(3)) => Bus::Virtio,
        (_, Some(4)) => Bus::Nvme,
        _ => Bus::Sata,
    };
    let unit = device.child_number("StackIndex")?.or(device.child_number("Index")?).unwrap_or(0);
    let (controller, unit) = if bus == Bus::Ide { (unit / 2, unit % 2) } else { (0, unit) };
    let mut drive = Drive::new(kind, bus, controller, unit);
    drive.readonly = kind == DriveKind::Cdrom;
    drive.connected = device.child_text("Connected").is_none_or(|flag| flag != "0");
    // 0 is a device of the host, 1 an image.
    let is_image = device.child_text("EmulatedType").is_none_or(|kind| kind != "0");
    let name = device.child_text("SystemName").or(device.child_text("UserFriendlyName"));
    if kind == DriveKind::Disk {
        drive.kind = if is_image { kind } else { DriveKind::Passthrough };
        drive.format = is_image.then(|| "parallels".into());
        drive.encrypted =
            device.child("Encryption").and_then(|one| one.child_text("Enabled")) == Some("1");
    }
    drive.file = name.filter(|_| is_image).map(|name| folder.locate(name, &[]));
    if is_on(device) {
        vm.controller(bus, controller, None);
        vm.drives.push(drive);
    }
    device.skip();
    Ok(())
}

fn card(device: &Element, vm: &mut Description) -> Result<()> {
    let model = match device.child_number::<u32>("AdapterType")? {
        Some(1) => Some("rtl8029"),
        Some(2) => Some("e1000"),
        Some(3) => Some("virtio"),
        Some(4) => Some("e1000e"),
        _ => None,
    };
    let connection = match device.child_number::<u32>("EmulatedType")? {
        Some(0) => Some("hostonly"),
        Some(1) => Some("shared"),
        Some(2) => Some("bridge"),
        _ => None,
    };
    if is_on(device) {
        vm.nics.push(NetworkCard {
            index: u32::try_from(vm.nics.len()).unwrap_or(u32::MAX),
            model: model.map(str::to_owned),
            mac: device.child_text("MAC").and_then(mac),
            connection: connection.map(str::to_owned),
            network: device.child_text("VirtualNetworkID").map(str::to_owned),
            connected: device.child_text("Connected").is_none_or(|flag| flag != "0"),
            ..NetworkCard::default()
        });
    }
    device.skip();
    Ok(())
}

fn shares(root: &Element, vm: &mut Description) {
    let Some(sharing) = root.at(&["Settings", "Tools", "SharedFolders", "HostSharing"]) else {
        return;
    };
    if sharing.child_text("Enabled") == Some("1") {
        for folder in sharing.children("SharedFolder") {
            vm.shares.push(SharedFolder {
                name: folder.child_text("Name").unwrap_or_default().to_owned(),
                path: folder.child_text("Path").unwrap_or_default().to_owned(),
                writable: folder.child_text("ReadOnly").is_none_or(|flag| flag == "0"),
                virtio: None,
            });
        }
    }
    sharing.skip();
}

/// The SDK's families of guests.
fn guest(kind: u32, version: Option<u32>) -> String {
    let family = match kind {
        7 => "macOS",
        8 => "Windows",
        9 => "Linux",
        10 => "FreeBSD",
        255 => "other",
        _ => return format!("type {kind}, version {}", version.unwrap_or(0)),
    };
    version.map_or_else(|| family.into(), |version| format!("{family} ({version})"))
}

/// Snapshots lie within the one that they came from; the XML reader bounds the depth.
fn add_snapshots(item: &Element, parent: Option<&str>, vm: &mut Description) {
    let id = item.attribute("guid").unwrap_or_default().trim_matches(['{', '}']).to_owned();
    // The first item only holds the others.
    let is_real = !id.is_empty();
    if is_real {
        vm.snapshots.push(Snapshot {
            id: id.clone(),
            name: item.child_text("Name").unwrap_or_default().to_owned(),
            description: item.child_text("Description").map(str::to_owned),
            created: item
                .child_text("DateTime")
                .or_else(|| item.child_text("CreateDateTime"))
                .map(str::to_owned),
            parent: parent.map(str::to_owned),
            current: item.attribute("current") == Some("yes"),
        });
    }
    for child in item.children("SavedStateItem") {
        add_snapshots(child, is_real.then_some(id.as_str()), vm);
    }
}

#[cfg(test)]
mod tests;
