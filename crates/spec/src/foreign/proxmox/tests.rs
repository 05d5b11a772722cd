//! The fixtures are written for these tests in the form that Proxmox VE writes.

use proptest::prelude::*;

use super::*;
use crate::foreign::{DriveKind, FileState, ReadOptions};

const WEB: &str = "#Serves the%3A web\n#second line\nagent: 1\nargs: -device x\nballoon: 1024\nbios: ovmf
boot: order=scsi0;ide2;net0\ncores: 2\ncpu: host,flags=+pcid\n\
efidisk0: local-lvm:vm-100-disk-1,efitype=4m,pre-enrolled-keys=1,size=4M\nhostpci0: 0000:01:00,pcie=1
ide2: local:iso/debian.iso,media=cdrom,size=2690412K\nmachine: q35\nmemory: 4096\nmeta: creation-qemu=9.0.2,ctime=1720234045
name: web\nnet0: virtio=BC:24:11:DD:D7:D2,bridge=vmbr0,firewall=1,tag=42\nnet1: e1000=BC:24:11:DD:D7:D3,link_down=1,mtu=1
numa: 0\nostype: l26\nparent: before\nscsi0: local:100/vm-100-disk-0.qcow2,iothread=1,size=70G,serial=a%20b
scsi1: ceph:vm-100-disk-2,size=1T\nscsi2: /dev/disk/by-id/x,ro=1,backup=0\nscsihw: virtio-scsi-single\nserial0: socket
smbios1: uuid=03f72037-6d9e-46cd-8ea9-01f8cc736134,serial=QS0x,base64=1\nsockets: 2\ntpmstate0: local-lvm:vm-100-disk-3,size=4M,version=v2.0
vcpus: 3\nvga: serial0\nvmgenid: d8364c27-171a-4f63-a31a-439a3374ff41

[PENDING]\nmemory: 8192

[before]\n#the update\ncores: 2\nsnaptime: 1720234045\n";

fn parsed(text: &str) -> Result<Description> {
    read(text, Path::new("100.conf"), &Folder::nowhere())
}

#[test]
fn a_vm_is_read() {
    assert!(looks_right(WEB));
    let vm = parsed(WEB).unwrap();
    assert_eq!((vm.name.as_deref(), vm.guest_os.as_deref()), (Some("web"), Some("l26")));
    assert_eq!(vm.annotation.as_deref(), Some("Serves the: web\nsecond line"));
    let cpus = &vm.cpus;
    assert_eq!(
        (cpus.count, cpus.maximum, cpus.sockets, cpus.cores),
        (Some(3), Some(4), Some(2), Some(2))
    );
    assert_eq!((vm.memory.size, vm.memory.minimum), (Some(4 << 30), Some(1 << 30)));
    assert_eq!((vm.firmware.kind, vm.firmware.secure_boot), (Some(FirmwareKind::Uefi), Some(true)));
    assert_eq!(vm.tpm.as_deref(), Some("2.0"));
    assert_eq!(vm.smbios.serial.as_deref(), Some("A-1"));
    assert_eq!(vm.uuid.as_deref(), Some("03f72037-6d9e-46cd-8ea9-01f8cc736134"));

    let drives: Vec<_> = vm
        .drives
        .iter()
        .map(|drive| {
            (drive.address(), drive.boot_order, drive.file.as_ref().unwrap().written.as_str())
        })
        .collect();
    assert_eq!(
        drives,
        [
            ("ide1:0".to_owned(), Some(2), "/var/lib/vz/template/iso/debian.iso"),
            ("scsi0:0".to_owned(), Some(1), "/var/lib/vz/images/100/vm-100-disk-0.qcow2"),
            ("scsi0:1".to_owned(), None, "ceph:vm-100-disk-2"),
            ("scsi0:2".to_owned(), None, "/dev/disk/by-id/x"),
        ]
    );
    assert_eq!(vm.drives[0].kind, DriveKind::Cdrom);
    assert_eq!(vm.drives[1].format.as_deref(), Some("qcow2"));
    assert_eq!(
        (vm.drives[1].capacity, vm.drives[1].serial.as_deref()),
        (Some(70 << 30), Some("a b"))
    );
    assert_eq!(vm.drives[2].file.as_ref().unwrap().state, FileState::Remote);
    assert!(vm.drives[3].readonly);
    assert_eq!(vm.controllers[1].model.as_deref(), Some("virtio-scsi-single"));

    assert_eq!(
        (vm.nics[0].model.as_deref(), vm.nics[0].network.as_deref()),
        (Some("virtio"), Some("vmbr0"))
    );
    assert_eq!(vm.nics[0].mac.unwrap().to_string(), "bc:24:11:dd:d7:d2");
    assert_eq!((vm.nics[1].connected, vm.nics[1].mtu, vm.nics[1].slot), (false, None, None));
    assert_eq!(vm.devices.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["pci"]);
    let unread: Vec<_> = vm.unread.iter().map(|one| (one.line, one.key.as_str())).collect();
    assert_eq!(unread, [(Some(4), "args"), (Some(17), "net0.tag")]);
    assert!(vm.notes[0].message.ends_with("not taken: memory"), "{:?}", vm.notes);
    let [snapshot] = &vm.snapshots[..] else { panic!("{:?}", vm.snapshots) };
    assert_eq!((snapshot.name.as_str(), snapshot.current), ("before", true));
    assert_eq!(snapshot.description.as_deref(), Some("the update"));
    assert_eq!(snapshot.created.as_deref(), Some("2024-07-06T02:47:25Z"));
}

