//! `VirtualHardwareSection`: items by the resource types of CIM.

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileRef, FirmwareKind, Level, NetworkCard, Platform,
    SerialPort, Unread, mac,
};
use super::super::xml::Element;
use super::Shared;
use crate::Result;

/// An item with the fields that are used.
struct Item<'a> {
    element: &'a Element,
    kind: u32,
    id: String,
    subtype: Option<String>,
    parent: Option<String>,
    place: Option<u32>,
    resource: Option<String>,
    quantity: Option<u64>,
    connected: bool,
}

/// What an item is connected to.
struct Parent {
    id: String,
    bus: Bus,
    index: u32,
}

/// Images based on each other are not longer chains.
const LONGEST_CHAIN: usize = 64;
/// No hypervisor has more devices.
const MOST_ITEMS: usize = 4096;

/// Adds the hardware to `vm`.
pub(crate) fn read(section: &Element, shared: &Shared<'_>, vm: &mut Description) -> Result<()> {
    section.skip_children(&["Info"]);
    section.skip_attributes(&["type", "id", "required"]);
    let transports = section.attribute("transport").unwrap_or_default();
    vm.transports = transports.split_whitespace().map(str::to_owned).collect();
    if let Some(system) = section.child("System") {
        let family = system.child_text("VirtualSystemType").unwrap_or_default();
        vm.platform = match family.to_ascii_lowercase() {
            family if family.starts_with("vmx") => Platform::Vmware,
            family if family.starts_with("virtualbox") => Platform::Virtualbox,
            family if family.starts_with("xen") => Platform::Xen,
            // The last is oVirt's.
            family if ["qemu", "kvm", "engine"].iter().any(|word| family.starts_with(word)) => {
                Platform::Qemu
            }
            _ => Platform::Ovf,
        };
        vm.machine = (!family.is_empty()).then(|| family.to_owned());
        system.skip();
    }
    let items = items(section, shared.configuration.as_deref())?;
    let mut parents = Vec::new();
    for item in &items {
        if let Some(bus) = item.bus() {
            let index = controller_index(item, bus, &parents);
            vm.controller(bus, index, item.subtype.clone());
            if let Some(controller) = vm.controllers.last_mut() {
                controller.slot = slot(item.element);
            }
            parents.push(Parent { id: item.id.clone(), bus, index });
        }
    }
    for item in &items {
        device(item, &parents, shared, vm)?;
    }
    settings(section, vm)
}

/// The number that the package gives a controller, or the first one that is free.
fn controller_index(item: &Item<'_>, bus: Bus, parents: &[Parent]) -> u32 {
    let is_free = |index: &u32| !parents.iter().any(|one| one.bus == bus && one.index == *index);
    let given = item.element.child_text("Address").and_then(|text| text.trim().parse().ok());
    // Each kind has few controllers: other numbers are not theirs.
    given
        .filter(|index| *index < 8 && is_free(index))
        .unwrap_or_else(|| (0..).find(is_free).unwrap_or(u32::MAX))
}

/// A unit of DSP0004 or one of the words that were used before it, in bytes.
pub(crate) fn unit(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "byte" | "bytes" => return Some(1),
        "kilobytes" | "kb" => return Some(1 << 10),
        "megabytes" | "mb" => return Some(1 << 20),
        "gigabytes" | "gb" => return Some(1 << 30),
        _ => {}
    }
    let (base, power) =
        text.strip_prefix("byte")?.trim().strip_prefix('*')?.trim().split_once('^')?;
    base.trim().parse::<u64>().ok()?.checked_pow(power.trim().parse().ok()?)
}

impl Item<'_> {
    /// What it offers to drives, if it is a controller.
    fn bus(&self) -> Option<Bus> {
        let subtype = self.subtype.as_deref().unwrap_or_default().to_ascii_lowercase();
        match self.kind {
            5 => Some(Bus::Ide),
            6 => Some(Bus::Scsi),
            20 if subtype.contains("nvme") => Some(Bus::Nvme),
            20 if subtype.contains("scsi") => Some(Bus::Scsi),
            20 => Some(Bus::Sata),
            _ => None,
        }
    }
}

