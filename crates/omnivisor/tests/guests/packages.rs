//! One guest as each platform would hand it over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{PROMPT, Workshop, path, sums, text};

#[path = "../../../disk/tests/formats/link_vhdx.rs"]
mod link_vhdx;
#[path = "../../../disk/tests/formats/make_vma.rs"]
mod make_vma;
#[path = "../../../spec/src/foreign/xen/maker.rs"]
mod xenapi;

/// The guest in all of them (`tests/guests/disk`).
pub const KIND: &str = "small-ext4";

/// A VM as a platform hands it over.
pub struct Package {
    /// What it is; its test on the software processor has the same name.
    pub name: &'static str,
    /// Packs the guest into the workshop's VM folder. `None` where what packs it cannot be had, which is said.
    pub pack: fn(&Workshop) -> Option<Packed>,
}

/// A VM that can be run.
pub struct Packed {
    /// What `run` is told.
    pub arguments: Vec<String>,
    /// What the guest says on its console.
    pub says: &'static str,
}

/// All of them.
pub const PACKAGES: [Package; 15] = [
    Package { name: "an_ova_with_a_stream_optimized_vmdk", pack: ova },
    Package { name: "a_vmx_with_a_sparse_vmdk", pack: |workshop| vmx(workshop, "vmdk") },
    Package {
        name: "a_vmx_with_a_split_vmdk",
        pack: |workshop| vmx(workshop, "vmdk,layout=split-sparse"),
    },
    Package { name: "a_machine_of_virtualbox_with_two_snapshots", pack: virtualbox },
    Package { name: "a_hyper_v_folder_with_a_chain_of_vhdx", pack: hyper_v },
    Package { name: "a_bundle_of_parallels", pack: parallels },
    Package { name: "a_configuration_of_xl_with_a_raw_disk", pack: xl },
    Package { name: "an_export_of_xenserver", pack: xenserver },
    Package { name: "a_domain_of_libvirt_with_a_chain_of_qcow2", pack: libvirt },
    Package { name: "a_configuration_of_proxmox_with_a_qcow2", pack: proxmox },
    Package { name: "a_backup_of_proxmox", pack: vzdump },
    Package { name: "a_box_of_vagrant_for_virtualbox", pack: box_of_virtualbox },
    Package { name: "a_box_of_vagrant_for_vmware", pack: box_of_vmware },
    Package { name: "a_box_of_vagrant_for_hyper_v", pack: box_of_hyper_v },
    Package { name: "a_box_of_vagrant_for_libvirt", pack: box_of_libvirt },
];

/// A VM that starts for the first time, without a network.
fn fresh(vm: &Path) -> Option<Packed> {
    Some(Packed { arguments: without_network(vm), says: "this is start 1;" })
}

fn without_network(vm: &Path) -> Vec<String> {
    [path(vm), "--net", "none"].map(str::to_owned).to_vec()
}

fn ova(workshop: &Workshop) -> Option<Packed> {
    stream_optimized(workshop);
    let ova = workshop.vm().join("web.ova");
    tar(&workshop.path(""), &ova, &["web.ovf", "web-disk1.vmdk"]);
    fresh(&ova)
}

/// Makes an OVF package of the guest beside the VM's folder.
fn stream_optimized(workshop: &Workshop) {
    let disk = workshop.path("web-disk1.vmdk");
    workshop.verb(&["convert", path(&workshop.raw), path(&disk), "--to", "vmdk,layout=stream"]);
    let ovf = ovf(fs::metadata(&disk).unwrap().len(), fs::metadata(&workshop.raw).unwrap().len());
    fs::write(workshop.path("web.ovf"), ovf).unwrap();
}

/// As `vagrant package` packs an export of VirtualBox.
fn box_of_virtualbox(workshop: &Workshop) -> Option<Packed> {
    stream_optimized(workshop);
    fs::rename(workshop.path("web.ovf"), workshop.path("box.ovf")).unwrap();
    let files = ["./Vagrantfile", "./box.ovf", "./metadata.json", "./web-disk1.vmdk"];
    pack_box(workshop, "{\"provider\":\"virtualbox\"}", &files)
}

