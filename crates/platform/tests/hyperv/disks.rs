//! Disks that are read from a host, while its VM is off and while it runs.

use std::path::Path;
use std::process::Command;

use platform::{Error, PullOptions};

use super::lab::Host;

/// Writes the images of the lab's VMs; returns what the guest of `web` would read.
fn images(folder: &Path) -> Vec<u8> {
    let size: usize = 64 << 20;
    let mut content = vec![0; size];
    // Incompressible, but the same each time.
    let mut state = 1_u64;
    for byte in &mut content[1 << 20..9 << 20] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let raw = folder.join("raw");
    std::fs::write(&raw, &content).unwrap();
    for name in ["base.vhdx", "old.vhdx"] {
        qemu_img(
            &["convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", "raw", name],
            folder,
        );
    }
    content
}

fn qemu_img(arguments: &[&str], folder: &Path) {
    let made = Command::new("qemu-img").args(arguments).current_dir(folder).status().unwrap();
    assert!(made.success(), "{arguments:?}");
}

/// The lab's `web` without a parent, since qemu-img writes no differencing images.
fn plain(host: &Host) {
    host.change(|model| {
        model["vms"][0]["drives"][0]["path"] = "C:\\VMs\\base.vhdx".into();
    });
}

#[test]
fn a_disk_is_read_from_afar() {
    let host = Host::start(&[]);
    let content = images(host.folder.path());
    let hyperv = host.connect();
    let disk = hyperv.open_disk("old", 0).unwrap();
    assert_eq!(disk.len(), content.len() as u64);
    let mut buffer = vec![0; 3 << 20];
    for at in [0, (1 << 20) + 7, (8 << 20) - 5, 61 << 20] {
        disk.read_at(&mut buffer, at).unwrap();
        assert!(buffer == content[at as usize..][..buffer.len()], "{at}");
    }
    // A connection that is lost in the middle is made again.
    host.fault("hang-up", "Receive", 2);
    let mut all = vec![0; content.len()];
    disk.read_at(&mut all, 0).unwrap();
    assert!(all == content);
}

#[test]
fn a_vm_that_runs_gets_a_checkpoint_while_it_is_copied() {
    let host = Host::start(&[]);
    images(host.folder.path());
    plain(&host);
    let hyperv = host.connect();
    let mut told = Vec::new();
    let pullable = hyperv.pullable("web", &mut |said| told.push(said)).unwrap();
    assert!(told[0].contains("checkpoint \"omnivisor pull\" is made"), "{told:?}");
    assert_eq!(hyperv.snapshots("web").unwrap().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    // The line breaks now and then.
    host.fault("hang-up", "Receive", 3);
    let options = PullOptions { connections: 2, ..PullOptions::default() };
    let report = pullable.pull(folder.path(), &options, &mut |_| {}).unwrap();
    assert_eq!(report.files.len(), 2);
    let copy = std::fs::read(folder.path().join("base.vhdx")).unwrap();
    assert!(copy == std::fs::read(host.folder.path().join("base.vhdx")).unwrap());
    assert!(hyperv.snapshots("web").unwrap().is_empty());

    // What was copied is a VM as Hyper-V would have left it.
    let vms = spec::foreign::read(&folder.path().join("web.xml"), &Default::default()).unwrap();
    let disk = vms[0].drives[0].file.as_ref().unwrap();
    assert_eq!(disk.path.as_ref().unwrap().file_name().unwrap(), "base.vhdx");
    assert!(disk.is_usable());
    let vm = &vms[0];
    let shown = hyperv.show("web").unwrap().description;
    assert_eq!(
        (&vm.cpus, &vm.memory, &vm.nics, &vm.firmware.kind),
        (&shown.cpus, &shown.memory, &shown.nics, &shown.firmware.kind)
    );
}

#[test]
fn a_copy_that_was_interrupted_keeps_its_checkpoint_and_goes_on() {
    let host = Host::start(&[]);
    images(host.folder.path());
    plain(&host);
    let hyperv = host.connect();
    let folder = tempfile::tempdir().unwrap();
    host.fault("hang-up", "Receive", 1000);
    let options = PullOptions { connections: 1, attempts: 1, ..PullOptions::default() };
    let failed = hyperv.pullable("web", &mut |_| {});
    // Even the question gets no answer.
    assert!(matches!(failed.err().unwrap(), Error::Unreachable { .. }));
    std::fs::remove_file(host.folder.path().join("fault")).unwrap();
    let pullable = hyperv.pullable("web", &mut |_| {}).unwrap();
    host.fault("hang-up", "Receive", 1000);
    let error = pullable.pull(folder.path(), &options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    std::fs::remove_file(host.folder.path().join("fault")).unwrap();
    let mut told = Vec::new();
    let pullable = hyperv.pullable("web", &mut |said| told.push(said)).unwrap();
    assert!(told.iter().any(|said| said.contains("of a pull before")), "{told:?}");
    pullable.pull(folder.path(), &options, &mut |_| {}).unwrap();
    assert!(hyperv.snapshots("web").unwrap().is_empty());
}

#[test]
fn a_file_that_changes_meanwhile_is_no_copy() {
    let host = Host::start(&[]);
    images(host.folder.path());
    let hyperv = host.connect();
    let pullable = hyperv.pullable("old", &mut |_| {}).unwrap();
    let file = host.folder.path().join("old.vhdx");
    let grown = [std::fs::read(&file).unwrap(), vec![1]].concat();
    std::fs::write(&file, grown).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = pullable.pull(folder.path(), &PullOptions::default(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("changed while it is copied"), "{error}");
}

#[test]
fn the_disks_of_a_vm_are_held_still_for_a_run() {
    let host = Host::start(&[]);
    let content = images(host.folder.path());
    plain(&host);
    let hyperv = host.connect();
    let still = hyperv.still("web", &mut |_| {}).unwrap();
    assert_eq!(still.disks.len(), 1);
    let mut buffer = vec![0; 1 << 20];
    still.disks[0].disk.read_at(&mut buffer, 2 << 20).unwrap();
    assert!(buffer == content[2 << 20..3 << 20]);
    (still.undo)(true).unwrap();
    assert!(hyperv.snapshots("web").unwrap().is_empty());
}
