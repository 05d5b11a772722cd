use std::path::Path;

use proptest::prelude::*;

use super::super::description::{
    Bus, Controller, DriveKind, Firmware, FirmwareKind, NetworkCard, Platform, Virtualization,
};
use super::*;
use crate::{Smbios, Topology};

fn sample(words: &str) -> Description {
    let disk = |bus, unit, name: &str, format: &str| Drive {
        file: Some(FileRef::new(name, None, FileState::Missing)),
        format: Some(format.into()),
        capacity: Some(1 << 30),
        ..Drive::new(DriveKind::Disk, bus, 0, unit)
    };
    let mut vm = Description::new(Platform::Vmware, "vmx", "x");
    vm.name = Some(format!("web {words}"));
    vm.annotation = Some(words.into());
    vm.uuid = Some("564d1234-5678-9abc-def0-123456789abc".into());
    vm.memory.size = Some(2 << 30);
    (vm.cpus.count, vm.cpus.cores, vm.cpus.sockets) = (Some(4), Some(2), Some(2));
    vm.firmware =
        Firmware { kind: Some(FirmwareKind::Uefi), secure_boot: Some(true), ..Firmware::default() };
    vm.controllers =
        vec![Controller { bus: Bus::Scsi, index: 0, model: Some("pvscsi".into()), slot: None }];
    vm.drives = vec![
        disk(Bus::Scsi, 0, "a.vmdk", "vmdk"),
        disk(Bus::Sata, 1, &format!("b{words}.vmdk"), "vmdk"),
    ];
    vm.drives.push(Drive { readonly: true, ..Drive::new(DriveKind::Cdrom, Bus::Ide, 1, 0) });
    vm.nics = vec![NetworkCard {
        mac: "00:50:56:01:02:03".parse().ok(),
        model: Some("vmxnet3".into()),
        connection: Some("bridge".into()),
        network: Some("br0".into()),
        connected: true,
        ..NetworkCard::default()
    }];
    vm
}

/// What must arrive whatever the form.
fn essence(vm: &Description) -> String {
    let disks: Vec<_> = vm
        .drives
        .iter()
        .filter(|drive| drive.kind == DriveKind::Disk)
        // libvirt is told where the file is.
        .map(|drive| drive.file.as_ref()?.written.rsplit('/').next().map(str::to_owned))
        .collect();
    let macs: Vec<_> = vm.nics.iter().map(|nic| nic.mac).collect();
    let name = vm.name.as_deref().unwrap_or_default().trim();
    format!(
        "{name:?} {:?} {:?} {:?} {disks:?} {macs:?} {:?}",
        vm.cpus.count, vm.memory.size, vm.firmware.kind, vm.virtualization
    )
}

fn again(export: &Export, name: &str) -> Description {
    super::super::parse(export.text.as_bytes(), Path::new(name))
        .unwrap_or_else(|error| panic!("{error}\n{}", export.text))
        .remove(0)
}

#[test]
fn the_division_of_processors_is_written_as_far_as_a_form_has_words_for_it() {
    let mut vm = sample("plain");
    (vm.cpus.count, vm.cpus.threads) = (Some(8), Some(2));
    for (form, name, threads) in
        [(Form::Libvirt, "x.xml", 2), (Form::Ovf, "x.ovf", 1), (Form::Vmx, "x.vmx", 1)]
    {
        let export = export(&vm, form).unwrap();
        let expected = Topology { sockets: 2, cores: 4 / threads, threads };
        assert_eq!(again(&export, name).cpus.to_cpus(), expected.into(), "{form}");
        let told = export.lost.iter().any(|lost| lost.contains("threads"));
        assert_eq!(told, threads == 1, "{form}: {:?}", export.lost);
    }
    // Without what can be added while it runs, and as it is run here if it cannot be divided so.
    vm.cpus.maximum = Some(8);
    for (count, expected) in [(4, (1, 2, 2)), (3, (1, 3, 1))] {
        vm.cpus.count = Some(count);
        let found = vm.cpus.to_cpus().topology().unwrap();
        assert_eq!((found.sockets, found.cores, found.threads), expected);
    }
    let notes: Vec<_> = vm.differences().into_iter().map(|note| note.message).collect();
    let note =
        "Its 3 processors are cores of one socket: they cannot be sockets of 2 cores of 2 threads";
    assert!(notes.iter().any(|found| found == note), "{notes:?}");
}