/// As Packer packs a VM of VMware's.
fn box_of_vmware(workshop: &Workshop) -> Option<Packed> {
    let disk = workshop.path("web.vmdk");
    let to = "vmdk,layout=split-sparse";
    workshop.verb(&["convert", path(&workshop.raw), path(&disk), "--to", to]);
    fs::write(workshop.path("web.vmx"), VMX).unwrap();
    let files = ["./metadata.json", "./Vagrantfile", "./web.vmx", "./web.vmdk", "./web-s001.vmdk"];
    pack_box(workshop, "{\"provider\":\"vmware_desktop\"}", &files)
}

/// As Packer packs an export of Hyper-V's.
fn box_of_hyper_v(workshop: &Workshop) -> Option<Packed> {
    for name in ["Virtual Hard Disks", "Virtual Machines"] {
        fs::create_dir(workshop.path(name)).unwrap();
    }
    let disk = workshop.path("Virtual Hard Disks/web.vhdx");
    workshop.verb(&["convert", path(&workshop.raw), path(&disk), "--to", "vhdx"]);
    fs::write(workshop.path(HYPER_V_FILE), hyper_v_xml("web.vhdx")).unwrap();
    let files = ["metadata.json", "Vagrantfile", HYPER_V_FILE, "Virtual Hard Disks/web.vhdx"];
    pack_box(workshop, "{\"provider\":\"hyperv\"}", &files)
}

/// As vagrant-libvirt's `create_box.sh` packs an image.
fn box_of_libvirt(workshop: &Workshop) -> Option<Packed> {
    let image = workshop.path("box.img");
    workshop.verb(&["convert", path(&workshop.raw), path(&image), "--to", "qcow2"]);
    let metadata = "{\"provider\": \"libvirt\", \"format\": \"qcow2\", \"virtual_size\": 1}";
    pack_box(workshop, metadata, &["./metadata.json", "./Vagrantfile", "./box.img"])
}

fn pack_box(workshop: &Workshop, metadata: &str, files: &[&str]) -> Option<Packed> {
    fs::write(workshop.path("metadata.json"), metadata).unwrap();
    fs::write(workshop.path("Vagrantfile"), "Vagrant.configure('2') { |config| }\n").unwrap();
    let archive = workshop.vm().join("web");
    tar(&workshop.path(""), &archive, files);
    let status = Command::new("gzip").args(["--suffix", ".box", path(&archive)]).status();
    assert!(status.unwrap().success());
    fresh(&archive.with_extension("box"))
}

const VMX: &str = "config.version = \"8\"\nvirtualHW.version = \"19\"\ndisplayName = \"web\"\nguestOS = \"debian12-64\"\n\
     memsize = \"512\"\nscsi0.present = \"TRUE\"\nscsi0.virtualDev = \"pvscsi\"\nscsi0:0.present = \"TRUE\"\n\
     scsi0:0.fileName = \"web.vmdk\"\nethernet0.present = \"TRUE\"\nethernet0.virtualDev = \"vmxnet3\"\n\
     ethernet0.addressType = \"static\"\nethernet0.address = \"00:50:56:00:00:01\"\nethernet0.pciSlotNumber = \"192\"\n";

fn vmx(workshop: &Workshop, to: &str) -> Option<Packed> {
    workshop.convert("web.vmdk", to);
    workshop.write("web.vmx", VMX);
    // With its card, which keeps the name that its slot had given it.
    let arguments = vec![path(&workshop.vm()).to_owned()];
    Some(Packed { arguments, says: "this is start 1; cards: ens192 lo" })
}

fn hyper_v(workshop: &Workshop) -> Option<Packed> {
    fs::create_dir(workshop.vm().join("Virtual Hard Disks")).unwrap();
    let base = workshop.convert("Virtual Hard Disks/web.vhdx", "vhdx");
    let child = workshop.vm().join("Virtual Hard Disks/web_1.avhdx");
    let size = fs::metadata(&workshop.raw).unwrap().len().to_string();
    workshop.verb(&["disk", "create", path(&child), &size, "--to", "vhdx"]);
    link_vhdx::link_vhdx(&child, &base);
    workshop.write(HYPER_V_FILE, &hyper_v_xml("web_1.avhdx"));
    fresh(&workshop.vm())
}

