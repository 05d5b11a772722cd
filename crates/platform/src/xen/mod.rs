//! Xen's VMs by its program `xl`, and the configurations in `/etc/xen` as those that are switched off.
//!
//! Source: xl(1), xl.cfg(5).

mod parse;
mod xenstore;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::foreign::Description;

use crate::files::{HasVmDisks, Place, VmDisks};
use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Change, ConsoleLog, Error, Options, Output, Platform, Pull, RemoteDisks,
    Result, Runner, Snapshot, State, Uri, Verb, VmDetails, VmSummary, Watch, describe,
};

use xenstore::Xenstore;

/// Reads any bytes in the place of xl and xenstored.
pub(crate) fn fuzz(bytes: &[u8], text: &str) {
    parse::fuzz(text);
    xenstore::fuzz(bytes);
}

/// How it is reached.
pub const DRIVER: Driver = Driver {
    platform: "Xen",
    schemes: &["xen", "xen+ssh"],
    is_local: true,
    path_parts: 0,
    met: Met::Product("Xen 4.17 with PV and PVH guests"),
    ability,
    connect,
};

fn ability(verb: Verb) -> Ability {
    const NO_SNAPSHOTS: &str = "Xen keeps no snapshots of its VMs";
    match verb {
        Verb::SnapshotList | Verb::SnapshotCreate | Verb::SnapshotRevert | Verb::SnapshotDelete => {
            Ability::no(NO_SNAPSHOTS)
        }
        Verb::Start => Ability::partly("if its configuration is in /etc/xen"),
        Verb::Reset => Ability::partly("with --force only HVM guests"),
        Verb::ConsoleLog => Ability::partly("if xenconsoled runs with --log=guest"),
        Verb::ReadDisks => Ability::partly("of VMs that are switched off"),
        Verb::List | Verb::Show | Verb::Stop | Verb::Pause | Verb::Resume | Verb::Watch => {
            Ability::Yes
        }
    }
}

fn connect(uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let runner = Runner::new(uri, options.time_limit)
        .repair("it belongs to Xen's dom0: omnivisor probe tells what is missing");
    let place = Place::of(&runner, options.time_limit);
    Ok(Box::new(Xen { runner, place, time_limit: options.time_limit, uri: uri.clone() }))
}

struct Xen {
    place: Arc<Place>,
    time_limit: Duration,
    runner: Runner,
    uri: Uri,
}

/// Where configurations of VMs are.
const FOLDER: &str = "/etc/xen";
/// Where xenconsoled keeps what guests write.
const CONSOLES: &str = "/var/log/xen/console";
/// So many configurations are read.
const MOST: usize = 1000;

/// A VM that runs, or a configuration of one that does not.
struct Found {
    summary: VmSummary,
    /// What `xl` knows it by.
    domain: Option<u32>,
    /// The file of one that does not run, and what it says.
    configuration: Option<(String, Description)>,
}

impl Xen {
    fn expect(&self, args: &[&str]) -> Result<Output> {
        let output = self.runner.run("xl", args)?;
        if output.code == 0 { Ok(output) } else { Err(self.failure(args, &output)) }
    }

    fn failure(&self, args: &[&str], output: &Output) -> Error {
        let message = output.complaint();
        let command = args.first().copied().unwrap_or_default();
        let repair = (message.contains("privileged command interface")
            || message.contains("Permission denied"))
        .then(|| "run it as root".to_owned());
        Error::Failed { what: format!("xl {command}"), message, repair }
    }

    /// The VMs that run, without the host's own domain.
    fn running(&self) -> Result<Vec<Found>> {
        let list = self.expect(&["list"])?;
        let mut domains = parse::list(&String::from_utf8_lossy(&list.stdout))?;
        let names = self.expect(&["vm-list"])?;
        parse::add_uuids(&String::from_utf8_lossy(&names.stdout), &mut domains);
        Ok(domains
            .into_iter()
            .filter(|(id, _)| *id != 0)
            .map(|(id, summary)| Found { summary, domain: Some(id), configuration: None })
            .collect())
    }

