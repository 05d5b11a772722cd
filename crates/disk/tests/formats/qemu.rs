//! What `qemu-img` writes.

use crate::common::{Workshop, assert_holds, chain, content, has_qemu_img, read_only};

const LENGTH: usize = (5 << 20) + 3 * 512;

/// Converts the raw disk with `qemu-img` in each of these ways and compares what is read.
fn check(ways: &[(&str, &[&str])]) {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    for (index, (format, options)) in ways.iter().enumerate() {
        let name = format!("{index}.{format}");
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        arguments.extend_from_slice(options);
        arguments.extend(["disk.raw", &name]);
        workshop.qemu_img(&arguments);
        eprintln!("{format} {options:?}");
        workshop.assert_holds(&name);
    }
}

#[test]
fn qcow2_of_every_cluster_size_and_version_is_read() {
    check(&[
        ("qcow2", &[]),
        ("qcow2", &["-o", "compat=0.10"]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-o", "cluster_size=2M"]),
        ("qcow2", &["-o", "extended_l2=on"]),
        ("qcow2", &["-o", "extended_l2=on,cluster_size=16k"]),
        ("qcow2", &["-o", "refcount_bits=1"]),
        ("qcow2", &["-o", "refcount_bits=64,lazy_refcounts=on"]),
        ("qcow2", &["-o", "preallocation=metadata"]),
        ("qcow2", &["-o", "preallocation=full"]),
        ("qcow2", &["-S", "0"]),
    ]);
}

#[test]
fn compressed_qcow2_is_read() {
    check(&[
        ("qcow2", &["-c"]),
        ("qcow2", &["-c", "-o", "cluster_size=4k"]),
        ("qcow2", &["-c", "-o", "cluster_size=2M"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd,extended_l2=on"]),
        ("qcow2", &["-c", "-o", "compat=0.10"]),
    ]);
}

#[test]
fn qcow2_with_an_external_data_file_is_read() {
    check(&[
        ("qcow2", &["-o", "data_file=one.data"]),
        ("qcow2", &["-o", "data_file=two.data,data_file_raw=on"]),
    ]);
}

#[test]
fn every_kind_of_vmdk_is_read() {
    check(&[
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=monolithicSparse,zeroed_grain=on", "-S", "0"]),
        ("vmdk", &["-o", "subformat=monolithicFlat"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
    ]);
}

#[test]
fn vhd_and_vhdx_are_read() {
    check(&[
        ("vpc", &["-o", "force_size=on"]),
        ("vpc", &["-o", "force_size=on,subformat=fixed"]),
        ("vhdx", &[]),
        ("vhdx", &["-o", "subformat=fixed"]),
        ("vhdx", &["-o", "block_size=1M,block_state_zero=off"]),
    ]);
}

#[test]
fn vdi_parallels_qcow_and_qed_are_read() {
    check(&[
        ("vdi", &[]),
        ("vdi", &["-o", "static=on"]),
        ("parallels", &[]),
        ("parallels", &["-o", "cluster_size=64k"]),
        ("qcow", &[]),
        ("qed", &[]),
        ("qed", &["-o", "cluster_size=16k,table_size=2"]),
    ]);
}

#[test]
fn split_vmdk_of_more_than_one_extent_is_read() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(1 << 20);
    // Past the first extent's 2 GiB, in a sparse file.
    let length = (2_u64 << 30) + (1 << 20);
    let raw = std::fs::File::options().write(true).open(workshop.path("disk.raw")).unwrap();
    raw.set_len(length).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&raw, b"the end", length - 512).unwrap();
    drop(raw);
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let option = format!("subformat={subformat}");
        let name = format!("{subformat}.vmdk");
        workshop.qemu_img(&["convert", "-O", "vmdk", "-o", &option, "disk.raw", &name]);
        let disk = crate::common::open(&workshop.path(&name));
        assert_eq!(disk.len(), length);
        let mut bytes = vec![0; 1 << 20];
        disk.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == workshop.content);
        disk.read_at(&mut bytes[..7], length - 512).unwrap();
        assert_eq!(&bytes[..7], b"the end");
        let mut bytes = [1; 1024];
        disk.read_at(&mut bytes, (2 << 30) - 512).unwrap();
        assert_eq!(bytes, [0; 1024]);
    }
}

#[test]
fn internal_snapshots_are_listed_and_read() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(LENGTH);
    workshop.qemu_img(&["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    workshop.qemu_img(&["snapshot", "-c", "before", "disk.qcow2"]);
    let later = content(LENGTH / 512 / 2 * 512);
    std::fs::write(workshop.path("later.raw"), &later).unwrap();
    workshop.qemu_img(&["convert", "-n", "-O", "qcow2", "later.raw", "disk.qcow2"]);

    let path = workshop.path("disk.qcow2");
    let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
    let mut bytes = vec![0; later.len()];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == later);
    assert_eq!(infos[0].snapshots.len(), 1);
    assert_eq!(infos[0].snapshots[0].name, "before");
    assert_eq!(infos[0].snapshots[0].length, LENGTH as u64);
    drop(disk);
    for name in ["before", "1"] {
        let options = disk::ImageOptions { snapshot: Some(name.into()), ..read_only() };
        let disk = disk::open(&path, &options).unwrap();
        crate::common::assert_disk_holds(&*disk, &workshop.content, name);
        assert!(disk.is_read_only());
    }
    let options = disk::ImageOptions { snapshot: Some("never".into()), ..read_only() };
    let Err(error) = disk::open(&path, &options) else { panic!("a snapshot that is not there") };
    assert!(chain(&error).contains("never"));
}

#[test]
fn luks_is_refused_by_its_name() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(1 << 20);
    workshop.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    // qemu-img can encrypt, but measures the processor for it and gives up on a busy one: crypt_method is 2.
    let path = workshop.path("disk.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[32..36].copy_from_slice(&2_u32.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let Err(error) = disk::open(workshop.path("disk.qcow2"), &read_only()) else {
        panic!("an encrypted image was opened")
    };
    assert!(chain(&error).contains("LUKS"), "{}", chain(&error));
}

