//! `tests/fixtures/virtualbox` was written by VirtualBox 7.2.22.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::foreign::{Bus, Drive, DriveKind, ReadOptions, xml};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/virtualbox").join(name)
}

fn read_file(path: &Path) -> Description {
    crate::foreign::read(path, &ReadOptions::default()).unwrap().remove(0)
}

fn parsed(text: &str) -> Result<Description> {
    let root = xml::parse(text.as_bytes(), "x.vbox")?;
    read(&root, Path::new("x.vbox"), &Folder::nowhere())
}

#[test]
fn both_schemas_of_one_vm_say_the_same() {
    let new = read_file(&fixture("sample-bios.vbox"));
    let old = read_file(&fixture("sample-bios-1.19-linux.vbox"));
    assert_eq!(
        (new.version.as_deref(), old.version.as_deref()),
        (Some("1.20-linux"), Some("1.19-linux"))
    );
    for vm in [&new, &old] {
        assert_eq!(vm.name.as_deref(), Some("sample-bios"));
        assert_eq!(vm.annotation.as_deref(), Some("authentic sample made by VBoxManage"));
        assert_eq!(vm.cpus.count, Some(2));
        assert_eq!(vm.memory.size, Some(512 << 20));
        assert_eq!(vm.firmware.kind, Some(FirmwareKind::Bios));
        assert_eq!(vm.architecture, Architecture::X86_64);
        let disk = &vm.drives[0];
        assert_eq!((disk.address().as_str(), disk.format.as_deref()), ("sata0:0", Some("vdi")));
        let written = &disk.file.as_ref().unwrap().written;
        assert_eq!(written, "Snapshots/{5782ea2e-c42f-4dcf-86f8-013d67f62e2e}.vdi");
        assert_eq!(disk.parents[0].written, "/vb/vms/disk-dyn.vdi");
        assert_eq!(disk.parents[0].state, FileState::Refused);
        assert_eq!((vm.drives[1].kind, vm.drives[1].bus), (DriveKind::Cdrom, Bus::Ide));
        let cards: Vec<_> = vm
            .nics
            .iter()
            .map(|nic| {
                (
                    nic.mac.unwrap().to_string(),
                    nic.model.as_deref().unwrap(),
                    nic.connection.as_deref().unwrap(),
                )
            })
            .collect();
        let expected =
            [("08:00:27:66:c2:96", "virtio", "nat"), ("08:00:27:52:08:d0", "82540EM", "internal")];
        assert_eq!(cards, expected.map(|(mac, model, mode)| (mac.to_owned(), model, mode)));
        assert_eq!(vm.nics[0].forwards[0].to_string(), "2222:22");
        assert_eq!(vm.serials[0].target.as_deref(), Some("/vb/serial.log"));
        assert_eq!(vm.snapshots.len(), 1);
        assert!(vm.snapshots[0].current && vm.snapshots[0].name == "snap1");
        assert_eq!(vm.unread, []);
    }
    assert_eq!(old.drives, new.drives);
    assert_eq!(old.nics, new.nics);
}

#[test]
fn efi_tpm_and_modern_controllers_are_read() {
    let vm = read_file(&fixture("sample efi ünïcode.vbox"));
    assert_eq!(vm.name.as_deref(), Some("sample efi ünïcode"));
    assert_eq!((vm.firmware.kind, vm.tpm.as_deref()), (Some(FirmwareKind::Uefi), Some("2.0")));
    assert_eq!(vm.machine.as_deref(), Some("ICH9"));
    let places: Vec<_> = vm.drives.iter().map(Drive::address).collect();
    assert_eq!(places, ["nvme0:0", "scsi0:1"]);
    assert_eq!(vm.drives[1].file.as_ref().unwrap().written, "/vb/vms/dätä.vmdk");
    assert_eq!(vm.nics.len(), 2);
    assert_eq!(vm.nics[1].network.as_deref(), Some("natnet1"));
    assert_eq!(vm.unread, []);
    let messages: Vec<_> = vm.differences().into_iter().map(|note| note.message).collect();
    assert!(messages.iter().any(|message| message.starts_with("There is no TPM")), "{messages:?}");
}

#[test]
fn a_linked_clone_finds_its_image_without_a_registry() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("linked-clone.vbox"), folder.path().join("linked-clone.vbox")).unwrap();
    let vm = read_file(folder.path());
    assert_eq!(vm.drives[0].file.as_ref().unwrap().state, FileState::Missing);
    fs::create_dir(folder.path().join("Snapshots")).unwrap();
    let image = folder.path().join("Snapshots/{55a8026e-a91f-4171-9fb2-74ebc3f335d8}.vdi");
    fs::write(&image, "").unwrap();
    let vm = read_file(folder.path());
    assert_eq!(vm.drives[0].file.as_ref().unwrap().path, Some(image.canonicalize().unwrap()));
    assert_eq!(vm.to_spec().unwrap().disks.len(), 1);
}

