//! libvirt's VMs by its program `virsh`: QEMU's, the test driver's, and others that it drives.
//!
//! Source: libvirt's documentation, "virsh".

mod parse;

use std::sync::Arc;

use spec::foreign::Description;

use crate::files::{HasVmDisks, Place, VmDisks};
use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, ConsoleLog, Error, Options, Output, Platform, Pull, RemoteDisks, Result,
    Runner, Snapshot, State, Uri, Verb, VmDetails, VmSummary, describe,
};

pub use parse::fuzz;

/// How it is reached.
pub const DRIVER: Driver = Driver {
    platform: "libvirt",
    schemes: &["qemu", "qemu+ssh", "libvirt+ssh", "test"],
    is_local: true,
    path_parts: 1,
    met: Met::Product("libvirt 9.0 with QEMU 7.2"),
    ability,
    connect,
};

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::ConsoleLog => {
            Ability::partly("if a serial port of the VM writes to a file, or has a log file")
        }
        Verb::ReadDisks => Ability::partly(
            "files and block devices of its computer; the VM is switched off to be copied or run",
        ),
        Verb::Watch => Ability::partly("by asking again and again"),
        _ => Ability::Yes,
    }
}

fn connect(uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let driver = if uri.product() == "test" { "test" } else { "qemu" };
    let instance = match (uri.path.first().map(String::as_str), driver) {
        (Some(name), _) => name,
        (None, "test") => "default",
        (None, _) => "system",
    };
    let allowed: &[&str] = if driver == "test" { &["default"] } else { &["system", "session"] };
    if !allowed.contains(&instance) {
        let message = format!("expected {}", allowed.join(" or "));
        return Err(Error::Name { text: uri.to_string(), message });
    }
    let runner = Runner::new(uri, options.time_limit)
        .repair("install libvirt's client: sudo apt install libvirt-clients");
    let connection = format!("{driver}:///{instance}");
    let place = Place::of(&runner, options.time_limit);
    Ok(Box::new(Libvirt { runner, place, connection, uri: uri.clone() }))
}

struct Libvirt {
    place: Arc<Place>,
    runner: Runner,
    /// As `virsh` on its host knows it.
    connection: String,
    uri: Uri,
}

/// What virsh says of a connection that does not come about.
const NO_CONNECTION: &str = "failed to connect to the hypervisor";

impl Libvirt {
    fn virsh(&self, args: &[&str]) -> Result<Output> {
        let args = [&["-q", "-c", &self.connection], args].concat();
        self.runner.run("virsh", &args)
    }

    /// Runs a command that must succeed; `vm` is whom it is about.
    fn expect(&self, vm: Option<&str>, args: &[&str]) -> Result<Output> {
        let output = self.virsh(args)?;
        if output.code == 0 { Ok(output) } else { Err(self.failure(vm, args, &output)) }
    }

    fn failure(&self, vm: Option<&str>, args: &[&str], output: &Output) -> Error {
        let message = output.complaint().replace("error: ", "");
        let place = self.uri.to_string();
        if message.contains(NO_CONNECTION) {
            let repair = Some("omnivisor probe tells what is missing".into());
            return Error::Unreachable { place, message, repair };
        }
        if let Some(name) = vm.filter(|_| message.starts_with("failed to get domain")) {
            return Error::NotFound { place, what: "VM", name: name.into() };
        }
        let command = args.first().copied().unwrap_or_default();
        Error::Failed { what: format!("virsh {command}"), message, repair: None }
    }

    /// The description that the next start takes; of a VM that has none, the one that runs.
    fn description(&self, vm: &str) -> Result<Description> {
        let args = ["dumpxml", "--inactive", "--domain", vm];
        let output = self.expect(Some(vm), &args)?;
        let label = crate::VmName { uri: Some(self.uri.clone()), name: vm.into() }.to_string();
        describe::read(&output.stdout, "xml", &label, self.runner.is_local())
    }

    fn summaries(&self, commands: &str) -> Result<Vec<VmSummary>> {
        // All of it by one connection: what comes and goes meanwhile is in both answers or in one.
        let output = self.expect(None, &[commands])?;
        parse::list(output.text("virsh")?)
    }

    fn snapshot_names(&self, vm: &str) -> Result<Vec<String>> {
        let output =
            self.expect(Some(vm), &["snapshot-list", "--domain", vm, "--topological", "--name"])?;
        let names = output.text("virsh snapshot-list")?.lines().map(str::to_owned);
        Ok(names.filter(|name| !name.is_empty()).take(MOST_SNAPSHOTS).collect())
    }

    fn addresses(&self, vm: &str) -> Vec<String> {
        // Not every network knows them.
        let output = self.virsh(&["domifaddr", "--domain", vm]).unwrap_or_default();
        parse::addresses(&String::from_utf8_lossy(&output.stdout))
    }
}

/// So many snapshots of one VM are looked at.
const MOST_SNAPSHOTS: usize = 1000;

