//! Xen's `xl.cfg`.

use std::collections::BTreeSet;

use super::super::description::{Bus, Description, DriveKind, FirmwareKind, Virtualization};
use super::super::libvirt::letters_to_index;
use super::libvirt::letters;
use super::{Export, FileRef, boot_devices, most_memory, name, nic_model, path, uuid};

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let mut text = String::new();
    let mut set = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    set("name", quoted(name(vm)));
    if let Some(uuid) = uuid(vm) {
        set("uuid", quoted(&uuid.to_string()));
    }
    let kind = match vm.virtualization {
        Virtualization::Pv => "pv",
        Virtualization::Pvh => "pvh",
        Virtualization::Full | Virtualization::Container => "hvm",
    };
    set("type", quoted(kind));
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    set("memory", (size >> 20).to_string());
    if let Some(most) = most_memory(vm) {
        set("maxmem", (most >> 20).to_string());
    }
    set("vcpus", vm.cpus.count.unwrap_or(1).to_string());
    if let Some(most) = vm.cpus.maximum {
        set("maxvcpus", most.to_string());
    }
    if kind == "hvm" && vm.firmware.kind == Some(FirmwareKind::Uefi) {
        set("bios", quoted("ovmf"));
        if vm.firmware.secure_boot == Some(true) {
            lost.push("Xen has no word for Secure Boot".into());
        }
    }
    if vm.tpm.is_some() {
        lost.push("The TPM is left out: Xen's is a VM of its own".into());
    }
    if let Some(kernel) = &vm.boot.kernel {
        let path = |file: &FileRef| {
            quoted(
                &file
                    .path
                    .as_ref()
                    .map_or_else(|| file.written.clone(), |path| path.display().to_string()),
            )
        };
        set("kernel", path(kernel));
        if let Some(initrd) = &vm.boot.initrd {
            set("ramdisk", path(initrd));
        }
    }
    if let Some(words) = &vm.boot.cmdline {
        set("cmdline", quoted(words));
    }
    if let Some(program) = &vm.boot.bootloader {
        set("bootloader", quoted(program));
    }
    if kind == "hvm" && vm.cpus.nested == Some(true) {
        set("nestedhvm", "1".into());
    }
    let letters_of = |device| match device {
        "hd" => 'c',
        "cdrom" => 'd',
        "network" => 'n',
        _ => 'a',
    };
    let order = boot_devices(vm).unwrap_or_default().into_iter().map(letters_of);
    let order: String = order.filter(|_| kind == "hvm").collect();
    if !order.is_empty() {
        set("boot", quoted(&order));
    }
    let mut disks = Vec::new();
    let numbers = numbers(vm);
    for (drive, number) in vm.drives.iter().zip(numbers) {
        if matches!(drive.kind, DriveKind::Floppy | DriveKind::Passthrough) {
            lost.push(format!("The drive {} is left out", drive.address()));
            continue;
        }
        // The first four are IDE's as well, by whichever name.
        let is_ide = drive.bus == Bus::Ide || (drive.kind == DriveKind::Cdrom && kind == "hvm");
        let prefix = if is_ide && number < 4 { "hd" } else { "xvd" };
        let vdev = match &drive.target {
            Some(target) if drive.bus == Bus::Xen => target.clone(),
            _ => format!("{prefix}{}", letters(number)),
        };
        let access = if drive.readonly { "ro" } else { "rw" };
        let format = match drive.format.as_deref() {
            Some(format @ ("raw" | "qcow2" | "qcow" | "vhd" | "qed")) => format,
            None => "raw",
            Some(other) => {
                lost.push(format!(
                    "Xen does not read {other}: convert the disk {} first",
                    drive.address()
                ));
                "raw"
            }
        };
        let kind = if drive.kind == DriveKind::Cdrom { ",devtype=cdrom" } else { "" };
        let target = path(drive).map(|path| format!(",target={path}")).unwrap_or_default();
        disks.push(quoted(&format!("format={format},vdev={vdev},access={access}{kind}{target}")));
    }
    set("disk", format!("[ {} ]", disks.join(", ")));
    let cards: Vec<_> = vm
        .nics
        .iter()
        .map(|nic| {
            let mut words: Vec<_> = nic.mac.iter().map(|mac| format!("mac={mac}")).collect();
            if kind == "hvm" {
                match nic_model(nic) {
                    Some("virtio") => words.push("model=virtio-net".into()),
                    Some(model) => words.push(format!("model={model}")),
                    None => {
                        let other = nic.model.as_deref().filter(|model| *model != "netfront");
                        lost.extend(other.filter(|model| !model.is_empty()).map(|model| {
                            format!(
                                "The network card {} is Xen's own instead of {model}",
                                nic.index
                            )
                        }));
                    }
                }
            }
            if !nic.connected {
                let index = nic.index;
                lost.push(format!(
                    "The network card {index} is connected: Xen has no word for less"
                ));
            }
            if let (Some("bridge"), Some(bridge)) = (nic.connection.as_deref(), &nic.network) {
                words.push(format!("bridge={}", bridge.replace([',', '\''], "_")));
            }
            quoted(&words.join(","))
        })
        .collect();
    set("vif", format!("[ {} ]", cards.join(", ")));
    if !vm.serials.is_empty() && kind == "hvm" {
        let ports: Vec<_> = vm.serials.iter().map(|_| quoted("pty")).collect();
        set("serial", format!("[ {} ]", ports.join(", ")));
    }
    if vm.annotation.is_some() {
        lost.push("Xen has no word for what its owner says about it".into());
    }
    Export { text, lost }
}

/// A number for each drive, which differ: its own on IDE and Xen's bus, and otherwise the next that is free.
fn numbers(vm: &Description) -> Vec<usize> {
    let mut taken = BTreeSet::new();
    let own = vm.drives.iter().map(|drive| {
        let number = match drive.bus {
            Bus::Ide => drive.controller.saturating_mul(2).saturating_add(drive.unit),
            Bus::Xen => {
                let letters = drive.target.as_deref()?.strip_prefix("xvd")?;
                letters_to_index(letters.trim_end_matches(|letter: char| letter.is_ascii_digit()))?
            }
            _ => return None,
        };
        Some(number as usize).filter(|number| taken.insert(*number))
    });
    let own: Vec<Option<usize>> = own.collect();
    let mut next = 0;
    let numbers = own.into_iter().map(|own| {
        own.unwrap_or_else(|| {
            while !taken.insert(next) {
                next += 1;
            }
            next
        })
    });
    numbers.collect()
}

/// A text for xl's reader: it knows escapes for the quote and the backslash only.
fn quoted(text: &str) -> String {
    let text = text.replace(char::is_control, " ").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}
