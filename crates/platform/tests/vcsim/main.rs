//! The vSphere driver against VMware's own simulator.

mod lab;
mod proxy;
mod pull;

use lab::{Simulator, asked, uri};
use platform::{Action, Change, Connection, Error, Options, State, Verb, connect};

fn state(connection: &Connection, vm: &str) -> State {
    connection.list().unwrap().into_iter().find(|one| one.name == vm).unwrap().state
}

#[test]
fn vms_of_a_host_are_listed_and_steered() {
    let simulator = Simulator::start(&["--esx", "--vm", "3"]);
    let host = simulator.connect("esx", "");
    assert!(host.product().unwrap().starts_with("VMware ESXi 6.5"), "{}", host.product().unwrap());
    let vms = host.list().unwrap();
    let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["ha-host_VM0", "ha-host_VM1", "ha-host_VM2"]);
    assert_eq!(
        (vms[0].state, vms[0].cpus, vms[0].memory),
        (State::Running, Some(1), Some(32 << 20))
    );

    let vm = "ha-host_VM1";
    host.perform(vm, &Action::Pause).unwrap();
    assert_eq!(state(&host, vm), State::Suspended);
    host.perform(vm, &Action::Resume).unwrap();
    assert_eq!(state(&host, vm), State::Running);
    host.perform(vm, &Action::Reset { force: true }).unwrap();
    host.perform(vm, &Action::Stop { force: true }).unwrap();
    assert_eq!(state(&host, vm), State::Stopped);
    // By its identity as well.
    let id = vms[1].id.clone().unwrap();
    host.perform(&id, &Action::Start).unwrap();
    assert_eq!(state(&host, vm), State::Running);
}

#[test]
fn a_fault_is_one_sentence_that_names_the_reason() {
    let simulator = Simulator::start(&["--esx"]);
    let host = simulator.connect("esx", "");
    let error = host.perform("ha-host_VM0", &Action::Start).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Failed { .. }), "{said}");
    assert!(said.contains("PowerOnVM") && said.contains("poweredOn"), "{said}");
    assert_eq!(said.lines().count(), 1);
    let error = host.show("nobody").unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "VM", .. }), "{error}");
    let error =
        host.perform("ha-host_VM0", &Action::RevertSnapshot { name: "x".into() }).unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "snapshot", .. }), "{error}");
    let error = host.console_log("ha-host_VM0", 1).unwrap_err();
    assert!(matches!(error, Error::Lacks { verb: Verb::ConsoleLog, .. }), "{error}");
}

#[test]
fn snapshots_are_made_listed_reverted_and_deleted() {
    let simulator = Simulator::start(&["--esx", "--vm", "1"]);
    let host = simulator.connect("esx", "");
    let vm = "ha-host_VM0";
    assert_eq!(host.snapshots(vm).unwrap(), []);
    for name in ["first", "second / 100%"] {
        let description = Some("before <the> update".into());
        host.perform(vm, &Action::CreateSnapshot { name: name.into(), description }).unwrap();
    }
    let kept = host.snapshots(vm).unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(
        (kept[0].name.as_str(), kept[0].parent.as_ref(), kept[0].current),
        ("first", None, false)
    );
    assert_eq!(kept[1].name, "second / 100%");
    assert_eq!((kept[1].parent.as_ref(), kept[1].current), (Some(&kept[0].id), true));
    assert_eq!(kept[1].description.as_deref(), Some("before <the> update"));
    host.perform(vm, &Action::RevertSnapshot { name: "first".into() }).unwrap();
    assert!(host.snapshots(vm).unwrap()[0].current);
    host.perform(vm, &Action::DeleteSnapshot { name: "second / 100%".into() }).unwrap();
    let left: Vec<_> = host.snapshots(vm).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(left, ["first"]);
}

#[test]
fn a_vcenter_is_asked_for_one_of_its_data_centers() {
    let simulator = Simulator::start(&["--vm", "2"]);
    let vcenter = simulator.connect("vc", "/DC0");
    assert!(vcenter.product().unwrap().contains("vCenter"), "{}", vcenter.product().unwrap());
    let vms = vcenter.list().unwrap();
    assert_eq!(vms.len(), 4, "{vms:?}");
    let vm = vms[0].name.clone();
    vcenter.perform(&vm, &Action::Stop { force: true }).unwrap();
    assert_eq!(state(&vcenter, &vm), State::Stopped);
    let details = vcenter.show(&vm).unwrap();
    assert_eq!(details.description.name.as_deref(), Some(vm.as_str()));
    assert_eq!(simulator.connect("vc", "").list().unwrap().len(), 4);

    let error = connect(&simulator.uri("vc", "/DC1"), &simulator.options()).err().unwrap();
    assert!(matches!(error, Error::NotFound { what: "data center", .. }), "{error}");
}

