//! `devices` of a domain.

use std::num::NonZeroU16;

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileRef, Level, NetworkCard, SerialPort, SharedFolder, mac,
};
use super::super::folder::Folder;
use super::super::xml::Element;
use crate::{Forward, Protocol, Result};

/// Adds the devices to `vm`.
pub(crate) fn read(devices: &Element, folder: &Folder, vm: &mut Description) -> Result<()> {
    for controller in devices.children("controller") {
        add_controller(controller, vm)?;
    }
    for disk in devices.children("disk") {
        let drive = drive(disk, folder, vm)?;
        vm.controller(drive.bus, drive.controller, None);
        vm.drives.push(drive);
    }
    for (index, interface) in devices.children("interface").enumerate() {
        let nic = card(interface, index, vm)?;
        vm.nics.push(nic);
    }
    serials(devices, vm)?;
    for share in devices.children("filesystem") {
        let source = share.child("source");
        let path = source.and_then(|source| {
            ["dir", "name", "file", "dev"].iter().find_map(|name| source.string(name))
        });
        let path = path.unwrap_or_default();
        let driver = share.child("driver").and_then(|driver| driver.attribute("type"));
        vm.shares.push(SharedFolder {
            name: share.child("target").and_then(|target| target.string("dir")).unwrap_or_default(),
            writable: share.child("readonly").is_none(),
            virtio: (driver == Some("virtiofs")).then(|| folder.locate(&path, &[])),
            path,
        });
        share.skip();
    }
    if let Some(tpm) = devices.child("tpm") {
        let backend = tpm.child("backend");
        vm.tpm = Some(backend.and_then(|backend| backend.string("version")).unwrap_or_default());
        tpm.skip();
    }
    for host in devices.children("hostdev") {
        let kind = host.attribute("type").unwrap_or("device").to_owned();
        vm.device(&kind, Some("passed through from the host".into()));
        host.skip();
    }
    others(devices, vm);
    Ok(())
}

fn add_controller(controller: &Element, vm: &mut Description) -> Result<()> {
    let kind = controller.attribute("type").unwrap_or_default();
    let index = controller.number("index")?.unwrap_or(0);
    let model = controller.string("model");
    let bus = match kind {
        "scsi" => Bus::Scsi,
        "sata" => Bus::Sata,
        "ide" => Bus::Ide,
        "fdc" => Bus::Floppy,
        "usb" => {
            vm.device("usb", model);
            controller.skip();
            return Ok(());
        }
        // They only carry other devices.
        "pci" | "virtio-serial" | "ccid" | "xenbus" | "isa" => {
            controller.skip();
            return Ok(());
        }
        _ => return Ok(()),
    };
    vm.controller(bus, index, model);
    if let (Some(slot), Some(controller)) = (slot(controller)?, vm.controllers.last_mut()) {
        controller.slot = Some(slot);
    }
    controller.skip();
    Ok(())
}

fn drive(disk: &Element, folder: &Folder, vm: &mut Description) -> Result<Drive> {
    let kind = match disk.attribute("device") {
        None | Some("disk") => DriveKind::Disk,
        Some("cdrom") => DriveKind::Cdrom,
        Some("floppy") => DriveKind::Floppy,
        Some("lun") => DriveKind::Passthrough,
        Some(other) => return Err(disk.error(format!("The kind of disk `{other}` is not known"))),
    };
    let target = disk.child("target").and_then(|target| target.string("dev"));
    let name = target.as_deref().unwrap_or_default();
    let bus = disk.child("target").and_then(|target| target.attribute("bus"));
    let bus = match bus {
        Some("virtio") => Bus::Virtio,
        Some("scsi") => Bus::Scsi,
        Some("sata") => Bus::Sata,
        Some("ide") => Bus::Ide,
        Some("usb") => Bus::Usb,
        Some("xen") => Bus::Xen,
        Some("sd") => Bus::Sd,
        Some("fdc") => Bus::Floppy,
        Some("nvme") => Bus::Nvme,
        Some("uml") => Bus::Virtio,
        Some(other) => return Err(disk.error(format!("The bus `{other}` is not known"))),
        None if kind == DriveKind::Floppy || name.starts_with("fd") => Bus::Floppy,
        None if name.starts_with("hd") => Bus::Ide,
        None if name.starts_with("vd") => Bus::Virtio,
        None if name.starts_with("xvd") => Bus::Xen,
        None => Bus::Scsi,
    };
    let (controller, unit) = place(disk, bus, name)?;
    let mut drive = Drive::new(kind, bus, controller, unit);
    drive.readonly = disk.child("readonly").is_some() || kind == DriveKind::Cdrom;
    drive.shared = disk.child("shareable").is_some();
    drive.volatile = disk.child("transient").is_some();
    drive.serial = disk.child_text("serial").map(str::to_owned);
    drive.slot = slot(disk)?;
    drive.boot_order = disk.child("boot").map_or(Ok(None), |boot| boot.number("order"))?;
    if let Some(driver) = disk.child("driver") {
        drive.format = driver.attribute("type").and_then(format);
        // How QEMU does its work.
        driver.skip();
    }
    if let Some(source) = disk.child("source") {
        drive.file = file(source, folder);
        drive.encrypted = source.child("encryption").is_some();
        if source.child("slices").is_some() {
            let message = format!("The disk {name} is a part of its file, which is not read alone");
            vm.note(Level::Obstacle, message);
        }
        source.skip();
    }
    drive.encrypted |= disk.child("encryption").is_some();
    let mut store = disk.child("backingStore");
    while let Some(one) = store {
        drive.parents.extend(one.child("source").and_then(|source| file(source, folder)));
        store = one.child("backingStore");
    }
    if disk.child("mirror").is_some() {
        vm.note(Level::Warning, format!("The disk {name} was being copied when this was written"));
    }
    drive.target = target;
    disk.skip_children(&["target", "alias", "address", "backingStore", "encryption", "mirror"]);
    disk.skip_attributes(&["type", "model", "snapshot", "rawio", "sgio"]);
    Ok(drive)
}

