//! VMware's `.vmx` with what lies beside it: `.vmsd`, `.vmxf` and `.nvram`.
//!
//! The form is a list of `key = "value"` with keys in any case; VMware documents only some keys, the others are known
//! from files that its products write.

mod devices;
mod dictionary;
mod snapshots;

use std::path::Path;

use super::description::{
    Architecture, Description, FileState, Firmware, FirmwareKind, Level, MemoryAmount, Platform,
    Processors,
};
use super::folder::Folder;
use super::text;
use crate::{Result, Smbios};
use dictionary::Dictionary;

/// Reads a `.vmx` and what lies beside it.
pub(crate) fn read(bytes: &[u8], path: &Path, folder: &Folder) -> Result<Description> {
    let mut vm = parse(bytes, path, folder)?;
    for extension in ["vmsd", "vmxf"] {
        let Some(stem) = path.file_stem() else { continue };
        let Some(beside) = folder.find(Path::new(stem).with_added_extension(extension)) else {
            continue;
        };
        if extension == "vmsd" {
            snapshots::read(&text::read_file(&beside)?, &beside, &mut vm)?;
        }
        vm.companions.push(beside);
    }
    if let Some(lock) = folder.names()?.into_iter().find(|name| is_lock(&folder.path().join(name)))
    {
        vm.note(
            Level::Obstacle,
            format!(
                "It is open in VMware: shut it down there, or remove {lock} if nobody has it open"
            ),
        );
    }
    vm.checked()
}

/// Whether this is what VMware lays down while it has a VM or a disk open: a folder `NAME.lck` with a file for each process
/// on desktops, a file `.lck-NUMBER` on ESXi's network file systems.
fn is_lock(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_taken = || path.read_dir().is_ok_and(|mut files| files.next().is_some());
    name.starts_with(".lck-") || name.ends_with(".lck") && is_taken()
}

/// Reads a `.vmx` alone.
pub(crate) fn parse(bytes: &[u8], path: &Path, folder: &Folder) -> Result<Description> {
    let keys = Dictionary::parse(bytes, &path.display().to_string())?;
    let mut vm = Description::new(Platform::Vmware, "vmx", path);
    for key in ["encryption.keysafe", "encryption.data"] {
        if keys.text(key).is_some() {
            return Err(keys.error(
                key,
                format!(
                    "The VM {} is encrypted; remove the encryption in VMware first",
                    keys.text("displayname").unwrap_or_else(|| path.display().to_string())
                ),
            ));
        }
    }
    for line in keys.duplicates() {
        vm.note(
            Level::Warning,
            format!("Line {line} says again what was said before; the last one counts"),
        );
    }
    vm.version = keys.text("virtualhw.version").map(|version| format!("hardware {version}"));
    vm.name = keys.text("displayname");
    vm.annotation = keys.text("annotation");
    vm.guest_os = keys.text("guestos");
    vm.architecture = architecture(vm.guest_os.as_deref());
    vm.uuid = keys.text("uuid.bios").or_else(|| keys.text("uuid.location")).map(|text| uuid(&text));
    keys.skip("uuid.location");
    vm.smbios = smbios(&vm);
    vm.cpus = processors(&keys)?;
    vm.memory = MemoryAmount {
        size: match keys.number::<i64>("memsize")? {
            Some(size) if size < 1 => return Err(keys.error("memsize", "It has no memory")),
            size => mebibytes(size),
        },
        // What `sched.mem` limits and reserves is the host's memory for it, not the guest's.
        ..MemoryAmount::default()
    };
    vm.firmware = Firmware {
        kind: match keys.text("firmware").as_deref() {
            Some("efi") => Some(FirmwareKind::Uefi),
            Some("bios") | None => Some(FirmwareKind::Bios),
            Some(other) => {
                return Err(keys.error(
                    "firmware",
                    format!("The firmware is `{other}` instead of efi or bios"),
                ));
            }
        },
        secure_boot: keys.flag("uefi.secureboot.enabled")?,
        template: None,
        loader: keys.text("efi64.filename").or_else(|| keys.text("bios440.filename")),
        nvram: keys.text("nvram").map(|name| folder.locate(&name, &[])),
    };
    if keys.flag("vtpm.present")? == Some(true) {
        vm.tpm = Some("2.0".into());
    }
    vm.boot.order = keys
        .list("bios.bootorder")
        .or_else(|| keys.list("bios.bootdeviceclasses"))
        .unwrap_or_default();
    if let Some(name) = keys.text("checkpoint.vmstate") {
        let state = folder.locate(&name, &[]);
        vm.saved_state = (state.state != FileState::Missing).then_some(state);
    }
    devices::read(&keys, folder, &mut vm)?;
    // Which of the disks the BIOS starts from.
    for (place, address) in (1..).zip(keys.list("bios.hddorder").unwrap_or_default()) {
        let named = vm.drives.iter_mut().find(|drive| drive.address() == address);
        if let Some(drive) = named.filter(|drive| drive.boot_order.is_none()) {
            drive.boot_order = Some(place);
        }
    }
    if keys.flag("cleanshutdown")? == Some(false) {
        vm.note(
            Level::Warning,
            "It ran in VMware when this was written: what its disks hold may be half written",
        );
    }
    keys.skip_known(INERT);
    vm.unread = keys.unread();
    vm.checked()
}

