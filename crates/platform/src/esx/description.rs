//! A VM as the server describes it, read as its own `.vmx` would be: there is one reader for both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use spec::foreign::{self, Bus, Description, FileState};

use super::datastore::{Datastore, DatastorePath};
use super::inventory::Object;
use super::session::Session;
use super::soap::Element;
use crate::Result;

/// Longest `.vmx`.
const LONGEST_VMX: u64 = 1 << 20;

/// What of a VM's properties [`describe`] wants.
pub(super) const PROPERTIES: &[&str] = &["name", "config"];

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskFile {
    pub bus: Bus,
    pub controller: u32,
    pub unit: u32,
    /// Its topmost image.
    pub file: DatastorePath,
    /// Its topmost image and what that is based on.
    pub chain: Vec<DatastorePath>,
    pub capacity: Option<u64>,
}

/// The VM's description: its `.vmx` if the server gives it, what the server says of it otherwise.
pub(super) fn describe(session: &Session, vm: &Object, files: &Datastore) -> Result<Description> {
    let config = vm.property("config");
    let config =
        config.ok_or_else(|| session.wrong("RetrievePropertiesEx", "the VM has no config"))?;
    let path = vmx_path(config);
    let name = path.as_ref().map(DatastorePath::to_string).unwrap_or_default();
    let read = path.and_then(|path| files.read_small(&path, LONGEST_VMX).ok());
    let own = read.filter(|bytes| !bytes.is_empty()).and_then(|bytes| parse(&bytes, &name));
    let description = own.or_else(|| from_config(config, &name));
    let mut description = description
        .ok_or_else(|| session.wrong("RetrievePropertiesEx", "the VM's config makes no sense"))?;
    // The path is the server's, not this computer's.
    description.folder = None;
    let disks = disks(config);
    for drive in &mut description.drives {
        let Some(file) = &mut drive.file else { continue };
        (file.path, file.state) = (None, FileState::Remote);
        let place = (drive.bus, drive.controller, drive.unit);
        if let Some(disk) =
            disks.iter().find(|disk| (disk.bus, disk.controller, disk.unit) == place)
        {
            file.written = disk.file.to_string();
            drive.capacity = disk.capacity;
        }
    }
    for file in
        [&mut description.firmware.nvram, &mut description.saved_state].into_iter().flatten()
    {
        (file.path, file.state) = (None, FileState::Remote);
    }
    Ok(description)
}

/// What a `VirtualMachineConfigInfo` says.
pub(super) fn from_config(config: &Element, name: &str) -> Option<Description> {
    parse(vmx(config).as_bytes(), name)
}

fn parse(bytes: &[u8], name: &str) -> Option<Description> {
    let path = Path::new(if name.is_empty() { "vm.vmx" } else { name });
    foreign::parse(bytes, path).ok()?.into_iter().next()
}

/// Where the `.vmx` is.
pub(super) fn vmx_path(config: &Element) -> Option<DatastorePath> {
    DatastorePath::parse(&config.at(&["files", "vmPathName"])?.text)
}

/// The VM's disks with their places.
pub(super) fn disks(config: &Element) -> Vec<DiskFile> {
    let devices: Vec<&Element> = config.child("hardware").into_iter().flat_map(devices).collect();
    let controllers = controllers(&devices);
    let disk = |device: &&Element| {
        let (bus, controller, _) = controllers.get(device.value("controllerKey")?)?;
        let mut chain = Vec::new();
        let mut backing = device.child("backing");
        while let Some(element) = backing
            && let Some(file) = element.value("fileName").and_then(DatastorePath::parse)
        {
            chain.push(file);
            backing = element.child("parent");
        }
        let bytes = device.number::<u64>("capacityInBytes").filter(|bytes| *bytes > 0);
        let kibibytes = || device.number::<u64>("capacityInKB")?.checked_mul(1 << 10);
        Some(DiskFile {
            bus: *bus,
            controller: *controller,
            unit: device.number("unitNumber")?,
            file: chain.first()?.clone(),
            chain,
            capacity: bytes.or_else(kibibytes),
        })
    };
    devices.iter().filter(|device| kind(device) == "VirtualDisk").filter_map(disk).collect()
}

fn devices(hardware: &Element) -> impl Iterator<Item = &Element> {
    hardware.children("device")
}

fn kind(device: &Element) -> &str {
    device.kind().unwrap_or_default()
}