    /// Configurations of VMs, whether they run or not; what is no configuration is left out.
    fn configurations(&self) -> Vec<Found> {
        let pattern = ["-maxdepth", "1", "-name", "*.cfg", "-type", "f"];
        let args = [&[FOLDER][..], &pattern].concat();
        // Without the folder there are none.
        let files = self.runner.expect("find", &args).unwrap_or_default();
        let files = String::from_utf8_lossy(&files).into_owned();
        let read = |file: &str| {
            let bytes = self.runner.read_file(file, describe::LONGEST).ok()?;
            let description = describe::read(&bytes, "cfg", file, self.runner.is_local()).ok()?;
            let summary = VmSummary {
                name: description.name.clone()?,
                id: description.uuid.clone(),
                state: State::Stopped,
                cpus: description.cpus.count,
                memory: description.memory.size,
                ..VmSummary::default()
            };
            let configuration = Some((file.to_owned(), description));
            Some(Found { summary, domain: None, configuration })
        };
        files.lines().take(MOST).filter_map(read).collect()
    }

    fn all(&self) -> Result<Vec<Found>> {
        let mut all = self.running()?;
        for found in self.configurations() {
            if !all.iter().any(|known| known.summary.name == found.summary.name) {
                all.push(found);
            }
        }
        Ok(all)
    }

    /// By name, UUID or number.
    fn find(&self, vm: &str) -> Result<Found> {
        let fits = |found: &Found| {
            found.summary.name == vm
                || found.summary.id.as_deref() == Some(vm)
                || found.domain.is_some_and(|id| vm.parse() == Ok(id))
        };
        let mut all = self.all()?;
        let at = all
            .iter()
            .position(|found| found.summary.name == vm)
            .or_else(|| all.iter().position(fits));
        let place = self.uri.to_string();
        let at = at.ok_or(Error::NotFound { place, what: "VM", name: vm.into() })?;
        Ok(all.swap_remove(at))
    }

    /// What the tools in the guests have told, for VMs with these numbers.
    fn add_facts(&self, vms: &mut [(Option<u32>, &mut VmSummary)]) {
        // A list without them is better than none.
        let mut store = match Xenstore::connect(&self.runner, self.time_limit) {
            Ok(store) => store,
            Err(error) => return tracing::info!(%error, "what guests tell is not known"),
        };
        for (domain, summary) in vms {
            let place = format!("/local/domain/{}", domain.unwrap_or_default());
            let facts = store.tree(&format!("{place}/attr")).unwrap_or_default();
            summary.addresses = parse::addresses(&facts);
            let name = store.read(&format!("{place}/data/os_name")).ok().flatten();
            summary.guest_os = name.map(|name| parse::os_name(&name)).or(summary.guest_os.take());
        }
    }

    fn description(&self, found: &Found) -> Result<Description> {
        if let Some((_, description)) = &found.configuration {
            return Ok(description.clone());
        }
        let id = found.domain.unwrap_or_default().to_string();
        let output = self.expect(&["list", "-l", &id])?;
        let name = found.summary.name.clone();
        let label = crate::VmName { uri: Some(self.uri.clone()), name }.to_string();
        describe::read(&output.stdout, "json", &label, self.runner.is_local())
    }
}

