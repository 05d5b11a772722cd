//! The files are written for these tests after one that Hyper-V wrote, which `tests/authentic` reads.

use std::fs;

use proptest::prelude::*;

use super::super::description::FileState;
use super::storage::tests::{string, write};
use super::*;
use crate::foreign::{ReadOptions, xml};

const SCSI: &str = "_73e0f0c5-c0bc-4e16-a458-0e1c388bfee3_";
const CARD: &str = "_1bc9500e-ad4b-426e-ad70-d04cbeb2033b_";
const BIOS: &str = "_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_";

fn vmcx(disk: &str) -> Vec<u8> {
    let number = |number: u64| number.to_le_bytes().to_vec();
    let flag = |flag: bool| u32::from(flag).to_le_bytes().to_vec();
    let mut keys: Vec<(String, u8, Vec<u8>)> = Vec::new();
    let mut add = |path: &str, kind: u8, value: Vec<u8>| {
        // The keys above it, where they are not there yet.
        for (at, _) in path.match_indices('/') {
            if !keys.iter().any(|(known, _, _)| known == &path[..at]) {
                keys.push((path[..at].to_owned(), 9, vec![0; 12]));
            }
        }
        keys.push((path.to_owned(), kind, value));
    };
    add("properties/name", 6, string("Größe"));
    add("properties/global_id", 6, string("282874FC-59D6-4F30-BC04-5FDD909C82E0"));
    add("properties/subtype", 3, number(1));
    add("properties/version", 3, number(0x900));
    add(
        "properties/creation_time",
        7,
        [8_u32.to_le_bytes().to_vec(), 133_000_000_000_000_000_u64.to_le_bytes().to_vec()].concat(),
    );
    add("settings/processors/count", 3, number(4));
    add("settings/processors/nested_virtualization/enabled", 8, flag(true));
    add("settings/memory/bank/size", 3, number(2048));
    add("settings/memory/bank/reservation", 3, number(512));
    add("settings/memory/bank/limit", 3, number(8192));
    add("settings/memory/bank/dynamic_memory_enabled", 8, flag(true));
    add("settings/strange", 3, number(5));
    for (number, instance, name) in [
        (1, SCSI, "Synthetic SCSI Controller"),
        (2, CARD, "Synthetic Ethernet Port"),
        (3, BIOS, "Microsoft Virtual BIOS"),
    ] {
        add(&format!("manifest/vdev00{number}/instance"), 6, string(instance.trim_matches('_')));
        add(&format!("manifest/vdev00{number}/name"), 6, string(name));
    }
    add(&format!("{SCSI}/controller0/drive0/pathname"), 6, string(disk));
    add(&format!("{SCSI}/controller0/drive0/type"), 6, string("VHD"));
    add(&format!("{SCSI}/controller0/drive1/type"), 6, string("ISO"));
    add(&format!("{CARD}/MacAddress"), 6, string("00-15-5D-01-02-03"));
    add(&format!("{CARD}/IsConnected"), 8, flag(true));
    add(&format!("{CARD}/Connection/AltSwitchName"), 6, string("Default Switch"));
    add(&format!("{BIOS}/secure_boot_enabled"), 8, flag(true));
    add(&format!("{BIOS}/bios_guid"), 6, string("{1B4E28BA-2FA1-11D2-883F-0016D3CCA427}"));
    add(&format!("{BIOS}/bios_serial_number"), 6, string("1234-5678"));
    add(
        &format!("{BIOS}/secure_boot_template_id"),
        6,
        string("1734c6e8-3154-4dda-ba5f-a874cc483422"),
    );
    let keys: Vec<_> =
        keys.iter().map(|(path, kind, value)| (path.as_str(), *kind, value.as_slice())).collect();
    write(&keys)
}

fn check(vm: &Description) {
    assert_eq!(vm.name.as_deref(), Some("Größe"));
    assert_eq!(
        (vm.machine.as_deref(), vm.firmware.kind),
        (Some("generation 2"), Some(FirmwareKind::Uefi))
    );
    assert_eq!(vm.firmware.secure_boot, Some(true));
    assert_eq!(vm.firmware.template.as_deref(), Some("1734c6e8-3154-4dda-ba5f-a874cc483422"));
    let uuid = vm.smbios.uuid.unwrap().to_string();
    assert_eq!(uuid, "1b4e28ba-2fa1-11d2-883f-0016d3cca427");
    assert_eq!(vm.smbios.serial.as_deref(), Some("1234-5678"));
    assert_eq!((vm.cpus.count, vm.cpus.nested), (Some(4), Some(true)));
    let memory = (vm.memory.size, vm.memory.minimum, vm.memory.maximum);
    assert_eq!(memory, (Some(2 << 30), Some(512 << 20), Some(8 << 30)));
    let disk = &vm.drives[0];
    assert_eq!((disk.address().as_str(), disk.format.as_deref()), ("scsi0:0", Some("vhdx")));
    assert_eq!((vm.drives[1].kind, vm.drives[1].file.as_ref()), (DriveKind::Cdrom, None));
    let card = &vm.nics[0];
    assert_eq!(
        (card.mac.unwrap().to_string().as_str(), card.network.as_deref()),
        ("00:15:5d:01:02:03", Some("Default Switch"))
    );
    assert_eq!(
        vm.unread.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(),
        ["settings/strange"]
    );
}

