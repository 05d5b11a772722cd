//! The fixtures are written for these tests in the form that VMware's products write.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::foreign::{Bus, DriveKind, ReadOptions};

const WORKSTATION: &str = r#"#!/usr/bin/vmware
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "web |22one|22"
annotation = "first|0Asecond"
guestOS = "debian11-64"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
vtpm.present = "TRUE"
nvram = "web.nvram"
memsize = "4096"
numvcpus = "4"
cpuid.coresPerSocket = "2"
vhv.enable = "TRUE"
uuid.bios = "56 4d 12 34 56 78 9a bc-de f0 12 34 56 78 9a bc"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0.pciSlotNumber = "160"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web-000002.vmdk"
SCSI0:1.PRESENT = "true"
scsi0:1.fileName = "/vmfs/volumes/ds1/web/data.vmdk"
scsi0:1.mode = "independent-nonpersistent"
scsi0:2.present = "TRUE"
scsi0:2.fileName = "../other/stolen.vmdk"
scsi0:3.fileName = "absent.vmdk"
nvme0.present = "TRUE"
nvme0:0.present = "TRUE"
nvme0:0.fileName = "fast.vmdk"
ide1:0.present = "TRUE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "debian.iso"
ide1:0.startConnected = "FALSE"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:9a:9c:7a"
ethernet0.pciSlotNumber = "192"
serial0.present = "TRUE"
serial0.fileType = "file"
serial0.fileName = "serial.log"
sound.present = "TRUE"
sound.virtualDev = "hdaudio"
pciBridge0.present = "TRUE"
sched.cpu.shares = "normal"
"#;

const SNAPSHOTS: &str = r#".encoding = "UTF-8"
snapshot.lastUID = "2"
snapshot.current = "2"
snapshot0.uid = "1"
snapshot0.filename = "web-Snapshot1.vmsn"
snapshot0.displayName = "clean"
snapshot0.createTimeHigh = "372653"
snapshot0.createTimeLow = "-1254174976"
snapshot1.uid = "2"
snapshot1.parent = "1"
snapshot1.displayName = "patched"
snapshot.numSnapshots = "2"
"#;

fn parsed(text: &str) -> Result<Description> {
    parse(text.as_bytes(), Path::new("web.vmx"), &Folder::nowhere())
}

#[test]
fn all_that_is_said_arrives() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["web-000002.vmdk", "data.vmdk", "debian.iso", "web.nvram"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::write(folder.path().join("web.vmx"), WORKSTATION).unwrap();
    fs::write(folder.path().join("web.vmsd"), SNAPSHOTS).unwrap();
    let vm = crate::foreign::read(folder.path(), &ReadOptions::default()).unwrap().remove(0);
    assert_eq!(vm.name.as_deref(), Some("web \"one\""));
    assert_eq!(vm.annotation.as_deref(), Some("first\nsecond"));
    assert_eq!(vm.uuid.as_deref(), Some("564d1234-5678-9abc-def0-123456789abc"));
    // Hardware of version 13 and later: kb 53609.
    let guest = vm.smbios.uuid.unwrap().to_string();
    assert_eq!(guest, "34124d56-7856-bc9a-def0-123456789abc");
    let serial = "VMware-56 4d 12 34 56 78 9a bc-de f0 12 34 56 78 9a bc";
    assert_eq!(vm.smbios.serial.as_deref(), Some(serial));
    assert_eq!(vm.memory.size, Some(4 << 30));
    assert_eq!((vm.cpus.count, vm.cpus.cores, vm.cpus.sockets), (Some(4), Some(2), Some(2)));
    assert_eq!((vm.firmware.kind, vm.firmware.secure_boot), (Some(FirmwareKind::Uefi), Some(true)));
    assert_eq!(vm.firmware.nvram.as_ref().unwrap().state, FileState::Present);
    assert_eq!(vm.tpm.as_deref(), Some("2.0"));
    let drives: Vec<_> = vm
        .drives
        .iter()
        .map(|drive| (drive.address(), drive.kind, drive.file.as_ref().unwrap().state))
        .collect();
    let expected = [
        ("scsi0:0", DriveKind::Disk, FileState::Present),
        ("scsi0:1", DriveKind::Disk, FileState::Moved),
        ("scsi0:2", DriveKind::Disk, FileState::Refused),
        ("nvme0:0", DriveKind::Disk, FileState::Missing),
        ("ide1:0", DriveKind::Cdrom, FileState::Present),
    ];
    assert_eq!(drives, expected.map(|(address, kind, state)| (address.to_owned(), kind, state)));
    assert!(vm.drives[1].volatile && !vm.drives[4].connected);
    let scsi = vm.controllers.iter().find(|one| one.bus == Bus::Scsi).unwrap();
    assert_eq!((scsi.model.as_deref(), scsi.slot), (Some("pvscsi"), Some(160)));
    let nic = &vm.nics[0];
    assert_eq!(nic.mac.unwrap().to_string(), "00:50:56:9a:9c:7a");
    assert_eq!((nic.slot, nic.network.as_deref()), (Some(192), Some("VM Network")));
    assert_eq!(vm.serials[0].target.as_deref(), Some("serial.log"));
    let snapshots: Vec<_> = vm
        .snapshots
        .iter()
        .map(|one| (one.name.as_str(), one.parent.as_deref(), one.current))
        .collect();
    assert_eq!(snapshots, [("clean", None, false), ("patched", Some("1"), true)]);
    assert_eq!(vm.snapshots[0].created.as_deref(), Some("2020-09-19T17:11:28Z"));
    let unread: Vec<_> = vm.unread.iter().map(|one| (one.line, one.key.as_str())).collect();
    assert_eq!(unread, [(Some(27), "scsi0:3.fileName")]);
    let error = vm.to_spec().unwrap_err().to_string();
    assert!(error.contains("`../other/stolen.vmdk` lies outside of the VM's folder"), "{error}");
}