/// Where Hyper-V puts a VM's description.
const HYPER_V_FILE: &str = "Virtual Machines/5fbaabe3-6958-40ff-92a7-860e329aab41.xml";

fn hyper_v_xml(disk: &str) -> String {
    let scsi = "73e0f0c5-c0bc-4e16-a458-0e1c388bfee3";
    format!(
        "<?xml version='1.0' encoding='UTF-8'?><configuration><properties><name type='string'>web</name>\
         <subtype type='integer'>1</subtype></properties><settings><processors><count type='integer'>1</count></processors>\
         <memory><bank><size type='integer'>512</size></bank></memory></settings><manifest><vdev001><instance type='string'>\
         {scsi}</instance><name type='string'>Synthetic SCSI Controller</name></vdev001></manifest><_{scsi}_><controller0>\
         <drive0><pathname type='string'>C:\\VMs\\web\\Virtual Hard Disks\\{disk}</pathname><type type='string'>VHD\
         </type></drive0></controller0></_{scsi}_></configuration>"
    )
}

fn parallels(workshop: &Workshop) -> Option<Packed> {
    fs::create_dir_all(workshop.vm().join("web.pvm/harddisk.hdd")).unwrap();
    workshop.convert("web.pvm/harddisk.hdd/0.hds", "parallels");
    let sectors = fs::metadata(&workshop.raw).unwrap().len() / 512;
    let top = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
    workshop.write(
        "web.pvm/harddisk.hdd/DiskDescriptor.xml",
        &format!(
            "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n<Disk_Parameters>\
             <Disk_size>{sectors}</Disk_size><Padding>0</Padding></Disk_Parameters>\n<StorageData><Storage><Start>0</Start>\
             <End>{sectors}</End><Blocksize>2048</Blocksize><Image><GUID>{top}</GUID><Type>Compressed</Type><File>0.hds</File>\
             </Image></Storage></StorageData>\n<Snapshots><Shot><GUID>{top}</GUID>\
             <ParentGUID>{{00000000-0000-0000-0000-000000000000}}</ParentGUID></Shot></Snapshots>\n</Parallels_disk_image>\n"
        ),
    );
    workshop.write(
        "web.pvm/config.pvs",
        "<?xml version='1.0' encoding='UTF-8'?><ParallelsVirtualMachine dyn_lists='' schemaVersion='1.0'>\
         <AppVersion>18.3.2-53621</AppVersion><Identification><VmName>web</VmName></Identification><Settings><General>\
         <OsType>9</OsType><OsNumber>2311</OsNumber></General></Settings><Hardware><Cpu><Number>1</Number></Cpu>\
         <Memory><RAM>512</RAM></Memory><Hdd id='0'><Index>0</Index><Enabled>1</Enabled><Connected>1</Connected>\
         <EmulatedType>1</EmulatedType><SystemName>harddisk.hdd</SystemName><InterfaceType>2</InterfaceType>\
         <StackIndex>0</StackIndex></Hdd></Hardware></ParallelsVirtualMachine>",
    );
    fresh(&workshop.vm().join("web.pvm"))
}

fn xl(workshop: &Workshop) -> Option<Packed> {
    workshop.convert("web.img", "raw");
    workshop.write(
        "web.cfg",
        "name = \"web\"\ntype = \"hvm\"\nmemory = 512\nvcpus = 1\nboot = \"c\"\ndisk = ['web.img,raw,xvda,rw']\n\
         vif = ['mac=00:16:3e:00:00:01,bridge=xenbr0']\n",
    );
    fresh(&workshop.vm().join("web.cfg"))
}

