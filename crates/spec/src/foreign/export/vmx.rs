//! VMware's `.vmx`.

use super::super::description::{Bus, Description, DriveKind, FirmwareKind};
use super::{Export, name, path};

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
            .filter(|_| vm.platform == super::super::Platform::Vmware)
            .unwrap_or("other-64"),
    );
    if let Some(annotation) = &vm.annotation {
        set("annotation", annotation);
    }
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    set("memsize", &(size >> 20).max(4).to_string());
    set("numvcpus", &vm.cpus.count.unwrap_or(1).to_string());
    if let Some(cores) = vm.cpus.cores {
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
    if vm.tpm.is_some() {
        lost.push("A TPM of VMware needs an encrypted VM: add it there".into());
    }
    if vm.boot.kernel.is_some() {
        lost.push("VMware starts no kernel from outside of the disks".into());
    }
    let mut present = Vec::new();
    for drive in &vm.drives {
        let bus = match drive.bus {
            Bus::Scsi | Bus::Sata | Bus::Nvme | Bus::Ide => drive.bus,
            Bus::Floppy => {
                lost.push("The floppy is left out".into());
                continue;
            }
            _ => Bus::Sata,
        };
        // Unit 7 of a SCSI bus is the controller itself, to VMware.
        let is_taken = vm
            .drives
            .iter()
            .any(|other| (other.bus, other.controller, other.unit) == (bus, drive.controller, 7));
        let unit = if bus == Bus::Scsi && drive.unit >= 7 && is_taken {
            drive.unit.saturating_add(1)
        } else {
            drive.unit
        };
        let controller = format!("{}{}", bus.name(), drive.controller);
        if !present.contains(&controller) {
            set(&format!("{controller}.present"), "TRUE");
            if bus == Bus::Scsi {
                let found = vm
                    .controllers
                    .iter()
                    .find(|one| one.bus == bus && one.index == drive.controller);
                set(
                    &format!("{controller}.virtualDev"),
                    scsi_model(found.and_then(|one| one.model.as_deref())),
                );
            }
            present.push(controller.clone());
        }
        let key = format!("{controller}:{unit}");
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
    for (index, nic) in vm.nics.iter().enumerate() {
        let key = format!("ethernet{index}");
        set(&format!("{key}.present"), "TRUE");
        let model = match nic.model.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
            "e1000" | "82540em" | "82545em" => "e1000",
            "e1000e" => "e1000e",
            _ => "vmxnet3",
        };
        set(&format!("{key}.virtualDev"), model);
        set(
            &format!("{key}.connectionType"),
            if nic.connection.as_deref() == Some("bridge") { "bridged" } else { "nat" },
        );
        if let Some(mac) = nic.mac {
            // Only addresses of VMware's own may be stated as static ones.
            let own = mac.0[..3] == [0, 0x50, 0x56] && mac.0[3] < 0x40;
            set(&format!("{key}.addressType"), if own { "static" } else { "generated" });
            set(
                &format!("{key}.{}", if own { "address" } else { "generatedAddress" }),
                &mac.to_string(),
            );
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

fn scsi_model(model: Option<&str>) -> &'static str {
    match model.unwrap_or_default().to_ascii_lowercase().as_str() {
        "lsilogic" => "lsilogic",
        "lsisas1068" | "lsilogicsas" => "lsisas1068",
        "buslogic" => "buslogic",
        _ => "pvscsi",
    }
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