#[test]
fn what_runs_here_has_the_connected_disks_and_cards() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.vmdk", "b.iso"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let text = "config.version = \"8\"\nmemsize = \"256\"\nide0:0.present = \"TRUE\"\nide0:0.fileName = \"b.iso\"\n\
                ide0:1.present = \"TRUE\"\nide0:1.fileName = \"a.vmdk\"\nethernet0.present = \"TRUE\"\n";
    let path = folder.path().join("x.vmx");
    fs::write(&path, text).unwrap();
    let vm = crate::foreign::read(&path, &ReadOptions::default()).unwrap().remove(0);
    let spec = vm.to_spec().unwrap();
    let names: Vec<_> = spec
        .disks
        .iter()
        .map(|disk| (disk.path.file_name().unwrap().to_str().unwrap(), disk.readonly))
        .collect();
    assert_eq!(names, [("a.vmdk", false), ("b.iso", true)]);
    assert_eq!(spec.nics.as_ref().unwrap().len(), 1);
    assert_eq!(spec.memory.size(), crate::Size::mebibytes(256));
    spec.validate().unwrap();
    let messages: Vec<_> = vm.differences().into_iter().map(|note| note.message).collect();
    assert!(
        messages.iter().any(|message| message.contains("virtio instead of ide")),
        "{messages:?}"
    );
}

#[test]
fn what_runs_another_way_is_told_and_what_runs_the_same_is_not() {
    let told = |text: &str| {
        let vm = parse(text.as_bytes(), Path::new("x.vmx"), &Folder::nowhere()).unwrap();
        let notes = vm.differences().into_iter().map(|note| note.message);
        notes.filter(|note| !note.starts_with("Its BIOS")).collect::<Vec<_>>()
    };
    let machine = "memsize = \"256\"\nnumvcpus = \"4\"\nethernet0.present = \"TRUE\"\nserial0.present = \"TRUE\"\n";
    let plain = "cpuid.coresPerSocket = \"4\"\nethernet0.connectionType = \"nat\"\n";
    assert_eq!(told(&format!("{machine}{plain}")), Vec::<String>::new());
    let other = "cpuid.coresPerSocket = \"3\"\nethernet0.networkName = \"VM Network\"\nserial1.present = \"TRUE\"\n\
                 ethernet0.startConnected = \"FALSE\"\nethernet1.present = \"TRUE\"\nethernet1.connectionType = \"bridged\"\n";
    let own =
        "Network cards are on a network of their own with DHCP, behind this computer's address";
    assert_eq!(
        told(&format!("{machine}{other}")),
        [
            "Its 4 processors are cores of one socket: they cannot be 2 sockets of 3 cores"
                .to_owned(),
            format!("{own}, instead of bridged"),
            "The network card 0 is not connected, and not there".to_owned(),
            "Not there: COM2".to_owned(),
        ]
    );
}

