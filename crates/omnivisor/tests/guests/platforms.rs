//! One guest as each platform would hand it over, on the software processor; on KVM they run in the test `lab`.

use crate::harness::Workshop;
use crate::packages::{KIND, PACKAGES};

/// Packs the guest, runs the VM as it is, and sees what it says.
fn boots(name: &str) {
    let package = PACKAGES.iter().find(|package| package.name == name).unwrap();
    let Some(workshop) = Workshop::new(KIND) else { return };
    let Some(packed) = (package.pack)(&workshop) else { return };
    let arguments: Vec<_> = packed.arguments.iter().map(String::as_str).collect();
    let console = crate::boots(&workshop, &arguments);
    assert!(console.contains(packed.says), "{console}");
}

#[test]
fn an_ova_with_a_stream_optimized_vmdk() {
    boots("an_ova_with_a_stream_optimized_vmdk");
}

#[test]
fn a_vmx_with_a_sparse_vmdk() {
    boots("a_vmx_with_a_sparse_vmdk");
}

#[test]
fn a_vmx_with_a_split_vmdk() {
    boots("a_vmx_with_a_split_vmdk");
}

#[test]
fn a_machine_of_virtualbox_with_two_snapshots() {
    boots("a_machine_of_virtualbox_with_two_snapshots");
}

#[test]
fn a_hyper_v_folder_with_a_chain_of_vhdx() {
    boots("a_hyper_v_folder_with_a_chain_of_vhdx");
}

#[test]
fn a_bundle_of_parallels() {
    boots("a_bundle_of_parallels");
}

#[test]
fn a_configuration_of_xl_with_a_raw_disk() {
    boots("a_configuration_of_xl_with_a_raw_disk");
}

#[test]
fn an_export_of_xenserver() {
    boots("an_export_of_xenserver");
}

#[test]
fn a_domain_of_libvirt_with_a_chain_of_qcow2() {
    boots("a_domain_of_libvirt_with_a_chain_of_qcow2");
}

#[test]
fn a_configuration_of_proxmox_with_a_qcow2() {
    boots("a_configuration_of_proxmox_with_a_qcow2");
}

#[test]
fn a_backup_of_proxmox() {
    boots("a_backup_of_proxmox");
}

#[test]
fn a_box_of_vagrant_for_virtualbox() {
    boots("a_box_of_vagrant_for_virtualbox");
}

#[test]
fn a_box_of_vagrant_for_vmware() {
    boots("a_box_of_vagrant_for_vmware");
}

#[test]
fn a_box_of_vagrant_for_hyper_v() {
    boots("a_box_of_vagrant_for_hyper_v");
}

#[test]
fn a_box_of_vagrant_for_libvirt() {
    boots("a_box_of_vagrant_for_libvirt");
}
