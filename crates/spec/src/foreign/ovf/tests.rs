//! `tests/fixtures/ovf` was written by VirtualBox 7.2.22; the others are written for these tests in the form that
//! VMware's `ovftool` writes.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::foreign::{Architecture, Bus, Drive, DriveKind, FileState, FirmwareKind, tar};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ovf").join(name)
}

fn read_file(path: &Path) -> Vec<Description> {
    crate::foreign::read(path, &ReadOptions::default()).unwrap()
}

const VMWARE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="r" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:href="app-disk1.vmdk.gz" ovf:id="file1" ovf:size="4" ovf:compression="gzip"/>
    <File ovf:href="two%20words.iso" ovf:id="file2"/>
  </References>
  <DiskSection><Info>Disks</Info>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
    <Disk ovf:capacity="${data.size}" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk2" ovf:format="vmdk"/>
  </DiskSection>
  <NetworkSection><Info/><Network ovf:name="VM Network"/></NetworkSection>
  <DeploymentOptionSection><Info/>
    <Configuration ovf:id="small"><Label>Small</Label></Configuration>
    <Configuration ovf:id="large" ovf:default="true"><Label>Large</Label></Configuration>
  </DeploymentOptionSection>
  <VirtualSystemCollection ovf:id="both">
    <VirtualSystem ovf:id="app"><Info/><Name>Application</Name>
      <OperatingSystemSection ovf:id="96" vmw:osType="debian11_64Guest"><Info/></OperatingSystemSection>
      <VirtualHardwareSection ovf:transport="com.vmware.guestInfo">
        <System><VirtualSystemType>vmx-14</VirtualSystemType></System>
        <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
        <Item ovf:configuration="large"><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>8</rasd:VirtualQuantity><vmw:CoresPerSocket>4</vmw:CoresPerSocket></Item>
        <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
        <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType><vmw:Config vmw:key="slotInfo.pciSlotNumber" vmw:value="160"/></Item>
        <Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>5</rasd:ResourceType></Item>
        <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>5</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
        <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>6</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
        <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/file/file2</rasd:HostResource><rasd:InstanceID>7</rasd:InstanceID><rasd:Parent>4</rasd:Parent><rasd:ResourceType>15</rasd:ResourceType></Item>
        <Item><rasd:Address>00:50:56:aa:bb:cc</rasd:Address><rasd:Connection>VM Network</rasd:Connection><rasd:InstanceID>8</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType><vmw:Config vmw:key="slotInfo.pciSlotNumber" vmw:value="192"/></Item>
        <Item ovf:configuration="small"><rasd:InstanceID>9</rasd:InstanceID><rasd:ResourceType>23</rasd:ResourceType></Item>
        <vmw:Config vmw:key="firmware" vmw:value="efi"/>
        <vmw:Config vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
        <vmw:ExtraConfig vmw:key="disk.strange" vmw:value="1"/>
      </VirtualHardwareSection>
      <ProductSection ovf:class="net" ovf:instance="0"><Info/><Product>App</Product><Vendor>Us</Vendor><Version>3</Version>
        <Property ovf:key="ip" ovf:type="string" ovf:userConfigurable="true" ovf:value="dhcp"><Label>Address</Label></Property></ProductSection>
    </VirtualSystem>
    <VirtualSystem ovf:id="db"><Info/><VirtualHardwareSection><Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item></VirtualHardwareSection></VirtualSystem>
  </VirtualSystemCollection>
</Envelope>
"#;

#[test]
fn all_versions_of_virtualbox_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["legacy.ovf", "sample20.ovf"] {
        fs::copy(fixture(name), folder.path().join(name)).unwrap();
        fs::write(folder.path().join("sample-bios-disk001.vmdk"), "").unwrap();
        let vm = read_file(&folder.path().join(name)).remove(0);
        assert_eq!(
            (vm.platform, vm.name.as_deref()),
            (Platform::Virtualbox, Some("sample-bios")),
            "{name}"
        );
        assert_eq!((vm.cpus.count, vm.memory.size), (Some(2), Some(512 << 20)), "{name}");
        assert_eq!(vm.guest_os.as_deref(), Some("Debian12_64"));
        let disk =
            &vm.drives[vm.drives.iter().position(|one| one.kind == DriveKind::Disk).unwrap()];
        assert_eq!(
            (disk.bus, disk.unit, disk.format.as_deref()),
            (Bus::Sata, 0, Some("vmdk")),
            "{name}"
        );
        assert_eq!(disk.capacity, Some(41_943_040));
        assert_eq!(disk.file.as_ref().unwrap().state, FileState::Present);
        assert_eq!(vm.nics.len(), 2);
        assert!(vm.nics.iter().all(|nic| nic.mac.is_some()), "{name}: {:?}", vm.nics);
        assert_eq!(vm.unread, [], "{name}");
        assert_eq!(vm.to_spec().unwrap().disks.len(), 1);
    }
}

