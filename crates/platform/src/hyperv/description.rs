//! A VM as the host's cmdlets describe it, written as Hyper-V's own files have it: there is one reader for all.

use std::fmt::Write;

use spec::foreign::{self, Bus, Description, DriveKind, FileRef, FileState};

use super::reply::{Drive, Shown};
use crate::{Error, Result};

/// The description; `label` is shown as its file.
pub(super) fn describe(shown: &Shown, label: &str) -> Result<Description> {
    let document = xml(shown, |path| path.to_owned());
    let mut vms = foreign::parse(document.as_bytes(), format!("{label}.xml").as_ref())?;
    let mut vm = vms.pop().ok_or_else(|| Error::reply(label, "it describes no VM"))?;
    vm.file = label.into();
    vm.folder = None;
    vm.format = "cmdlets".into();
    vm.version = shown.version.clone().or(vm.version);
    crate::describe::for_another_computer(&mut vm);
    for drive in &mut vm.drives {
        let from =
            shown.drives.iter().find(|one| place(one) == (drive.bus, drive.controller, drive.unit));
        if let Some(from) = from {
            drive.capacity = from.size;
            if let Some(path) = from.path.as_ref().filter(|_| drive.kind != DriveKind::Passthrough)
            {
                drive.file = Some(FileRef {
                    written: path.clone(),
                    state: FileState::Remote,
                    ..FileRef::default()
                });
            }
        }
    }
    Ok(vm)
}

/// Where a drive is.
pub(super) fn place(drive: &Drive) -> (Bus, u32, u32) {
    let bus = match (drive.kind.as_str(), drive.bus.as_deref()) {
        ("floppy", _) => Bus::Floppy,
        (_, Some("IDE")) => Bus::Ide,
        (_, Some("PMEM")) => Bus::Pmem,
        _ => Bus::Scsi,
    };
    (bus, drive.controller.unwrap_or(0), drive.unit.unwrap_or(0))
}

/// In the XML of Windows Server 2012 R2 and before, whose keys are those of all later files; `file` says where what a path
/// names is to be found.
pub(super) fn xml(shown: &Shown, file: impl Fn(&str) -> String) -> String {
    let mut xml = Xml("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<configuration>\n".into());
    let mut manifest = Vec::new();
    xml.open("properties");
    xml.text("name", &shown.summary.name);
    xml.text("global_id", &shown.summary.id);
    if let Some(notes) = shown.notes.as_ref().filter(|notes| !notes.is_empty()) {
        xml.text("notes", notes);
    }
    xml.number("subtype", u64::from(shown.generation.clamp(1, 2) - 1));
    xml.close("properties");
    settings(&mut xml, shown);
    let ide = shown.drives.iter().any(|drive| place(drive).0 == Bus::Ide);
    let floppy = shown.drives.iter().any(|drive| place(drive).0 == Bus::Floppy);
    let scsi = shown.drives.iter().map(place).filter(|(bus, ..)| *bus == Bus::Scsi);
    let scsi = scsi.map(|(_, controller, _)| controller).chain(shown.scsi.iter().copied()).max();
    if ide {
        device(&mut xml, &mut manifest, "IDE Controller", |xml| {
            (0..2).for_each(|number| controller(xml, shown, (Bus::Ide, number), number, &file));
        });
    }
    // Hyper-V has four at most.
    for number in 0..scsi.map_or(0, |last| last.min(63) + 1) {
        device(&mut xml, &mut manifest, "Synthetic SCSI Controller", |xml| {
            controller(xml, shown, (Bus::Scsi, number), 0, &file);
        });
    }
    if floppy {
        device(&mut xml, &mut manifest, "Floppy Controller", |xml| {
            controller(xml, shown, (Bus::Floppy, 0), 0, &file);
        });
    }
    for nic in &shown.nics {
        let kind = if nic.legacy { "Emulated Ethernet Port" } else { "Synthetic Ethernet Port" };
        device(&mut xml, &mut manifest, kind, |xml| {
            if let Some(mac) = &nic.mac {
                xml.text("MacAddress", mac);
            }
            xml.text("FriendlyName", nic.name.as_deref().unwrap_or_default());
            if let Some(switch) = nic.switch.as_ref().filter(|switch| !switch.is_empty()) {
                xml.text("SwitchName", switch);
            }
            xml.flag("IsConnected", nic.connected);
        });
    }
    if shown.ports.iter().any(|port| port.path.as_ref().is_some_and(|path| !path.is_empty())) {
        device(&mut xml, &mut manifest, "Serial Controller", |xml| {
            for port in &shown.ports {
                let name = format!("port{}", port.number.saturating_sub(1));
                xml.open(&name);
                if let Some(path) = port.path.as_ref().filter(|path| !path.is_empty()) {
                    xml.text("connection", path);
                }
                xml.close(&name);
            }
        });
    }
    device(&mut xml, &mut manifest, "Microsoft Virtual BIOS", |xml| {
        if let Some(secure) = &shown.firmware.secure_boot {
            xml.flag("secure_boot_enabled", secure == "On");
        }
        if let Some(template) = &shown.firmware.template {
            xml.text("secure_boot_template_id", template);
        }
        xml.open("boot");
        for (index, word) in shown.firmware.order.iter().enumerate() {
            xml.text(&format!("device{index}"), boot_word(word));
        }
        xml.close("boot");
    });
    xml.open("manifest");
    for (index, (instance, name)) in manifest.iter().enumerate() {
        let key = format!("vdev{:03}", index + 1);
        xml.open(&key);
        xml.text("instance", instance);
        xml.text("name", name);
        xml.close(&key);
    }
    xml.close("manifest");
    xml.0 + "</configuration>\n"
}