#[test]
fn a_vm_is_described_by_what_the_server_says() {
    let simulator = Simulator::start(&["--esx", "--vm", "1"]);
    let details = simulator.connect("esx", "").show("ha-host_VM0").unwrap();
    let vm = details.description;
    assert_eq!((vm.cpus.count, vm.memory.size), (Some(1), Some(32 << 20)));
    let disks = vm.drives.iter().filter(|drive| drive.kind == spec::foreign::DriveKind::Disk);
    let disk = disks.clone().next().unwrap();
    assert_eq!(disk.file.as_ref().unwrap().written, "[LocalDS_0] ha-host_VM0/disk1.vmdk");
    assert_eq!((disks.count(), disk.capacity), (1, Some(1 << 20)));
    assert!(vm.nics[0].mac.is_some());
    assert_eq!(vm.nics[0].network.as_deref(), Some("VM Network"));
}

#[test]
fn who_has_the_wrong_password_is_told_so() {
    let simulator = Simulator::start(&["--esx"]);
    let options = Options { tls_thumbprint: simulator.options().tls_thumbprint, ..asked("guess") };
    let error = connect(&simulator.uri("esx", ""), &options).err().unwrap();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("root") && !said.contains("guess"), "{said}");
    assert!(error.repair().unwrap().contains("OMNIVISOR_PASSWORD"));
    assert!(!format!("{error:?}").contains("guess"));
}

#[test]
fn a_certificate_is_never_taken_on_trust() {
    let simulator = Simulator::start(&["--esx"]);
    let uri = simulator.uri("esx", "");
    // The system's authorities do not know it; what could be pinned is shown.
    let error = connect(&uri, &asked("secret")).err().unwrap();
    assert!(error.to_string().contains(&simulator.thumbprint), "{error}");
    assert_eq!(
        error.repair().unwrap().split_whitespace().last(),
        Some(simulator.thumbprint.as_str())
    );
    let other = Options { tls_thumbprint: Some("00".repeat(32)), ..asked("secret") };
    let error = connect(&uri, &other).err().unwrap();
    assert!(error.to_string().contains("its thumbprint is not 00:00"), "{error}");
    let wrong = Options { tls_thumbprint: Some("00".into()), ..asked("secret") };
    assert!(matches!(connect(&uri, &wrong).err().unwrap(), Error::Name { .. }));
}

#[test]
fn a_session_that_the_server_forgot_is_opened_again() {
    let simulator = Simulator::start(&["--esx", "--session-requests", "3"]);
    let host = simulator.connect("esx", "");
    for _ in 0..3 {
        assert_eq!(host.list().unwrap().len(), 2);
    }
    host.perform("ha-host_VM0", &Action::Stop { force: true }).unwrap();
    assert_eq!(state(&host, "ha-host_VM0"), State::Stopped);
}

#[test]
fn changes_are_told_as_they_happen() {
    let simulator = Simulator::start(&["--esx"]);
    let (watcher, actor) = (simulator.connect("esx", ""), simulator.connect("esx", ""));
    let mut told = Vec::new();
    let interval = std::time::Duration::from_secs(1);
    watcher
        .watch(interval, &mut |change| {
            let (word, vm) = match change {
                Change::Appeared { vm } => ("appeared", vm),
                Change::Changed { vm } => ("changed", vm),
                Change::Vanished { vm } => ("vanished", vm),
            };
            told.push((word, vm.name, vm.state));
            if told.len() == 2 {
                actor.perform("ha-host_VM1", &Action::Stop { force: true }).unwrap();
            }
            told.len() < 3
        })
        .unwrap();
    assert_eq!(told[2], ("changed", "ha-host_VM1".into(), State::Stopped), "{told:?}");
}

#[test]
fn a_server_that_is_gone_is_one_sentence() {
    let mut simulator = Simulator::start(&["--esx"]);
    let host = simulator.connect("esx", "");
    simulator.kill();
    let error = host.list().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    let error = connect(&uri("esx", simulator.port, ""), &simulator.options()).err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}