/// The items of the chosen deployment option: one of its own replaces a common one of the same identity.
fn items<'a>(section: &'a Element, configuration: Option<&str>) -> Result<Vec<Item<'a>>> {
    let mut items: Vec<(bool, Item<'a>)> = Vec::new();
    for name in ["Item", "StorageItem", "EthernetPortItem"] {
        for element in section.children(name) {
            // `min`, `max` and `normal` are ranges, not devices.
            let is_range = element.attribute("bound").is_some_and(|bound| !bound.is_empty());
            let names = element.attribute("configuration");
            let is_chosen = names.is_none_or(|names| {
                names.split_whitespace().any(|name| Some(name) == configuration)
            });
            let item = item(element)?;
            if is_range || !is_chosen {
                element.skip();
                continue;
            }
            if items.len() >= MOST_ITEMS {
                return Err(element.error(format!("More than {MOST_ITEMS} items are absurd")));
            }
            let is_own = names.is_some();
            match items.iter_mut().find(|(_, one)| one.id == item.id && !item.id.is_empty()) {
                Some(same) if is_own && !same.0 => {
                    same.1.element.skip();
                    *same = (true, item);
                }
                _ => items.push((is_own, item)),
            }
        }
    }
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn item(element: &Element) -> Result<Item<'_>> {
    let text = |name: &str| element.child_text(name).map(str::to_owned);
    element.skip_attributes(&["required"]);
    element.skip_children(&[
        "Address",
        "AutomaticDeallocation",
        "BusNumber",
        "Caption",
        "Description",
        "ElementName",
        "InstanceId",
        "Limit",
        "Reservation",
        "Weight",
        "PoolID",
        "ConsumerVisibility",
    ]);
    Ok(Item {
        element,
        kind: element
            .child_number("ResourceType")?
            .ok_or_else(|| element.error("Expected <ResourceType> in the item"))?,
        id: text("InstanceID").or_else(|| text("InstanceId")).unwrap_or_default(),
        subtype: text("ResourceSubType"),
        parent: text("Parent"),
        place: element.child_number("AddressOnParent")?,
        resource: text("HostResource"),
        quantity: element.child_number("VirtualQuantity")?,
        connected: element.child_text("AutomaticAllocation") != Some("false"),
    })
}

