//! The devices of a `.vmx`.

use super::super::description::{
    Bus, Description, Drive, DriveKind, Level, NetworkCard, SerialPort, SharedFolder, mac,
};
use super::super::folder::Folder;
use super::dictionary::Dictionary;
use crate::Result;

/// Buses with the most controllers and units that any product offers.
const BUSES: &[(Bus, u32, u32)] =
    &[(Bus::Scsi, 4, 64), (Bus::Sata, 4, 30), (Bus::Nvme, 4, 64), (Bus::Ide, 2, 2)];
const MOST_NICS: u32 = 10;
const MOST_PORTS: u32 = 32;

/// Adds the devices to `vm`.
pub(crate) fn read(keys: &Dictionary, folder: &Folder, vm: &mut Description) -> Result<()> {
    for (bus, controllers, units) in BUSES {
        for index in 0..*controllers {
            controller(keys, folder, vm, *bus, index, *units)?;
        }
    }
    floppies(keys, folder, vm)?;
    for index in 0..MOST_NICS {
        nic(keys, vm, index)?;
    }
    for index in 0..MOST_PORTS {
        serial(keys, vm, index)?;
        share(keys, vm, index)?;
    }
    others(keys, vm)
}

fn controller(
    keys: &Dictionary,
    folder: &Folder,
    vm: &mut Description,
    bus: Bus,
    index: u32,
    units: u32,
) -> Result<()> {
    let name = format!("{}{index}", bus.name());
    // IDE is on the chipset and has no key of its own.
    if keys.flag(&format!("{name}.present"))? != Some(true) && bus != Bus::Ide {
        return Ok(());
    }
    let model = keys.text(&format!("{name}.virtualdev"));
    let slot = keys.number::<i64>(&format!("{name}.pcislotnumber"))?;
    let mut used = false;
    for unit in 0..units {
        if let Some(mut drive) = drive(keys, folder, &format!("{name}:{unit}"))? {
            (drive.bus, drive.controller, drive.unit) = (bus, index, unit);
            drive.shared |= keys
                .text(&format!("{name}.sharedbus"))
                .is_some_and(|mode| !mode.eq_ignore_ascii_case("none"));
            vm.drives.push(drive);
            used = true;
        }
    }
    if bus != Bus::Ide || used {
        vm.controller(bus, index, model.or_else(|| (bus == Bus::Scsi).then(|| "lsilogic".into())));
        if let Some(controller) = vm.controllers.last_mut() {
            controller.slot = slot.and_then(|slot| u32::try_from(slot).ok());
        }
    }
    Ok(())
}

/// A device is there. What is said about one that is not means nothing.
fn is_present(keys: &Dictionary, name: &str) -> Result<bool> {
    let present = keys.flag(&format!("{name}.present"))?;
    if present == Some(false) {
        let prefix = format!("{name}.");
        keys.keys_below(&prefix).for_each(|key| keys.skip(key));
    }
    Ok(present == Some(true))
}

fn drive(keys: &Dictionary, folder: &Folder, name: &str) -> Result<Option<Drive>> {
    if !is_present(keys, name)? {
        return Ok(None);
    }
    let value = |key: &str| keys.text(&format!("{name}.{key}"));
    let kind = value("devicetype").unwrap_or_default().to_ascii_lowercase();
    let file = value("filename");
    let mode = value("mode").unwrap_or_default().to_ascii_lowercase();
    let mut drive = Drive {
        connected: keys.flag(&format!("{name}.startconnected"))?.unwrap_or(true),
        volatile: mode.contains("nonpersistent") || mode == "undoable",
        shared: value("sharing").is_some_and(|mode| mode.contains("multi")),
        ..Drive::default()
    };
    drive.kind = match kind.as_str() {
        _ if kind.contains("cdrom") => DriveKind::Cdrom,
        "rawdisk" | "scsi-passthru" | "pass-through" => DriveKind::Passthrough,
        "" if file.as_deref().is_some_and(|file| file.to_ascii_lowercase().ends_with(".iso")) => {
            DriveKind::Cdrom
        }
        _ => DriveKind::Disk,
    };
    keys.skip(&format!("{name}.clientdevice"));
    keys.skip(&format!("{name}.autodetect"));
    keys.skip(&format!("{name}.redo"));
    keys.skip(&format!("{name}.ctkenabled"));
    let is_image = !matches!(kind.as_str(), "cdrom-raw" | "atapi-cdrom")
        && drive.kind != DriveKind::Passthrough;
    if is_image && let Some(file) = file.filter(|file| file != "emptyBackingString") {
        drive.file = Some(folder.locate(&file, &[]));
        if drive.kind == DriveKind::Disk {
            drive.format = Some("vmdk".into());
        }
    }
    drive.readonly = drive.kind == DriveKind::Cdrom;
    Ok(Some(drive))
}