#[test]
fn efi_and_unicode_of_virtualbox_are_read() {
    let vm = read_file(&fixture("efi10.ovf")).remove(0);
    assert_eq!(vm.name.as_deref(), Some("sample efi ünïcode"));
    assert_eq!((vm.firmware.kind, vm.tpm.as_deref()), (Some(FirmwareKind::Uefi), Some("2.0")));
    assert_eq!(vm.firmware.nvram.as_ref().unwrap().written, "sample efi ünïcode.nvram");
    assert_eq!(vm.drives.iter().map(Drive::address).collect::<Vec<_>>(), ["nvme0:0", "scsi0:1"]);
    assert_eq!(vm.nics[0].mac.unwrap().to_string(), "08:00:27:19:00:4c");
    assert!(
        vm.notes.iter().any(|note| note.message.contains("The manifest names")),
        "{:?}",
        vm.notes
    );
    assert_eq!(vm.unread, []);
}

#[test]
fn an_archive_is_read_without_unpacking_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.ova");
    let (ovf, mf) =
        (fs::read(fixture("sample20.ovf")).unwrap(), fs::read(fixture("sample20.mf")).unwrap());
    let files: [(&str, &[u8]); 3] =
        [("sample20.ovf", &ovf), ("sample-bios-disk001.vmdk", b"no disk"), ("sample20.mf", &mf)];
    fs::write(&path, tar::tests::archive(&files)).unwrap();
    let vm = read_file(&path).remove(0);
    let file = vm.drives.iter().find_map(|drive| drive.file.as_ref()).unwrap();
    assert_eq!((file.state, file.length), (FileState::Member, Some(7)));
    assert_eq!(file.disk_path().unwrap(), path.join("sample-bios-disk001.vmdk"));
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[usize::try_from(file.offset.unwrap()).unwrap()..].starts_with(b"no disk"));
    assert_eq!(
        vm.notes[0].message,
        "The manifest fits the description; 1 of its files was not checked (--verify)"
    );
    let all = ReadOptions { verify: true, ..ReadOptions::default() };
    let error = crate::foreign::read(&path, &all).unwrap_err().to_string();
    assert!(error.contains("`sample-bios-disk001.vmdk` is not what the manifest says"), "{error}");
    let changed = String::from_utf8(ovf).unwrap().replace("Debian12_64", "Debian11_64");
    fs::write(
        &path,
        tar::tests::archive(&[("sample20.ovf", changed.as_bytes()), ("sample20.mf", &mf)]),
    )
    .unwrap();
    let error = crate::foreign::read(&path, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`sample20.ovf` is not what the manifest says"), "{error}");
}