/// What is about the files, the window, the bookkeeping and the scheduling of VMware's products, and what they noted
/// of a host's processor; ends in a dot for all keys below.
const INERT: &[&str] = &[
    ".encoding",
    "config.version",
    "chipset.onlinestandby",
    "deploymentplatform",
    "evccompatibilitymode",
    "extendedconfigfile",
    "guestcpuid.",
    "guestos.detailed.data",
    "guestosaltname",
    "gui.",
    "hostcpuid.",
    "hpet0.",
    "log.",
    "managedvm.autoaddvtpm",
    "mem.hotadd",
    "messagebus.",
    "migrate.",
    "monitor.phys_bits_used",
    "numa.",
    "powertype.",
    "replay.",
    "sched.",
    "snapshot.action",
    "softpoweroff",
    "svga.",
    "toolscripts.",
    "toolsinstallmanager.",
    "tools.",
    "usercpuid.",
    "uuid.action",
    "vc.uuid",
    "vcpu.hotadd",
    "viv.moid",
    "vm.createdate",
    "virtualhw.productcompatibility",
    "vmci0.",
    "vmotion.",
    "vmxstats.filename",
];

fn processors(keys: &Dictionary) -> Result<Processors> {
    let count = keys.number("numvcpus")?.unwrap_or(1);
    let cores: Option<u32> = keys.number("cpuid.corespersocket")?;
    Ok(Processors {
        count: Some(count),
        cores,
        sockets: cores.filter(|cores| *cores > 0).map(|cores| count.div_ceil(cores)),
        nested: keys.flag("vhv.enable")?,
        ..Processors::default()
    })
}

fn architecture(guest: Option<&str>) -> Architecture {
    let guest = guest.unwrap_or_default().to_ascii_lowercase();
    if guest.starts_with("arm-") {
        Architecture::Arm64
    } else if guest.is_empty()
        || guest.contains("64")
        || NEW.iter().any(|prefix| guest.starts_with(prefix))
    {
        Architecture::X86_64
    } else {
        Architecture::X86
    }
}

/// Guests that have no 32-bit form and therefore no `-64`.
const NEW: &[&str] =
    &["vmkernel", "windows2012", "windows2016", "windows2019", "windows2022", "windows2025"];

/// What VMware's firmware makes of a VM's UUID.
fn smbios(vm: &Description) -> Smbios {
    let smbios = vm.smbios_of_uuid();
    let Some(uuid) = smbios.uuid else { return smbios };
    let hardware =
        vm.version.as_ref().and_then(|text| text.rsplit(' ').next()?.parse::<u32>().ok());
    let (first, last) = uuid.0.split_at(8);
    let hex =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    Smbios {
        // The bytes in memory are always in the order of the text. With hardware of version 13 came an SMBIOS of which
        // Linux takes them for little-endian (VMware's knowledge base, 53609).
        uuid: Some(if hardware.unwrap_or(0) >= 13 { uuid.swapped() } else { uuid }),
        serial: Some(format!("VMware-{}-{}", hex(first), hex(last))),
        ..smbios
    }
}

/// VMware writes `56 4d 12 34 56 78 9a bc-de f0 ...`.
fn uuid(text: &str) -> String {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() != 32 {
        return text.to_owned();
    }
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-").to_ascii_lowercase()
}

fn mebibytes(number: Option<i64>) -> Option<u64> {
    number.map(|count| u64::try_from(count).unwrap_or(0).saturating_mul(1 << 20))
}

#[cfg(test)]
mod tests;
