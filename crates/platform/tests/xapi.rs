//! The XenAPI driver against a server that answers as the XenAPI's documentation says.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use platform::{
    Action, Change, Connection, Error, Options, PullOptions, Secret, State, Uri, connect,
};

/// A running server; it ends with the value.
struct Server {
    process: Child,
    thumbprint: String,
    port: u16,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/xapi-lab");
        let mut process = Command::new(lab)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/labs/xapi-lab starts");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = |begin: &str| {
            let line = lines.next().expect("the server says where it is").unwrap();
            line.strip_prefix(begin).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let thumbprint = line("thumbprint ");
        let port = line("ready https://127.0.0.1:").parse().unwrap();
        Self { process, thumbprint, port }
    }

    fn reach(&self, password: &'static str) -> Result<Connection, Error> {
        let uri = Uri::parse(&format!("xapi://root@127.0.0.1:{}", self.port)).unwrap();
        let options = Options {
            tls_thumbprint: Some(self.thumbprint.clone()),
            ask_password: Some(Arc::new(move |_| Some(Secret::new(password)))),
            ..Options::default()
        };
        connect(&uri, &options)
    }

    fn connect(&self) -> Connection {
        self.reach("secret").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn state(host: &Connection, vm: &str) -> State {
    host.list().unwrap().into_iter().find(|one| one.name == vm).unwrap().state
}

#[test]
fn vms_of_a_pool_are_listed_and_steered() {
    let server = Server::start(&["--session-requests", "3"]);
    let host = server.connect();
    assert_eq!(host.product().unwrap(), "XCP-ng 8.3.0");
    let vms = host.list().unwrap();
    // Neither templates nor the control domain.
    let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["db", "web"]);
    assert_eq!(vms[0].addresses, ["192.0.2.7", "fe80::1"]);
    assert_eq!(vms[0].guest_os.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert_eq!((vms[0].cpus, vms[0].memory), (Some(2), Some(512 << 20)));

    host.perform("web", &Action::Start).unwrap();
    assert_eq!(state(&host, "web"), State::Running);
    host.perform("web", &Action::Pause).unwrap();
    assert_eq!(state(&host, "web"), State::Paused);
    host.perform("web", &Action::Resume).unwrap();
    let error = host.perform("web", &Action::Stop { force: false }).unwrap_err();
    assert!(error.repair().is_some_and(|repair| repair.contains("--force")), "{error}");
    host.perform("web", &Action::Stop { force: true }).unwrap();
    assert_eq!(state(&host, "web"), State::Stopped);
    let error = host.perform("web", &Action::Pause).unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    host.perform("db", &Action::Reset { force: false }).unwrap();
    assert!(matches!(host.perform("nobody", &Action::Start), Err(Error::NotFound { .. })));
}

#[test]
fn states_are_kept_reverted_to_and_deleted_with_their_disks() {
    let server = Server::start(&[]);
    let host = server.connect();
    let create = |name: &str, text: Option<&str>| Action::CreateSnapshot {
        name: name.into(),
        description: text.map(str::to_owned),
    };
    host.perform("web", &create("first", Some("before all"))).unwrap();
    host.perform("web", &create("second", None)).unwrap();
    let kept = host.snapshots("web").unwrap();
    assert_eq!(kept.len(), 2);
    let first = kept.iter().find(|one| one.name == "first").unwrap();
    assert_eq!(first.description.as_deref(), Some("before all"));
    assert!(first.created.as_deref().is_some_and(|time| time.contains("-")), "{first:?}");
    host.perform("web", &Action::RevertSnapshot { name: "first".into() }).unwrap();
    assert!(host.snapshots("web").unwrap().iter().any(|one| one.current && one.name == "first"));
    host.perform("web", &Action::DeleteSnapshot { name: "second".into() }).unwrap();
    let names: Vec<_> = host.snapshots("web").unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["first"]);
    let delete = Action::DeleteSnapshot { name: "second".into() };
    assert!(matches!(host.perform("web", &delete), Err(Error::NotFound { .. })));
}

fn pull(host: &Connection, vm: &str, folder: &Path) -> Result<Vec<String>, Error> {
    let mut told = Vec::new();
    let ready = host.pullable(vm, &mut |sentence| told.push(sentence))?;
    ready.pull(folder, &PullOptions::default(), &mut |_| {})?;
    Ok(told)
}

#[test]
fn what_is_shown_is_what_is_read_from_an_export() {
    let server = Server::start(&[]);
    let host = server.connect();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(pull(&host, "web", folder.path()).unwrap(), [""; 0]);
    let path = folder.path().join("web.xva");
    let options = spec::foreign::ReadOptions::default();
    let mut read = spec::foreign::read(&path, &options).unwrap().remove(0);
    let mut shown = host.show("web").unwrap().description;
    let disk = read.drives[0].file.clone().unwrap();
    for one in [&mut read, &mut shown] {
        // What an export says of itself, and how it calls its objects.
        (one.product, one.version, one.folder) = (None, None, None);
        one.file = "same".into();
        for drive in &mut one.drives {
            drive.file = drive.file.take().map(|_| Default::default());
        }
        one.unread.clear();
    }
    assert_eq!(read, shown);
    assert_eq!(shown.drives[0].capacity, Some(4 << 20));

    let image = disk::ImageOptions { read_only: true, ..disk::ImageOptions::default() };
    let disk = disk::open(disk.disk_path().unwrap(), &image).unwrap();
    let mut block = vec![1; 1 << 20];
    disk.read_at(&mut block, 1 << 20).unwrap();
    assert!(block.iter().all(|byte| *byte == 0), "the block that is not in the archive");
    disk.read_at(&mut block, 2 << 20).unwrap();
    assert!(block[..32] == block[32..64] && block[0..32] != [0; 32]);
}