#[test]
fn an_old_boot_order_and_a_few_words_are_enough() {
    let vm = parsed("boot: cdn\nbootdisk: virtio1\nmemory: 512\nvirtio0: a:b\nvirtio1: a:c\nide0: none,media=cdrom\nnet1: rtl8139=BC:24:11:DD:D7:D3\n").unwrap();
    assert_eq!((vm.name.as_deref(), vm.cpus.count), (Some("VM 100"), Some(1)));
    assert_eq!(
        vm.drives.iter().map(|drive| drive.boot_order).collect::<Vec<_>>(),
        [None, Some(1), None]
    );
    assert!(vm.drives[2].file.is_none());
    assert_eq!((vm.nics[0].slot, vm.nics[0].connection.as_deref()), (Some(19), Some("user")));
    let container =
        parsed("arch: amd64\ncores: 2\nmemory: 512\nrootfs: local-lvm:vm-101-disk-0,size=8G\n")
            .unwrap();
    assert!(container.to_spec().unwrap_err().to_string().contains("container"));
}

#[test]
fn volumes_are_where_the_hosts_storages_have_them() {
    let host = tempfile::tempdir().unwrap();
    let vms = host.path().join("nodes/one/qemu-server");
    std::fs::create_dir_all(&vms).unwrap();
    let storages = "dir: local\n\tpath /srv/pve/\n\tcontent iso,images\n\nlvmthin: fast\n\tthinpool data\n\tvgname nvme\n\n\
                    zfspool: tank\n\tpool tank/vms\n\tsparse\n\nnfs: nas\n\tserver 192.0.2.1\n\texport /vms\n\n\
                    btrfs: tree\n\tpath /srv/tree\n\nrbd: ceph\n\tpool rbd\n";
    std::fs::write(host.path().join("storage.cfg"), storages).unwrap();
    let written = |anywhere, volume: &str| {
        let folder = Folder::new(&vms, anywhere).unwrap();
        let volumes = Volumes::of_host(&folder, Path::new("100.conf"));
        volumes.locate(volume, &folder)
    };
    for (volume, path) in [
        ("local:100/vm-100-disk-0.qcow2", "/srv/pve/images/100/vm-100-disk-0.qcow2"),
        (
            "local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2",
            "/srv/pve/images/101/vm-101-disk-0.qcow2",
        ),
        ("local:iso/a.iso", "/srv/pve/template/iso/a.iso"),
        ("fast:vm-100-disk-1", "/dev/nvme/vm-100-disk-1"),
        ("fast:base-100-disk-0/vm-101-disk-0", "/dev/nvme/vm-101-disk-0"),
        ("tank:vm-100-disk-2", "/dev/zvol/tank/vms/vm-100-disk-2"),
        ("nas:100/vm-100-disk-3.raw", "/mnt/pve/nas/images/100/vm-100-disk-3.raw"),
        ("tree:100/vm-100-disk-4.raw", "/srv/tree/images/100/vm-100-disk-4/disk.raw"),
    ] {
        let file = written(true, volume);
        assert_eq!((file.written.as_str(), file.state), (path, FileState::Missing), "{volume}");
    }
    assert_eq!(written(true, "ceph:vm-100-disk-0").state, FileState::Remote);
    // Nobody has said that the host's own files may be read.
    assert_eq!(written(false, "fast:vm-100-disk-1").state, FileState::Remote);
    // What was copied beside the configuration is found there.
    std::fs::write(vms.join("vm-100-disk-1"), b"").unwrap();
    for anywhere in [false, true] {
        assert_eq!(
            written(anywhere, "fast:vm-100-disk-1").path.unwrap(),
            std::fs::canonicalize(vms.join("vm-100-disk-1")).unwrap()
        );
    }
}

#[test]
fn other_texts_are_not_taken_for_one() {
    for text in [
        "name: web\nmemory: 512\ncores: two words\n",
        "server:\n  - a\nboot: x\nmemory: 1\ncores: 1\n",
        "boot = \"cdn\"\nmemory = 512\ncores = 1\n",
        "",
    ] {
        assert!(!looks_right(text), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("100.conf"), WEB.replace("memory: 4096", "memory: lots"))
        .unwrap();
    let error =
        crate::foreign::read(folder.path(), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.ends_with("100.conf:14:1: `lots` is not a number (`memory`)"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "([a-z]{1,8}[0-9]{0,3}: [a-z0-9=,:/;]{0,20}\n|\\[[a-z]{0,4}\\]\n|#.{0,5}\n){0,12}") {
        let _ = (looks_right(&text), parsed(&text).map(|vm| (vm.to_spec(), vm.differences())));
    }
}
