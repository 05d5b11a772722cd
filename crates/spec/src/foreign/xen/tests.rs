//! The fixtures are written for these tests after the manual pages; `tests/authentic` reads Xen's and libvirt's own.

use std::path::Path;

use proptest::prelude::*;

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileState, FirmwareKind, Level, Virtualization,
};
use super::super::folder::Folder;
use super::maker::{array, object, structure};
use super::*;
use crate::Result;
use crate::foreign::{ReadOptions, tar};

const HVM: &str = r#"# a guest
name = "win"
type = "hvm"; memory = 0x800
maxmem = 4096
vcpus = 4
firmware = 'uefi'
boot = "dc"
disk = [ '/srv/win.qcow2,qcow2,hda,rw', # the first
  "format=vhd, vdev=xvdb, access=ro, target=data, with comma.vhd",
  '/srv/dvd.iso,,hdc,cdrom', 'phy:/dev/vg/lv,sdb,w', 'tap2:aio:/srv/a.img,d5p0,r',
  ',hdd:cdrom,r' ]
vif = [ 'mac=00:16:3e:66:92:9c,bridge=br0,model=e1000,rate=1MB/s', '' ]
serial = "pty"
nestedhvm = 1
viridian = [ "base", "stimer" ]
vnc = 1
"#;

fn parsed(text: &str) -> Result<Description> {
    read_config(text, Path::new("x.cfg"), &Folder::nowhere())
}

fn sample(name: &str) -> String {
    maker::export(&[
        object(
            "VM",
            "Ref:1",
            &[
                ("uuid", "11111111-2222-3333-4444-555555555555"),
                ("name_label", name),
                ("memory_static_max", "2147483648"),
                ("VCPUs_at_startup", "2"),
                ("VCPUs_max", "4"),
                ("is_a_snapshot", "<boolean>0</boolean>"),
                ("HVM_boot_policy", "BIOS order"),
                ("HVM_boot_params", &structure(&[("order", "cd"), ("firmware", "uefi")])),
                ("platform", &structure(&[("secureboot", "true")])),
                ("VBDs", &array(["Ref:3", "Ref:2"])),
                ("VIFs", &array(["Ref:5"])),
            ],
        ),
        object(
            "VM",
            "Ref:9",
            &[("name_label", "before"), ("is_a_snapshot", "<boolean>1</boolean>")],
        ),
        object(
            "VBD",
            "Ref:2",
            &[("userdevice", "0"), ("type", "Disk"), ("bootable", "1"), ("VDI", "Ref:4")],
        ),
        object(
            "VBD",
            "Ref:3",
            &[("userdevice", "3"), ("type", "CD"), ("empty", "<boolean>1</boolean>")],
        ),
        object("VDI", "Ref:4", &[("virtual_size", "8589934592"), ("name_label", "root")]),
        object(
            "VIF",
            "Ref:5",
            &[("device", "0"), ("MAC", "aa:bb:cc:dd:ee:00"), ("MTU", "1500"), ("network", "Ref:6")],
        ),
        object("network", "Ref:6", &[("name_label", "Pool-wide network")]),
    ])
}