fn xenserver(workshop: &Workshop) -> Option<Packed> {
    let blocks = workshop.path("blocks");
    fs::create_dir_all(blocks.join("Ref:4")).unwrap();
    let size = fs::metadata(&workshop.raw).unwrap().len();
    fs::write(blocks.join("ova.xml"), ova_xml(size)).unwrap();
    // Blocks of 1 MiB; of those with zeroes only the last one is there.
    let split = "split -b 1M -d -a 8 --filter='cat >$FILE; cmp -s -n 1048576 $FILE /dev/zero && rm $FILE || \
                 sha1sum <$FILE | head -c 40 >$FILE.checksum' \"$1\" Ref:4/";
    let status = Command::new("sh")
        .args(["-c", split, "split", path(&workshop.raw)])
        .current_dir(&blocks)
        .status()
        .unwrap();
    assert!(status.success());
    let last = format!("Ref:4/{:08}", (size >> 20) - 1);
    fs::write(blocks.join(&last), vec![0; 1 << 20]).unwrap();
    let output =
        Command::new("sh").args(["-c", "find Ref:4 -type f | sort"]).current_dir(&blocks).output();
    let names = text(&output.unwrap().stdout);
    let xva = workshop.vm().join("web.xva");
    tar(&blocks, &xva, &std::iter::once("ova.xml").chain(names.lines()).collect::<Vec<_>>());
    fresh(&xva)
}

fn libvirt(workshop: &Workshop) -> Option<Packed> {
    let base = workshop.convert("base.qcow2", "qcow2");
    let (middle, top) = (workshop.vm().join("middle.qcow2"), workshop.vm().join("top.qcow2"));
    workshop.verb(&["disk", "create", path(&middle), "--parent", path(&base)]);
    workshop.verb(&["disk", "create", path(&top), "--parent", path(&middle)]);
    // A snapshot in the chain that holds something.
    let in_place = ["--net", "none", "--in-place", "--yes", "--disk", path(&top)];
    let console = workshop.boot(&in_place, PROMPT);
    assert!(console.contains("this is start 1;"), "{console}");
    let xml = workshop.write(
        "web.xml",
        &format!(
            "<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory><vcpu>1</vcpu><os><type arch='x86_64' \
             machine='pc-q35-7.2'>hvm</type></os><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk><interface type='network'>\
             <mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/></interface></devices></domain>",
            path(&top)
        ),
    );
    Some(Packed { arguments: without_network(&xml), says: "this is start 2;" })
}

/// What Proxmox VE writes of a VM with one disk.
const PROXMOX: &str = "boot: order=scsi0;net0\ncores: 1\nide2: none,media=cdrom\nmemory: 512\nmeta: creation-qemu=9.2.0,ctime=1720234045\n\
                       name: web\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\nnuma: 0\nostype: l26\n\
                       scsi0: local:100/vm-100-disk-0.qcow2,iothread=1,size=1G\nscsihw: virtio-scsi-single\nsockets: 1\n\
                       smbios1: uuid=03f72037-6d9e-46cd-8ea9-01f8cc736134\nvmgenid: d8364c27-171a-4f63-a31a-439a3374ff41\n";

fn proxmox(workshop: &Workshop) -> Option<Packed> {
    workshop.convert("vm-100-disk-0.qcow2", "qcow2");
    fresh(&workshop.write("100.conf", PROXMOX))
}

fn vzdump(workshop: &Workshop) -> Option<Packed> {
    let disk = fs::read(&workshop.raw).unwrap();
    let map = "#qmdump#map:scsi0:drive-scsi0:local:qcow2:\n";
    let bytes = make_vma::vma(&[("drive-scsi0", &disk)], &format!("{PROXMOX}{map}"));
    let path = workshop.vm().join("vzdump-qemu-100-2024_07_06-02_47_25.vma");
    fs::write(&path, bytes).unwrap();
    fresh(&path)
}

