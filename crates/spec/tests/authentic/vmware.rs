//! The `.vmx` files of libvirt's tests, many of them "in the wild", beside libvirt's own reading of them.

use spec::foreign::{Bus, Description, Drive, DriveKind, Form, ReadOptions, export, read};

use crate::data;

fn folder() -> Option<std::path::PathBuf> {
    data::debian_source("libvirt", "tests").map(|tests| tests.join("vmx2xmldata"))
}

#[test]
fn every_vmx_of_libvirt_is_read_as_libvirt_reads_it() {
    let Some(folder) = folder() else { return };
    let files = data::files(&folder, ".vmx");
    assert!(files.len() > 60, "{} files", files.len());
    let mut different = Vec::new();
    for path in files {
        let vms = read(&path, &ReadOptions::default())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let vm = &vms[0];
        let Ok(theirs) = std::fs::read_to_string(path.with_extension("xml")) else { continue };
        different.extend(
            compare(vm, &theirs).into_iter().map(|what| format!("{}: {what}", path.display())),
        );
    }
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn every_vmx_of_libvirt_is_the_same_after_an_export() {
    let Some(folder) = folder() else { return };
    let temporary = tempfile::tempdir().unwrap();
    for path in data::files(&folder, ".vmx") {
        let vm = read(&path, &ReadOptions::default()).unwrap().remove(0);
        for (form, name) in [(Form::Libvirt, "x.xml"), (Form::Xl, "x.cfg"), (Form::Vmx, "x.vmx")] {
            let file = temporary.path().join(name);
            let text = export(&vm, form).unwrap().text;
            std::fs::write(&file, &text).unwrap();
            let again = read(&file, &ReadOptions::default())
                .unwrap_or_else(|error| panic!("{}: {error}\n{text}", path.display()))
                .remove(0);
            assert_eq!(essence(&again), essence(&vm), "{}: {text}", path.display());
            assert!(again.unread.is_empty(), "{:?}", again.unread);
            let mut places: Vec<_> = again.drives.iter().map(Drive::address).collect();
            places.sort();
            places.dedup();
            assert_eq!(places.len(), again.drives.len(), "{}: {text}", path.display());
        }
    }
}

/// Processors, memory in units of 4 MiB, the names of disks, and the addresses of cards.
fn essence(vm: &Description) -> String {
    let is_disk = |drive: &&Drive| drive.kind == DriveKind::Disk;
    let files = vm.drives.iter().filter(is_disk).filter_map(|drive| drive.file.as_ref());
    let mut names: Vec<_> = files.map(|file| file.written.rsplit('/').next()).collect();
    names.sort();
    let memory = vm.memory.size.unwrap_or(512 << 20).div_ceil(4 << 20);
    let macs: Vec<_> = vm.nics.iter().map(|nic| nic.mac).collect();
    format!("{:?} {memory} {names:?} {macs:?}", vm.cpus.count)
}

#[test]
fn an_encrypted_vm_is_refused_by_name() {
    let Some(folder) = data::python_source("dissect.hypervisor", "3.13", "tests/data") else {
        return;
    };
    let error =
        read(&folder.join("encrypted.vmx"), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("The VM Encrypted VM is encrypted"), "{error}");
}

/// Where both do not say the same. libvirt's XML is read with a few words, not with our own reader of it.
fn compare(vm: &Description, theirs: &str) -> Vec<String> {
    let between = |start: &str, end: &str| {
        let at = theirs.find(start)? + start.len();
        theirs[at..].find(end).map(|length| theirs[at..at + length].to_owned())
    };
    let mut different = Vec::new();
    let mut same = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            different.push(format!("{what}: {ours} instead of {theirs}"));
        }
    };
    let cpus = theirs.split("<vcpu").nth(1).and_then(|rest| rest.split(['>', '<']).nth(1)).unwrap();
    same("processors", vm.cpus.count.unwrap().to_string(), cpus.into());
    let name = between("<name>", "</name>").unwrap();
    let name = name
        .replace("&gt;", ">")
        .replace("&lt;", "<")
        .replace("&quot;", "\"")
        .replace("&amp;", "&");
    same("name", vm.name.clone().unwrap_or("(NULL)".into()), name);
    if let Some(size) = vm.memory.size {
        same(
            "memory",
            (size >> 10).to_string(),
            between("<memory unit='KiB'>", "</memory>").unwrap(),
        );
    }
    // libvirt leaves out CD-ROMs without an image by rules of its own, and knows no NVMe.
    let disks: Vec<_> = vm
        .drives
        .iter()
        .filter(|drive| drive.kind == DriveKind::Disk && drive.bus != Bus::Nvme)
        .collect();
    same("disks", disks.len().to_string(), theirs.matches("device='disk'").count().to_string());
    let roms = vm.drives.iter().filter(|drive| drive.kind == DriveKind::Cdrom).count();
    same(
        "all CD-ROMs",
        (roms >= theirs.matches("device='cdrom'").count()).to_string(),
        "true".into(),
    );
    for name in disks.iter().filter_map(|drive| drive.file.as_ref()) {
        let name = name.written.rsplit('/').next().unwrap();
        same(name, theirs.contains(name).to_string(), "true".into());
    }
    same("cards", vm.nics.len().to_string(), theirs.matches("<interface ").count().to_string());
    for mac in vm.nics.iter().filter_map(|nic| nic.mac) {
        same(
            "address",
            theirs.contains(&format!("<mac address='{mac}'")).to_string(),
            "true".into(),
        );
    }
    different
}