#[test]
fn a_vm_that_is_open_elsewhere_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vmx");
    let text = "memsize = \"256\"\ncleanShutdown = \"FALSE\"\n";
    fs::write(&path, text).unwrap();
    let read = || crate::foreign::read(&path, &ReadOptions::default()).unwrap().remove(0);
    let lock = folder.path().join("x.vmx.lck");
    fs::create_dir(&lock).unwrap();
    assert!(read().to_spec().is_ok());
    assert!(read().notes[0].message.starts_with("It ran in VMware"));
    assert!(read().unread.is_empty());
    for lock in [lock.join("M12345.lck"), folder.path().join(".lck-4503000000000000")] {
        fs::write(&lock, "").unwrap();
        let error = read().to_spec().unwrap_err().to_string();
        assert!(error.contains("open in VMware"), "{error}");
        fs::remove_file(&lock).unwrap();
    }
}

#[test]
fn the_bios_starts_from_the_disk_that_it_was_told() {
    let text = "memsize = \"256\"\nsata0.present = \"TRUE\"\nsata0:0.present = \"TRUE\"\nsata0:0.fileName = \"a.vmdk\"\n\
                sata0:1.present = \"TRUE\"\nsata0:1.fileName = \"b.vmdk\"\nbios.hddOrder = \"sata0:1,scsi9:9\"\n";
    let parse =
        |text: &str| parse(text.as_bytes(), Path::new("x.vmx"), &Folder::nowhere()).unwrap();
    let vm = parse(text);
    let order: Vec<_> = vm.drives.iter().map(|drive| drive.boot_order).collect();
    assert_eq!((order, vm.unread.len()), (vec![None, Some(1)], 0));
    let export = crate::foreign::export(&vm, crate::foreign::Form::Vmx).unwrap();
    assert_eq!(parse(&export.text).drives[1].boot_order, Some(1));
}

#[test]
fn other_encodings_are_read() {
    let mut text = b".encoding = \"windows-1252\"\ndisplayName = \"b".to_vec();
    text.extend([0xfc, b'r', b'o', b'"', b'\n']);
    let vm = parse(&text, Path::new("x.vmx"), &Folder::nowhere()).unwrap();
    assert_eq!(vm.name.as_deref(), Some("büro"));
}

#[test]
fn broken_files_are_refused_with_their_line() {
    for (text, message) in [
        ("a = \"1\"\nb", "web.vmx:2:1: Expected `key = \"value\"`"),
        ("memsize = \"4096", "web.vmx:1:1: The value has no closing quote"),
        ("memsize = \"1\" \"2\"", "web.vmx:1:1: Expected nothing after the closing quote"),
        ("\nmemsize = \"lots\"", "web.vmx:2:1: `lots` is not a number (`memsize`)"),
        ("memsize = \"-4\"", "web.vmx:1:1: It has no memory (`memsize`)"),
        ("numvcpus = \"0\"", "web.vmx: 0 processors are not between 1 and 4096"),
        ("memsize = \"9223372036854775807\"", "web.vmx: More memory than 64 TiB is absurd"),
        (
            "firmware = \"coreboot\"",
            "web.vmx:1:1: The firmware is `coreboot` instead of efi or bios (`firmware`)",
        ),
        (
            "scsi0.present = \"maybe\"",
            "web.vmx:1:1: `maybe` is neither TRUE nor FALSE (`scsi0.present`)",
        ),
        (
            "displayName = \"box\"\nencryption.keySafe = \"vmware:key/list\"",
            "web.vmx:2:1: The VM box is encrypted; remove the encryption in VMware first (`encryption.keySafe`)",
        ),
    ] {
        assert_eq!(parsed(text).unwrap_err().to_string(), message, "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, Path::new("x.vmx"), &Folder::nowhere());
    }

    #[test]
    fn any_lines_are_survived(
        text in "((scsi|ide|sata|ethernet|serial)[0-3](:[0-9])?\\.(present|fileName|mode) = \"(TRUE|a|\\||\\|2)\"\n){0,20}"
    ) {
        let _ = parsed(&text);
    }
}