fn floppies(keys: &Dictionary, folder: &Folder, vm: &mut Description) -> Result<()> {
    for unit in 0..2 {
        let name = format!("floppy{unit}");
        let value = |key: &str| keys.text(&format!("{name}.{key}"));
        if !is_present(keys, &name)? {
            continue;
        }
        let mut drive = Drive::new(DriveKind::Floppy, Bus::Floppy, 0, unit);
        drive.connected = keys.flag(&format!("{name}.startconnected"))?.unwrap_or(true);
        let kind = value("filetype").unwrap_or_default();
        let file = value("filename");
        keys.skip(&format!("{name}.clientdevice"));
        keys.skip(&format!("{name}.autodetect"));
        if kind.eq_ignore_ascii_case("file") {
            drive.file = file.map(|file| folder.locate(&file, &[]));
        }
        vm.drives.push(drive);
    }
    Ok(())
}

fn nic(keys: &Dictionary, vm: &mut Description, index: u32) -> Result<()> {
    let name = format!("ethernet{index}");
    if !is_present(keys, &name)? {
        return Ok(());
    }
    let value = |key: &str| keys.text(&format!("{name}.{key}"));
    let kind = value("addresstype").unwrap_or_default().to_ascii_lowercase();
    let stated = value("address");
    let generated = value("generatedaddress");
    let address = if kind == "static" { stated.or(generated) } else { generated.or(stated) };
    let parsed = address.as_deref().and_then(mac);
    if let Some(address) = address.filter(|_| parsed.is_none()) {
        vm.note(
            Level::Warning,
            format!("The address `{address}` of {name} is not a hardware address"),
        );
    }
    keys.skip(&format!("{name}.generatedaddressoffset"));
    keys.skip(&format!("{name}.uptcompatibility"));
    keys.skip(&format!("{name}.checkmacaddress"));
    keys.skip(&format!("{name}.vnet"));
    let connection = value("connectiontype");
    let network = value("networkname").or_else(|| value("vnet"));
    vm.nics.push(NetworkCard {
        index,
        model: value("virtualdev"),
        mac: parsed,
        connection: connection.or_else(|| network.is_none().then(|| "bridged".into())),
        network,
        slot: keys
            .number::<i64>(&format!("{name}.pcislotnumber"))?
            .and_then(|slot| u32::try_from(slot).ok()),
        connected: keys.flag(&format!("{name}.startconnected"))?.unwrap_or(true),
        ..NetworkCard::default()
    });
    Ok(())
}

fn serial(keys: &Dictionary, vm: &mut Description, index: u32) -> Result<()> {
    let name = format!("serial{index}");
    if is_present(keys, &name)? {
        let value = |key: &str| keys.text(&format!("{name}.{key}"));
        for key in ["network.endpoint", "pipe.endpoint", "trynorxloss", "yieldonmsrread"] {
            keys.skip(&format!("{name}.{key}"));
        }
        vm.serials.push(SerialPort {
            index,
            backend: value("filetype"),
            target: value("filename"),
        });
    }
    Ok(())
}

fn share(keys: &Dictionary, vm: &mut Description, index: u32) -> Result<()> {
    let name = format!("sharedfolder{index}");
    let flag = |key: &str| keys.flag(&format!("{name}.{key}"));
    if flag("present")? != Some(true) {
        return Ok(());
    }
    let enabled = flag("enabled")?.unwrap_or(true);
    if let Some(path) = keys.text(&format!("{name}.hostpath")).filter(|_| enabled) {
        vm.shares.push(SharedFolder {
            name: keys.text(&format!("{name}.guestname")).unwrap_or_default(),
            path,
            writable: flag("writeaccess")?.unwrap_or(false),
            virtio: None,
        });
    }
    Ok(())
}

fn others(keys: &Dictionary, vm: &mut Description) -> Result<()> {
    for (key, kind) in [("sound", "sound"), ("usb", "usb"), ("ehci", "usb"), ("usb_xhci", "usb")] {
        if is_present(keys, key)? {
            let model = keys.text(&format!("{key}.virtualdev"));
            vm.device(kind, model.or_else(|| (key != kind).then(|| key.to_owned())));
        }
        keys.skip(&format!("{key}.pcislotnumber"));
    }
    for index in 0..3 {
        if keys.flag(&format!("parallel{index}.present"))? == Some(true) {
            vm.device("parallel", keys.text(&format!("parallel{index}.filename")));
        }
    }
    for index in 0..16 {
        if keys.flag(&format!("pcipassthru{index}.present"))? == Some(true) {
            vm.device("pci", keys.text(&format!("pcipassthru{index}.id")));
        }
    }
    if keys.flag("svga.present")? == Some(true) {
        vm.device("display", Some("vmware-svga".into()));
    }
    // Bridges give slots their numbers; they carry nothing themselves.
    let bridges: Vec<_> = keys.keys_below("pcibridge").map(str::to_owned).collect();
    bridges.iter().for_each(|key| keys.skip(key));
    Ok(())
}