#[test]
fn copies_in_an_older_schema_are_passed_over_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sample-bios.vbox", "sample-bios-1.19-linux.vbox"] {
        fs::copy(fixture(name), folder.path().join(name)).unwrap();
    }
    assert_eq!(read_file(folder.path()).version.as_deref(), Some("1.20-linux"));
    fs::copy(fixture("linked-clone.vbox"), folder.path().join("b.vbox")).unwrap();
    let error =
        crate::foreign::read(folder.path(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(
        error.ends_with("There are several VMs: name one of b.vbox, sample-bios.vbox"),
        "{error}"
    );
}

/// As deep as VirtualBox allows.
#[test]
fn two_hundred_and_fifty_snapshots_within_each_other_are_read() {
    let all = 0..250;
    let disks: String = all
        .clone()
        .map(|n| format!("<HardDisk uuid='{{{n}}}' location='{n}.vdi' format='VDI'>"))
        .collect();
    let snapshots: Vec<_> = all
        .clone()
        .map(|n| format!("<Snapshot uuid='{{s{n}}}' name='{n}' timeStamp='2024'><Hardware/>"))
        .collect();
    let vm = parsed(&format!(
        "<VirtualBox version='1.19-linux'><Machine uuid='{{a}}' name='deep' currentSnapshot='{{s249}}'>\
         <MediaRegistry><HardDisks>{disks}{}</HardDisks></MediaRegistry>{}</Snapshot>{}<Hardware>\
         <Memory RAMSize='512' PageFusion='true'/><StorageControllers><StorageController name='SATA' type='AHCI'>\
         <AttachedDevice type='HardDisk' port='0' device='0'><Image uuid='{{249}}'/></AttachedDevice>\
         </StorageController></StorageControllers></Hardware></Machine></VirtualBox>",
        "</HardDisk>".repeat(250),
        snapshots.join("<Snapshots>"),
        "</Snapshots></Snapshot>".repeat(249),
    ))
    .unwrap();
    assert_eq!((vm.snapshots.len(), vm.memory.hugepages), (250, false));
    assert!(vm.snapshots[249].current);
    let parents: Vec<_> = vm.drives[0].parents.iter().map(|one| one.written.as_str()).collect();
    assert_eq!((parents.len(), parents[0], parents[248]), (249, "248.vdi", "0.vdi"));
}

/// Written for this test after the schema of VirtualBox 2.
#[test]
fn the_attachments_of_version_2_are_read() {
    let vm = parsed(
        "<VirtualBox version='1.6-linux'><Machine uuid='{A}' name='old' OSType='Ubuntu'><Hardware><CPU count='1'/>\
         <Memory RAMSize='384'/><DVDDrive passthrough='false'/><FloppyDrive enabled='false'/></Hardware>\
         <HardDiskAttachments><HardDiskAttachment hardDisk='{B}' bus='IDE' channel='0' device='1'/>\
         </HardDiskAttachments></Machine></VirtualBox>",
    )
    .unwrap();
    let places: Vec<_> = vm.drives.iter().map(Drive::address).collect();
    assert_eq!(places, ["ide0:1", "ide1:0"]);
    assert_eq!((vm.architecture, vm.unread), (Architecture::X86, Vec::new()));
}

#[test]
fn encrypted_and_broken_vms_are_refused() {
    for (text, message) in [
        (
            "<VirtualBox version='1.19-linux'><MachineEncrypted uuid='{1}' name='box'/></VirtualBox>",
            "x.vbox:1:34: The VM box is encrypted; remove the encryption in VirtualBox first",
        ),
        ("<VirtualBox/>", "x.vbox:1:1: Expected <Machine> in <VirtualBox>"),
        ("<VirtualBox><Machine/></VirtualBox>", "x.vbox:1:13: Expected <Hardware> in <Machine>"),
        (
            "<VirtualBox><Machine><Hardware><Memory RAMSize='x'/></Hardware></Machine></VirtualBox>",
            "x.vbox:1:32: The attribute `RAMSize` of <Memory> is `x` instead of a number",
        ),
        (
            "<VirtualBox><Machine><Hardware><CPU count='5000'/></Hardware></Machine></VirtualBox>",
            "x.vbox: 5000 processors are not between 1 and 4096",
        ),
    ] {
        assert_eq!(parsed(text).unwrap_err().to_string(), message);
    }
    let text = fs::read_to_string(fixture("sample-bios.vbox")).unwrap();
    let text = text.replace(
        "format=\"VDI\" type=\"Normal\">",
        "format=\"VDI\" type=\"Normal\"><Property name=\"CRYPT/KeyStore\" value=\"x\"/>",
    );
    let vm = parsed(&text).unwrap();
    assert!(vm.drives[0].encrypted);
    assert!(vm.to_spec().unwrap_err().to_string().contains("is encrypted"));
}

proptest! {
    #[test]
    fn a_vbox_with_any_part_cut_out_is_survived(start in 0..5000_usize, length in 0..500_usize) {
        let text = fs::read_to_string(fixture("sample-bios-1.19-linux.vbox")).unwrap();
        let end = (start + length).min(text.len());
        let start = start.min(end);
        if let (Some(before), Some(after)) = (text.get(..start), text.get(end..)) {
            let _ = parsed(&format!("{before}{after}"));
        }
    }
}