impl Platform for Libvirt {
    fn product(&self) -> Result<String> {
        let output = self.expect(None, &["version"])?;
        let text = output.text("virsh version")?;
        let after = |word: &str| {
            text.lines().find_map(|line| line.strip_prefix(word)).map(str::trim).map(str::to_owned)
        };
        let library = after("Using library:").unwrap_or_else(|| "libvirt".into());
        Ok(match after("Running hypervisor:") {
            Some(hypervisor) => format!("{library}, {hypervisor}"),
            None => library,
        })
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        self.summaries("list --all --uuid --name; domstats --state --vcpu --balloon")
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let mut description = self.description(vm)?;
        let name = description.name.clone().unwrap_or_else(|| vm.into());
        let summary = self.list()?.into_iter().find(|one| one.name == name);
        let mut summary = summary.ok_or_else(|| Error::NotFound {
            place: self.uri.to_string(),
            what: "VM",
            name: vm.into(),
        })?;
        summary.cpus = summary.cpus.or(description.cpus.count);
        summary.memory = summary.memory.or(description.memory.size);
        summary.guest_os = description.guest_os.clone();
        if summary.state == State::Running {
            summary.addresses = self.addresses(&name);
        }
        description.snapshots = self.snapshots(&name)?;
        Ok(VmDetails { summary, description })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let names = self.snapshot_names(vm)?;
        let current = match names.is_empty() {
            true => None,
            // There is none after a revert to something else.
            false => Some(self.virsh(&["snapshot-current", "--domain", vm, "--name"])?)
                .filter(|output| output.code == 0),
        };
        let current =
            current.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let read = |name: String| {
            let args = ["snapshot-dumpxml", "--domain", vm, "--snapshotname", &name];
            let output = self.expect(Some(vm), &args)?;
            let mut vms = spec::foreign::parse(&output.stdout, "snapshot.xml".as_ref())?;
            let found = vms.pop().and_then(|mut vm| vm.snapshots.pop());
            let mut found =
                found.ok_or_else(|| Error::reply("virsh snapshot-dumpxml", "it has no name"))?;
            found.created = found.created.as_deref().and_then(parse::utc);
            found.current = current.as_ref() == Some(&found.name);
            Ok(found)
        };
        names.into_iter().map(read).collect()
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let on = |command: &'static str| vec![command, "--domain", vm];
        let with =
            |command: &'static str, name| vec![command, "--domain", vm, "--snapshotname", name];
        let args = match action {
            Action::Start => on("start"),
            Action::Stop { force: false } => on("shutdown"),
            Action::Stop { force: true } => on("destroy"),
            Action::Pause => on("suspend"),
            Action::Resume => on("resume"),
            Action::Reset { force: false } => on("reboot"),
            Action::Reset { force: true } => on("reset"),
            Action::CreateSnapshot { name, description } => {
                let mut args = vec!["snapshot-create-as", "--domain", vm, "--name", name];
                if let Some(text) = description {
                    args.extend(["--description", text]);
                }
                args
            }
            Action::RevertSnapshot { name } => with("snapshot-revert", name),
            Action::DeleteSnapshot { name } => with("snapshot-delete", name),
        };
        let output = self.virsh(&args)?;
        if output.code == 0 {
            return Ok(());
        }
        if let Action::RevertSnapshot { name } | Action::DeleteSnapshot { name } = action
            && output.stderr.contains("no domain snapshot with matching name")
        {
            let place = self.uri.to_string();
            return Err(Error::NotFound { place, what: "snapshot", name: name.clone() });
        }
        Err(self.failure(Some(vm), &args, &output))
    }

    fn console(&self) -> Option<&dyn ConsoleLog> {
        Some(self)
    }

    fn disks(&self) -> Option<&dyn RemoteDisks> {
        Some(self)
    }

    fn pull(&self) -> Option<&dyn Pull> {
        Some(self)
    }
}

impl HasVmDisks for Libvirt {
    fn vm_disks(&self, vm: &str) -> Result<VmDisks> {
        let args = ["dumpxml", "--inactive", "--domain", vm];
        let document = self.expect(Some(vm), &args)?.stdout;
        let mut description = self.description(vm)?;
        let name = description.name.clone().unwrap_or_else(|| vm.into());
        for drive in &mut description.drives {
            if let Some(file) = &mut drive.file
                && let Some((pool, volume)) = parse::volume(&file.written)
            {
                let args = ["vol-path", "--pool", pool, "--vol", volume];
                let output = self.expect(None, &args)?;
                output.text("virsh vol-path")?.trim().clone_into(&mut file.written);
            }
        }
        let state = self.list()?.into_iter().find(|one| one.name == name).map(|one| one.state);
        Ok(VmDisks {
            place: self.place.clone(),
            name: crate::VmName { uri: Some(self.uri.clone()), name: name.clone() }.to_string(),
            state: state.unwrap_or_default(),
            description,
            document: (format!("{}.xml", name.replace('/', "_")), document),
            home: None,
            // libvirt looks into no disk, either (its documentation of `driver`).
            format: Some(disk::Format::Raw),
        })
    }
}

impl ConsoleLog for Libvirt {
    fn console_log(&self, vm: &str, limit: usize) -> Result<Vec<u8>> {
        // virtlogd's copy of what a terminal shows is the usual one.
        let document = self.expect(Some(vm), &["dumpxml", "--domain", vm])?.stdout;
        if let Some(path) = parse::console_log(&document) {
            let limit = limit.to_string();
            return self.runner.expect("tail", &["-c", &limit, "--", &path]);
        }
        describe::serial_log(&self.runner, &self.description(vm)?, DRIVER.platform, limit)
    }
}