#[test]
fn a_configuration_of_xl_is_read_with_disks_of_every_form() {
    let vm = parsed(HVM).unwrap();
    assert_eq!((vm.name.as_deref(), vm.virtualization), (Some("win"), Virtualization::Full));
    assert_eq!((vm.memory.size, vm.memory.maximum), (Some(2 << 30), Some(4 << 30)));
    assert_eq!((vm.cpus.count, vm.cpus.nested), (Some(4), Some(true)));
    assert_eq!((vm.firmware.kind, vm.boot.order.concat()), (Some(FirmwareKind::Uefi), "dc".into()));
    let drives: Vec<_> = vm
        .drives
        .iter()
        .map(|drive| {
            let name = drive.file.as_ref().map_or("", |file| file.written.as_str());
            (drive.address(), drive.kind, name, drive.format.as_deref(), drive.readonly)
        })
        .collect();
    let expected = [
        ("ide0:0", DriveKind::Disk, "/srv/win.qcow2", Some("qcow2"), false),
        ("xen0:1", DriveKind::Disk, "data, with comma.vhd", Some("vhd"), true),
        ("ide1:0", DriveKind::Cdrom, "/srv/dvd.iso", Some("raw"), true),
        ("scsi0:1", DriveKind::Disk, "/dev/vg/lv", Some("raw"), false),
        ("xen0:5", DriveKind::Disk, "/srv/a.img", Some("raw"), true),
        ("ide1:1", DriveKind::Cdrom, "", None, true),
    ];
    assert_eq!(
        drives,
        expected.map(|(address, kind, name, format, readonly)| (
            address.to_owned(),
            kind,
            name,
            format,
            readonly
        ))
    );
    assert_eq!(vm.nics.len(), 2);
    assert_eq!(
        (vm.nics[0].model.as_deref(), vm.nics[0].network.as_deref()),
        (Some("e1000"), Some("br0"))
    );
    assert_eq!(vm.serials[0].backend.as_deref(), Some("pty"));
    let unread: Vec<_> =
        vm.unread.iter().map(|one| (one.line, one.key.as_str(), one.value.as_str())).collect();
    assert_eq!(unread, [(Some(15), "viridian", "base, stimer")]);
}

#[test]
fn paravirtual_guests_have_a_kernel_or_a_boot_loader() {
    let vm = parsed(
        "kernel='/boot/k'\nramdisk='/boot/i'\nroot='/dev/xvda1 ro'\nextra='quiet'\nmemory=128",
    )
    .unwrap();
    assert_eq!(vm.virtualization, Virtualization::Pv);
    assert_eq!(vm.boot.cmdline.as_deref(), Some("root=/dev/xvda1 ro quiet"));
    assert_eq!(vm.boot.kernel.as_ref().unwrap().state, FileState::Refused);
    let vm = parsed("bootloader='pygrub'\ntype='pvh'\ndisk=['file:/x.img,xvda1,w']").unwrap();
    assert_eq!(
        (vm.virtualization, vm.boot.bootloader.as_deref()),
        (Virtualization::Pvh, Some("pygrub"))
    );
    assert_eq!((vm.drives[0].bus, vm.drives[0].target.as_deref()), (Bus::Xen, Some("xvda1")));
    let firmware =
        |vm: &Description| vm.differences().iter().any(|one| one.message.contains("BIOS"));
    assert!(!firmware(&vm));
    let vm = parsed("kernel='/usr/lib/xen/boot/hvmloader'\nbuilder='hvm'\nmemory='64'").unwrap();
    assert_eq!((vm.virtualization, vm.boot.kernel), (Virtualization::Full, None));
}

#[test]
fn what_computes_in_python_is_told_and_not_run() {
    let text = "import os, re\narch = 'x'\nif re.search('64', arch):\n    arch_libdir = 'lib64'\nmemory = 64\nname = \"a\"\n";
    let vm = parsed(text).unwrap();
    assert_eq!(vm.memory.size, Some(64 << 20));
    assert!(
        vm.notes.iter().any(|note| note.level == Level::Warning && note.message.contains("Python"))
    );
    assert_eq!(vm.unread.iter().filter(|one| one.key == "statement").count(), 3);
}

#[test]
fn the_example_that_xm_came_with_is_read() {
    let text = "import os, re\narch = os.uname()[4]\nif re.search('64', arch):\n    arch_libdir = 'lib64'\nelse:\n    arch_libdir = 'lib'\n\
                kernel = \"/usr/lib/xen/boot/hvmloader\"\nbuilder='hvm'\nmemory = 128\nname = \"ExampleHVMDomain\"\n\
                vif = [ 'type=ioemu, bridge=xenbr0' ]\ndisk = [ 'phy:hda1,hda,r' ]\n\
                device_model = '/usr/' + arch_libdir + '/xen/bin/qemu-dm'\nsdl=0\n";
    let vm = parsed(text).unwrap();
    assert_eq!((vm.drives.len(), vm.nics.len(), vm.memory.size), (1, 1, Some(128 << 20)));
    let lines: Vec<_> = vm.unread.iter().map(|one| (one.line.unwrap(), one.key.as_str())).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 13].map(|line| (line, "statement")));
}