#[test]
fn a_running_vm_is_copied_below_a_snapshot_that_is_taken_away() {
    let server = Server::start(&[]);
    let host = server.connect();
    let folder = tempfile::tempdir().unwrap();
    let told = pull(&host, "db", folder.path()).unwrap();
    assert!(told.len() == 1 && told[0].contains("snapshot"), "{told:?}");
    assert!(folder.path().join("db.xva").exists());
    assert_eq!(host.snapshots("db").unwrap(), []);
    assert_eq!(state(&host, "db"), State::Running);
}

#[test]
fn an_export_that_ends_early_is_not_taken() {
    for (option, says) in
        [(&["--cut", "1500000"][..], "lost"), (&["--fail-export"], "VDI_IO_ERROR")]
    {
        let server = Server::start(option);
        let host = server.connect();
        let folder = tempfile::tempdir().unwrap();
        let error = pull(&host, "web", folder.path()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_slave_sends_to_its_master_and_a_wrong_password_is_said() {
    let master = Server::start(&[]);
    let error = master.reach("wrong").err().unwrap();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
    assert!(!error.to_string().contains("wrong\""), "{error}");
    // Its certificate is another one, which nobody has said to be right.
    let address = format!("127.0.0.1:{}", master.port);
    let slave = Server::start(&["--slave-of", &address]);
    let error = slave.reach("secret").err().unwrap();
    assert!(error.to_string().contains("certificate is refused"), "{error}");
    assert!(error.to_string().contains(&master.thumbprint), "{error}");
}

#[test]
fn changes_are_told_as_they_happen() {
    let server = Server::start(&[]);
    let (host, other) = (server.connect(), server.connect());
    let mut seen = Vec::new();
    host.watch(std::time::Duration::from_secs(1), &mut |change| match change {
        Change::Appeared { vm } => {
            seen.push(vm.name);
            if seen.len() == 2 {
                other.perform("web", &Action::Start).unwrap();
            }
            true
        }
        Change::Changed { vm } => {
            assert_eq!((vm.name.as_str(), vm.state), ("web", State::Running));
            false
        }
        Change::Vanished { vm } => panic!("{} vanished", vm.name),
    })
    .unwrap();
    assert_eq!(seen, ["db", "web"]);
}

/// Opens the disks of a VM where they are.
fn still(host: &Connection, vm: &str) -> Result<(platform::Still, Vec<String>), Error> {
    let mut told = Vec::new();
    let still = host.still(vm, &mut |sentence| told.push(sentence))?;
    Ok((still, told))
}

/// The lab's second block is empty, and the others are not.
fn is_whole(still: &platform::Still) -> bool {
    let disk = &still.disks[0].disk;
    let mut all = vec![1; usize::try_from(disk.len()).unwrap()];
    disk.read_at(&mut all, 0).unwrap();
    let (blocks, empty) = (all.chunks(1 << 20).collect::<Vec<_>>(), vec![0; 1 << 20]);
    blocks.len() == 4 && blocks.iter().enumerate().all(|(at, block)| (at == 1) == (*block == empty))
}

#[test]
fn disks_are_read_in_parts_below_a_snapshot() {
    let server = Server::start(&["--nbd", "tls"]);
    let host = server.connect();
    for vm in ["web", "db"] {
        let (first, told) = still(&host, vm).unwrap();
        assert!(told.len() == 1 && told[0].contains("\"omnivisor run\""), "{told:?}");
        assert_eq!((first.disks.len(), first.disks[0].drive), (1, 0));
        assert!(is_whole(&first));
        // The next run goes on with the same state, and takes the snapshot away when all is here.
        let (second, told) = still(&host, vm).unwrap();
        assert!(told[0].contains("of a run before"), "{told:?}");
        assert_eq!(first.disks[0].stamp, second.disks[0].stamp);
        (first.undo)(false).unwrap();
        assert_eq!(host.snapshots(vm).unwrap().len(), 1);
        (second.undo)(true).unwrap();
        assert_eq!(host.snapshots(vm).unwrap(), []);
    }
}

#[test]
fn a_disk_whose_line_breaks_or_whose_session_ends_is_read_on() {
    let server = Server::start(&["--nbd", "tls", "--cut", "1500000", "--session-requests", "9"]);
    let host = server.connect();
    assert!(is_whole(&still(&host, "web").unwrap().0));
}

#[test]
fn disks_that_are_not_given_or_not_encrypted_are_refused_and_nothing_is_changed() {
    for (options, says) in [(&[][..], "purpose \"nbd\""), (&["--nbd", "plain"], "does not encrypt")]
    {
        let server = Server::start(options);
        let host = server.connect();
        let error = still(&host, "web").err().unwrap();
        assert!(error.to_string().contains(says) && error.repair().is_some(), "{error}");
        assert_eq!(host.snapshots("web").unwrap(), []);
    }
}
