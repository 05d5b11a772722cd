//! `ova.xml` of XenServer's and XCP-ng's exports: the objects of the XenAPI around a VM, as XML-RPC values.

use std::collections::HashMap;
use std::path::Path;

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileRef, FileState, FirmwareKind, Level, NetworkCard,
    Platform, Snapshot, Unread, Virtualization, mac,
};
use super::super::xml::Element;
use crate::Result;

/// The fields of an object, each as its XML.
struct Record<'a> {
    element: &'a Element,
    fields: HashMap<&'a str, &'a Element>,
}

/// Reads the document: the VM and its snapshots as one.
pub(crate) fn read(root: &Element, path: &Path) -> Result<Description> {
    let top = members(root)
        .ok_or_else(|| root.error("Expected a <struct> with `version` and `objects`"))?;
    let objects = top
        .get("objects")
        .ok_or_else(|| root.error("Expected `objects`: this is no export of XenServer"))?;
    let mut vm = Description::new(Platform::Xen, "xva", path);
    if let Some(version) = top.get("version").and_then(|value| members(value)) {
        vm.product = version
            .get("product_version")
            .and_then(|value| scalar(value))
            .map(|text| format!("XenServer {text}"));
        vm.version = version.get("export_vsn").and_then(|value| scalar(value)).map(str::to_owned);
    }
    let mut by_reference = HashMap::new();
    let mut machines = Vec::new();
    for value in array(objects) {
        let Some(object) = members(value) else {
            return Err(value.error("Expected a <struct> for each object"));
        };
        let (Some(class), Some(id), Some(state)) =
            (text(&object, "class"), text(&object, "id"), object.get("snapshot"))
        else {
            return Err(value.error("Expected `class`, `id` and `snapshot` in the object"));
        };
        let Some(fields) = members(state) else { continue };
        if class == "VM" {
            machines.push(id);
        }
        by_reference.insert(id, Record { element: value, fields });
    }
    let is = |id: &str, key: &str| by_reference.get(id).is_some_and(|one| one.flag(key));
    // A template or snapshot is exported alone, or a VM with its snapshots.
    let main = machines.iter().find(|id| !is(id, "is_a_snapshot")).or(machines.first());
    let Some(main) = main.and_then(|id| Some((*id, by_reference.get(id)?))) else {
        return Err(root.error("There is no VM among the objects"));
    };
    machine(main.1, &by_reference, path, &mut vm)?;
    for (id, record) in machines
        .iter()
        .filter(|id| **id != main.0)
        .filter_map(|id| Some((*id, by_reference.get(id)?)))
    {
        vm.snapshots.push(Snapshot {
            id: record.text("uuid").unwrap_or(id).to_owned(),
            name: record.text("name_label").unwrap_or_default().to_owned(),
            description: record.text("name_description").map(str::to_owned),
            created: record.text("snapshot_time").map(str::to_owned),
            parent: None,
            current: main.1.text("parent") == Some(id),
        });
    }
    // The objects hold many fields of XenServer's own bookkeeping: what matters and is not understood is told by name.
    for key in ["VGPUs", "VUSBs", "attached_PCIs"] {
        let of = |one: &Element| array(one).count() > 0;
        if main.1.fields.get(key).is_some_and(|one| of(one)) {
            vm.unread.push(Unread {
                line: main.1.element.place.position.map(|(line, _)| line),
                key: key.into(),
                value: String::new(),
            });
        }
    }
    vm.checked()
}