fn file(source: &Element, folder: &Folder) -> Option<FileRef> {
    for name in ["file", "dev", "dir"] {
        if let Some(path) = source.attribute(name) {
            // Files of ESXi are written with their datastore.
            let path = match path.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
                Some((_, path)) => path,
                None => path,
            };
            return Some(folder.locate(path, &[]));
        }
    }
    // A device of the host, or a program that serves the disk.
    if source.attribute("type") == Some("pci") {
        return Some(FileRef::remote("a PCI device of its host"));
    }
    if let Some(path) = source.attribute("path") {
        return Some(FileRef::remote(format!("vhost-user:{path}")));
    }
    if let Some(protocol) = source.attribute("protocol") {
        let name = source.attribute("name").unwrap_or_default();
        return Some(FileRef::remote(format!("{protocol}:{name}")));
    }
    let (pool, volume) = (source.attribute("pool")?, source.attribute("volume")?);
    Some(FileRef::remote(format!("{pool}/{volume}")))
}

fn format(name: &str) -> Option<String> {
    let format = match name {
        "vpc" => "vhd",
        "raw" | "qcow2" | "qcow" | "qed" | "vmdk" | "vhdx" | "vdi" | "parallels" => name,
        _ => return None,
    };
    Some(format.into())
}

/// Controller and unit: as they are written, or as the name of the target says.
fn place(disk: &Element, bus: Bus, target: &str) -> Result<(u32, u32)> {
    let address =
        disk.child("address").filter(|address| address.attribute("type") == Some("drive"));
    if let Some(address) = address {
        let number = |name| Ok::<u32, crate::Error>(address.number(name)?.unwrap_or(0));
        let (controller, unit) = (number("controller")?, number("unit")?);
        return Ok(match bus {
            Bus::Ide => (controller.saturating_mul(2).saturating_add(number("bus")?), unit),
            // Most disks of wide SCSI are the first unit of a target.
            _ => (
                controller,
                number("target")?
                    .saturating_mul(if unit == 0 { 1 } else { 256 })
                    .saturating_add(unit),
            ),
        });
    }
    let letters = target.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let letters = ["xvd", "vd", "hd", "sd", "fd", "ubd"]
        .iter()
        .find_map(|prefix| letters.strip_prefix(prefix));
    let index = letters.and_then(letters_to_index).unwrap_or(0);
    Ok(if bus == Bus::Ide { (index / 2, index % 2) } else { (0, index) })
}

/// `a` is 0, `z` is 25, `aa` is 26.
pub(crate) fn letters_to_index(letters: &str) -> Option<u32> {
    let mut index = 0_u32;
    for letter in letters.bytes() {
        let digit = u32::from(letter.is_ascii_lowercase().then(|| letter - b'a')?) + 1;
        index = index.checked_mul(26)?.checked_add(digit)?;
    }
    index.checked_sub(1)
}

/// The slot on the first PCI bus.
fn slot(device: &Element) -> Result<Option<u32>> {
    let Some(address) = device.child("address") else { return Ok(None) };
    address.skip();
    let number = |name| {
        let text: &str = address.attribute(name).unwrap_or("0");
        u32::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| {
            address.error(format!("The attribute `{name}` of <address> is not a number"))
        })
    };
    if address.attribute("type") != Some("pci") || address.attribute("slot").is_none() {
        return Ok(None);
    }
    Ok((number("domain")? == 0 && number("bus")? == 0).then_some(number("slot")?))
}

