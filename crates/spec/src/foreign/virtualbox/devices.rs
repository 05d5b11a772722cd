//! The devices of a VirtualBox VM.

use super::super::description::{
    Bus, Description, Drive, DriveKind, Level, NetworkCard, SerialPort, SharedFolder, mac,
};
use super::super::folder::Folder;
use super::super::xml::Element;
use super::media::Media;
use crate::{Forward, Protocol, Result};

/// Adds the devices to `vm`.
pub(crate) fn read(
    machine: &Element,
    hardware: &Element,
    media: &Media,
    folder: &Folder,
    vm: &mut Description,
) -> Result<()> {
    let places = [hardware.child("StorageControllers"), machine.child("StorageControllers")];
    for list in places.into_iter().flatten() {
        for controller in list.children("StorageController") {
            storage_controller(controller, media, folder, vm)?;
        }
    }
    before_version_1_7(machine, hardware, media, folder, vm)?;
    for adapter in
        hardware.child("Network").into_iter().flat_map(|network| network.children("Adapter"))
    {
        network_adapter(adapter, vm)?;
    }
    for port in hardware.child("UART").into_iter().flat_map(|list| list.children("Port")) {
        if port.attribute("enabled") == Some("true") {
            vm.serials.push(SerialPort {
                index: port.number("slot")?.unwrap_or(0),
                backend: port.string("hostMode"),
                target: port.string("path"),
            });
        }
        port.skip();
    }
    for list in hardware.children("SharedFolders") {
        for share in list.children("SharedFolder") {
            vm.shares.push(SharedFolder {
                name: share.string("name").unwrap_or_default(),
                path: share.string("hostPath").unwrap_or_default(),
                writable: share.attribute("writable") == Some("true"),
                virtio: None,
            });
            share.skip();
        }
    }
    others(hardware, vm);
    Ok(())
}

fn storage_controller(
    controller: &Element,
    media: &Media,
    folder: &Folder,
    vm: &mut Description,
) -> Result<()> {
    let model = controller.string("type");
    let bus = match model.as_deref() {
        Some("AHCI") => Bus::Sata,
        Some("PIIX3" | "PIIX4" | "ICH6") => Bus::Ide,
        Some("LsiLogic" | "LsiLogicSas" | "BusLogic" | "VirtioSCSI") => Bus::Scsi,
        Some("NVMe") => Bus::Nvme,
        Some("USB") => Bus::Usb,
        Some("I82078") => Bus::Floppy,
        _ => {
            let name = model.as_deref().unwrap_or_default();
            return Err(controller.error(format!("The storage controller `{name}` is not known")));
        }
    };
    let index =
        u32::try_from(vm.controllers.iter().filter(|one| one.bus == bus).count()).unwrap_or(0);
    vm.controller(bus, index, model);
    controller.skip_attributes(&[
        "name",
        "PortCount",
        "Instance",
        "useHostIOCache",
        "Bootable",
        "IDE0MasterEmulationPort",
        "IDE0SlaveEmulationPort",
        "IDE1MasterEmulationPort",
        "IDE1SlaveEmulationPort",
    ]);
    for device in controller.children("AttachedDevice") {
        let kind = match device.attribute("type") {
            Some("HardDisk") | None => DriveKind::Disk,
            Some("DVD") => DriveKind::Cdrom,
            Some("Floppy") => DriveKind::Floppy,
            Some(other) => {
                return Err(device.error(format!("The kind of drive `{other}` is not known")));
            }
        };
        let (port, place): (u32, u32) =
            (device.number("port")?.unwrap_or(0), device.number("device")?.unwrap_or(0));
        let mut drive = Drive::new(kind, bus, index, port);
        if bus == Bus::Ide {
            (drive.controller, drive.unit) = (port, place);
            vm.controller(bus, port, None);
        } else if bus == Bus::Floppy {
            drive.unit = place;
        }
        if let Some(image) = device.child("Image") {
            attach(&mut drive, image, media, folder);
        }
        if let Some(host) = device.child("HostDrive") {
            vm.note(
                Level::Warning,
                format!(
                    "{} is the host's own drive {}",
                    drive.address(),
                    host.attribute("src").unwrap_or_default()
                ),
            );
        }
        device.skip_attributes(&[
            "hotpluggable",
            "passthrough",
            "tempeject",
            "nonrotational",
            "discard",
        ]);
        vm.drives.push(drive);
    }
    Ok(())
}

fn attach(drive: &mut Drive, image: &Element, media: &Media, folder: &Folder) {
    let Some(uuid) = image.attribute("uuid") else { return };
    let image = media.get(uuid, folder);
    match image.kind.as_deref() {
        Some("Immutable") => drive.volatile = true,
        Some("Shareable") => drive.shared = true,
        Some("Readonly") => drive.readonly = true,
        _ => {}
    }
    drive.readonly |= drive.kind == DriveKind::Cdrom;
    drive.file = Some(image.file);
    drive.format = image.format;
    drive.encrypted = image.encrypted;
    drive.parents = image.parents;
}

