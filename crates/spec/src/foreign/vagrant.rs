//! Boxes of Vagrant's: a VM of another platform, or libvirt's disks alone, with `metadata.json` and a Vagrantfile. A box is a tar
//! archive, mostly compressed by gzip; `vagrant box add` unpacks it to `~/.vagrant.d/boxes/NAME/VERSION/PROVIDER`.
//!
//! Sources: Vagrant's documentation of the box format, and `handle_box_image.rb` of vagrant-libvirt. The Vagrantfile is a program in Ruby, which
//! is not executed; one line of it is read.

use std::path::Path;

use serde_json::Value;

use super::description::{
    Bus, Description, Drive, DriveKind, FileRef, Level, NetworkCard, Platform, mac,
};
use super::folder::Folder;
use super::read::{ReadOptions, of_platform, parse_within, read as read_description};
use super::tar::Archive;
use super::{hyperv, ovf, text};
use crate::{MacAddress, Result};

/// What says whose VM is in a box.
pub(crate) const METADATA: &str = "metadata.json";
/// What Vagrant is told about the VM.
const VAGRANTFILE: &str = "Vagrantfile";
/// More disks are not taken from one box.
const MOST_DISKS: usize = 100;
/// What vagrant-libvirt gives to a VM that says nothing.
const USUAL_MEMORY: u64 = 512 << 20;

/// Whether a file is called as boxes are.
pub(crate) fn is_box(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("box"))
}

/// Whether a text is the metadata of a box.
pub(crate) fn is_metadata(text: &str, path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == METADATA)
        && text.trim_start().starts_with('{')
        && text.contains("\"provider\"")
}

/// Reads the metadata of a box that `vagrant box add` has unpacked, and the VM beside it.
pub(crate) fn read(
    bytes: &[u8],
    path: &Path,
    folder: &Folder,
    options: &ReadOptions,
) -> Result<Vec<Description>> {
    let metadata = Metadata::parse(bytes, path)?;
    let vagrantfile = folder.find(VAGRANTFILE).and_then(|path| text::read_file(&path).ok());
    let vagrantfile = vagrantfile.unwrap_or_default();
    if metadata.provider == "libvirt" {
        let locate = |name: &str| folder.locate(name, &[]);
        let mut vm = metadata.libvirt(path, name_in(folder.path()), &locate)?;
        as_box(&mut vm, &vagrantfile);
        return Ok(vec![vm]);
    }
    let bundle = folder.names()?.into_iter().find(|name| name.ends_with(".pvm"));
    let inner = match bundle {
        Some(bundle) => folder.find(Path::new(&bundle).join("config.pvs")),
        None => of_platform(folder.path(), folder)?,
    };
    let missing =
        || text::error(path, format!("There is no VM of {} beside it", metadata.provider));
    let mut vms = read_description(&inner.ok_or_else(missing)?, options)?;
    vms.iter_mut().for_each(|vm| as_box(vm, &vagrantfile));
    Ok(vms)
}

/// Reads the metadata alone.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Description> {
    let metadata = Metadata::parse(bytes, path)?;
    if metadata.provider != "libvirt" {
        return Err(text::error(path, "The VM is described beside it"));
    }
    metadata.libvirt(path, None, &|name| Folder::nowhere().locate(name, &[]))
}

/// Reads a box as it is.
pub(crate) fn read_box(
    archive: Archive,
    path: &Path,
    options: &ReadOptions,
) -> Result<Vec<Description>> {
    let metadata = Metadata::parse(&archive.read(METADATA)?, &path.join(METADATA))?;
    let vagrantfile = archive.read(VAGRANTFILE).unwrap_or_default();
    let mut vms = match metadata.provider.as_str() {
        "libvirt" => {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            vec![metadata.libvirt(path, name, &|name| archive.locate(name))?]
        }
        "virtualbox" => ovf::read_archive(archive, path, "box", options)?,
        "hyperv" => read_member(archive, path, &["vmcx", "xml"])?,
        "vmware_desktop" | "vmware_fusion" | "vmware_workstation" | "vmware" => {
            read_member(archive, path, &["vmx"])?
        }
        provider => {
            let message = format!(
                "A box of {provider} is read once it was unpacked: `tar -xf` it to a folder, and name that"
            );
            return Err(text::error(path, message));
        }
    };
    vms.iter_mut().for_each(|vm| as_box(vm, &vagrantfile));
    Ok(vms)
}

