//! Copying VMs from the simulator over lines that break.

use std::fs;
use std::path::Path;
use std::time::Duration;

use disk::Disk;
use platform::{Action, Connection, Error, Mirror, PullOptions, PullReport, connect};

use crate::lab::{Simulator, uri};
use crate::proxy::Proxy;

const VM: &str = "ha-host_VM0";
const LENGTH: usize = 20 << 20;

/// A disk of a VM: a descriptor and an extent.
struct Content {
    descriptor: String,
    extent: Vec<u8>,
}

impl Content {
    fn upload(simulator: &Simulator) -> Self {
        let descriptor = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\
             RW {} VMFS \"disk1-flat.vmdk\"\n\nddb.adapterType = \"lsilogic\"\n",
            LENGTH / 512
        );
        let mut extent: Vec<u8> = (0..LENGTH).map(|at| (at >> 9) as u8 ^ at as u8).collect();
        extent[5 << 20..9 << 20].fill(0);
        simulator.upload(&format!("{VM}/disk1.vmdk"), descriptor.as_bytes());
        simulator.upload(&format!("{VM}/disk1-flat.vmdk"), &extent);
        Self { descriptor, extent }
    }

    fn assert_in(&self, folder: &Path) {
        assert_eq!(fs::read_to_string(folder.join("disk1.vmdk")).unwrap(), self.descriptor);
        assert!(fs::read(folder.join("disk1-flat.vmdk")).unwrap() == self.extent);
    }
}

fn options(connections: usize) -> PullOptions {
    let pause = Duration::from_millis(1);
    PullOptions { connections, attempts: 2, pause, ..PullOptions::default() }
}

fn pull(host: &Connection, folder: &Path) -> Result<(PullReport, Vec<String>), Error> {
    let mut told = Vec::new();
    let vm = host.pullable(VM, &mut |sentence| told.push(sentence))?;
    Ok((vm.pull(folder, &options(4), &mut |_| {})?, told))
}

#[test]
fn a_vm_is_copied_over_a_line_that_breaks_and_sessions_that_end() {
    let simulator = Simulator::start(&["--esx", "--session-requests", "7"]);
    let content = Content::upload(&simulator);
    simulator.connect("esx", "").perform(VM, &Action::Stop { force: true }).unwrap();
    // Whole requests do not fit into one connection.
    let proxy = Proxy::start(simulator.port, 3 << 20, u64::MAX);
    let host = connect(&uri("esx", proxy.port, ""), &simulator.options()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (report, told) = pull(&host, folder.path()).unwrap();
    assert_eq!(told, [""; 0]);
    assert_eq!(report.copied, (LENGTH + content.descriptor.len()) as u64);
    content.assert_in(folder.path());

    // What was copied is a VM that can be read here.
    let vmx = folder.path().join(format!("{VM}.vmx"));
    let vm = spec::foreign::read(&vmx, &spec::foreign::ReadOptions::default()).unwrap().remove(0);
    assert_eq!(vm.memory.size, Some(32 << 20));
    let path = vm.drives.iter().find_map(|drive| drive.file.as_ref()?.disk_path()).unwrap();
    let options = disk::ImageOptions { read_only: true, ..disk::ImageOptions::default() };
    let disk = disk::open(path, &options).unwrap();
    let mut read = vec![0; LENGTH];
    disk.read_at(&mut read, 0).unwrap();
    assert!(read == content.extent);
}

#[test]
fn a_pull_whose_line_was_cut_goes_on() {
    let simulator = Simulator::start(&["--esx"]);
    let content = Content::upload(&simulator);
    simulator.connect("esx", "").perform(VM, &Action::Stop { force: true }).unwrap();
    let proxy = Proxy::start(simulator.port, u64::MAX, 18 << 20);
    let host = connect(&uri("esx", proxy.port, ""), &simulator.options()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let vm = host.pullable(VM, &mut |_| {}).unwrap();
    let error = vm.pull(folder.path(), &options(1), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    proxy.repair();
    let (report, _) = pull(&host, folder.path()).unwrap();
    assert!(report.kept >= 16 << 20, "{report:?}");
    content.assert_in(folder.path());
}

#[test]
fn a_password_that_changes_meanwhile_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "secret").unwrap();
    let simulator = Simulator::start(&["--esx", "--password-file", file.to_str().unwrap()]);
    let content = Content::upload(&simulator);
    let host = simulator.connect("esx", "");
    host.perform(VM, &Action::Stop { force: true }).unwrap();
    let vm = host.pullable(VM, &mut |_| {}).unwrap();
    let copy = folder.path().join("copy");
    let mut tell = |at: platform::Progress<'_>| {
        if at.done > 1 << 20 {
            fs::write(&file, "changed").unwrap();
        }
    };
    // Slow enough for the last piece to be asked for later.
    let slow = PullOptions { rate: Some(4 << 20), ..options(1) };
    let error = vm.pull(&copy, &slow, &mut tell).unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    let right = platform::Options {
        tls_thumbprint: Some(simulator.thumbprint.clone()),
        ..crate::lab::asked("changed")
    };
    let host = connect(&simulator.uri("esx", ""), &right).unwrap();
    let (report, _) = pull(&host, &copy).unwrap();
    assert!(report.kept >= 8 << 20, "{report:?}");
    content.assert_in(&copy);
}