/// Attachments of VirtualBox 2.
fn before_version_1_7(
    machine: &Element,
    hardware: &Element,
    media: &Media,
    folder: &Folder,
    vm: &mut Description,
) -> Result<()> {
    for list in
        machine.children("HardDiskAttachments").chain(hardware.children("HardDiskAttachments"))
    {
        for one in list.children("HardDiskAttachment") {
            let bus = match one.attribute("bus") {
                Some("SATA") => Bus::Sata,
                Some("SCSI") => Bus::Scsi,
                _ => Bus::Ide,
            };
            let channel = one.number("channel")?.unwrap_or(0);
            let (controller, unit) = if bus == Bus::Ide {
                (channel, one.number("device")?.unwrap_or(0))
            } else {
                (0, channel)
            };
            one.skip_attributes(&["device"]);
            let mut drive = Drive::new(DriveKind::Disk, bus, controller, unit);
            let image = media.get(one.attribute("hardDisk").unwrap_or_default(), folder);
            (drive.file, drive.format) = (Some(image.file), image.format);
            vm.controller(bus, controller, None);
            vm.drives.push(drive);
        }
    }
    for (name, kind, bus) in
        [("DVDDrive", DriveKind::Cdrom, Bus::Ide), ("FloppyDrive", DriveKind::Floppy, Bus::Floppy)]
    {
        let Some(element) = hardware.child(name) else { continue };
        let mut drive = Drive::new(kind, bus, u32::from(bus == Bus::Ide), 0);
        if let Some(image) = element.child("Image") {
            attach(&mut drive, image, media, folder);
        }
        element.skip_attributes(&["passthrough"]);
        if element.attribute("enabled") != Some("false") {
            vm.drives.push(drive);
        }
    }
    Ok(())
}

fn network_adapter(adapter: &Element, vm: &mut Description) -> Result<()> {
    if adapter.attribute("enabled") != Some("true") {
        adapter.skip();
        return Ok(());
    }
    let mut nic = NetworkCard {
        index: adapter.number("slot")?.unwrap_or(0),
        model: adapter.string("type"),
        mac: adapter.attribute("MACAddress").and_then(mac),
        connected: adapter.attribute("cable") != Some("false"),
        ..NetworkCard::default()
    };
    adapter.skip_children(&["DisabledModes"]);
    for mode in adapter.rest() {
        let (connection, name) = match mode.name.as_str() {
            "NAT" => ("nat", "network"),
            "BridgedInterface" => ("bridge", "name"),
            "InternalNetwork" => ("internal", "name"),
            "HostOnlyInterface" | "HostOnlyNetwork" => ("hostonly", "name"),
            "NATNetwork" => ("natnetwork", "name"),
            "GenericInterface" => ("generic", "driver"),
            "CloudNetwork" => ("cloud", "name"),
            _ => continue,
        };
        nic.connection = Some(connection.into());
        nic.network = mode.string(name);
        for rule in mode.children("Forwarding") {
            match forward(rule)? {
                Some(forward) => nic.forwards.push(forward),
                None => vm.note(
                    Level::Warning,
                    format!(
                        "The port forwarding `{}` cannot be taken over",
                        rule.attribute("name").unwrap_or_default()
                    ),
                ),
            }
            rule.skip();
        }
        mode.skip();
    }
    adapter.skip_attributes(&[
        "speed",
        "bootPriority",
        "promiscuousModePolicy",
        "trace",
        "tracefile",
    ]);
    vm.nics.push(nic);
    Ok(())
}

/// A rule of the NAT engine; `None` if it is none of ours, such as one for another address of the guest's network.
fn forward(rule: &Element) -> Result<Option<Forward>> {
    let host: Option<u16> = rule.number("hostport")?;
    let guest: Option<u16> = rule.number("guestport")?;
    let protocol = match rule.attribute("proto") {
        Some("0") => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let address = match rule.attribute("hostip").filter(|text| !text.is_empty()) {
        Some(text) => match text.parse() {
            Ok(address) => Some(address),
            Err(_) => return Ok(None),
        },
        None => None,
    };
    let ports =
        host.and_then(std::num::NonZeroU16::new).zip(guest.and_then(std::num::NonZeroU16::new));
    Ok(ports.map(|(host, guest)| Forward { address, host, guest, protocol }))
}

fn others(hardware: &Element, vm: &mut Description) {
    if let Some(audio) = hardware.child("AudioAdapter") {
        if audio.attribute("enabled") == Some("true") {
            vm.device("sound", audio.string("controller"));
        }
        audio.skip();
    }
    if let Some(display) = hardware.child("Display") {
        vm.device("display", display.string("controller"));
        display.skip();
    }
    for usb in hardware.children("USB").chain(hardware.children("USBController")) {
        for controller in usb.child("Controllers").into_iter().flat_map(Element::all) {
            vm.device("usb", controller.string("type"));
        }
        usb.skip();
    }
    for lpt in hardware.child("LPT").into_iter().flat_map(|list| list.children("Port")) {
        if lpt.attribute("enabled") == Some("true") {
            vm.device("parallel", lpt.string("path"));
        }
        lpt.skip();
    }
    hardware.skip_children(&[
        "Clipboard",
        "DragAndDrop",
        "GuestProperties",
        "HID",
        "HPET",
        "IO",
        "Paravirt",
        "RTC",
        "Recording",
        "RemoteDisplay",
        "VideoCapture",
    ]);
}