#[test]
fn every_form_reads_as_what_was_written() {
    let vm = sample("plain");
    for (form, name) in
        [(Form::Libvirt, "x.xml"), (Form::Ovf, "x.ovf"), (Form::Vmx, "x.vmx"), (Form::Xl, "x.cfg")]
    {
        let export = export(&vm, form).unwrap();
        let read = again(&export, name);
        assert_eq!(essence(&read), essence(&vm), "{form}: {}", export.text);
        assert!(read.unread.is_empty(), "{form}: {:?}", read.unread);
    }
    let scsi = again(&export(&vm, Form::Vmx).unwrap(), "x.vmx").controllers.remove(0);
    assert_eq!(scsi.model.as_deref(), Some("pvscsi"));
    let libvirt = again(&export(&vm, Form::Libvirt).unwrap(), "x.xml");
    assert_eq!((libvirt.firmware.secure_boot, libvirt.cpus.sockets), (Some(true), Some(2)));
    assert_eq!(libvirt.nics[0].network.as_deref(), Some("br0"));
}

#[test]
fn units_of_a_scsi_bus_pass_over_vmwares_controller_and_stay_where_it_is_passed_over() {
    let mut vm = sample("");
    for (units, expected) in [([6, 8], [6, 8]), ([6, 7], [6, 8]), ([7, 8], [8, 9])] {
        for (drive, unit) in vm.drives.iter_mut().zip(units) {
            (drive.bus, drive.unit) = (Bus::Scsi, unit);
        }
        let read = again(&export(&vm, Form::Vmx).unwrap(), "x.vmx");
        assert_eq!([read.drives[0].unit, read.drives[1].unit], expected, "{units:?}");
    }
}

#[test]
fn what_a_form_cannot_say_is_told() {
    let mut vm = sample("");
    vm.tpm = Some("2.0".into());
    vm.device("sound", Some("hdaudio".into()));
    let lost = export(&vm, Form::Xl).unwrap().lost;
    for part in
        ["Xen does not read vmdk", "TPM", "The device sound (hdaudio) is left out", "Secure Boot"]
    {
        assert!(lost.iter().any(|sentence| sentence.contains(part)), "{part}: {lost:?}");
    }
    let error = export(&vm, Form::Toml).unwrap_err().to_string();
    assert!(
        error.ends_with("The file `a.vmdk` is not there. The file `b.vmdk` is not there"),
        "{error}"
    );
    assert_eq!(
        "zip".parse::<Form>().unwrap_err().to_string(),
        "`zip` is none of libvirt, ovf, xl, vmx and toml"
    );
    vm.virtualization = Virtualization::Pv;
    assert!(export(&vm, Form::Xl).unwrap().text.contains("type = \"pv\""));
}

/// Addresses of all drives.
fn addresses(vm: &Description) -> Vec<String> {
    vm.drives.iter().map(Drive::address).collect()
}

#[test]
fn topology_slots_controllers_and_an_ides_number_are_told_in_packages() {
    let mut vm = sample("");
    vm.controllers[0].model = Some("lsilogic virtio".into());
    (vm.nics[0].slot, vm.nics[0].model) = (Some(192), Some("82545EM".into()));
    vm.drives[2].connected = false;
    let read = again(&export(&vm, Form::Ovf).unwrap(), "x.ovf");
    assert_eq!((read.cpus.sockets, read.cpus.cores), (Some(2), Some(2)));
    assert_eq!((read.nics[0].slot, read.nics[0].model.as_deref()), (Some(192), Some("E1000")));
    assert_eq!(read.controllers[0].model.as_deref(), Some("lsilogic"));
    assert_eq!(addresses(&read), addresses(&vm));
    assert!(!read.drives[2].connected);
}