#[test]
fn a_package_of_vmware_with_options_and_several_vms_is_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app.ovf"), VMWARE).unwrap();
    fs::write(folder.path().join("app-disk1.vmdk.gz"), "").unwrap();
    fs::write(folder.path().join("two words.iso"), "").unwrap();
    fs::write(folder.path().join("app.cert"), "").unwrap();
    let vms = read_file(folder.path());
    assert_eq!(
        vms.iter().map(|vm| vm.name.as_deref().unwrap()).collect::<Vec<_>>(),
        ["Application", "db"]
    );
    let vm = &vms[0];
    assert_eq!((vm.platform, vm.guest_os.as_deref()), (Platform::Vmware, Some("debian11_64Guest")));
    assert_eq!((vm.cpus.count, vm.cpus.cores, vm.cpus.sockets), (Some(8), Some(4), Some(2)));
    assert_eq!(vm.memory.size, Some(2 << 30));
    assert_eq!((vm.firmware.kind, vm.firmware.secure_boot), (Some(FirmwareKind::Uefi), Some(true)));
    let disk = &vm.drives[0];
    assert_eq!(
        (disk.address().as_str(), disk.capacity, disk.compressed),
        ("scsi0:0", Some(16 << 30), true)
    );
    assert_eq!((vm.drives[1].capacity, vm.drives[1].file.as_ref()), (None, None));
    assert_eq!(vm.drives[2].file.as_ref().unwrap().state, FileState::Present);
    assert_eq!(
        (vm.nics[0].slot, vm.nics[0].mac.unwrap().to_string().as_str()),
        (Some(192), "00:50:56:aa:bb:cc")
    );
    assert_eq!(vm.controllers[0].slot, Some(160));
    assert_eq!(vm.product.as_deref(), Some("Us App 3"));
    assert_eq!(
        (vm.properties[0].key.as_str(), vm.properties[0].value.as_deref()),
        ("net.ip.0", Some("dhcp"))
    );
    let told = "asks for them by com.vmware.guestInfo alone";
    assert!(vm.differences().iter().any(|note| note.message.contains(told)));
    assert_eq!(vm.unread.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["disk.strange"]);
    assert!(
        vm.notes.iter().any(|note| note.message.contains("It is signed (app.cert)")),
        "{:?}",
        vm.notes
    );
    let small = ReadOptions { configuration: Some("small".into()), ..ReadOptions::default() };
    let vm = crate::foreign::read(folder.path(), &small).unwrap().remove(0);
    assert_eq!((vm.cpus.count, vm.devices.len()), (Some(2), 1));
    let wrong = ReadOptions { configuration: Some("huge".into()), ..ReadOptions::default() };
    let error = crate::foreign::read(folder.path(), &wrong).unwrap_err().to_string();
    assert!(
        error.ends_with("There is no deployment option `huge`; there is small, large"),
        "{error}"
    );
    assert_eq!(vm.architecture, Architecture::X86_64);
}

