//! VMware's `.vmx`.

use super::super::description::{
    Architecture, Bus, Description, Drive, DriveKind, FirmwareKind, Platform,
};
use super::places::{Room, places};
use super::{Export, boot_devices, name, nic_word, path, uuid};

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let mut text = String::new();
    let mut set =
        |key: &str, value: &str| text.push_str(&format!("{key} = \"{}\"\n", escaped(value)));
    for (key, value) in
        [(".encoding", "UTF-8"), ("config.version", "8"), ("virtualHW.version", "13")]
    {
        set(key, value);
    }
    set("displayName", name(vm));
    set(
        "guestOS",
        vm.guest_os
            .as_deref()
            .filter(|_| vm.format == "vmx")
            .unwrap_or(if vm.architecture == Architecture::X86 { "other" } else { "other-64" }),
    );
    if let Some(annotation) = &vm.annotation {
        set("annotation", annotation);
    }
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    // VMware wants multiples of 4 MiB.
    set("memsize", &(size >> 20).max(4).next_multiple_of(4).to_string());
    if let Some(uuid) = uuid_bios(vm) {
        set("uuid.bios", &uuid);
    }
    set("numvcpus", &vm.cpus.count.unwrap_or(1).to_string());
    if let Some(cores) = vm.cpus.threads_of_socket() {
        set("cpuid.coresPerSocket", &cores.to_string());
    }
    if vm.cpus.nested == Some(true) {
        set("vhv.enable", "TRUE");
    }
    if vm.firmware.kind == Some(FirmwareKind::Uefi) {
        set("firmware", "efi");
        if let Some(secure) = vm.firmware.secure_boot {
            set("uefi.secureBoot.enabled", flag(secure));
        }
    }
    let order: Vec<_> = boot_devices(vm).unwrap_or_default();
    if vm.firmware.kind != Some(FirmwareKind::Uefi) && !order.is_empty() {
        let word = |device: &'static str| match device {
            "hd" => "hdd",
            "network" => "ethernet0",
            "fd" => "floppy",
            device => device,
        };
        set("bios.bootOrder", &order.into_iter().map(word).collect::<Vec<_>>().join(","));
    }
    if vm.tpm.is_some() {
        lost.push("A TPM of VMware needs an encrypted VM: add it there".into());
    }
    if vm.boot.kernel.is_some() {
        lost.push("VMware starts no kernel from outside of the disks".into());
    }
    let mut present = Vec::new();
    let mut starts = Vec::new();
    let wanted = |drive: &Drive| match drive.bus {
        _ if matches!(drive.kind, DriveKind::Floppy | DriveKind::Passthrough) => None,
        Bus::Scsi | Bus::Sata | Bus::Nvme | Bus::Ide => {
            Some((drive.bus, drive.controller, scsi_unit(vm, drive)))
        }
        _ => Some((Bus::Sata, drive.controller, drive.unit)),
    };
    let room = |bus| match bus {
        Bus::Ide => Room::of(2, 2),
        Bus::Scsi => Room { reserved: Some(7), ..Room::of(4, 64) },
        _ => Room::of(4, 30),
    };
    for (drive, place) in vm.drives.iter().zip(places(&vm.drives, wanted, room)) {
        let Some((bus, number, unit)) = place else {
            lost.push(format!("The drive {} is left out", drive.address()));
            continue;
        };
        let controller = format!("{}{number}", bus.name());
        if !present.contains(&controller) {
            set(&format!("{controller}.present"), "TRUE");
            if bus == Bus::Scsi {
                let found = vm.controllers.iter().find(|one| one.bus == bus && one.index == number);
                set(
                    &format!("{controller}.virtualDev"),
                    scsi_model(found.and_then(|one| one.model.as_deref())),
                );
            }
            present.push(controller.clone());
        }
        let key = format!("{controller}:{unit}");
        starts.extend(drive.boot_order.map(|order| (order, key.clone())));
        set(&format!("{key}.present"), "TRUE");
        match (drive.kind, path(drive)) {
            (DriveKind::Cdrom, Some(path)) => {
                set(&format!("{key}.deviceType"), "cdrom-image");
                set(&format!("{key}.fileName"), &path);
            }
            (DriveKind::Cdrom, None) => {
                set(&format!("{key}.deviceType"), "cdrom-raw");
                set(&format!("{key}.fileName"), "emptyBackingString");
            }
            (_, path) => {
                let path = path.unwrap_or_default();
                if drive.format.as_deref().is_some_and(|format| format != "vmdk") {
                    lost.push(format!("The disk `{path}` is no VMDK: convert it first"));
                }
                set(&format!("{key}.fileName"), &path);
            }
        }
        if !drive.connected {
            set(&format!("{key}.startConnected"), "FALSE");
        }
        if drive.volatile {
            set(&format!("{key}.mode"), "independent-nonpersistent");
        }
    }
    if !starts.is_empty() {
        starts.sort();
        let keys: Vec<_> = starts.into_iter().map(|(_, key)| key).collect();
        set("bios.hddOrder", &keys.join(","));
    }
    for (index, nic) in vm.nics.iter().enumerate() {
        let key = format!("ethernet{index}");
        set(&format!("{key}.present"), "TRUE");
        let words =
            [("e1000", "e1000"), ("e1000e", "e1000e"), ("pcnet", "vlance"), ("vmxnet3", "vmxnet3")];
        set(&format!("{key}.virtualDev"), nic_word(nic, &words, "vmxnet3", &mut lost));
        let kind = match nic.connection.as_deref() {
            Some("bridge" | "bridged") => "bridged",
            Some("hostonly" | "host-only") => "hostonly",
            // On ESXi the name of the network is all that counts.
            None | Some("network") if nic.network.is_some() => "bridged",
            _ => "nat",
        };
        set(&format!("{key}.connectionType"), kind);
        if let Some(network) = &nic.network {
            set(&format!("{key}.networkName"), network);
        }
        if let Some(mac) = nic.mac {
            set(&format!("{key}.addressType"), "static");
            set(&format!("{key}.address"), &mac.to_string());
            // Of its own, VMware states these only; others it would replace.
            if mac.0[..3] != [0, 0x50, 0x56] || mac.0[3] >= 0x40 {
                set(&format!("{key}.checkMACAddress"), "FALSE");
            }
        }
        if let Some(slot) = nic.slot {
            set(&format!("{key}.pciSlotNumber"), &slot.to_string());
        }
        if !nic.connected {
            set(&format!("{key}.startConnected"), "FALSE");
        }
    }
    for serial in &vm.serials {
        set(&format!("serial{}.present", serial.index), "TRUE");
        set(&format!("serial{}.fileType", serial.index), "file");
        set(&format!("serial{}.fileName", serial.index), &format!("serial{}.log", serial.index));
    }
    Export { text, lost }
}

