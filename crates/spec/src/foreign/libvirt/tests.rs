//! The fixture is written for these tests in the form that libvirt writes; `tests/authentic` reads libvirt's own.

use proptest::prelude::*;

use super::*;
use crate::foreign::{Bus, FileState, xml};

const DOMAIN: &str = "<domain type='kvm' id='3'>
  <name>web</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <metadata><l:libosinfo xmlns:l='u'><l:os id='http://debian.org/debian/12'/></l:libosinfo></metadata>
  <memory unit='GiB'>8</memory><currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/></firmware>
    <nvram>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram><boot dev='hd'/></os>
  <cpu mode='host-model'><topology sockets='1' dies='1' cores='2' threads='2'/></cpu>
  <on_crash>destroy</on_crash>
  <sysinfo type='smbios'><system><entry name='manufacturer'>Yard</entry><entry name='serial'>A-1</entry></system>
    <oemStrings><entry>io.systemd.credential:a=b</entry></oemStrings></sysinfo>
  <features><acpi/><kvm><hidden state='on'/></kvm></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='web.qcow2'/><backingStore type='file'><format type='raw'/><source file='base.img'/>
      <backingStore/></backingStore><target dev='vdb' bus='virtio'/><serial>S1</serial><boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x07' function='0x0'/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/image'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:6b:3c:58'/><source network='default'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <sound model='ich9'/>
  </devices>
</domain>";

fn parsed(text: &str) -> Result<Description> {
    let root = xml::parse(text.as_bytes(), "x.xml")?;
    read(&root, Path::new("x.xml"), &Folder::nowhere())
}

#[test]
fn all_that_is_said_arrives() {
    let vm = parsed(DOMAIN).unwrap();
    assert_eq!((vm.platform, vm.name.as_deref()), (Platform::Qemu, Some("web")));
    assert_eq!(vm.guest_os.as_deref(), Some("http://debian.org/debian/12"));
    assert_eq!(vm.smbios.uuid.map(String::from), vm.uuid);
    assert_eq!(vm.smbios.serial.as_deref(), Some("A-1"));
    assert_eq!(vm.smbios.oem_strings, ["io.systemd.credential:a=b"]);
    assert_eq!((vm.memory.size, vm.memory.maximum), (Some(2 << 30), Some(8 << 30)));
    assert_eq!((vm.cpus.count, vm.cpus.maximum, vm.cpus.threads), (Some(2), Some(4), Some(2)));
    assert_eq!((vm.firmware.kind, vm.firmware.secure_boot), (Some(FirmwareKind::Uefi), Some(true)));
    assert_eq!(vm.firmware.nvram.as_ref().unwrap().state, FileState::Refused);
    assert_eq!(vm.tpm.as_deref(), Some("2.0"));
    let disk = &vm.drives[0];
    assert_eq!(
        (disk.bus, disk.unit, disk.slot, disk.boot_order),
        (Bus::Virtio, 1, Some(7), Some(1))
    );
    assert_eq!((disk.format.as_deref(), disk.serial.as_deref()), (Some("qcow2"), Some("S1")));
    assert_eq!(
        disk.parents.iter().map(|one| one.written.as_str()).collect::<Vec<_>>(),
        ["base.img"]
    );
    let remote = vm.drives[1].file.as_ref().unwrap();
    assert_eq!((remote.written.as_str(), remote.state), ("rbd:pool/image", FileState::Remote));
    assert_eq!(vm.drives[2].address(), "ide1:0");
    assert_eq!((vm.nics[0].network.as_deref(), vm.nics[0].slot), (Some("default"), None));
    assert_eq!(vm.devices.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["sound"]);
    let unread: Vec<_> = vm.unread.iter().map(|one| (one.line, one.key.as_str())).collect();
    assert_eq!(
        unread,
        [(Some(11), "domain/sysinfo/system/entry"), (Some(13), "domain/features/kvm")]
    );
}

#[test]
fn wrong_domains_are_refused_with_their_place() {
    for (text, message) in [
        ("<domain/>", "x.xml:1:1: Expected a `type` in <domain>, such as kvm"),
        ("<domain type='z80'/>", "x.xml:1:1: The hypervisor `z80` is not known"),
        ("<domstatus/>", "x.xml:1:1: Expected <domain> in <domstatus>"),
        (
            "<domain type='kvm'>\n<memory unit='TiB'>1024</memory></domain>",
            "x.xml: More memory than 64 TiB is absurd",
        ),
        (
            "<domain type='kvm'>\n<memory unit='apples'>1</memory></domain>",
            "x.xml:2:1: The unit `apples` is not one of memory",
        ),
        (
            "<domain type='kvm'>\n<memory>much</memory></domain>",
            "x.xml:2:1: <memory> is `much` instead of a number",
        ),
    ] {
        assert_eq!(parsed(text).unwrap_err().to_string(), message);
    }
}