#[test]
fn qemus_newer_chipset_has_no_ide_and_the_older_one_two_buses() {
    let mut vm = sample("");
    let again = |vm: &Description| again(&export(vm, Form::Libvirt).unwrap(), "x.xml");
    // SATA's first two places are not free.
    vm.drives[0].bus = Bus::Sata;
    assert_eq!(addresses(&again(&vm)), ["sata0:0", "sata0:1", "sata0:2"]);
    assert_eq!(again(&vm).machine.as_deref(), Some("q35"));
    vm.firmware = Firmware::default();
    (vm.drives[0].bus, vm.drives[1].bus) = (Bus::Ide, Bus::Scsi);
    vm.drives.push(Drive::new(DriveKind::Floppy, Bus::Floppy, 0, 1));
    let read = again(&vm);
    assert_eq!(addresses(&read), addresses(&vm));
    assert_eq!(read.machine.as_deref(), Some("pc"));
    let targets: Vec<_> = read.drives.iter().filter_map(|drive| drive.target.as_deref()).collect();
    assert_eq!(targets, ["hda", "sda", "hdc", "fdb"]);
    // QEMU has no BusLogic, and one unit at each target of the wide controllers.
    let text = |model: &str, vm: &mut Description| {
        vm.controllers[0].model = Some(model.into());
        export(vm, Form::Libvirt).unwrap().text
    };
    assert!(text("pvscsi", &mut vm).contains("controller='0' bus='0' target='1' unit='0'"));
    let narrow = text("buslogic", &mut vm);
    assert!(narrow.contains("model='lsilogic'") && narrow.contains("target='0' unit='1'"));
}

#[test]
fn drives_that_move_to_another_bus_take_no_others_place() {
    let mut vm = sample("");
    vm.drives[2].bus = Bus::Sata;
    (vm.drives[2].controller, vm.drives[0].bus) = (0, Bus::Virtio);
    // sata0:0 is the CD-ROM's own, sata0:1 the second disk's: the first one comes from virtio.
    let read = again(&export(&vm, Form::Vmx).unwrap(), "x.vmx");
    assert_eq!(addresses(&read), ["sata0:0", "sata0:1", "sata0:2"]);
    let files: Vec<_> =
        read.drives.iter().map(|drive| drive.file.as_ref().map(|file| &*file.written)).collect();
    assert_eq!(files, [None, Some("b.vmdk"), Some("a.vmdk")]);
    let text = export(&vm, Form::Xl).unwrap().text;
    let names: Vec<_> = text.split("vdev=").skip(1).map(|rest| &rest[..4]).collect();
    assert_eq!(names, ["xvda", "xvdb", "hdc,"]);
    vm.drives[1] = Drive::new(DriveKind::Disk, Bus::Ide, 0, 0);
    let text = export(&vm, Form::Xl).unwrap().text;
    let names: Vec<_> = text.split("vdev=").skip(1).map(|rest| &rest[..4]).collect();
    assert_eq!(names, ["xvdb", "hda,", "hdc,"]);
}

#[test]
fn vmware_keeps_addresses_that_are_not_its_own() {
    let mut vm = sample("");
    for mac in ["00:50:56:01:02:03", "00:50:56:99:02:03", "52:54:00:01:02:03"] {
        vm.nics[0].mac = mac.parse().ok();
        let export = export(&vm, Form::Vmx).unwrap();
        let is_own = mac == "00:50:56:01:02:03";
        assert_eq!(export.text.contains("checkMACAddress = \"FALSE\""), !is_own, "{mac}");
        let read = again(&export, "x.vmx");
        assert_eq!((read.nics[0].mac, read.uuid), (vm.nics[0].mac, vm.uuid.clone()));
        assert!(read.unread.is_empty(), "{:?}", read.unread);
    }
}

#[test]
fn what_another_computer_keeps_is_left_out() {
    let mut vm = sample("");
    vm.drives[0].file = Some(FileRef::new("iqn=web", None, FileState::Remote));
    for form in [Form::Libvirt, Form::Ovf, Form::Xl, Form::Vmx] {
        let export = export(&vm, form).unwrap();
        assert!(!export.text.contains("iqn=web") && export.text.contains("b.vmdk"), "{form}");
        let told = "The drive scsi0:0 at `iqn=web` is left out";
        assert!(export.lost.iter().any(|one| one == told), "{form}: {:?}", export.lost);
    }
}