#[test]
fn the_line_is_known_again_behind_what_is_computed() {
    // The list is read up to its third line before it turns out to be none.
    let error = parsed("name = 'x'\nmemory = 64\nfound = [ # a % b\n 'a',\n '' U\n").unwrap_err();
    assert!(error.to_string().starts_with("x.cfg:4:"), "{error}");
}

#[test]
fn a_disk_of_a_script_is_no_file() {
    let text = "name = 'a'\nmemory = 64\ndisk = ['script=block-iscsi,vdev=xvda,target=iqn=iqn.2001-05.com.x:y,portal=1.2.3.4', \
                'specification=virtio,vdev=xvdb,target=b.img']\n";
    let vm = parsed(text).unwrap();
    let files: Vec<_> = vm.drives.iter().map(|drive| drive.file.clone().unwrap()).collect();
    assert_eq!((files[0].state, files[1].written.as_str()), (FileState::Remote, "b.img"));
}

#[test]
fn wrong_configurations_are_refused_with_their_line() {
    for (text, message) in [
        ("name = 'a", "x.cfg:1:1: The text has no closing quote"),
        ("\nmemory = [1", "x.cfg:2:1: Expected `,` or `]` in the list"),
        ("memory = [1,", "x.cfg:1:1: The list has no closing bracket"),
        ("memory = 'lots'", "x.cfg:1:1: The key `memory` is not a number"),
        ("memory = 99999999999999999999", "x.cfg:1:1: `99999999999999999999` is not a number"),
        ("vcpus = 5000", "x.cfg: 5000 processors are not between 1 and 4096"),
        ("name = a + b", "x.cfg:1:1: Expected a text, a number or a list instead of `a`"),
        ("a = 1 2", "x.cfg:1:1: Expected the end of the line after the value"),
        ("what is this", "x.cfg:1:1: Expected `KEY = VALUE` instead of `w`"),
        ("type = 'lxc'", "x.cfg:1:1: A guest of type `lxc` is not known: expected pv, pvh or hvm"),
        (
            "disk = ['a.img,raw']",
            "x.cfg:1:1: The disk `a.img,raw` does not say which one it is (such as xvda)",
        ),
        ("disk = ['a.img,zip,xvda']", "x.cfg:1:1: The format `zip` of a disk is not known"),
        ("vif = ['nonsense']", "x.cfg:1:1: Expected `key=value` in the network card `nonsense`"),
    ] {
        let error = parsed(text).map(|vm| format!("{vm:?}")).unwrap_err().to_string();
        assert_eq!(error, message, "{text}");
    }
}