fn settings(xml: &mut Xml, shown: &Shown) {
    xml.open("settings");
    xml.open("processors");
    if let Some(count) = shown.cpus.or(shown.summary.cpus) {
        xml.number("count", count.into());
    }
    if let Some(threads) = shown.threads {
        xml.number("hwthreads", threads.into());
    }
    xml.open("nested_virtualization");
    xml.flag("enabled", shown.nested);
    xml.close("nested_virtualization");
    xml.close("processors");
    xml.open("memory");
    xml.open("bank");
    let memory = &shown.memory;
    let mebibytes = |size: Option<u64>| size.map(|size| size >> 20);
    for (key, size) in
        [("size", memory.size), ("reservation", memory.minimum), ("limit", memory.maximum)]
    {
        if let Some(size) = mebibytes(size) {
            xml.number(key, size);
        }
    }
    xml.flag("dynamic_memory_enabled", memory.dynamic);
    xml.close("bank");
    xml.close("memory");
    if let Some(security) = &shown.security {
        xml.open("security");
        xml.flag("tpm_enabled", security.tpm);
        xml.flag("shielding_requested", security.shielded);
        xml.close("security");
    }
    xml.close("settings");
}

/// A device, which the manifest names by its instance.
fn device(
    xml: &mut Xml,
    manifest: &mut Vec<(String, &'static str)>,
    kind: &'static str,
    content: impl FnOnce(&mut Xml),
) {
    let instance = format!("00000000-0000-0000-0000-{:012x}", manifest.len() + 1);
    let key = format!("_{instance}_");
    xml.open(&key);
    content(xml);
    xml.close(&key);
    manifest.push((instance, kind));
}

fn controller(
    xml: &mut Xml,
    shown: &Shown,
    at: (Bus, u32),
    number: u32,
    file: &impl Fn(&str) -> String,
) {
    let key = format!("controller{number}");
    xml.open(&key);
    for drive in &shown.drives {
        let (bus, controller, unit) = place(drive);
        if (bus, controller) != at {
            continue;
        }
        let kind = match (drive.kind.as_str(), drive.disk) {
            ("dvd", _) => "ISO",
            ("floppy", _) => "VFD",
            (_, Some(_)) => "PHYSICAL",
            _ => "VHD",
        };
        let key = format!("drive{unit}");
        xml.open(&key);
        xml.text("type", kind);
        if let Some(path) = drive.path.as_ref().filter(|path| !path.is_empty()) {
            xml.text("pathname", &file(path));
        }
        xml.close(&key);
    }
    xml.close(&key);
}

/// What the cmdlets call a source of boot in the words of Hyper-V's files.
fn boot_word(word: &str) -> &str {
    match word {
        "CD" => "Optical",
        "IDE" | "Drive" => "HardDrive",
        "LegacyNetworkAdapter" => "Network",
        word => word,
    }
}

/// A document that is written.
struct Xml(String);

impl Xml {
    fn open(&mut self, name: &str) {
        let _ = writeln!(self.0, "<{name}>");
    }

    fn close(&mut self, name: &str) {
        let _ = writeln!(self.0, "</{name}>");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.value(
            name,
            "string",
            &value.replace(|letter: char| letter.is_control() && !"\t\r\n".contains(letter), " "),
        );
    }

    fn number(&mut self, name: &str, value: u64) {
        self.value(name, "integer", &value.to_string());
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.value(name, "bool", if value { "True" } else { "False" });
    }

    fn value(&mut self, name: &str, kind: &str, value: &str) {
        let value = quick_xml::escape::escape(value);
        let _ = writeln!(self.0, "<{name} type=\"{kind}\">{value}</{name}>");
    }
}