/// Reads the description in a box whose name has one of these endings; what comes first counts.
fn read_member(archive: Archive, path: &Path, endings: &[&str]) -> Result<Vec<Description>> {
    let is_described = |name: &&str, ending: &&str| {
        let name = Path::new(name);
        name.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
            && name.parent().is_none_or(|folder| !folder.ends_with("Snapshots"))
    };
    let found = endings.iter().find_map(|ending| {
        let name = archive.names().find(|name| is_described(name, ending))?;
        Some(name.to_owned())
    });
    let Some(name) = found else {
        let message = format!("There is no .{} in this box", endings.join(" or ."));
        return Err(text::error(path, message));
    };
    let folder = Folder::in_archive(&archive, hyperv::folder_of(Path::new(&name)));
    let mut vms = parse_within(&archive.read(&name)?, &path.join(&name), &folder)?;
    for vm in &mut vms {
        (vm.file, vm.format) = (path.to_owned(), "box".to_owned());
    }
    Ok(vms)
}

/// `~/.vagrant.d/boxes/NAME/VERSION/PROVIDER`, since Vagrant 2.4 with an architecture before the provider: NAME.
fn name_in(folder: &Path) -> Option<String> {
    let names: Vec<_> = folder.iter().map(|name| name.to_string_lossy()).collect();
    let boxes = names.windows(2).rposition(|pair| pair == [".vagrant.d", "boxes"])?;
    Some(names.get(boxes + 2)?.replace("-VAGRANTSLASH-", "-"))
}

/// Adds what is true of all boxes.
fn as_box(vm: &mut Description, vagrantfile: &[u8]) {
    if let Some(first) = vm.nics.first_mut() {
        first.mac = first.mac.or_else(|| base_mac(&text::decode_named(vagrantfile, None)));
    }
    vm.note(
        Level::Info,
        "As a box of Vagrant's it lets everybody in: user and password are usually `vagrant`. Its Vagrantfile is not executed",
    );
}

/// The address that Vagrant gives to the first card, from a line like `config.vm.base_mac = "080027D14C66"`.
fn base_mac(vagrantfile: &str) -> Option<MacAddress> {
    vagrantfile.lines().find_map(|line| {
        let (config, value) = line.trim().split_once(".vm.base_mac")?;
        let value = value.trim_start().strip_prefix('=')?.trim();
        let digits = ['"', '\''].iter().find_map(|quote| {
            value.strip_prefix(*quote).and_then(|value| value.strip_suffix(*quote))
        });
        let is_name = config.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
        mac(digits?).filter(|_| is_name)
    })
}

/// What we need of `metadata.json`.
struct Metadata {
    provider: String,
    disks: Vec<BoxDisk>,
}

struct BoxDisk {
    file: String,
    format: Option<String>,
}

impl Metadata {
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let wrong = |message: &str| text::error(path, message);
        let found: Value = serde_json::from_slice(bytes)
            .map_err(|error| text::error(path, format!("It is no JSON: {error}")))?;
        let provider = found["provider"].as_str();
        let provider = provider.ok_or_else(|| wrong("Expected a text as `provider`"))?;
        // The second form of the metadata has a list.
        let disks: Option<Vec<_>> = match &found["disks"] {
            Value::Array(disks) if disks.len() > MOST_DISKS => {
                return Err(wrong("More than 100 disks are absurd"));
            }
            Value::Array(disks) => disks.iter().map(|disk| BoxDisk::new(disk, None)).collect(),
            _ => BoxDisk::new(&found, Some("box.img")).map(|only| vec![only]),
        };
        let disks = disks.ok_or_else(|| wrong("Expected the `path` of each of `disks`"))?;
        Ok(Self { provider: provider.to_owned(), disks })
    }

    /// The VM that vagrant-libvirt makes of it.
    fn libvirt(
        &self,
        path: &Path,
        name: Option<String>,
        locate: &dyn Fn(&str) -> FileRef,
    ) -> Result<Description> {
        let mut vm = Description::new(Platform::Qemu, "box", path);
        vm.name = name;
        vm.cpus.count = Some(1);
        vm.memory.size = Some(USUAL_MEMORY);
        for (unit, disk) in (0..).zip(&self.disks) {
            vm.drives.push(Drive {
                file: Some(locate(&disk.file)),
                format: disk.format.clone(),
                ..Drive::new(DriveKind::Disk, Bus::Virtio, 0, unit)
            });
        }
        vm.nics.push(NetworkCard {
            model: Some("virtio".into()),
            connected: true,
            ..NetworkCard::default()
        });
        vm.checked()
    }
}