#[test]
fn an_exported_folder_is_read_with_its_disks_and_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["Virtual Machines", "Virtual Hard Disks", "Snapshots"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let bytes = vmcx(r"C:\VMs\web\Virtual Hard Disks\web_1234.avhdx");
    fs::write(folder.path().join("Virtual Machines/1.vmcx"), &bytes).unwrap();
    fs::write(folder.path().join("Snapshots/2.vmcx"), &bytes).unwrap();
    fs::write(folder.path().join("Virtual Hard Disks/web_1234.avhdx"), "").unwrap();
    for path in [folder.path().to_owned(), folder.path().join("Virtual Machines/1.vmcx")] {
        let vm = crate::foreign::read(&path, &ReadOptions::default()).unwrap().remove(0);
        check(&vm);
        assert_eq!(vm.drives[0].file.as_ref().unwrap().state, FileState::Moved);
        assert_eq!(vm.to_spec().unwrap().disks.len(), 1);
        let checkpoint = &vm.snapshots[0];
        assert_eq!(
            (checkpoint.name.as_str(), checkpoint.created.as_deref()),
            ("Größe", Some("2022-06-18T04:26:40Z"))
        );
    }
}

#[test]
fn the_xml_before_it_says_the_same() {
    let text = format!(
        "<?xml version='1.0' encoding='UTF-16'?><configuration><properties><name type='string'>Größe</name>\
         <subtype type='integer'>1</subtype></properties><settings><processors><count type='integer'>4</count>\
         <nested_virtualization><enabled type='bool'>TRUE</enabled></nested_virtualization></processors><memory><bank>\
         <size type='integer'>2048</size><reservation type='integer'>512</reservation><limit type='integer'>8192</limit>\
         <dynamic_memory_enabled type='bool'>True</dynamic_memory_enabled></bank></memory><strange type='integer'>5</strange>\
         </settings><manifest><vdev001><instance type='string'>{}</instance><name type='string'>Synthetic SCSI Controller</name>\
         </vdev001><vdev002><instance type='string'>{}</instance><name type='string'>Synthetic Ethernet Port</name></vdev002>\
         <vdev003><instance type='string'>{}</instance><name type='string'>Microsoft Virtual BIOS</name></vdev003></manifest>\
         <{SCSI}><controller0><drive0><pathname type='string'>C:\\a.vhdx</pathname><type type='string'>VHD</type></drive0>\
         <drive1><type type='string'>ISO</type></drive1></controller0></{SCSI}>\
         <{CARD}><MacAddress type='string'>00-15-5D-01-02-03</MacAddress><Connection><AltSwitchName type='string'>Default Switch\
         </AltSwitchName></Connection></{CARD}><{BIOS}><secure_boot_enabled type='bool'>True</secure_boot_enabled>\
         <secure_boot_template_id type='string'>1734c6e8-3154-4dda-ba5f-a874cc483422</secure_boot_template_id>\
         <bios_guid type='string'>{{1B4E28BA-2FA1-11D2-883F-0016D3CCA427}}</bios_guid>\
         <bios_serial_number type='string'>1234-5678</bios_serial_number></{BIOS}>\
         </configuration>",
        SCSI.trim_matches('_'),
        CARD.trim_matches('_'),
        BIOS.trim_matches('_')
    );
    // As Hyper-V writes it.
    let bytes: Vec<u8> =
        format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let vm = crate::foreign::parse(&bytes, Path::new("x.xml")).unwrap().remove(0);
    check(&vm);
    let root = xml::parse(b"<configuration><properties/></configuration>", "x.xml").unwrap();
    let error = read_xml(&root, Path::new("x.xml"), &Folder::nowhere()).unwrap_err().to_string();
    assert!(error.contains("this is a VM's runtime state"), "{error}");
}

proptest! {
    #[test]
    fn any_byte_may_be_wrong(at in 0..20_000_usize, value: u8, cut in 0..20_000_usize) {
        let mut bytes = vmcx("a.vhdx");
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read(&bytes, Path::new("x.vmcx"), &Folder::nowhere());
        bytes.truncate(cut);
        let _ = read(&bytes, Path::new("x.vmcx"), &Folder::nowhere());
    }
}