fn device(
    item: &Item<'_>,
    parents: &[Parent],
    shared: &Shared<'_>,
    vm: &mut Description,
) -> Result<()> {
    let element = item.element;
    match item.kind {
        3 => {
            vm.cpus.count = item.quantity.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
            if let Some(sockets) = element.child_number::<u32>("num_of_sockets")? {
                ovirts_processors(element, sockets, vm)?;
                return Ok(());
            }
            vm.cpus.cores = element.child_number("CoresPerSocket")?;
            let cores = element.children("CoresPerSocket");
            cores.for_each(|one| one.skip_attributes(&["required"]));
            if let (Some(count), Some(cores)) =
                (vm.cpus.count, vm.cpus.cores.filter(|cores| *cores > 0))
            {
                vm.cpus.sockets = Some(count.div_ceil(cores));
            }
            element.skip_children(&["AllocationUnits", "VirtualQuantityUnits"]);
        }
        4 => {
            let name = element
                .child_text("AllocationUnits")
                .or(element.child_text("VirtualQuantityUnits"));
            let unit = unit(name.unwrap_or("MegaBytes"))
                .ok_or_else(|| element.error("The unit of the memory is not known"))?;
            vm.memory.size = item.quantity.map(|count| count.saturating_mul(unit));
            element.skip_children(&["VirtualQuantityUnits"]);
        }
        // Controllers were read before.
        5 | 6 | 20 => element.skip_children(&["Address", "Config"]),
        10 => {
            let network = element.child_text("Connection").map(str::to_owned);
            let address =
                element.child_text("Address").or_else(|| element.child_text("MACAddress"));
            let address = address.filter(|text| !text.is_empty());
            element.skip_children(&["Name", "Type"]);
            if let Some(text) = address.filter(|text| mac(text).is_none()) {
                let text: String = text.chars().take(40).collect();
                vm.note(
                    Level::Warning,
                    format!("`{text}` of a network card is not a hardware address"),
                );
            }
            vm.nics.push(NetworkCard {
                index: u32::try_from(vm.nics.len()).unwrap_or(u32::MAX),
                model: item.subtype.as_deref().map(|model| nic_model(model).to_owned()),
                mac: address.and_then(mac),
                connection: Some("network".into()),
                network,
                slot: slot(element),
                connected: item.connected,
                ..NetworkCard::default()
            });
        }
        14..=17 | 31 => drive(item, parents, shared, vm)?,
        21 => vm.serials.push(SerialPort {
            index: u32::try_from(vm.serials.len()).unwrap_or(u32::MAX),
            backend: item.subtype.clone(),
            target: item.resource.clone(),
        }),
        22 => vm.device("parallel", item.subtype.clone()),
        23 => vm.device("usb", item.subtype.clone()),
        24 => vm.device("display", item.subtype.clone()),
        35 => vm.device("sound", item.subtype.clone()),
        // VirtualBox's own.
        32768 => vm.firmware.nvram = item.resource.as_deref().and_then(|name| file(name, shared)),
        // VMware's VMCI and other things that it has no number for.
        1 => match item.subtype.as_deref() {
            Some("vmware.vmci") => {}
            Some("vmware.soundcard" | "vmware.soundcard.hdaudio") => {
                vm.device("sound", item.subtype.clone())
            }
            other => vm.device("other", other.map(str::to_owned)),
        },
        other => vm.device(
            "other",
            Some(item.subtype.clone().unwrap_or_else(|| format!("resource type {other}"))),
        ),
    }
    element.skip_children(&["Config", "AddressOnParent"]);
    Ok(())
}

fn drive(
    item: &Item<'_>,
    parents: &[Parent],
    shared: &Shared<'_>,
    vm: &mut Description,
) -> Result<()> {
    let kind = match item.kind {
        14 => DriveKind::Floppy,
        15 | 16 => DriveKind::Cdrom,
        _ => DriveKind::Disk,
    };
    let parent = parents.iter().find(|one| Some(&one.id) == item.parent.as_ref());
    let bus = match parent {
        Some(parent) => parent.bus,
        None if kind == DriveKind::Floppy => Bus::Floppy,
        None => Bus::Scsi,
    };
    let index = parent.map_or(0, |parent| parent.index);
    let used = vm.drives.iter().filter(|one| one.bus == bus && one.controller == index).count();
    let unit = item.place.unwrap_or_else(|| u32::try_from(used).unwrap_or(u32::MAX));
    let mut drive = Drive::new(kind, bus, index, unit);
    drive.connected = kind == DriveKind::Disk || item.connected;
    drive.readonly = kind == DriveKind::Cdrom;
    if let Some(name) = &item.resource {
        // oVirt names the file, whose identity is the disk's.
        let id = name.rsplit_once("disk/").map(|(_, id)| id);
        let id = id.or_else(|| shared.names.get(name).map(String::as_str));
        let image = id.and_then(|id| shared.images.iter().find(|one| one.id == id));
        if let Some(image) = image {
            if let Some(bus) = image.bus {
                let used = vm.drives.iter().filter(|one| one.bus == bus).count();
                let used = u32::try_from(used).unwrap_or(u32::MAX);
                (drive.bus, drive.controller, drive.unit) = match bus {
                    Bus::Ide => (bus, used / 2, used % 2),
                    bus => (bus, 0, used),
                };
            }
            drive.boot_order = image.is_boot.then_some(1);
            item.element.skip_children(&["Type", "BootOrder"]);
            drive.file.clone_from(&image.file);
            drive.format.clone_from(&image.format);
            drive.capacity = image.capacity;
            drive.compressed = image.compressed;
            drive.parents = ancestors(image.parent.as_deref(), shared);
        } else if let Some(file) = file(name, shared) {
            drive.file = Some(file);
        } else if name.contains("disk/") || name.contains("file/") {
            return Err(item
                .element
                .error(format!("The drive is made of `{name}`, which the package has not")));
        } else {
            vm.note(Level::Warning, format!("The drive {} is the host's {name}", drive.address()));
        }
        if image.is_some_and(|image| image.file.is_none()) {
            vm.note(
                Level::Warning,
                format!(
                    "The disk {} is empty: it is made when the VM is deployed",
                    drive.address()
                ),
            );
        }
    }
    vm.drives.push(drive);
    Ok(())
}

