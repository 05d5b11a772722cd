//! VirtualBox's `.vbox` in the schema versions that its releases since 2.0 write (1.6 to 1.20).
//!
//! Version 1.20 moved processors and chipset from `Hardware` to `Platform`, version 1.19 the storage controllers from
//! `Machine` to `Hardware`, version 1.11 the media from a file for all VMs into each VM's own.

mod devices;
mod media;

use std::path::Path;

use super::description::{
    Architecture, Description, FileState, FirmwareKind, Level, Platform, Snapshot,
};
use super::folder::Folder;
use super::xml::Element;
use crate::Result;
pub(crate) use media::Media;

/// Reads the document of a `.vbox`.
pub(crate) fn read(root: &Element, path: &Path, folder: &Folder) -> Result<Description> {
    if let Some(encrypted) = root.child("MachineEncrypted") {
        let name =
            encrypted.attribute("name").or(encrypted.attribute("uuid")).unwrap_or("in this file");
        return Err(encrypted.error(format!(
            "The VM {name} is encrypted; remove the encryption in VirtualBox first"
        )));
    }
    let mut vm = Description::new(Platform::Virtualbox, "vbox", path);
    vm.version = root.string("version");
    let machine =
        root.child("Machine").ok_or_else(|| root.error("Expected <Machine> in <VirtualBox>"))?;
    let snapshots = machine.attribute("snapshotFolder").unwrap_or("Snapshots");
    let media = Media::new(machine.child("MediaRegistry"), folder, snapshots);
    self::machine(machine, &media, folder, &mut vm)?;
    vm.unread = root.unread();
    vm.checked()
}

/// Adds what a `Machine` says to `vm`; also for the one in an OVF package.
pub(crate) fn machine(
    machine: &Element,
    media: &Media,
    folder: &Folder,
    vm: &mut Description,
) -> Result<()> {
    machine.skip_attributes(&[
        "currentStateModified",
        "directoryIncludesUUID",
        "lastStateChange",
        "nameSync",
        "required",
        "snapshotFolder",
        "stateKeyId",
        "stateKeyStore",
        "logKeyId",
        "logKeyStore",
        "version",
    ]);
    machine.skip_children(&["Info", "Groups", "ExtraData"]);
    vm.name = machine.string("name");
    vm.uuid = machine.attribute("uuid").map(plain);
    vm.guest_os = machine.string("OSType");
    vm.annotation = machine.child_text("Description").map(str::to_owned);
    let hardware = machine
        .child("Hardware")
        .ok_or_else(|| machine.error("Expected <Hardware> in <Machine>"))?;
    vm.smbios = vm.smbios_of_uuid();
    if let Some(own) = hardware.attribute("uuid").and_then(|uuid| uuid.parse().ok()) {
        vm.smbios.uuid = Some(own);
    }
    vm.architecture = architecture(machine, vm.guest_os.as_deref());
    if machine.attribute("aborted") == Some("true") {
        vm.note(Level::Info, "VirtualBox was ended while the VM ran");
    }
    if let Some(file) = machine.string("stateFile") {
        vm.saved_state = Some(folder.locate(&file, &["Snapshots"]));
    }
    processors_and_memory(machine, hardware, vm)?;
    firmware(hardware, folder, vm);
    devices::read(machine, hardware, media, folder, vm)?;
    if let Some(snapshot) = machine.child("Snapshot") {
        let current = machine.attribute("currentSnapshot").map(plain);
        add_snapshots(snapshot, None, current.as_deref(), vm);
    }
    Ok(())
}