fn machine(
    record: &Record<'_>,
    all: &HashMap<&str, Record<'_>>,
    path: &Path,
    vm: &mut Description,
) -> Result<()> {
    let owned = |key: &str| record.text(key).map(str::to_owned);
    vm.name = owned("name_label");
    vm.annotation = owned("name_description");
    vm.uuid = owned("uuid");
    vm.smbios = super::smbios(vm);
    vm.memory.size = record.number("memory_static_max")?;
    vm.memory.maximum =
        record.number("memory_dynamic_max")?.filter(|most| Some(*most) != vm.memory.size);
    vm.memory.minimum =
        record.number("memory_dynamic_min")?.filter(|least| Some(*least) != vm.memory.size);
    let count = |number: Option<u64>| number.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    vm.cpus.count = count(record.number("VCPUs_at_startup")?);
    vm.cpus.maximum =
        count(record.number("VCPUs_max")?).filter(|most| Some(*most) != vm.cpus.count);
    let platform = record.map("platform");
    let word = |key: &str| platform.get(key).copied();
    vm.cpus.cores =
        word("cores-per-socket").and_then(|text| text.parse().ok()).filter(|cores| *cores > 0);
    vm.cpus.nested = word("nested-virt").map(|flag| flag == "true");
    if word("vtpm") == Some("true")
        || record.fields.get("VTPMs").is_some_and(|one| array(one).count() > 0)
    {
        vm.tpm = Some("2.0".into());
    }
    vm.virtualization = match record.text("domain_type") {
        Some("hvm" | "pv_in_pvh") => Virtualization::Full,
        Some("pvh") => Virtualization::Pvh,
        Some("pv") => Virtualization::Pv,
        _ if record.text("HVM_boot_policy").is_some() => Virtualization::Full,
        _ => Virtualization::Pv,
    };
    let boot = record.map("HVM_boot_params");
    if vm.virtualization == Virtualization::Full {
        let uefi = boot.get("firmware").is_some_and(|kind| *kind == "uefi");
        vm.firmware.kind = Some(if uefi { FirmwareKind::Uefi } else { FirmwareKind::Bios });
        vm.firmware.secure_boot = word("secureboot").map(|flag| flag == "true");
    }
    vm.boot.order =
        boot.get("order").copied().unwrap_or_default().chars().map(String::from).collect();
    vm.boot.bootloader = owned("PV_bootloader");
    vm.boot.cmdline = owned("PV_args");
    for (key, what) in [("PV_kernel", "kernel"), ("PV_ramdisk", "initial RAM disk")] {
        if let Some(file) = record.text(key) {
            vm.note(
                Level::Warning,
                format!("Its {what} {file} is on the XenServer host, not in the export"),
            );
        }
    }
    for reference in record.references("VBDs") {
        let Some(drive) = all.get(reference) else { continue };
        let drive = self::drive(drive, all, path)?;
        vm.controller(drive.bus, drive.controller, None);
        vm.drives.push(drive);
    }
    vm.drives.sort_by_key(|drive| drive.unit);
    for reference in record.references("VIFs") {
        let Some(card) = all.get(reference) else { continue };
        let network = card.text("network").and_then(|id| all.get(id));
        vm.nics.push(NetworkCard {
            index: count(card.number("device")?).unwrap_or(0),
            model: Some("netfront".into()),
            mac: card.text("MAC").and_then(mac),
            connection: Some("network".into()),
            network: network.and_then(|network| network.text("name_label")).map(str::to_owned),
            mtu: card
                .number("MTU")?
                .and_then(|mtu| u16::try_from(mtu).ok())
                .filter(|mtu| *mtu != 0),
            connected: true,
            ..NetworkCard::default()
        });
    }
    vm.nics.sort_by_key(|nic| nic.index);
    Ok(())
}

fn drive(record: &Record<'_>, all: &HashMap<&str, Record<'_>>, path: &Path) -> Result<Drive> {
    let kind = match record.text("type") {
        Some("CD") => DriveKind::Cdrom,
        Some("Floppy") => DriveKind::Floppy,
        _ => DriveKind::Disk,
    };
    let unit = record.text("userdevice").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut drive = Drive::new(kind, Bus::Xen, 0, unit);
    drive.readonly = record.text("mode") == Some("RO") || kind == DriveKind::Cdrom;
    drive.target = record.text("device").map(str::to_owned);
    drive.boot_order = record.flag("bootable").then_some(1);
    let image = record.text("VDI").and_then(|id| Some((id, all.get(id)?)));
    if let Some((id, image)) = image.filter(|_| !record.flag("empty")) {
        drive.capacity = image.number("virtual_size")?;
        drive.readonly |= image.flag("read_only");
        // Its blocks are members of the archive, below a folder of its name.
        drive.format = Some("raw".into());
        drive.file = Some(FileRef::new(id, Some(path.to_owned()), FileState::Member));
    }
    Ok(drive)
}

impl<'a> Record<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.fields.get(key).and_then(|value| scalar(value)).filter(|text| !text.is_empty())
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), Some("1" | "true"))
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            self.fields
                .get(key)
                .unwrap_or(&self.element)
                .error(format!("`{key}` is `{shown}` instead of a number"))
        })
    }

    fn map(&self, key: &str) -> HashMap<&'a str, &'a str> {
        let fields = self.fields.get(key).and_then(|value| members(value)).unwrap_or_default();
        fields.into_iter().filter_map(|(key, value)| Some((key, scalar(value)?))).collect()
    }

    fn references(&self, key: &str) -> Vec<&'a str> {
        self.fields
            .get(key)
            .map(|value| array(value).filter_map(scalar).collect())
            .unwrap_or_default()
    }
}

/// The members of the struct in a `value`.
fn members(value: &Element) -> Option<HashMap<&str, &Element>> {
    let list = value.child("struct")?.children("member");
    Some(
        list.filter_map(|member| Some((member.child("name")?.text(), member.child("value")?)))
            .collect(),
    )
}

fn array(value: &Element) -> impl Iterator<Item = &Element> {
    value.at(&["array", "data"]).into_iter().flat_map(|data| data.children("value"))
}

/// The text of a `value`, whatever its type.
fn scalar(value: &Element) -> Option<&str> {
    match value.all().next() {
        None => Some(value.text()),
        Some(typed) if !matches!(typed.name.as_str(), "struct" | "array") => Some(typed.text()),
        Some(_) => None,
    }
}

fn text<'a>(of: &HashMap<&str, &'a Element>, key: &str) -> Option<&'a str> {
    of.get(key).and_then(|value| scalar(value))
}