#[test]
fn wrong_packages_are_refused_with_their_place() {
    for (from, to, message) in [
        ("ovf:id=\"file1\"", "", "a.ovf:4:5: Expected `id` and `href` in <File>"),
        (
            "ovf:fileRef=\"file1\"",
            "ovf:fileRef=\"x\"",
            "a.ovf:8:5: The disk `vmdisk1` is in the file `x`, which no <File> names",
        ),
        (
            "ovf:/disk/vmdisk1",
            "ovf:/disk/x",
            "The drive is made of `ovf:/disk/x`, which the package has not",
        ),
        ("byte * 2^20", "apples", "The unit of the memory is not known"),
        ("=\"gzip\"", "=\"lzma\"", "The compression `lzma` is not known"),
        ("<rasd:VirtualQuantity>2048<", "<rasd:VirtualQuantity>-1<", "is `-1` instead of a number"),
        ("</Envelope>", "", "The file ends within <Envelope>"),
        ("VirtualSystem", "Nothing", "Expected <VirtualSystem> in <Envelope>"),
    ] {
        let text = VMWARE.replace(from, to);
        let error =
            crate::foreign::parse(text.as_bytes(), Path::new("a.ovf")).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn units_are_those_of_the_standard_and_of_old_files() {
    for (text, bytes) in [
        ("byte", Some(1)),
        ("byte * 2^30", Some(1 << 30)),
        ("byte*10^9", Some(1_000_000_000)),
        ("MegaBytes", Some(1 << 20)),
        ("byte * 2^99", None),
        ("apples", None),
    ] {
        assert_eq!(hardware::unit(text), bytes, "{text}");
    }
}

proptest! {
    #[test]
    fn a_package_with_any_part_cut_out_is_survived(start in 0..VMWARE.len(), length in 0..300_usize) {
        let end = (start + length).min(VMWARE.len());
        let text = format!("{}{}", &VMWARE[..start], &VMWARE[end..]);
        let _ = crate::foreign::parse(text.as_bytes(), Path::new("a.ovf"));
    }

    #[test]
    fn any_manifest_is_survived(text in "(SHA1|SHA256)? ?\\(?[a-z]{0,3}\\)?=? ?[0-9a-f]{0,70}\n?") {
        fuzz_manifest(text.as_bytes());
    }
}

/// Written after what virt-v2v writes for oVirt and RHV.
const OVIRT: &str = "<ovf:Envelope xmlns:rasd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData' xmlns:vssd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1/' xmlns:ovirt='http://www.ovirt.org/ovf' ovf:version='0.9'><References><File ovf:href='53/71' ovf:id='71' ovf:description='generated by virt-v2v' ovf:size='1'/></References><Section xsi:type='ovf:NetworkSection_Type'><Info>List of networks</Info><Network ovf:name='ovirtmgmt'/></Section><Section xsi:type='ovf:DiskSection_Type'><Info>List of Virtual Disks</Info><Disk ovf:diskId='71' ovf:actual_size='1' ovf:size='10' ovf:capacity='10737418240' ovf:fileRef='53/71' ovf:parentRef='' ovf:vm_snapshot_id='s' ovf:volume-format='COW' ovf:volume-type='Sparse' ovf:format='http://en.wikipedia.org/wiki/Byte' ovf:disk-interface='VirtIO' ovf:disk-type='System' ovf:boot='True'/></Section><Content ovf:id='out' xsi:type='ovf:VirtualSystem_Type'><Name>web</Name><TemplateId>00000000-0000-0000-0000-000000000000</TemplateId><Section ovf:id='v' ovf:required='false' xsi:type='ovf:OperatingSystemSection_Type'><Info>rhel_7x64</Info><Description>rhel_7x64</Description></Section><Section xsi:type='ovf:VirtualHardwareSection_Type'><Info>2 CPU, 1024 Memory</Info><Item><rasd:Caption>2 virtual cpu</rasd:Caption><rasd:Description>Number of virtual CPU</rasd:Description><rasd:InstanceId>1</rasd:InstanceId><rasd:ResourceType>3</rasd:ResourceType><rasd:num_of_sockets>1</rasd:num_of_sockets><rasd:cpu_per_socket>2</rasd:cpu_per_socket></Item><Item><rasd:Caption>1024 MB of memory</rasd:Caption><rasd:InstanceId>2</rasd:InstanceId><rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item><Item><rasd:Caption>Drive 1</rasd:Caption><rasd:InstanceId>71</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType><Type>disk</Type><rasd:HostResource>53/71</rasd:HostResource><rasd:Parent>00000000-0000-0000-0000-000000000000</rasd:Parent><BootOrder>1</BootOrder></Item><Item><rasd:InstanceId>n</rasd:InstanceId><rasd:Caption>Ethernet adapter on ovirtmgmt</rasd:Caption><rasd:ResourceType>10</rasd:ResourceType><rasd:ResourceSubType>3</rasd:ResourceSubType><Type>interface</Type><rasd:Connection>ovirtmgmt</rasd:Connection><rasd:Name>eth0</rasd:Name><rasd:MACAddress>00:1a:4a:16:01:51</rasd:MACAddress></Item></Section></Content></ovf:Envelope>";

#[test]
fn what_ovirt_exports_is_read() {
    let root = xml::parse(OVIRT.as_bytes(), "x.ovf").unwrap();
    let folder = Folder::nowhere();
    let vm = read(&root, Path::new("x.ovf"), &folder, &ReadOptions::default()).unwrap().remove(0);
    assert_eq!((vm.name.as_deref(), vm.memory.size), (Some("web"), Some(1 << 30)));
    assert_eq!((vm.cpus.count, vm.cpus.sockets, vm.cpus.cores), (Some(2), Some(1), Some(2)));
    let disk = &vm.drives[0];
    assert_eq!((disk.bus, disk.boot_order, disk.capacity), (Bus::Virtio, Some(1), Some(10 << 30)));
    assert_eq!(
        (disk.format.as_deref(), disk.file.as_ref().unwrap().written.as_str()),
        (Some("qcow2"), "53/71")
    );
    let nic = &vm.nics[0];
    assert_eq!(
        (nic.model.as_deref(), nic.mac.unwrap().to_string()),
        (Some("virtio"), "00:1a:4a:16:01:51".into())
    );
    let unread: Vec<_> = vm.unread.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(unread, ["Envelope/Content/TemplateId"]);
}