/// oVirt's words for a topology.
fn ovirts_processors(element: &Element, sockets: u32, vm: &mut Description) -> Result<()> {
    let cores = element.child_number::<u32>("cpu_per_socket")?.unwrap_or(1);
    let threads = element.child_number::<u32>("threads_per_cpu")?.unwrap_or(1);
    vm.cpus.count =
        sockets.checked_mul(cores).and_then(|count| count.checked_mul(threads)).or(Some(u32::MAX));
    (vm.cpus.sockets, vm.cpus.cores, vm.cpus.threads) = (Some(sockets), Some(cores), Some(threads));
    element.skip_children(&["max_num_of_vcpus"]);
    Ok(())
}

/// oVirt numbers the models of network cards.
fn nic_model(model: &str) -> &str {
    match model {
        "1" => "rtl8139",
        "2" => "e1000",
        "3" => "virtio",
        other => other,
    }
}

/// The images that an image is based on; a circle ends it.
fn ancestors<'a>(mut parent: Option<&'a str>, shared: &'a Shared<'_>) -> Vec<FileRef> {
    let mut files = Vec::new();
    for _ in 0..LONGEST_CHAIN {
        let Some(image) = parent.and_then(|id| shared.images.iter().find(|one| one.id == id))
        else {
            break;
        };
        files.extend(image.file.clone());
        parent = image.parent.as_deref();
    }
    files
}

fn file(name: &str, shared: &Shared<'_>) -> Option<FileRef> {
    let (_, id) = name.rsplit_once("file/")?;
    let known = shared.files.iter().find(|(one, _)| one == id).map(|(_, file)| file.clone());
    known.or_else(|| Some(shared.package.locate(id)).filter(|file| file.is_usable()))
}

/// VMware's word about a device's PCI slot.
fn slot(element: &Element) -> Option<u32> {
    let mut settings = element.children("Config");
    let slot = settings.find(|one| one.attribute("key") == Some("slotInfo.pciSlotNumber"))?;
    slot.attribute("value")?.parse().ok()
}

/// VMware's settings of the whole VM.
fn settings(section: &Element, vm: &mut Description) -> Result<()> {
    for setting in section.children("Config").chain(section.children("ExtraConfig")) {
        let (Some(key), Some(value)) = (setting.attribute("key"), setting.attribute("value"))
        else {
            continue;
        };
        match key {
            "firmware" => {
                vm.firmware.kind = match value {
                    "efi" => Some(FirmwareKind::Uefi),
                    "bios" => Some(FirmwareKind::Bios),
                    other => {
                        return Err(setting
                            .error(format!("The firmware is `{other}` instead of efi or bios")));
                    }
                }
            }
            "bootOptions.efiSecureBootEnabled" | "uefi.secureBoot.enabled" => {
                vm.firmware.secure_boot = Some(value.eq_ignore_ascii_case("true"));
            }
            "nestedHVEnabled" => vm.cpus.nested = Some(value.eq_ignore_ascii_case("true")),
            "memoryHotAddEnabled"
            | "cpuHotAddEnabled"
            | "cpuHotRemoveEnabled"
            | "virtualICH7MPresent"
            | "virtualSMCPresent" => {}
            _ if key.starts_with("powerOpInfo.") || key.starts_with("tools.") => {}
            _ => {
                let value: String = value.chars().take(200).collect();
                let line = setting.place.position.map(|(line, _)| line);
                vm.unread.push(Unread { line, key: key.into(), value });
            }
        }
        setting.skip();
    }
    Ok(())
}