/// VirtualBox itself makes the machine and its snapshots (`tests/labs/vbox-lab`).
fn virtualbox(workshop: &Workshop) -> Option<Packed> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/vbox-lab");
    let prepared = Command::new(&lab).arg("--prepare").output().unwrap();
    if !prepared.status.success() {
        eprintln!("skipped: VirtualBox cannot be fetched: {}", text(&prepared.stderr));
        return None;
    }
    let folder = workshop.vm();
    let raw = workshop.path("disk.raw");
    let copied = Command::new("cp").arg("--sparse=always").arg(&workshop.raw).arg(&raw).status();
    assert!(copied.unwrap().success());
    let script = format!(
        "set -e
        VBoxManage convertfromraw '{raw}' '{0}/base.vdi' --format VDI
        VBoxManage createvm --name web --basefolder '{0}' --ostype Debian12_64 --register
        VBoxManage modifyvm web --memory 512 --nic1 nat
        VBoxManage storagectl web --name SATA --add sata
        VBoxManage storageattach web --storagectl SATA --port 0 --type hdd --medium '{0}/base.vdi'
        VBoxManage snapshot web take one
        VBoxManage snapshot web take two",
        path(&folder),
        raw = path(&raw),
    );
    let top = workshop.path("");
    let output =
        Command::new(&lab).args(["-b", path(&top), "--", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let vbox: PathBuf = folder.join("web/web.vbox");
    let images =
        sums(&folder).into_keys().filter(|path| path.extension().is_some_and(|end| end == "vdi"));
    assert_eq!(images.count(), 3);
    // The base lies beside the machine's folder, as a user may have put it.
    let arguments = [without_network(&vbox), vec!["--allow-outside".to_owned()]].concat();
    Some(Packed { arguments, says: "this is start 1;" })
}

/// Packs files as OVF tools do.
fn tar(folder: &Path, archive: &Path, files: &[&str]) {
    let tar = Command::new("tar")
        .args(["--format=ustar", "--no-recursion", "-cf", path(archive)])
        .args(files)
        .current_dir(folder)
        .status()
        .unwrap();
    assert!(tar.success());
}

fn ovf(size: u64, capacity: u64) -> String {
    let item = |id: u32, kind: u32, more: &str| {
        format!(
            "<Item><rasd:InstanceID>{id}</rasd:InstanceID><rasd:ResourceType>{kind}</rasd:ResourceType>{more}</Item>"
        )
    };
    let items = [
        item(1, 3, "<rasd:VirtualQuantity>1</rasd:VirtualQuantity>"),
        item(
            2,
            4,
            "<rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:VirtualQuantity>512</rasd:VirtualQuantity>",
        ),
        item(
            3,
            6,
            "<rasd:Address>0</rasd:Address><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>",
        ),
        item(
            4,
            17,
            "<rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>\
             <rasd:Parent>3</rasd:Parent>",
        ),
        item(
            5,
            10,
            "<rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:Connection>VM Network</rasd:Connection>\
             <rasd:ResourceSubType>E1000</rasd:ResourceSubType>",
        ),
    ];
    format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' \
         xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1' xmlns:rasd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/\
         CIM_ResourceAllocationSettingData' xmlns:vssd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/\
         CIM_VirtualSystemSettingData'>\n<References><File ovf:href='web-disk1.vmdk' ovf:id='file1' ovf:size='{size}'/></References>\n\
         <DiskSection><Info>Disks</Info><Disk ovf:capacity='{capacity}' ovf:diskId='vmdisk1' ovf:fileRef='file1' \
         ovf:format='http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized'/></DiskSection>\n\
         <NetworkSection><Info>Networks</Info><Network ovf:name='VM Network'/></NetworkSection>\n<VirtualSystem ovf:id='web'>\
         <Info>A VM</Info><Name>web</Name><VirtualHardwareSection><Info>Hardware</Info><System>\
         <vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType></System>{}\
         </VirtualHardwareSection></VirtualSystem></Envelope>\n",
        items.concat()
    )
}

/// The objects of XenAPI in an export.
fn ova_xml(size: u64) -> String {
    let vm = [
        ("name_label", "web"),
        ("memory_static_max", "536870912"),
        ("VCPUs_at_startup", "1"),
        ("VCPUs_max", "1"),
        ("is_a_snapshot", "<boolean>0</boolean>"),
        ("HVM_boot_policy", "BIOS order"),
        ("VBDs", &xenapi::array(["Ref:2"])),
    ];
    let disk = [("userdevice", "0"), ("type", "Disk"), ("bootable", "1"), ("VDI", "Ref:4")];
    let image = [("virtual_size", &*size.to_string()), ("name_label", "root")];
    xenapi::export(&[
        xenapi::object("VM", "Ref:1", &vm),
        xenapi::object("VBD", "Ref:2", &disk),
        xenapi::object("VDI", "Ref:4", &image),
    ])
}