#[test]
fn a_server_that_is_killed_in_the_middle_is_said_to_be_gone() {
    let mut simulator = Simulator::start(&["--esx"]);
    Content::upload(&simulator);
    let host = simulator.connect("esx", "");
    host.perform(VM, &Action::Stop { force: true }).unwrap();
    let vm = host.pullable(VM, &mut |_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut tell = |at: platform::Progress<'_>| {
        if at.done > 8 << 20 {
            simulator.kill();
        }
    };
    // Slowly: or all of it has left the server before it is killed.
    let slow = PullOptions { rate: Some(16 << 20), ..options(1) };
    let error = vm.pull(folder.path(), &slow, &mut tell).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(matches!(host.list(), Err(Error::Unreachable { .. })));
}

#[test]
fn a_server_whose_every_byte_is_late_is_given_up_within_its_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                // A record of TLS that goes on for ever.
                for byte in [22, 3, 3, 0x3f, 0xff].into_iter().chain(std::iter::repeat(0)) {
                    std::thread::sleep(Duration::from_millis(300));
                    if std::io::Write::write_all(&mut &client, &[byte]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let options =
        platform::Options { time_limit: Duration::from_secs(3), ..crate::lab::asked("secret") };
    let before = std::time::Instant::now();
    let error = connect(&uri("esx", port, ""), &options).err().unwrap();
    assert!(matches!(error, Error::TimedOut { .. } | Error::Unreachable { .. }), "{error}");
    assert!(before.elapsed() < Duration::from_secs(100));
}

#[test]
fn a_running_vm_is_copied_below_a_snapshot() {
    let simulator = Simulator::start(&["--esx"]);
    let content = Content::upload(&simulator);
    let host = simulator.connect("esx", "");
    // The simulator cannot delete the only snapshot.
    let first = Action::CreateSnapshot { name: "first".into(), description: None };
    host.perform(VM, &first).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_, told) = pull(&host, folder.path()).unwrap();
    assert!(told.len() == 1 && told[0].contains("snapshot"), "{told:?}");
    content.assert_in(folder.path());
    let left: Vec<_> = host.snapshots(VM).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(left, ["first"]);
}

#[test]
fn what_a_killed_copy_left_is_taken_away_by_the_next() {
    let simulator = Simulator::start(&["--esx"]);
    let content = Content::upload(&simulator);
    let state = tempfile::tempdir().unwrap();
    let state_folder = Some(state.path().to_owned());
    let options = platform::Options { state_folder, ..simulator.options() };
    let host = connect(&simulator.uri("esx", ""), &options).unwrap();
    let vm = format!("{}/{VM}", host.uri()).parse().unwrap();
    let names =
        || -> Vec<_> { host.snapshots(VM).unwrap().into_iter().map(|one| one.name).collect() };
    // The simulator cannot delete the only snapshot.
    let first = Action::CreateSnapshot { name: "first".into(), description: None };
    host.perform(VM, &first).unwrap();
    // Nothing is undone, as by a process that is killed.
    drop(host.pullable(VM, &mut |_| {}).unwrap());
    assert_eq!(names(), ["first", "omnivisor pull"]);
    assert!(platform::is_held(state.path(), &vm));
    // A VM that is off would need no snapshot.
    host.perform(VM, &Action::Stop { force: true }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_, told) = pull(&host, folder.path()).unwrap();
    assert!(told.len() == 1 && told[0].contains("was broken off"), "{told:?}");
    content.assert_in(folder.path());
    assert_eq!(names(), ["first"]);
    assert!(!platform::is_held(state.path(), &vm));
    // One that is not there leaves no note.
    assert!(host.pullable("nobody", &mut |_| {}).is_err());
    assert_eq!(fs::read_dir(state.path().join("held")).unwrap().count(), 0);
}