/// Controllers of drives by their key: bus, number and model in the words of `.vmx`.
fn controllers<'a>(devices: &[&'a Element]) -> BTreeMap<&'a str, (Bus, u32, &'static str)> {
    let known = devices.iter().filter_map(|device| {
        let (bus, model) = match kind(device) {
            "ParaVirtualSCSIController" => (Bus::Scsi, "pvscsi"),
            "VirtualLsiLogicController" => (Bus::Scsi, "lsilogic"),
            "VirtualLsiLogicSASController" => (Bus::Scsi, "lsisas1068"),
            "VirtualBusLogicController" => (Bus::Scsi, "buslogic"),
            "VirtualAHCIController" | "VirtualSATAController" => (Bus::Sata, "ahci"),
            "VirtualNVMEController" => (Bus::Nvme, "nvme"),
            "VirtualIDEController" => (Bus::Ide, ""),
            _ => return None,
        };
        Some((device.value("key")?, (bus, device.number("busNumber")?, model)))
    });
    known.collect()
}

/// A `VirtualMachineConfigInfo` as a `.vmx`.
pub(super) fn vmx(config: &Element) -> String {
    let mut keys = Keys::default();
    let said = |name: &str| config.value(name).filter(|value| !value.is_empty());
    let set = |keys: &mut Keys, key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            keys.set(key, value);
        }
    };
    keys.set(".encoding", "UTF-8");
    set(&mut keys, "virtualHW.version", said("version").and_then(|text| text.strip_prefix("vmx-")));
    set(&mut keys, "displayName", said("name"));
    set(&mut keys, "annotation", said("annotation"));
    set(&mut keys, "guestOS", said("guestId").map(|id| id.strip_suffix("Guest").unwrap_or(id)));
    set(&mut keys, "uuid.bios", said("uuid"));
    set(&mut keys, "firmware", said("firmware"));
    if let Some(hardware) = config.child("hardware") {
        set(&mut keys, "numvcpus", hardware.value("numCPU"));
        set(&mut keys, "cpuid.coresPerSocket", hardware.value("numCoresPerSocket"));
        set(&mut keys, "memSize", hardware.value("memoryMB"));
        let devices: Vec<_> = devices(hardware).collect();
        let controllers = controllers(&devices);
        for (bus, number, model) in controllers.values().filter(|(bus, ..)| *bus != Bus::Ide) {
            keys.set(&format!("{}{number}.present", bus.name()), "TRUE");
            keys.set(&format!("{}{number}.virtualDev", bus.name()), model);
        }
        // Disks first: the simulator gives a CD-ROM the same place as a disk.
        let mut places = BTreeSet::new();
        for wanted in ["VirtualDisk", "VirtualCdrom"] {
            for device in devices.iter().filter(|device| kind(device) == wanted) {
                let place = device.value("controllerKey").and_then(|key| controllers.get(key));
                let (Some((bus, number, _)), Some(unit)) =
                    (place, device.number::<u32>("unitNumber"))
                else {
                    continue;
                };
                let name = format!("{}{number}:{unit}", bus.name());
                if places.insert(name.clone()) {
                    drive(&mut keys, device, &name);
                }
            }
        }
        let is_nic = |device: &&&Element| device.child("macAddress").is_some();
        for (device, index) in devices.iter().filter(is_nic).zip(0..) {
            nic(&mut keys, device, kind(device), index);
        }
        if devices.iter().any(|device| kind(device) == "VirtualTPM") {
            keys.set("vtpm.present", "TRUE");
        }
    }
    if config.at(&["bootOptions"]).is_some_and(|boot| boot.flag("efiSecureBootEnabled")) {
        keys.set("uefi.secureBoot.enabled", "TRUE");
    }
    if config.flag("nestedHVEnabled") {
        keys.set("vhv.enable", "TRUE");
    }
    keys.text
}

fn drive(keys: &mut Keys, device: &Element, name: &str) {
    keys.set(&format!("{name}.present"), "TRUE");
    let backing = device.child("backing");
    let file = backing.and_then(|backing| backing.value("fileName"));
    let file = file.filter(|file| !file.is_empty());
    if kind(device) == "VirtualCdrom" {
        let kind = if file.is_some() { "cdrom-image" } else { "atapi-cdrom" };
        keys.set(&format!("{name}.deviceType"), kind);
        let connected = device.child("connectable").is_none_or(|it| it.flag("startConnected"));
        keys.set(&format!("{name}.startConnected"), if connected { "TRUE" } else { "FALSE" });
    }
    if let Some(mode) = backing.and_then(|backing| backing.value("diskMode")) {
        keys.set(&format!("{name}.mode"), mode);
    }
    if let Some(file) = file {
        keys.set(&format!("{name}.fileName"), file);
    }
}