fn card(interface: &Element, index: usize, vm: &mut Description) -> Result<NetworkCard> {
    let mut nic = NetworkCard {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        connected: true,
        connection: interface.string("type"),
        ..NetworkCard::default()
    };
    nic.mac = interface.child("mac").and_then(|one| one.attribute("address")).and_then(mac);
    nic.model = interface.child("model").and_then(|model| model.string("type"));
    if let Some(source) = interface.child("source") {
        nic.network = ["network", "bridge", "dev", "path", "name", "address"]
            .iter()
            .find_map(|name| source.string(name));
        source.skip();
    }
    if let Some(link) = interface.child("link") {
        nic.connected = link.attribute("state") != Some("down");
    }
    nic.mtu = interface.child("mtu").map_or(Ok(None), |mtu| mtu.number("size"))?;
    nic.boot_order = interface.child("boot").map_or(Ok(None), |boot| boot.number("order"))?;
    nic.slot = slot(interface)?;
    for rule in interface.children("portForward") {
        match forwards(rule)? {
            Some(forwards) => nic.forwards.extend(forwards),
            None => vm.note(
                Level::Warning,
                format!("A port forwarding of the network card {index} cannot be taken over"),
            ),
        }
        rule.skip();
    }
    interface.skip_children(&["alias", "target", "driver", "script", "mac", "backend"]);
    Ok(nic)
}

/// The ports of a rule; `None` if it is none of ours: for all ports, for a device of the host, or with exceptions.
fn forwards(rule: &Element) -> Result<Option<Vec<Forward>>> {
    /// In one range.
    const MOST: u16 = 256;
    let protocol = match rule.attribute("proto") {
        Some("udp") => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let address = match rule.attribute("address").map(str::parse) {
        Some(Ok(address)) => Some(address),
        Some(Err(_)) => return Ok(None),
        None => None,
    };
    let mut found = Vec::new();
    for range in rule.children("range") {
        let Some(start) = range.number::<u16>("start")? else { return Ok(None) };
        let end = range.number::<u16>("end")?.unwrap_or(start);
        let to = range.number::<u16>("to")?.unwrap_or(start);
        let is_short = end.checked_sub(start).is_some_and(|more| more < MOST);
        if !is_short || range.attribute("exclude") == Some("yes") {
            return Ok(None);
        }
        for (host, guest) in (start..=end).zip(to..) {
            let ports = NonZeroU16::new(host).zip(NonZeroU16::new(guest));
            let Some((host, guest)) = ports else { return Ok(None) };
            found.push(Forward { address, host, guest, protocol });
        }
    }
    let is_ours = !found.is_empty() && rule.attribute("dev").is_none();
    Ok(is_ours.then_some(found))
}

fn serials(devices: &Element, vm: &mut Description) -> Result<()> {
    for (index, serial) in devices.children("serial").enumerate() {
        let port = match serial.child("target") {
            Some(target) => target.number("port")?,
            None => None,
        };
        let source = serial.child("source");
        vm.serials.push(SerialPort {
            index: port.unwrap_or(u32::try_from(index).unwrap_or(u32::MAX)),
            backend: serial.string("type"),
            target: source.and_then(|source| {
                ["path", "host", "channel"].iter().find_map(|name| source.string(name))
            }),
        });
        serial.skip();
    }
    // The first console is the first serial port once more.
    devices.skip_children(&["console", "emulator"]);
    Ok(())
}

fn others(devices: &Element, vm: &mut Description) {
    for (name, kind, attribute) in [
        ("sound", "sound", "model"),
        ("graphics", "graphics", "type"),
        ("input", "input", "type"),
        ("watchdog", "watchdog", "model"),
        ("parallel", "parallel", "type"),
        ("channel", "channel", "type"),
        ("redirdev", "usb", "type"),
        ("smartcard", "smartcard", "mode"),
        ("panic", "panic", "model"),
        ("shmem", "shmem", "name"),
        ("iommu", "iommu", "model"),
        ("memory", "memory", "model"),
        ("nvram", "nvram", "type"),
        ("hub", "usb", "type"),
        ("crypto", "crypto", "model"),
        ("vsock", "vsock", "model"),
    ] {
        for device in devices.children(name) {
            vm.device(kind, device.string(attribute));
            device.skip();
        }
    }
    for video in devices.children("video") {
        let model = video.child("model").and_then(|model| model.string("type"));
        if model.as_deref() != Some("none") {
            vm.device("display", model);
        }
        video.skip();
    }
    // A machine here has its own.
    devices.skip_children(&["rng", "memballoon", "audio"]);
}