#[test]
fn a_disk_that_changes_meanwhile_is_not_taken() {
    let simulator = Simulator::start(&["--esx"]);
    Content::upload(&simulator);
    let host = simulator.connect("esx", "");
    host.perform(VM, &Action::Stop { force: true }).unwrap();
    let vm = host.pullable(VM, &mut |_| {}).unwrap();
    simulator.upload(&format!("{VM}/disk1-flat.vmdk"), &[1; 1 << 20]);
    let folder = tempfile::tempdir().unwrap();
    let error = vm.pull(folder.path(), &PullOptions::default(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("changed while it is copied"), "{error}");
    assert!(!folder.path().join("disk1-flat.vmdk").exists());
}

#[test]
fn a_disk_is_read_where_it_is_and_copied_behind() {
    let simulator = Simulator::start(&["--esx", "--session-requests", "9"]);
    let content = Content::upload(&simulator);
    simulator.connect("esx", "").perform(VM, &Action::Stop { force: true }).unwrap();
    let proxy = Proxy::start(simulator.port, 2 << 20, u64::MAX);
    let host = connect(&uri("esx", proxy.port, ""), &simulator.options()).unwrap();
    let still = host.still(VM, &mut |_| {}).unwrap();
    let [found] = &still.disks[..] else { panic!("{} disks", still.disks.len()) };
    let drive = &still.description.drives[found.drive];
    assert_eq!(drive.capacity, Some(1 << 20), "what the simulator says, whatever is in the file");
    assert_eq!(found.disk.len(), LENGTH as u64);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let mirror = Mirror::open(&path, found.disk.clone(), &found.stamp, &options(2)).unwrap();
    let mut read = vec![0; 5000];
    mirror.read_at(&mut read, 12_345_678).unwrap();
    assert!(read == content.extent[12_345_678..12_350_678]);
    assert!(mirror.here() < LENGTH as u64 / 2);
    let (tell, told) = std::sync::mpsc::channel();
    mirror.copy_behind(Box::new(move || tell.send(()).unwrap()));
    told.recv_timeout(Duration::from_secs(120)).unwrap();
    drop((still, host, simulator));
    let mirror = Mirror::open_whole(&path).unwrap().unwrap();
    let mut read = vec![0; LENGTH];
    mirror.read_at(&mut read, 0).unwrap();
    assert!(read == content.extent);
}

#[test]
fn a_disk_is_opened_by_its_place() {
    let simulator = Simulator::start(&["--esx"]);
    let content = Content::upload(&simulator);
    let host = simulator.connect("esx", "");
    let drives = host.show(VM).unwrap().description.drives;
    let at = drives.iter().position(|drive| drive.kind == spec::foreign::DriveKind::Disk).unwrap();
    let disk = host.open_disk(VM, at).unwrap();
    let mut read = vec![0; 700];
    disk.read_at(&mut read, 4096).unwrap();
    assert!(read == content.extent[4096..4796]);
    assert!(host.open_disk(VM, 99).is_err());
}

/// A streamOptimized disk as a server would make it, and what it holds.
fn exported(folder: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let (raw, disk) = (folder.join("raw"), folder.join("stream.vmdk"));
    let mut state = 1_u32;
    let mut content = vec![0; 8 << 20];
    for byte in &mut content[..6 << 20] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    fs::write(&raw, &content).unwrap();
    let made = std::process::Command::new("qemu-img")
        .args(["convert", "-q", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"])
        .args([&raw, &disk])
        .status();
    assert!(made.unwrap().success());
    (disk, content)
}

#[test]
fn a_datastore_without_files_is_copied_by_a_lease_that_is_kept_alive() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, content) = exported(folder.path());
    // Three seconds of copying, and a lease of two.
    let options = ["--esx", "--export-disk", disk.to_str().unwrap(), "--lease-timeout", "2s"];
    let simulator = Simulator::start(&options);
    let host = simulator.connect("esx", "");
    let error = host.pullable(VM, &mut |_| {}).err().unwrap();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    host.perform(VM, &Action::Stop { force: true }).unwrap();
    let error = host.still(VM, &mut |_| {}).err().unwrap();
    assert!(error.repair().is_some_and(|repair| repair.contains("pull")), "{error}");
    let copy = folder.path().join("copy");
    let (report, told) = pull(&host, &copy).unwrap();
    assert!(told[0].contains("gives no files"), "{told:?}");
    assert_eq!(report.files[0].length, fs::metadata(&disk).unwrap().len());
    let vmx = copy.join(format!("{VM}.vmx"));
    let vm = spec::foreign::read(&vmx, &spec::foreign::ReadOptions::default()).unwrap().remove(0);
    let path = vm.drives.iter().find_map(|drive| drive.file.as_ref()?.disk_path()).unwrap();
    let options = disk::ImageOptions { read_only: true, ..disk::ImageOptions::default() };
    let mut read = vec![0; content.len()];
    disk::open(path, &options).unwrap().read_at(&mut read, 0).unwrap();
    assert!(read == content);
}

#[test]
fn an_export_that_is_cut_is_given_back_and_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, _) = exported(folder.path());
    let simulator = Simulator::start(&["--esx", "--export-disk", disk.to_str().unwrap()]);
    simulator.connect("esx", "").perform(VM, &Action::Stop { force: true }).unwrap();
    let proxy = Proxy::start(simulator.port, 2 << 20, u64::MAX);
    let host = connect(&uri("esx", proxy.port, ""), &simulator.options()).unwrap();
    let copy = folder.path().join("copy");
    let error = pull(&host, &copy).err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 0);
}