#[test]
fn images_that_are_cut_off_anywhere_neither_panic_nor_hang() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(1 << 20);
    let ways: [(&str, &[&str]); 9] = [
        ("qcow2", &[]),
        ("qcow2", &["-c"]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vpc", &[]),
        ("vhdx", &["-o", "block_size=1M"]),
        ("vdi", &[]),
        ("parallels", &[]),
        ("qed", &[]),
    ];
    for (index, (format, options)) in ways.iter().enumerate() {
        let name = format!("{index}.{format}");
        let mut arguments = vec!["convert", "-O", format];
        arguments.extend_from_slice(options);
        arguments.extend(["disk.raw", &name]);
        workshop.qemu_img(&arguments);
        let whole = std::fs::read(workshop.path(&name)).unwrap();
        let cut = workshop.path("cut");
        let wanted: disk::Format = format.parse().unwrap();
        let steps = (0..whole.len()).step_by(whole.len() / 40 + 1);
        for length in steps.chain([1, 4, 8, 64, 72, 511, 512, 1023, whole.len() - 1]) {
            std::fs::write(&cut, &whole[..length]).unwrap();
            let options = disk::ImageOptions { format: Some(wanted), ..read_only() };
            let Ok(disk) = disk::open(&cut, &options) else { continue };
            let mut bytes = vec![0; 1 << 16];
            for offset in (0..disk.len()).step_by(bytes.len()) {
                let count = (disk.len() - offset).min(bytes.len() as u64) as usize;
                let _ = disk.read_at(&mut bytes[..count], offset);
            }
        }
    }
}

#[test]
fn a_disk_that_is_longer_in_whole_clusters_only_is_read_to_its_end() {
    if !has_qemu_img() {
        return;
    }
    let workshop = Workshop::new(512 * 3);
    for format in ["qcow2", "vmdk", "vdi", "qed", "parallels"] {
        let name = format!("disk.{format}");
        workshop.qemu_img(&["convert", "-f", "raw", "-O", format, "disk.raw", &name]);
        assert_holds(&workshop.path(&name), &workshop.content);
    }
}
