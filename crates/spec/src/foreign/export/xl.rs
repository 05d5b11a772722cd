//! Xen's `xl.cfg`.

use super::super::description::{Bus, Description, DriveKind, FirmwareKind, Virtualization};
use super::libvirt::letters;
use super::{Export, FileRef, name, path};

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let mut text = String::new();
    let mut set = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    set("name", quoted(name(vm)));
    if let Some(uuid) = &vm.uuid {
        set("uuid", quoted(uuid));
    }
    let kind = match vm.virtualization {
        Virtualization::Pv => "pv",
        Virtualization::Pvh => "pvh",
        Virtualization::Full | Virtualization::Container => "hvm",
    };
    set("type", quoted(kind));
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    set("memory", (size >> 20).to_string());
    if let Some(most) = vm.memory.maximum.filter(|most| *most > size) {
        set("maxmem", (most >> 20).to_string());
    }
    set("vcpus", vm.cpus.count.unwrap_or(1).to_string());
    if let Some(most) = vm.cpus.maximum {
        set("maxvcpus", most.to_string());
    }
    if kind == "hvm" && vm.firmware.kind == Some(FirmwareKind::Uefi) {
        set("firmware", quoted("uefi"));
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
    let mut disks = Vec::new();
    for (index, drive) in vm.drives.iter().enumerate() {
        if matches!(drive.kind, DriveKind::Floppy | DriveKind::Passthrough) {
            lost.push(format!("The drive {} is left out", drive.address()));
            continue;
        }
        let prefix =
            if drive.bus == Bus::Ide || drive.kind == DriveKind::Cdrom { "hd" } else { "xvd" };
        let vdev = match &drive.target {
            Some(target) if drive.bus == Bus::Xen => target.clone(),
            _ if drive.bus == Bus::Ide => {
                format!("hd{}", letters(drive.controller as usize * 2 + drive.unit as usize))
            }
            _ => format!("{prefix}{}", letters(index)),
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
            if let (Some("bridge"), Some(bridge)) = (nic.connection.as_deref(), &nic.network) {
                words.push(format!("bridge={}", bridge.replace([',', '\''], "_")));
            }
            quoted(&words.join(","))
        })
        .collect();
    set("vif", format!("[ {} ]", cards.join(", ")));
    if !vm.serials.is_empty() && kind == "hvm" {
        set("serial", quoted("pty"));
    }
    Export { text, lost }
}

/// A text for xl's reader: it knows escapes for the quote and the backslash only.
fn quoted(text: &str) -> String {
    let text = text.replace(char::is_control, " ").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}