#[test]
fn disks_that_are_no_files_are_told() {
    let disk = |kind: &str, source: &str| {
        let text = format!(
            "<domain type='kvm'><clock offset='utc'><timer name='rtc'/></clock><devices><disk type='{kind}'>\
             <source {source}</source><target dev='vda'/></disk></devices></domain>"
        );
        parsed(&text).unwrap()
    };
    for (kind, source, name) in [
        ("nvme", "type='pci' namespace='1'><address bus='0x01'/>", "a PCI device of its host"),
        ("vhostuser", "type='unix' path='/tmp/v.sock'>", "vhost-user:/tmp/v.sock"),
    ] {
        let vm = disk(kind, source);
        let file = vm.drives[0].file.as_ref().unwrap();
        assert_eq!((file.written.as_str(), file.state), (name, FileState::Remote));
        assert!(vm.unread.is_empty(), "{:?}", vm.unread);
    }
    let vm = disk("file", "file='a'><slices><slice type='storage' offset='1' size='2'/></slices>");
    assert!(vm.to_spec().unwrap_err().to_string().contains("The disk vda is a part of its file"));
}

#[test]
fn forwarded_ports_and_folders_of_virtio_fs_are_taken_over() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let text = format!(
        "<domain type='kvm'><devices><interface type='user'><backend type='passt'/>\
         <portForward proto='tcp' address='127.0.0.1'><range start='2222' to='22'/><range start='80' end='81'/></portForward>\
         <portForward proto='udp'><range start='53'/></portForward>\
         <portForward proto='tcp'/><portForward proto='tcp'><range start='1' end='9000'/></portForward></interface>\
         <filesystem type='mount'><driver type='virtiofs'/><source dir='data'/><target dir='here'/><readonly/></filesystem>\
         <filesystem type='mount'><driver type='virtiofs'/><source dir='{}'/><target dir='there'/></filesystem>\
         <filesystem type='mount'><source dir='data'/><target dir='old'/></filesystem>\
         </devices></domain>",
        outside.path().display()
    );
    let read = |anywhere| {
        let within = Folder::new(folder.path(), anywhere).unwrap();
        let vm = read(&xml::parse(text.as_bytes(), "x.xml")?, Path::new("x.xml"), &within)?;
        assert!(vm.unread.is_empty(), "{:?}", vm.unread);
        assert_eq!(vm.notes.len(), 2, "{:?}", vm.notes);
        let spec = vm.to_spec()?;
        let forwards = spec.nics.unwrap()[0].forwards.clone();
        let forwards: Vec<_> = forwards.iter().map(ToString::to_string).collect();
        assert_eq!(
            forwards,
            ["127.0.0.1:2222:22", "127.0.0.1:80:80", "127.0.0.1:81:81", "53:53/udp"]
        );
        let shares: Vec<_> =
            spec.shares.iter().map(|share| (share.tag(), share.readonly)).collect();
        let told = vm.differences().into_iter().map(|note| note.message);
        Result::Ok((shares, told.filter(|told| told.starts_with("Not there")).collect::<Vec<_>>()))
    };
    let here = ("here".to_owned(), true);
    let (shares, told) = read(false).unwrap();
    assert_eq!(shares, std::slice::from_ref(&here));
    assert_eq!(told, ["Not there: shared folder old, shared folder there (--allow-outside)"]);
    let (shares, told) = read(true).unwrap();
    assert_eq!(shares, [here, ("there".to_owned(), false)]);
    assert_eq!(told, ["Not there: shared folder old"]);
}

#[test]
fn letters_count_as_disks_do() {
    for (letters, index) in [
        ("a", Some(0)),
        ("z", Some(25)),
        ("aa", Some(26)),
        ("", None),
        ("A", None),
        ("zzzzzzzz", None),
    ] {
        assert_eq!(letters_to_index(letters), index, "{letters}");
    }
}

proptest! {
    #[test]
    fn a_domain_with_any_part_cut_out_is_survived(start in 0..2400_usize, length in 0..300_usize) {
        let end = (start + length).min(DOMAIN.len());
        let start = start.min(end);
        let _ = parsed(&format!("{}{}", &DOMAIN[..start], &DOMAIN[end..]));
    }
}