fn processors_and_memory(
    machine: &Element,
    hardware: &Element,
    vm: &mut Description,
) -> Result<()> {
    hardware.skip_attributes(&["version"]);
    // Every file has these, mostly without anything in them.
    hardware.skip_children(&["EmulatedUSB"]);
    let guest = hardware.children("Guest");
    guest.filter(|one| one.attribute("memoryBalloonSize") == Some("0")).for_each(Element::skip);
    let pci = hardware.children("HostPci");
    pci.filter(|one| one.at(&["Devices", "Device"]).is_none()).for_each(Element::skip);
    if let Some(memory) = hardware.child("Memory") {
        vm.memory.size =
            memory.number::<u64>("RAMSize")?.map(|count| count.saturating_mul(1 << 20));
        // Its pages that others have, too, are kept once: the host's business.
        memory.skip_attributes(&["PageFusion"]);
    }
    let platform = machine.child("Platform");
    let places = [hardware.child("CPU"), platform.and_then(|platform| platform.child("CPU"))];
    vm.cpus.count = Some(1);
    for cpu in places.into_iter().flatten() {
        if let Some(count) = cpu.number("count")? {
            vm.cpus.count = Some(count);
        }
        let special = cpu
            .child("NestedHWVirt")
            .or_else(|| platform.and_then(|platform| platform.at(&["x86", "CPU", "NestedHWVirt"])));
        if let Some(nested) = special {
            vm.cpus.nested = Some(nested.attribute("enabled") == Some("true"));
        }
        // How VirtualBox itself runs the guest.
        cpu.skip();
    }
    if let Some(platform) = platform {
        vm.machine = platform.child("Chipset").and_then(|chipset| chipset.string("type"));
        platform.skip();
    } else {
        vm.machine = hardware.child("Chipset").and_then(|chipset| chipset.string("type"));
    }
    Ok(())
}

fn firmware(hardware: &Element, folder: &Folder, vm: &mut Description) {
    let kind = hardware.child("Firmware").and_then(|firmware| firmware.attribute("type"));
    vm.firmware.kind = match kind {
        Some(kind) if kind.starts_with("EFI") => Some(FirmwareKind::Uefi),
        _ => Some(FirmwareKind::Bios),
    };
    for place in ["BIOS", "Firmware"].iter().filter_map(|name| hardware.child(name)) {
        if let Some(path) = place.child("NVRAM").and_then(|nvram| nvram.string("path")) {
            let file = folder.locate(&path, &[]);
            // VirtualBox names the file before there is one.
            vm.firmware.nvram = (file.state != FileState::Missing).then_some(file);
        }
        place.skip();
    }
    let tpm = hardware.child("TrustedPlatformModule").and_then(|tpm| {
        tpm.skip();
        tpm.string("type")
    });
    vm.tpm = match tpm.as_deref() {
        Some("v1_2") => Some("1.2".into()),
        Some("v2_0") => Some("2.0".into()),
        None | Some("None") => None,
        Some(_) => Some(String::new()),
    };
    if let Some(boot) = hardware.child("Boot") {
        let mut order: Vec<_> = boot.children("Order").collect();
        order
            .sort_by_key(|one| one.attribute("position").and_then(|text| text.parse::<u32>().ok()));
        vm.boot.order = order.iter().filter_map(|one| one.string("device")).collect();
        vm.boot.order.retain(|device| device != "None");
    }
}

fn architecture(machine: &Element, guest: Option<&str>) -> Architecture {
    let named = machine.child("Platform").and_then(|platform| platform.attribute("architecture"));
    let guest = guest.unwrap_or_default().to_ascii_lowercase();
    match named {
        Some(name) if name.eq_ignore_ascii_case("ARM") => Architecture::Arm64,
        _ if guest.ends_with("_arm64") => Architecture::Arm64,
        _ if guest.is_empty() || guest.ends_with("_64") => Architecture::X86_64,
        _ => Architecture::X86,
    }
}

/// Most snapshots lie within each other; the XML reader bounds the depth.
fn add_snapshots(
    snapshot: &Element,
    parent: Option<&str>,
    current: Option<&str>,
    vm: &mut Description,
) {
    let id = snapshot.attribute("uuid").map(plain).unwrap_or_default();
    vm.snapshots.push(Snapshot {
        name: snapshot.string("name").unwrap_or_default(),
        description: snapshot.child_text("Description").map(str::to_owned),
        created: snapshot.string("timeStamp"),
        parent: parent.map(str::to_owned),
        current: current == Some(id.as_str()),
        id: id.clone(),
    });
    if let Some(children) = snapshot.child("Snapshots") {
        for child in children.children("Snapshot") {
            add_snapshots(child, Some(&id), current, vm);
        }
    }
    // The machine as it was then.
    snapshot.skip();
}

/// A UUID without its braces.
fn plain(uuid: &str) -> String {
    uuid.trim_matches(['{', '}']).to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