#[test]
fn a_guest_reads_the_same_uuid_and_what_else_it_reads_is_told() {
    let mut vm = sample("");
    let uuid: Uuid = "12345678-9abc-def0-1234-56789abcdef0".parse().unwrap();
    vm.smbios = Smbios {
        uuid: Some(uuid),
        serial: Some("S & 1".into()),
        oem_strings: vec!["a=<b>".into(), "c".into()],
    };
    for (form, name) in [(Form::Libvirt, "x.xml"), (Form::Xl, "x.cfg"), (Form::Vmx, "x.vmx")] {
        let export = export(&vm, form).unwrap();
        let read = again(&export, name);
        assert_eq!(read.smbios.uuid, Some(uuid), "{form}");
        assert!(read.unread.is_empty(), "{:?}", read.unread);
        let told = export.lost.iter().any(|one| one == "The serial number S & 1 is left out");
        assert_eq!(told, read.smbios != vm.smbios, "{form}: {:?}", export.lost);
    }
    let spec = vm.to_spec();
    vm.drives.clear();
    assert_eq!(spec.or_else(|_| vm.to_spec()).unwrap().smbios, vm.smbios);
}

#[test]
fn the_boot_order_is_told_in_each_forms_words() {
    let mut vm = sample("");
    vm.boot.order = ["Optical", "HardDrive", "Network"].map(String::from).to_vec();
    vm.firmware = Firmware::default();
    for (form, name, expected) in [
        (Form::Libvirt, "x.xml", ["cdrom", "hd", "network"]),
        (Form::Xl, "x.cfg", ["d", "c", "n"]),
        (Form::Vmx, "x.vmx", ["cdrom", "hdd", "ethernet0"]),
    ] {
        let export = export(&vm, form).unwrap();
        assert_eq!(again(&export, name).boot.order, expected, "{form}");
        assert!(!export.lost.iter().any(|one| one.contains("boot order")), "{:?}", export.lost);
    }
    vm.boot.order.push("Tape".into());
    for form in [Form::Libvirt, Form::Ovf, Form::Xl, Form::Vmx] {
        let lost = export(&vm, form).unwrap().lost;
        assert!(lost.iter().any(|one| one.contains("(Optical, HardDrive, Network, Tape)")));
    }
}

#[test]
fn memory_that_is_no_promise_is_not_exported() {
    let mut vm = sample("");
    vm.memory.maximum = Some(1 << 40);
    let most = |vm: &Description, form, name| again(&export(vm, form).unwrap(), name).memory;
    assert_eq!(most(&vm, Form::Libvirt, "x.xml").maximum, None);
    assert_eq!(most(&vm, Form::Xl, "x.cfg").maximum, None);
    vm.platform = Platform::Xen;
    vm.memory.maximum = Some(4 << 30);
    for (form, name) in [(Form::Libvirt, "x.xml"), (Form::Xl, "x.cfg")] {
        let memory = most(&vm, form, name);
        assert_eq!((memory.size, memory.maximum), (Some(2 << 30), Some(4 << 30)));
    }
}

proptest! {
    #[test]
    fn names_cannot_break_out_of_their_place(words in "[ -~ü\n]{0,20}") {
        let mut vm = sample(&words);
        // Trailing spaces of names are not kept by every form, and a name of a file has no slash.
        vm.name = vm.name.map(|name| name.replace(['\n', '/'], "-"));
        vm.drives[1].file = Some(FileRef::new(&format!("b{}.vmdk", words.replace(['\n', '/', '\\', '%'], "-")), None, FileState::Missing));
        for (form, name) in [(Form::Libvirt, "x.xml"), (Form::Ovf, "x.ovf"), (Form::Vmx, "x.vmx"), (Form::Xl, "x.cfg")] {
            let export = export(&vm, form).unwrap();
            prop_assert_eq!(essence(&again(&export, name)), essence(&vm), "{}: {}", form, export.text);
        }
    }
}
