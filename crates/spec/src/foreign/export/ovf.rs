//! An OVF 1.0 envelope.

use super::super::description::{Bus, Description, DriveKind, FirmwareKind};
use super::{Export, name, path, xml};

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
    /// Adds an item; the fields in the order of their names, as the schema wants them.
    fn add(&mut self, kind: u32, fields: &[(&str, String)]) -> u32 {
        self.last += 1;
        let mut fields: Vec<_> = fields.to_vec();
        fields.push(("InstanceID", self.last.to_string()));
        fields.push(("ResourceType", kind.to_string()));
        fields.sort();
        self.text.push_str("      <Item>\n");
        for (name, value) in fields {
            self.text.push_str(&format!("        <rasd:{name}>{}</rasd:{name}>\n", xml(&value)));
        }
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
    items.add(
        3,
        &[title(format!("{count} virtual CPU(s)")), ("VirtualQuantity", count.to_string())],
    );
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0) >> 20;
    items.add(
        4,
        &[
            ("AllocationUnits", "byte * 2^20".into()),
            title(format!("{size} MiB of memory")),
            ("VirtualQuantity", size.to_string()),
        ],
    );
    let mut parents = Vec::new();
    for (number, drive) in vm.drives.iter().enumerate() {
        let bus = match drive.bus {
            Bus::Floppy | Bus::Usb => {
                lost.push(format!("The drive {} is left out", drive.address()));
                continue;
            }
            Bus::Virtio | Bus::Xen | Bus::Pmem | Bus::Sd => Bus::Scsi,
            other => other,
        };
        let key = (bus, drive.controller);
        let parent = match parents.iter().find(|(one, _)| *one == key) {
            Some((_, id)) => *id,
            None => {
                let (kind, subtype) = match bus {
                    Bus::Ide => (5, "PIIX4"),
                    Bus::Sata => (20, "AHCI"),
                    Bus::Nvme => (20, "vmware.nvme.controller"),
                    _ => (6, "VirtualSCSI"),
                };
                let fields = [
                    title(format!("{} controller {}", bus.name(), drive.controller)),
                    ("ResourceSubType", subtype.into()),
                ];
                let id = items.add(kind, &fields);
                parents.push((key, id));
                id
            }
        };
        let mut fields = vec![
            ("AddressOnParent", drive.unit.to_string()),
            ("Parent", parent.to_string()),
            title(format!("drive {}", number + 1)),
        ];
        if let Some(path) = path(drive) {
            let name = path.rsplit('/').next().unwrap_or(&path);
            files.push_str(&format!(
                "    <File ovf:id=\"file{number}\" ovf:href=\"{}\"/>\n",
                xml(name)
            ));
            if drive.kind == DriveKind::Cdrom {
                fields.push(("HostResource", format!("ovf:/file/file{number}")));
            } else {
                let Some(capacity) = drive.capacity else {
                    lost.push(format!(
                        "The disk {} has no known size, which OVF wants",
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
        items.add(if drive.kind == DriveKind::Cdrom { 15 } else { 17 }, &fields);
    }
    let mut networks = Vec::new();
    for (number, nic) in vm.nics.iter().enumerate() {
        let network = nic.network.clone().unwrap_or_else(|| "VM Network".into());
        let model = match nic.model.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
            "e1000" | "82540em" | "82545em" => "E1000",
            "e1000e" => "E1000e",
            _ => "VmxNet3",
        };
        let mut fields = vec![
            ("AutomaticAllocation", nic.connected.to_string()),
            ("Connection", network.clone()),
            title(format!("network card {}", number + 1)),
            ("ResourceSubType", model.into()),
        ];
        if let Some(mac) = nic.mac {
            fields.push(("Address", mac.to_string()));
        }
        items.add(10, &fields);
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    let networks: String = networks
        .iter()
        .map(|name| format!("    <Network ovf:name=\"{}\"><Description/></Network>\n", xml(name)))
        .collect();
    let mut settings = String::new();
    if vm.firmware.kind == Some(FirmwareKind::Uefi) {
        settings.push_str(
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"efi\"/>\n",
        );
        if let Some(secure) = vm.firmware.secure_boot {
            settings.push_str(&format!(
                "      <vmw:Config ovf:required=\"false\" vmw:key=\"bootOptions.efiSecureBootEnabled\" vmw:value=\"{secure}\"/>\n"
            ));
        }
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
    let items = items.text;
    let text = format!(
        "{HEAD}  <References>\n{files}  </References>\n  <DiskSection>\n    <Info>The disks</Info>\n{disks}  </DiskSection>\n  \
         <NetworkSection>\n    <Info>The networks</Info>\n{networks}  </NetworkSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    \
         <Info>A virtual machine</Info>\n    <Name>{name}</Name>\n{annotation}    <OperatingSystemSection ovf:id=\"1\">\n      \
         <Info>The guest</Info>\n      <Description>{guest}</Description>\n    </OperatingSystemSection>\n    \
         <VirtualHardwareSection>\n      <Info>The hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>\n      </System>\n{items}{settings}    \
         </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n"
    );
    Export { text, lost }
}
