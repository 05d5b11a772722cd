//! A `.vmcx` and a `.VMRS` that Hyper-V wrote, from the test data of dissect.

use spec::foreign::{DriveKind, FirmwareKind, ReadOptions, is_description, read};

use crate::data;

#[test]
fn what_hyper_v_wrote_is_read() {
    let Some(folder) = data::python_source("dissect.hypervisor", "3.13", "tests/data") else {
        return;
    };
    let vm = read(&folder.join("test.vmcx"), &ReadOptions::default()).unwrap().remove(0);
    assert_eq!(vm.name.as_deref(), Some("Other Location"));
    assert_eq!(vm.uuid.as_deref(), Some("282874fc-59d6-4f30-bc04-5fdd909c82e0"));
    assert_eq!(
        (vm.machine.as_deref(), vm.firmware.kind),
        (Some("generation 1"), Some(FirmwareKind::Bios))
    );
    assert_eq!((vm.cpus.count, vm.memory.size), (Some(1), Some(1 << 30)));
    let disk = &vm.drives[0];
    assert_eq!((disk.kind, disk.address().as_str()), (DriveKind::Disk, "ide0:0"));
    let path = r"C:\Users\Public\Documents\Hyper-V\Virtual Hard Disks\Other Location.vhdx";
    assert_eq!(disk.file.as_ref().unwrap().written, path);
    assert!(
        vm.drives.iter().any(|drive| drive.kind == DriveKind::Cdrom && drive.address() == "ide1:0")
    );
    assert_eq!((vm.nics.len(), vm.nics[0].connected), (1, false));
    assert_eq!(vm.boot.order, ["Optical", "HardDrive", "Network", "Floppy"]);
    // Of what is not understood, nothing is the host's business.
    let unread: Vec<_> = vm.unread.iter().map(|one| one.key.as_str()).collect();
    assert!(!unread.is_empty() && unread.len() < 40, "{unread:#?}");
    let mut of_host = unread.iter().filter(|key| key.starts_with("global_settings/"));
    assert_eq!(of_host.next(), None);
    // The state of a running VM is no description, and is told apart from one.
    let state = folder.join("test.VMRS");
    assert!(is_description(&state));
    let error = read(&state, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("this is a VM's runtime state"), "{error}");
}

/// The log still has what Hyper-V wrote last, though it does not count any more: here, it does.
#[test]
fn the_log_that_hyper_v_wrote_is_replayed() {
    const LOG: usize = 0xa000;
    let Some(folder) = data::python_source("dissect.hypervisor", "3.13", "tests/data") else {
        return;
    };
    let mut bytes = std::fs::read(folder.join("test.vmcx")).unwrap();
    let name = |bytes: &[u8]| {
        let vms = spec::foreign::parse(bytes, std::path::Path::new("test.vmcx"));
        vms.map(|vms| vms[0].name.clone().unwrap())
    };
    assert_eq!(name(&bytes).unwrap(), "Other Location");
    // The place that the first entry is about.
    bytes[0x3000..0x3752].fill(0xff);
    assert!(name(&bytes).is_err());
    bytes[LOG + 8] = 1;
    bytes[LOG + 4..LOG + 8].fill(0);
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[LOG..LOG + 34]);
    bytes[LOG + 4..LOG + 8].copy_from_slice(&sum.sum().to_le_bytes());
    assert_eq!(name(&bytes).unwrap(), "Other Location");
}