fn nic(keys: &mut Keys, device: &Element, model: &str, index: u32) {
    let name = format!("ethernet{index}");
    let model = match model {
        "VirtualVmxnet3" => "vmxnet3",
        "VirtualVmxnet2" | "VirtualVmxnet" => "vmxnet",
        "VirtualE1000" => "e1000",
        "VirtualE1000e" => "e1000e",
        "VirtualPCNet32" => "vlance",
        other => other,
    };
    keys.set(&format!("{name}.present"), "TRUE");
    keys.set(&format!("{name}.virtualDev"), model);
    let is_static =
        device.value("addressType").is_some_and(|kind| kind.eq_ignore_ascii_case("manual"));
    keys.set(&format!("{name}.addressType"), if is_static { "static" } else { "generated" });
    let key = if is_static { "address" } else { "generatedAddress" };
    keys.set(&format!("{name}.{key}"), device.value("macAddress").unwrap_or_default());
    if let Some(network) = device.at(&["backing", "deviceName"]) {
        keys.set(&format!("{name}.networkName"), network.text.trim());
    }
    if let Some(slot) = device.at(&["slotInfo", "pciSlotNumber"]) {
        keys.set(&format!("{name}.pciSlotNumber"), slot.text.trim());
    }
    let connected = device.child("connectable").is_none_or(|it| it.flag("startConnected"));
    keys.set(&format!("{name}.startConnected"), if connected { "TRUE" } else { "FALSE" });
}

/// Lines of a `.vmx`.
#[derive(Default)]
struct Keys {
    text: String,
}

impl Keys {
    fn set(&mut self, key: &str, value: &str) {
        let mut escaped = String::with_capacity(value.len());
        for letter in value.chars() {
            match letter {
                '"' | '|' | '#' | '\n' | '\r' => {
                    escaped.push_str(&format!("|{:02X}", letter as u32))
                }
                letter => escaped.push(letter),
            }
        }
        self.text.push_str(&format!("{key} = \"{escaped}\"\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::soap;
    use super::*;

    const CONFIG: &str = r#"<val xmlns:x="i" x:type="VirtualMachineConfigInfo"><name>a "b" |c</name><version>vmx-13</version>
        <uuid>b03b24de-847f-5b0d-85f4-221b300038a8</uuid><guestId>debian11_64Guest</guestId><firmware>efi</firmware>
        <files><vmPathName>[ds 1] a b/a.vmx</vmPathName></files><hardware><numCPU>4</numCPU>
        <numCoresPerSocket>2</numCoresPerSocket><memoryMB>2048</memoryMB>
        <device x:type="ParaVirtualSCSIController"><key>1000</key><busNumber>0</busNumber></device>
        <device x:type="VirtualDisk"><key>2000</key><backing x:type="VirtualDiskFlatVer2BackingInfo">
        <fileName>[ds 1] a b/a-000001.vmdk</fileName><diskMode>persistent</diskMode><parent>
        <fileName>[ds 1] a b/a.vmdk</fileName></parent></backing><controllerKey>1000</controllerKey>
        <unitNumber>1</unitNumber><capacityInKB>1024</capacityInKB></device>
        <device x:type="VirtualVmxnet3"><key>4000</key><backing><deviceName>VM Network</deviceName></backing>
        <connectable><startConnected>true</startConnected></connectable><addressType>manual</addressType>
        <macAddress>00:50:56:00:00:01</macAddress></device></hardware></val>"#;

    #[test]
    fn what_the_server_says_is_read_as_a_vmx() {
        let config = soap::parse(CONFIG.as_bytes()).unwrap();
        let vm = from_config(&config, "a.vmx").unwrap();
        assert_eq!(vm.name.as_deref(), Some("a \"b\" |c"));
        assert_eq!(
            (vm.cpus.count, vm.cpus.cores, vm.memory.size),
            (Some(4), Some(2), Some(2 << 30))
        );
        assert_eq!(vm.firmware.kind, Some(foreign::FirmwareKind::Uefi));
        assert_eq!(vm.drives[0].address(), "scsi0:1");
        let nic = &vm.nics[0];
        assert_eq!(nic.mac.unwrap().to_string(), "00:50:56:00:00:01");
        assert_eq!(
            (nic.model.as_deref(), nic.network.as_deref()),
            (Some("vmxnet3"), Some("VM Network"))
        );
        assert!(vm.unread.is_empty(), "{:?}", vm.unread);
        let disks = disks(&config);
        let chain: Vec<_> = disks[0].chain.iter().map(DatastorePath::to_string).collect();
        assert_eq!(chain, ["[ds 1] a b/a-000001.vmdk", "[ds 1] a b/a.vmdk"]);
        assert_eq!((disks[0].capacity, disks[0].unit), (Some(1 << 20), 1));
        assert_eq!(vmx_path(&config).unwrap().to_string(), "[ds 1] a b/a.vmx");
    }
}
