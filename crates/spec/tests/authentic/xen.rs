//! Configurations of Xen's own examples and of libvirt's tests, beside libvirt's reading of them.

use std::path::Path;

use spec::foreign::{Description, DriveKind, ReadOptions, read};

use crate::data;

#[test]
fn every_configuration_of_libvirts_tests_is_read_as_libvirt_reads_it() {
    let Some(tests) = data::debian_source("libvirt", "tests") else { return };
    let mut different = Vec::new();
    let mut count = 0;
    for folder in ["xlconfigdata", "xmconfigdata"] {
        for path in data::files(&tests.join(folder), ".cfg") {
            let vms =
                read(&path, &ReadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
            let Ok(theirs) = std::fs::read_to_string(path.with_extension("xml")) else { continue };
            compare(&vms[0], &theirs, &path, &mut different);
            count += 1;
        }
    }
    assert!(count > 70, "{count} files");
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn the_json_of_libvirts_tests_is_read_as_libvirt_reads_it() {
    let Some(tests) = data::debian_source("libvirt", "tests") else { return };
    let mut different = Vec::new();
    let files = data::files(&tests.join("libxlxml2domconfigdata"), ".json");
    assert!(files.len() > 10, "{} files", files.len());
    for path in files {
        let vms = read(&path, &ReadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        let theirs = std::fs::read_to_string(path.with_extension("xml")).unwrap();
        compare(&vms[0], &theirs, &path, &mut different);
    }
    assert!(different.is_empty(), "{different:#?}");
}

/// libvirt's XML is read by our own reader of it, which other tests compare with its text.
fn compare(ours: &Description, theirs: &str, path: &Path, different: &mut Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("domain.xml");
    std::fs::write(&file, theirs).unwrap();
    let theirs = read(&file, &ReadOptions::default()).unwrap().remove(0);
    let mut same = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            different.push(format!("{}: {what}: {ours} instead of {theirs}", path.display()));
        }
    };
    let disks = |vm: &Description| {
        let mut disks: Vec<_> = vm
            .drives
            .iter()
            .filter(|drive| drive.kind == DriveKind::Disk)
            // libvirt takes QEMU's options of a remote disk apart.
            .map(|drive| {
                (
                    drive.target.clone(),
                    drive.file.as_ref().map(|file| file.written.replace(":auth_", "\0")),
                )
            })
            .map(|(target, file)| {
                (target, file.map(|file| file.split('\0').next().unwrap().to_owned()))
            })
            .collect();
        disks.sort();
        format!("{disks:?}")
    };
    // Cards of the host that are passed through are PCI devices to libxl.
    let cards = |vm: &Description| {
        let own = vm.nics.iter().filter(|nic| nic.connection.as_deref() != Some("hostdev"));
        format!("{:?}", own.map(|nic| nic.mac).collect::<Vec<_>>())
    };
    same("name", format!("{:?}", ours.name), format!("{:?}", theirs.name));
    same("memory", format!("{:?}", ours.memory.size), format!("{:?}", theirs.memory.size));
    same("processors", format!("{:?}", ours.cpus.count), format!("{:?}", theirs.cpus.count));
    same("kind", format!("{:?}", ours.virtualization), format!("{:?}", theirs.virtualization));
    same("disks", disks(ours), disks(&theirs));
    same("cards", cards(ours), cards(&theirs));
}