impl Platform for Xen {
    fn product(&self) -> Result<String> {
        let output = self.expect(&["info"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "xen_version").then(|| value.trim().to_owned())
        });
        let version = version.ok_or_else(|| Error::reply("xl info", "it has no xen_version"))?;
        Ok(format!("Xen {version}"))
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        let mut all = self.all()?;
        let mut running: Vec<_> =
            all.iter_mut().map(|found| (found.domain, &mut found.summary)).collect();
        running.retain(|(domain, _)| domain.is_some());
        if !running.is_empty() {
            self.add_facts(&mut running);
        }
        Ok(all.into_iter().map(|found| found.summary).collect())
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let found = self.find(vm)?;
        let description = self.description(&found)?;
        let mut summary = found.summary;
        if found.domain.is_some() {
            self.add_facts(&mut [(found.domain, &mut summary)]);
        }
        Ok(VmDetails { summary, description })
    }

    fn snapshots(&self, _vm: &str) -> Result<Vec<Snapshot>> {
        Ok(Vec::new())
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let found = self.find(vm)?;
        let wrong =
            |state| Error::WrongState { name: found.summary.name.clone(), state, repair: None };
        let id = match (found.domain, action, &found.configuration) {
            (None, Action::Start, Some((file, _))) => {
                return self.expect(&["create", "-q", file]).map(drop);
            }
            (Some(id), _, _) if *action != Action::Start => id.to_string(),
            _ => return Err(wrong(found.summary.state)),
        };
        let args: &[&str] = match action {
            Action::Stop { force: false } => &["shutdown", "-F", &id],
            Action::Stop { force: true } => &["destroy", &id],
            Action::Pause => &["pause", &id],
            Action::Resume => &["unpause", &id],
            Action::Reset { force: false } => &["reboot", "-F", &id],
            Action::Reset { force: true } => &["trigger", &id, "reset"],
            Action::Start
            | Action::CreateSnapshot { .. }
            | Action::RevertSnapshot { .. }
            | Action::DeleteSnapshot { .. } => return Err(wrong(found.summary.state)),
        };
        self.expect(args).map(drop)
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

    fn watch(&self) -> Option<&dyn Watch> {
        Some(self)
    }
}

impl HasVmDisks for Xen {
    fn vm_disks(&self, vm: &str) -> Result<VmDisks> {
        let found = self.find(vm)?;
        let name = found.summary.name.clone();
        let document = match &found.configuration {
            Some((file, _)) => {
                (describe::file_name(file), self.runner.read_file(file, describe::LONGEST)?)
            }
            None => (format!("{}.json", name.replace('/', "_")), Vec::new()),
        };
        let home = found.configuration.as_ref().and_then(|(file, _)| describe::folder(file));
        Ok(VmDisks {
            place: self.place.clone(),
            name: crate::VmName { uri: Some(self.uri.clone()), name }.to_string(),
            state: found.summary.state,
            description: self.description(&found)?,
            document,
            home,
            // xl-disk-configuration(5): `format` is raw if it is not said.
            format: Some(disk::Format::Raw),
        })
    }
}

impl Watch for Xen {
    fn watch(&self, tell: &mut dyn FnMut(Change) -> bool) -> Result<()> {
        let mut store = Xenstore::connect(&self.runner, self.time_limit)?;
        for place in ["@introduceDomain", "@releaseDomain", "/local/domain"] {
            store.watch(place)?;
        }
        let mut known = BTreeMap::new();
        loop {
            // Names are unique, and a VM that is switched off has no identifier.
            let now: BTreeMap<_, _> =
                self.list()?.into_iter().map(|vm| (vm.name.clone(), vm)).collect();
            for change in crate::connection::changes(&known, &now) {
                if !tell(change) {
                    return Ok(());
                }
            }
            known = now;
            // The store does not tell that a VM was paused.
            if store.wait(LONGEST_SILENCE)?.is_some() {
                // One change is many events.
                let settled = Instant::now() + SETTLING;
                while let Some(left) = settled.checked_duration_since(Instant::now()) {
                    store.wait(left)?;
                }
            }
        }
    }
}

/// After so long without an event the VMs are looked at all the same.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// So long is waited for what belongs to an event.
const SETTLING: Duration = Duration::from_millis(300);

impl ConsoleLog for Xen {
    fn console_log(&self, vm: &str, limit: usize) -> Result<Vec<u8>> {
        let name = self.find(vm)?.summary.name;
        let path = format!("{CONSOLES}/guest-{name}.log");
        if name.contains('/') {
            return Err(Error::reply("xl list", format!("{name:?} is no name of a VM")));
        }
        let limit = limit.to_string();
        self.runner.expect("tail", &["-c", &limit, "--", &path])
    }
}