impl BoxDisk {
    fn new(of: &Value, usual: Option<&str>) -> Option<Self> {
        // `virtual_size` is that of the volume which the image is copied over.
        Some(Self {
            file: of["path"].as_str().or(usual)?.to_owned(),
            format: of["format"].as_str().map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::foreign::description::FileState;
    use crate::foreign::tar::tests::archive;
    use crate::foreign::{is_description, read};

    const OVF: &[u8] = include_bytes!("../../tests/fixtures/ovf/sample20.ovf");

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn only(path: &Path) -> Description {
        assert!(is_description(path), "{}", path.display());
        let mut vms = read(path, &ReadOptions::default()).unwrap();
        assert_eq!(vms.len(), 1);
        vms.remove(0)
    }

    fn message(path: &Path) -> String {
        read(path, &ReadOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_box_of_libvirt_holds_disks_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = br#"{"provider": "libvirt", "format": "qcow2", "virtual_size": 20}"#;
        let second = br#"{"provider": "libvirt", "disks": [
            {"path": "root.img", "format": "qcow2"}, {"path": "data.img", "format": "qcow2"}]}"#;
        let old = archive(&[("./metadata.json", first), ("./box.img", b"disk")]);
        let new = archive(&[("metadata.json", second), ("root.img", b"r"), ("data.img", b"d")]);
        let path = folder.path().join("web.box");
        for bytes in [old.clone(), gzip(&old)] {
            fs::write(&path, bytes).unwrap();
            let vm = only(&path);
            assert_eq!((vm.name.as_deref(), vm.drives.len()), (Some("web"), 1));
            let drive = &vm.drives[0];
            assert_eq!((drive.bus, drive.format.as_deref()), (Bus::Virtio, Some("qcow2")));
            assert_eq!(drive.disk_path(), Some(path.join("box.img")));
            assert_eq!(vm.unread, []);
        }
        fs::write(&path, gzip(&new)).unwrap();
        let drives = only(&path).drives;
        let paths: Vec<_> = drives.iter().filter_map(Drive::disk_path).collect();
        assert_eq!(paths, [path.join("root.img"), path.join("data.img")]);
        assert_eq!(drives[1].unit, 1);
    }

    #[test]
    fn a_box_of_virtualbox_is_an_ovf_package() {
        let folder = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 4] = [
            ("./Vagrantfile", b"Vagrant.configure('2') {}"),
            ("./box.ovf", OVF),
            ("./metadata.json", br#"{"provider":"virtualbox"}"#),
            ("./sample-bios-disk001.vmdk", b"disk"),
        ];
        let path = folder.path().join("web.box");
        fs::write(&path, gzip(&archive(&files))).unwrap();
        let vm = only(&path);
        assert_eq!((vm.platform, vm.format.as_str()), (Platform::Virtualbox, "box"));
        let drive = vm.drives.iter().find(|drive| drive.file.is_some()).unwrap();
        assert_eq!(drive.disk_path(), Some(path.join("sample-bios-disk001.vmdk")));
        assert!(vm.notes.iter().any(|note| note.message.contains("`vagrant`")));
    }

    #[test]
    fn a_box_of_vmware_names_the_disk_beside_its_description() {
        let folder = tempfile::tempdir().unwrap();
        let vmx = b"displayName = \"web\"\nmemsize = \"512\"\nscsi0.present = \"TRUE\"\nscsi0:0.present = \"TRUE\"\n\
                    scsi0:0.fileName = \"disk.vmdk\"\nscsi0:1.present = \"TRUE\"\nscsi0:1.fileName = \"/etc/passwd\"\n";
        let files: [(&str, &[u8]); 3] = [
            ("metadata.json", br#"{"provider": "vmware_desktop"}"#),
            ("./web.vmx", vmx),
            ("./disk.vmdk", b"disk"),
        ];
        let path = folder.path().join("web.box");
        fs::write(&path, gzip(&archive(&files))).unwrap();
        let vm = only(&path);
        assert_eq!((vm.name.as_deref(), vm.platform), (Some("web"), Platform::Vmware));
        let paths: Vec<_> = vm.drives.iter().map(Drive::disk_path).collect();
        assert_eq!(paths, [Some(path.join("disk.vmdk")), None]);
    }

    #[test]
    fn a_box_of_hyper_v_names_a_disk_in_another_folder() {
        let folder = tempfile::tempdir().unwrap();
        let scsi = "73e0f0c5-c0bc-4e16-a458-0e1c388bfee3";
        let xml = format!(
            "<configuration><properties><name type='string'>web</name></properties><settings/><manifest><vdev001>\
             <instance type='string'>{scsi}</instance><name type='string'>Synthetic SCSI Controller</name></vdev001>\
             </manifest><_{scsi}_><controller0><drive0><pathname type='string'>C:\\VMs\\Virtual Hard Disks\\web.vhdx\
             </pathname><type type='string'>VHD</type></drive0></controller0></_{scsi}_></configuration>"
        );
        let files: [(&str, &[u8]); 3] = [
            ("metadata.json", br#"{"provider": "hyperv"}"#),
            ("Virtual Hard Disks/web.vhdx", b"disk"),
            ("Virtual Machines/web.xml", xml.as_bytes()),
        ];
        let path = folder.path().join("web.box");
        fs::write(&path, gzip(&archive(&files))).unwrap();
        let vm = only(&path);
        assert_eq!((vm.name.as_deref(), vm.platform), (Some("web"), Platform::Hyperv));
        let disk = path.join("Virtual Hard Disks/web.vhdx");
        assert_eq!(vm.drives[0].disk_path(), Some(disk));
    }

    #[test]
    fn what_box_add_has_unpacked_is_read_as_a_folder() {
        let base = tempfile::tempdir().unwrap();
        let boxes = base.path().join(".vagrant.d/boxes/debian-VAGRANTSLASH-bookworm64/12.1/amd64");
        let make = |provider: &str, name: &str, content: &[u8]| {
            let folder = boxes.join(provider);
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            let metadata = format!("{{\"provider\": \"{provider}\"}}");
            fs::write(folder.join(METADATA), metadata).unwrap();
            folder
        };
        let vm = only(&make("libvirt", "box.img", b"disk"));
        assert_eq!(vm.name.as_deref(), Some("debian-bookworm64"));
        assert_eq!(vm.drives[0].file.as_ref().unwrap().state, FileState::Present);
        assert_eq!(only(&make("virtualbox", "box.ovf", OVF)).platform, Platform::Virtualbox);
        let vmx = b"displayName = \"web\"\nmemsize = \"512\"\n";
        assert_eq!(only(&make("vmware_desktop", "web.vmx", vmx)).platform, Platform::Vmware);
        let parallels = make(
            "parallels",
            "box.pvm/config.pvs",
            b"<ParallelsVirtualMachine><Hardware/></ParallelsVirtualMachine>",
        );
        assert_eq!(only(&parallels).platform, Platform::Parallels);
        let alone = make("hyperv", "Vagrantfile", b"");
        assert!(message(&alone).contains("There is no VM of hyperv beside it"));
    }

    #[test]
    fn the_first_card_has_the_address_that_the_vagrantfile_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.box");
        let address = |vagrantfile: &str| {
            let metadata = br#"{"provider": "libvirt"}"#;
            let files: [(&str, &[u8]); 2] =
                [("metadata.json", metadata), ("Vagrantfile", vagrantfile.as_bytes())];
            fs::write(&path, archive(&files)).unwrap();
            only(&path).nics[0].mac.map(|mac| mac.to_string())
        };
        let said = address(
            "Vagrant.configure('2') do |config|\n  config.vm.base_mac = \"080027D14C66\"\nend\n",
        );
        assert_eq!(said.as_deref(), Some("08:00:27:d1:4c:66"));
        for other in [
            "# config.vm.base_mac = \"080027D14C66\"",
            "config.vm.base_mac = system(\"080027D14C66\")",
            "config.vm.base_mac = \"080027D14C6\"",
            "puts 1; config.vm.base_mac = \"080027D14C66\"",
        ] {
            assert_eq!(address(other), None, "{other}");
        }
    }

    #[test]
    fn other_archives_and_other_metadata_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.box");
        let metadata = |text: &str| archive(&[("metadata.json", text.as_bytes())]);
        for (bytes, expected) in [
            (metadata("{"), "It is no JSON"),
            (metadata("[]"), "Expected a text as `provider`"),
            (metadata(r#"{"provider": "libvirt", "disks": [{}]}"#), "Expected the `path`"),
            (metadata(r#"{"provider": "parallels"}"#), "read once it was unpacked: `tar -xf`"),
            (metadata(r#"{"provider": "vmware_desktop"}"#), "There is no .vmx in this box"),
            (gzip(b"no archive"), "ends within a header"),
            (b"\xfd7zXZ\0".to_vec(), "as it is or compressed by gzip"),
            (b"\x28\xb5\x2f\xfd".to_vec(), "as it is or compressed by gzip"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(is_description(&path));
            let found = message(&path);
            assert!(found.contains(expected), "{found}");
        }
        fs::write(folder.path().join(METADATA), r#"{"name": "of another program"}"#).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!is_description(folder.path()));
    }
}
