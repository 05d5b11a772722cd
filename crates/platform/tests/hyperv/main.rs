//! The Hyper-V driver against a WinRM service with a genuine NTLM. What PowerShell answers is written from Microsoft's
//! documentation: no Hyper-V is here.

mod disks;
mod faults;
mod lab;

use std::process::Command;

use lab::{Host, ODD, WEB, asked, lab};
use platform::{Ability, Action, Connection, Error, Options, State, Verb, connect};
use spec::foreign::{Bus, DriveKind, FirmwareKind};

fn state(connection: &Connection, vm: &str) -> State {
    connection.list().unwrap().into_iter().find(|one| one.name == vm).unwrap().state
}

#[test]
fn the_service_speaks_what_another_client_speaks() {
    let host = Host::start(&[]);
    for url in [
        format!("http://127.0.0.1:{}/wsman", host.http),
        format!("https://127.0.0.1:{}/wsman", host.https),
    ] {
        let client =
            Command::new(lab()).args(["client", &url, "Administrator", "secret"]).output().unwrap();
        let said = String::from_utf8_lossy(&client.stdout).into_owned();
        assert_eq!(said.trim(), "0 it speaks what pywinrm speaks", "{client:?}");
    }
}

/// No PowerShell is to be had here: this is a grammar's word for it.
#[test]
fn the_scripts_are_powershell() {
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hyperv/scripts");
    let files: Vec<_> = scripts.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 10);
    let parsed = Command::new(lab()).arg("syntax").args(&files).output().unwrap();
    assert!(parsed.status.success(), "{parsed:?}");
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), "if ($a { throw }\n").unwrap();
    let parsed = Command::new(lab()).arg("syntax").arg(broken.path()).output().unwrap();
    assert!(!parsed.status.success(), "{parsed:?}");
}

#[test]
fn vms_are_listed_and_steered() {
    let host = Host::start(&[]);
    let hyperv = host.connect();
    assert_eq!(
        hyperv.product().unwrap(),
        "Microsoft Windows Server 2022 Standard (10.0.20348), module Hyper-V 2.0.0.0"
    );
    let vms = hyperv.list().unwrap();
    let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["old", ODD, "web"]);
    assert_eq!(
        (vms[2].state, vms[2].cpus, vms[2].memory),
        (State::Running, Some(4), Some(2 << 30))
    );
    assert_eq!(vms[2].addresses, ["192.0.2.7", "fe80::215:5dff:fe01:2a03"]);

    for (action, after) in [
        (Action::Pause, State::Paused),
        (Action::Resume, State::Running),
        (Action::Reset { force: true }, State::Running),
        (Action::Reset { force: false }, State::Running),
        (Action::Stop { force: false }, State::Stopped),
        (Action::Start, State::Running),
        (Action::Stop { force: true }, State::Stopped),
    ] {
        hyperv.perform("web", &action).unwrap();
        assert_eq!(state(&hyperv, "web"), after, "{action:?}");
    }
    // By its identity, and by a name that would mean something else to each who could read it.
    hyperv.perform(WEB, &Action::Start).unwrap();
    hyperv.perform(ODD, &Action::Start).unwrap();
    assert_eq!((state(&hyperv, "web"), state(&hyperv, ODD)), (State::Running, State::Running));
}

#[test]
fn a_vm_is_shown_as_its_files_would_be() {
    let host = Host::start(&[]);
    let hyperv = host.connect();
    let web = hyperv.show("web").unwrap().description;
    assert_eq!((web.name.as_deref(), web.uuid.as_deref()), (Some("web"), Some(WEB)));
    assert_eq!(
        (web.machine.as_deref(), web.version.as_deref()),
        (Some("generation 2"), Some("9.0"))
    );
    assert_eq!(web.annotation.as_deref(), Some("Größe & more"));
    assert_eq!(
        (web.firmware.kind, web.firmware.secure_boot),
        (Some(FirmwareKind::Uefi), Some(true))
    );
    assert_eq!(
        (web.tpm.as_deref(), web.cpus.count, web.cpus.nested),
        (Some("2.0"), Some(4), Some(true))
    );
    assert_eq!(
        (web.memory.size, web.memory.minimum, web.memory.maximum),
        (Some(2 << 30), Some(512 << 20), Some(8 << 30))
    );
    assert_eq!(web.drives.len(), 2);
    let disk = &web.drives[0];
    assert_eq!(
        (disk.bus, disk.controller, disk.unit, disk.kind),
        (Bus::Scsi, 0, 0, DriveKind::Disk)
    );
    assert_eq!((disk.format.as_deref(), disk.capacity), (Some("vhdx"), Some(64 << 20)));
    assert_eq!(disk.file.as_ref().unwrap().written, "C:\\VMs\\web\\web.avhdx");
    let card = &web.nics[0];
    assert_eq!(card.mac.unwrap().to_string(), "00:15:5d:01:2a:03");
    assert_eq!((card.network.as_deref(), card.connected), (Some("LAN"), true));
    assert_eq!(web.serials[0].target.as_deref(), Some("\\\\.\\pipe\\web"));
    assert!(web.unread.is_empty(), "{:?}", web.unread);

    let old = hyperv.show("old").unwrap().description;
    assert_eq!((old.firmware.kind, old.memory.minimum), (Some(FirmwareKind::Bios), None));
    assert_eq!(old.boot.order, ["Optical", "HardDrive", "Network", "Floppy"]);
    assert_eq!(
        (old.drives[0].bus, old.nics[0].mac, old.nics[0].connected),
        (Bus::Ide, None, false)
    );
    assert_eq!(hyperv.show(ODD).unwrap().description.name.as_deref(), Some(ODD));
}

