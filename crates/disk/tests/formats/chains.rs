//! Parents: resolved, confined, refused.

use disk::{Error, FilePolicy, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, content, has_qemu_img, read_only};

const LENGTH: usize = 2 << 20;

/// Makes a child of `parent` and writes something into it.
fn child(workshop: &Workshop, format: &str, parent: &str, parent_format: &str, name: &str) {
    workshop.qemu_img(&["create", "-q", "-f", format, "-b", parent, "-F", parent_format, name]);
}

#[test]
fn chains_over_several_formats_are_read() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    workshop.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    child(&workshop, "qcow2", "base.vmdk", "vmdk", "one.qcow2");
    child(&workshop, "qed", "one.qcow2", "qcow2", "two.qed");
    child(&workshop, "qcow2", "two.qed", "qed", "three.qcow2");
    child(&workshop, "vmdk", "base.vmdk", "vmdk", "child.vmdk");
    child(&workshop, "qcow", "disk.raw", "raw", "child.qcow");
    for name in ["one.qcow2", "two.qed", "three.qcow2", "child.vmdk", "child.qcow"] {
        workshop.assert_holds(name);
    }
    let (_, infos) = disk::open_chain(workshop.path("three.qcow2"), &read_only()).unwrap();
    let formats: Vec<&str> = infos.iter().map(|info| info.format.name()).collect();
    assert_eq!(formats, ["qcow2", "qed", "qcow2", "vmdk"]);
}

#[test]
fn a_child_that_is_longer_than_its_parent_ends_in_zeroes() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    child(&workshop, "qcow2", "disk.raw", "raw", "child.qcow2");
    workshop.qemu_img(&["resize", "-q", "child.qcow2", "2500k"]);
    let disk = crate::common::open(&workshop.path("child.qcow2"));
    assert_disk_holds(&*disk, &workshop.content, "child");
    assert_eq!(disk.len(), 2500 << 10);
}

#[test]
fn parents_outside_the_folder_are_refused_unless_allowed() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    std::fs::create_dir(workshop.path("vm")).unwrap();
    let absolute = workshop.path("disk.raw");
    std::os::unix::fs::symlink(&absolute, workshop.path("vm/link.raw")).unwrap();
    let names = ["../disk.raw", "link.raw", absolute.to_str().unwrap()];
    for (index, parent) in names.into_iter().enumerate() {
        let name = format!("vm/{index}.qcow2");
        child(&workshop, "qcow2", parent, "raw", &name);
        let Err(error) = disk::open(workshop.path(&name), &read_only()) else {
            panic!("{parent} was followed")
        };
        assert!(chain(&error).contains("not within the folder"), "{}", chain(&error));
        for files in [FilePolicy::Within(workshop.folder.path().to_owned()), FilePolicy::Anywhere] {
            let disk = disk::open(workshop.path(&name), &ImageOptions { files, ..read_only() });
            assert_disk_holds(&*disk.unwrap(), &workshop.content, parent);
        }
    }
}

#[test]
fn chains_that_lead_back_to_themselves_are_refused() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    child(&workshop, "qcow2", "disk.raw", "raw", "one.qcow2");
    child(&workshop, "qcow2", "one.qcow2", "qcow2", "two.qcow2");
    workshop.qemu_img(&["rebase", "-u", "-b", "two.qcow2", "-F", "qcow2", "one.qcow2"]);
    for name in ["one.qcow2", "two.qcow2"] {
        let Err(error) = disk::open(workshop.path(name), &read_only()) else {
            panic!("a cycle was opened")
        };
        assert!(chain(&error).contains("leads back to itself"), "{}", chain(&error));
    }
}

#[test]
fn what_is_no_file_is_no_parent() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    child(&workshop, "qcow2", "disk.raw", "raw", "child.qcow2");
    for name in ["nbd://localhost/x", "json:{\"driver\":\"file\"}", "fat:rw:/etc"] {
        workshop.qemu_img(&["rebase", "-u", "-b", name, "-F", "raw", "child.qcow2"]);
        let Err(error) = disk::open(workshop.path("child.qcow2"), &read_only()) else {
            panic!("{name} was opened")
        };
        assert!(chain(&error).contains("which is no file"), "{}", chain(&error));
    }
}

#[test]
fn a_vmdk_parent_that_was_changed_is_refused() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    workshop.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    child(&workshop, "vmdk", "base.vmdk", "vmdk", "child.vmdk");
    std::fs::write(workshop.path("disk.raw"), content(LENGTH / 2)).unwrap();
    workshop.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    // What qemu-img converted twice may have the same number by chance; this cannot.
    let mut base = std::fs::read(workshop.path("base.vmdk")).unwrap();
    let at = base.windows(4).position(|part| part == b"CID=").unwrap() + 4;
    let is_one = base[at] == b'1';
    base[at] = if is_one { b'2' } else { b'1' };
    std::fs::write(workshop.path("base.vmdk"), base).unwrap();
    let error = disk::open(workshop.path("child.vmdk"), &read_only());
    match error {
        Err(Error::Image { source, .. }) => {
            assert!(matches!(*source, Error::ParentChanged { .. }), "{source}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a changed parent was accepted"),
    }
}

#[test]
fn vmdk_of_a_device_of_esx_is_refused_with_the_reason() {
    let workshop = Workshop::new(1 << 20);
    for kind in ["vmfsRaw", "vmfsRDM"] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\
             RW 2048 FLAT \"disk.raw\" 0\n"
        );
        std::fs::write(workshop.path("device.vmdk"), text).unwrap();
        let Err(error) = disk::open(workshop.path("device.vmdk"), &read_only()) else {
            panic!("{kind} was opened")
        };
        let error = chain(&error);
        assert!(error.contains(&format!("its kind is {kind}: it is a device")), "{error}");
    }
}
