//! An OVF 1.0 envelope.

use super::super::description::{Architecture, Bus, Description, Drive, DriveKind, FirmwareKind};
use super::places::{Room, places};
use super::{Export, name, nic_word, path, xml};

/// What stands at the beginning.
const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
"#;

/// Items get their numbers in turn.
#[derive(Default)]
struct Items {
    text: String,
    last: u32,
}

impl Items {
    /// Adds an item; the fields in the order of their names, as the schema wants them, and then what VMware adds.
    fn add(&mut self, kind: u32, fields: &[(&str, String)], more: &str) -> u32 {
        self.last += 1;
        let mut fields: Vec<_> = fields.to_vec();
        fields.push(("InstanceID", self.last.to_string()));
        fields.push(("ResourceType", kind.to_string()));
        fields.sort();
        self.text.push_str("      <Item>\n");
        for (name, value) in fields {
            self.text.push_str(&format!("        <rasd:{name}>{}</rasd:{name}>\n", xml(&value)));
        }
        self.text.push_str(more);
        self.text.push_str("      </Item>\n");
        self.last
    }
}

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let (mut files, mut disks) = (String::new(), String::new());
    let mut items = Items::default();
    let count = vm.cpus.count.unwrap_or(1);
    let title = |text: String| ("ElementName", text);
    let cores = vm.cpus.threads_of_socket().map_or(String::new(), |cores| {
        format!("        <vmw:CoresPerSocket ovf:required=\"false\">{cores}</vmw:CoresPerSocket>\n")
    });
    items.add(
        3,
        &[title(format!("{count} virtual CPU(s)")), ("VirtualQuantity", count.to_string())],
        &cores,
    );
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0) >> 20;
    items.add(
        4,
        &[
            ("AllocationUnits", "byte * 2^20".into()),
            title(format!("{size} MiB of memory")),
            ("VirtualQuantity", size.to_string()),
        ],
        "",
    );
    let mut parents = Vec::new();
    let wanted = |drive: &Drive| {
        let bus = match drive.bus {
            _ if matches!(drive.kind, DriveKind::Floppy | DriveKind::Passthrough) => return None,
            Bus::Floppy | Bus::Usb => return None,
            Bus::Virtio | Bus::Xen | Bus::Pmem | Bus::Sd => Bus::Scsi,
            other => other,
        };
        Some((bus, drive.controller, drive.unit))
    };
    let room = |bus| match bus {
        Bus::Ide => Room::of(2, 2),
        Bus::Scsi => Room { reserved: Some(7), ..Room::of(4, 64) },
        _ => Room::of(4, 30),
    };
    let places = places(&vm.drives, wanted, room);
    for (number, (drive, place)) in vm.drives.iter().zip(places).enumerate() {
        let Some((bus, controller, unit)) = place else {
            lost.push(format!("The drive {} is left out", drive.address()));
            continue;
        };
        let key = (bus, controller);
        let parent = match parents.iter().find(|(one, _)| *one == key) {
            Some((_, id)) => *id,
            None => {
                let (kind, subtype) = match bus {
                    Bus::Ide => (5, "PIIX4"),
                    Bus::Sata => (20, "AHCI"),
                    Bus::Nvme => (20, "vmware.nvme.controller"),
                    _ => (6, scsi_model(vm, controller)),
                };
                let fields = [
                    ("Address", controller.to_string()),
                    title(format!("{} controller {controller}", bus.name())),
                    ("ResourceSubType", subtype.into()),
                ];
                let id = items.add(kind, &fields, "");
                parents.push((key, id));
                id
            }
        };
        let mut fields = vec![
            ("AddressOnParent", unit.to_string()),
            ("AutomaticAllocation", drive.connected.to_string()),
            ("Parent", parent.to_string()),
            title(format!("drive {}", number + 1)),
        ];
        if let Some(path) = path(drive) {
            let name = path.rsplit(['/', '\\']).next().unwrap_or(&path);
            files.push_str(&format!(
                "    <File ovf:id=\"file{number}\" ovf:href=\"{}\"/>\n",
                xml(name)
            ));
            if drive.kind == DriveKind::Cdrom {
                fields.push(("HostResource", format!("ovf:/file/file{number}")));
            } else {
                let Some(capacity) = drive.capacity else {
                    lost.push(format!(
                        "The disk {} is left out: OVF wants its size, which is not known",
                        drive.address()
                    ));
                    continue;
                };
                let format = match drive.format.as_deref() {
                    Some("vmdk") | None => {
                        "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
                    }
                    Some("qcow2") => "http://www.gnome.org/~markmc/qcow-image-format.html",
                    Some(other) => {
                        lost.push(format!(
                            "Few programs take {other} in a package: convert the disk {} to vmdk",
                            drive.address()
                        ));
                        other
                    }
                };
                disks.push_str(&format!(
                    "    <Disk ovf:diskId=\"disk{number}\" ovf:fileRef=\"file{number}\" ovf:capacity=\"{capacity}\" ovf:format=\"{}\"/>\n",
                    xml(format)
                ));
                fields.push(("HostResource", format!("ovf:/disk/disk{number}")));
            }
        }
        items.add(if drive.kind == DriveKind::Cdrom { 15 } else { 17 }, &fields, "");
    }
    let mut networks = Vec::new();
    for (number, nic) in vm.nics.iter().enumerate() {
        let network = nic.network.clone().unwrap_or_else(|| "VM Network".into());
        let words = [
            ("e1000", "E1000"),
            ("e1000e", "E1000e"),
            ("pcnet", "PCNet32"),
            ("vmxnet3", "VmxNet3"),
        ];
        let model = nic_word(nic, &words, "VmxNet3", &mut lost);
        let mut fields = vec![
            ("AutomaticAllocation", nic.connected.to_string()),
            ("Connection", network.clone()),
            title(format!("network card {}", number + 1)),
            ("ResourceSubType", model.into()),
        ];
        if let Some(mac) = nic.mac {
            fields.push(("Address", mac.to_string()));
        }
        let slot = nic.slot.map_or(String::new(), |slot| {
            format!("        <vmw:Config ovf:required=\"false\" vmw:key=\"slotInfo.pciSlotNumber\" vmw:value=\"{slot}\"/>\n")
        });
        items.add(10, &fields, &slot);
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    let networks: String = networks
        .iter()
        .map(|name| format!("    <Network ovf:name=\"{}\"><Description/></Network>\n", xml(name)))
        .collect();
    let mut settings = String::new();
    if let Some(kind) = vm.firmware.kind {
        let word = if kind == FirmwareKind::Uefi { "efi" } else { "bios" };
        settings.push_str(&format!(
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"{word}\"/>\n"
        ));
        if let Some(secure) = vm.firmware.secure_boot {
            settings.push_str(&format!(
                "      <vmw:Config ovf:required=\"false\" vmw:key=\"bootOptions.efiSecureBootEnabled\" vmw:value=\"{secure}\"/>\n"
            ));
        }
    }
    if let Some(nested) = vm.cpus.nested {
        settings.push_str(&format!(
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"nestedHVEnabled\" vmw:value=\"{nested}\"/>\n"
        ));
    }
    for (has, what) in [
        (vm.tpm.is_some(), "TPM"),
        (!vm.serials.is_empty(), "serial ports"),
        (vm.boot.kernel.is_some(), "kernel"),
    ] {
        if has {
            lost.push(format!("The {what} cannot be told in this form"));
        }
    }
    let name = xml(name(vm));
    let annotation = vm.annotation.as_ref().map_or(String::new(), |text| {
        format!("    <AnnotationSection><Info>What its owner says</Info><Annotation>{}</Annotation></AnnotationSection>\n", xml(text))
    });
    let guest = xml(vm.guest_os.as_deref().unwrap_or("other"));
    // CIM's "Other" and "Other 64-Bit".
    let system = if vm.architecture == Architecture::X86 { 1 } else { 102 };
    let items = items.text;
    let text = format!(
        "{HEAD}  <References>\n{files}  </References>\n  <DiskSection>\n    <Info>The disks</Info>\n{disks}  </DiskSection>\n  \
         <NetworkSection>\n    <Info>The networks</Info>\n{networks}  </NetworkSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    \
         <Info>A virtual machine</Info>\n    <Name>{name}</Name>\n{annotation}    <OperatingSystemSection ovf:id=\"{system}\">\n      \
         <Info>The guest</Info>\n      <Description>{guest}</Description>\n    </OperatingSystemSection>\n    \
         <VirtualHardwareSection>\n      <Info>The hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>\n      </System>\n{items}{settings}    \
         </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n"
    );
    Export { text, lost }
}

/// The model of a SCSI controller; what VMware does not have becomes its own.
fn scsi_model(vm: &Description, index: u32) -> &'static str {
    let found = vm.controllers.iter().find(|one| one.bus == Bus::Scsi && one.index == index);
    let words = found.and_then(|one| one.model.as_deref()).unwrap_or_default().split([' ', ',']);
    let known = words.map(str::to_ascii_lowercase).find_map(|word| match word.as_str() {
        "lsilogic" => Some("lsilogic"),
        "lsisas1068" | "lsilogicsas" => Some("lsilogicsas"),
        "buslogic" => Some("buslogic"),
        _ => None,
    });
    known.unwrap_or("VirtualSCSI")
}