/// Unit 7 of a SCSI bus is the controller itself, to VMware: what is there moves on, with what follows.
fn scsi_unit(vm: &Description, drive: &Drive) -> u32 {
    let place = (Bus::Scsi, drive.controller, 7);
    let mut drives = vm.drives.iter();
    let is_taken = drives.any(|other| (other.bus, other.controller, other.unit) == place);
    let moves = drive.bus == Bus::Scsi && drive.unit >= 7 && is_taken;
    drive.unit.saturating_add(u32::from(moves))
}

/// A package may name several models to choose from.
fn scsi_model(model: Option<&str>) -> &'static str {
    let words = model.unwrap_or_default().split([' ', ',']).map(str::to_ascii_lowercase);
    let mut known = words.filter_map(|word| match word.as_str() {
        "lsilogic" => Some("lsilogic"),
        "lsisas1068" | "lsilogicsas" => Some("lsisas1068"),
        "buslogic" => Some("buslogic"),
        _ => None,
    });
    known.next().unwrap_or("pvscsi")
}

/// What makes hardware of version 13 tell the guest its UUID, in VMware's words.
fn uuid_bios(vm: &Description) -> Option<String> {
    // A name of VMware's, of which is not known how the guest read it, stays what it is.
    let is_vmwares = vm.platform == Platform::Vmware && vm.smbios.uuid.is_none();
    let uuid = uuid(vm)?;
    let uuid = if is_vmwares { uuid } else { uuid.swapped() };
    let bytes: Vec<String> = uuid.0.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{}-{}", bytes[..8].join(" "), bytes[8..].join(" ")))
}

fn flag(value: bool) -> &'static str {
    if value { "TRUE" } else { "FALSE" }
}

/// What a value cannot hold, as VMware writes it.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for letter in value.chars() {
        match letter {
            '"' | '|' | '#' | '\0'..'\x20' => text.push_str(&format!("|{:02X}", u32::from(letter))),
            other => text.push(other),
        }
    }
    text
}