#[test]
fn checkpoints_are_made_listed_reverted_and_deleted() {
    let host = Host::start(&[]);
    let hyperv = host.connect();
    let create = |name: &str| Action::CreateSnapshot { name: name.into(), description: None };
    hyperv.perform("old", &create("before [1]*")).unwrap();
    hyperv.perform("old", &create("it's $later")).unwrap();
    let kept = hyperv.snapshots("old").unwrap();
    let names: Vec<_> = kept.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["before [1]*", "it's $later"]);
    assert_eq!(kept[1].parent.as_ref(), Some(&kept[0].id));
    assert_eq!((kept[0].current, kept[1].current), (false, true));
    assert!(kept[0].created.as_ref().unwrap().ends_with('Z'));
    hyperv.perform("old", &Action::RevertSnapshot { name: "before [1]*".into() }).unwrap();
    assert!(hyperv.snapshots("old").unwrap()[0].current);
    hyperv.perform("old", &Action::DeleteSnapshot { name: kept[1].id.clone() }).unwrap();
    assert_eq!(hyperv.show("old").unwrap().description.snapshots.len(), 1);
    let error = hyperv.perform("old", &Action::DeleteSnapshot { name: "none".into() }).unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "snapshot", .. }), "{error}");
    // Before anything happens.
    let described = Action::CreateSnapshot { name: "x".into(), description: Some("y".into()) };
    let error = hyperv.perform("old", &described).unwrap_err();
    assert!(matches!(error, Error::Lacks { verb: Verb::SnapshotCreate, .. }), "{error}");
}

#[test]
fn https_is_known_by_its_certificate() {
    let host = Host::start(&[]);
    let error = connect(&host.https_uri(), &asked("secret")).unwrap().list().unwrap_err();
    assert!(error.to_string().contains(&host.thumbprint), "{error}");
    assert!(error.repair().unwrap().contains("--tls-thumbprint"));
    let pinned = Options { tls_thumbprint: Some(host.thumbprint.clone()), ..asked("secret") };
    assert_eq!(connect(&host.https_uri(), &pinned).unwrap().list().unwrap().len(), 3);
    // An authority does as well: here, the certificate itself.
    let trusted = Options { tls_ca: Some(host.folder.path().join("cert.pem")), ..asked("secret") };
    assert_eq!(connect(&host.https_uri(), &trusted).unwrap().list().unwrap().len(), 3);
    let wrong = Options { tls_thumbprint: Some("00".repeat(32)), ..asked("secret") };
    assert!(connect(&host.https_uri(), &wrong).unwrap().list().is_err());
    // A pin would mean nothing over plain HTTP, so there is none.
    let error = connect(&host.uri(), &pinned).unwrap().list().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    // The channel below was part of the proof, or the service had refused it.
    assert!(!host.log().contains("refused"), "{}", host.log());
}

#[test]
fn passwords_go_in_the_clear_over_https_only() {
    let host = Host::start(&["--basic"]);
    let error = host.connect().list().unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    assert!(!host.log().contains("clear"), "{}", host.log());
    let pinned =
        |password| Options { tls_thumbprint: Some(host.thumbprint.clone()), ..asked(password) };
    assert_eq!(connect(&host.https_uri(), &pinned("secret")).unwrap().list().unwrap().len(), 3);
    let error = connect(&host.https_uri(), &pinned("wrong")).unwrap().list().unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
}

#[test]
fn what_a_user_may_is_asked_of_the_host() {
    let host = Host::start(&[]);
    host.change(|model| model["denied"] = true.into());
    let hyperv = host.connect();
    let error = hyperv.list().unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    assert!(error.repair().unwrap().contains("Hyper-V Administrators"));
    hyperv.product().unwrap();
    let Ability::No(reason) = hyperv.ability(Verb::List) else { panic!("it may") };
    assert!(
        reason.contains("required permission") && reason.contains("Hyper-V Administrators"),
        "{reason}"
    );

    host.change(|model| (model["denied"], model["module"]) = (false.into(), false.into()));
    let hyperv = host.connect();
    let error = hyperv.list().unwrap_err();
    assert!(error.repair().unwrap().contains("Install-WindowsFeature"), "{error}");
    assert!(hyperv.product().unwrap().ends_with("without the module Hyper-V"));
    assert!(matches!(hyperv.ability(Verb::Start), Ability::No(_)));
}