#[test]
fn the_json_of_libxl_is_read() {
    let text = br#"[{"domid": 3, "config": {"c_info": {"type": "hvm", "name": "g", "uuid": "u"},
      "b_info": {"max_vcpus": 4, "avail_vcpus": [0, 1], "max_memkb": 2097152, "target_memkb": 1048576,
        "type.hvm": {"bios": "ovmf", "boot": "c", "nested_hvm": "True"}, "strange": 7},
      "disks": [{"pdev_path": "/srv/g.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1},
                {"pdev_path": "", "vdev": "hdc", "format": "empty", "is_cdrom": 1, "readwrite": 0}],
      "nics": [{"devid": 0, "mac": "00:16:3e:66:12:b4", "bridge": "br0", "nictype": "vif"}]}}]"#;
    let vm = read_json(text, Path::new("x.json"), &Folder::nowhere()).unwrap().remove(0);
    assert_eq!((vm.cpus.count, vm.cpus.maximum), (Some(2), Some(4)));
    assert_eq!((vm.memory.size, vm.memory.maximum), (Some(1 << 30), Some(2 << 30)));
    assert_eq!((vm.firmware.kind, vm.cpus.nested), (Some(FirmwareKind::Uefi), Some(true)));
    assert_eq!(vm.drives.iter().map(Drive::address).collect::<Vec<_>>(), ["xen0:0", "ide1:0"]);
    assert_eq!((vm.drives[1].kind, vm.drives[1].file.as_ref()), (DriveKind::Cdrom, None));
    assert_eq!(vm.nics[0].model.as_deref(), Some("netfront"));
    assert_eq!(
        vm.unread.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(),
        ["b_info.strange"]
    );
    for (text, message) in [
        ("{", "x.json:1:1: This is not JSON: EOF while parsing an object at line 1 column 1"),
        ("{}", "x.json: Expected `c_info`: this is no configuration of libxl"),
        ("[1]", "x.json: Expected an object for each domain"),
        ("{\"c_info\":{},\"disks\":[{}]}", "x.json: Expected `vdev` in a disk"),
    ] {
        let error =
            read_json(text.as_bytes(), Path::new("x.json"), &Folder::nowhere()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

/// Written for this test after the XenAPI's classes: no export may be given away.
#[test]
fn an_export_of_xenserver_is_read_from_its_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.xva");
    let xml = sample("web &amp; more");
    std::fs::write(
        &path,
        tar::tests::archive(&[("ova.xml", xml.as_bytes()), ("Ref:4/00000000", b"block")]),
    )
    .unwrap();
    let vm = crate::foreign::read(&path, &ReadOptions::default()).unwrap().remove(0);
    assert_eq!(
        (vm.name.as_deref(), vm.product.as_deref()),
        (Some("web & more"), Some("XenServer 8.2.0"))
    );
    assert_eq!((vm.memory.size, vm.cpus.count, vm.cpus.maximum), (Some(2 << 30), Some(2), Some(4)));
    assert_eq!((vm.firmware.kind, vm.firmware.secure_boot), (Some(FirmwareKind::Uefi), Some(true)));
    let disk = &vm.drives[0];
    assert_eq!(
        (disk.kind, disk.capacity, disk.boot_order),
        (DriveKind::Disk, Some(8 << 30), Some(1))
    );
    let file = disk.file.as_ref().unwrap();
    assert_eq!((file.written.as_str(), file.state), ("Ref:4", FileState::Member));
    assert_eq!((vm.drives[1].kind, vm.drives[1].file.as_ref()), (DriveKind::Cdrom, None));
    assert_eq!(vm.nics[0].network.as_deref(), Some("Pool-wide network"));
    assert_eq!(vm.snapshots.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["before"]);
    for (from, to, message) in [
        ("objects", "things", "Expected `objects`: this is no export of XenServer"),
        (">VM<", ">Nothing<", "There is no VM among the objects"),
        ("2147483648", "much", "`memory_static_max` is `much` instead of a number"),
    ] {
        let error =
            crate::foreign::parse(sample("a").replace(from, to).as_bytes(), Path::new("ova.xml"))
                .unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

proptest! {
    #[test]
    fn any_configuration_is_survived(
        text in "((name|disk|vif|memory|x) ?\\+?= ?(\"[a-z:,]{0,8}\"?|'|\\[|\\]|,|0x1f|09|-1|\"\"\"|#|;|\\\\|\n| ){0,6}\n?){0,6}"
    ) {
        let _ = parsed(&text);
    }

    #[test]
    fn any_disk_is_survived(text in "(format=|vdev=|target=|xvd|hd[a-z]{1,3}|:|,|raw|phy:|w|d1p0| ){0,12}") {
        let _ = devices::disk(&text, &Folder::nowhere());
    }
}
