//! Parallels Desktop's VMs by its program `prlctl` and the `config.pvs` in each bundle.
//!
//! Source: Parallels Desktop Command-Line Reference; what `prlctl list --info --json` printed elsewhere. No real
//! product was asked by this driver.

mod parse;

use std::sync::Arc;
use std::time::Duration;

use spec::foreign::{Description, ReadOptions};

use crate::files::{HasVmDisks, Place, VmDisks};
use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Error, Options, Output, Platform, Pull, RemoteDisks, Result, Runner, Snapshot,
    Uri, Verb, VmDetails, VmSummary, describe,
};

use parse::Vm;
pub use parse::fuzz;

/// How it is reached.
pub const DRIVER: Driver = Driver {
    platform: "Parallels",
    schemes: &["parallels", "parallels+ssh"],
    is_local: true,
    path_parts: 0,
    met: Met::Recorded("lists in the form that Parallels Desktop 20 prints"),
    ability,
    connect,
};

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::ConsoleLog => Ability::no("prlctl has no way to it"),
        Verb::ReadDisks => Ability::partly("of VMs that are switched off"),
        Verb::Watch => Ability::partly("by asking again and again"),
        _ => Ability::Yes,
    }
}

fn connect(uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let runner = Runner::new(uri, options.time_limit)
        .repair("it comes with Parallels Desktop, for macOS: parallels+ssh://[USER@]MAC");
    let place = Place::of(&runner, options.time_limit);
    Ok(Box::new(Parallels { runner, place, uri: uri.clone() }))
}

struct Parallels {
    place: Arc<Place>,
    runner: Runner,
    uri: Uri,
}

/// Snapshots write memory to disk, and merge disks.
const SNAPSHOT_TIME: Duration = Duration::from_secs(3600);

impl Parallels {
    fn prlctl(&self, args: &[&str]) -> Result<Output> {
        self.expect(&self.runner, args)
    }

    fn expect(&self, runner: &Runner, args: &[&str]) -> Result<Output> {
        let output = runner.run("prlctl", args)?;
        if output.code == 0 {
            return Ok(output);
        }
        let what = format!("prlctl {}", args.first().copied().unwrap_or_default());
        Err(Error::Failed { what, message: output.complaint(), repair: None })
    }

    fn vms(&self) -> Result<Vec<Vm>> {
        parse::list(&self.prlctl(&["list", "--all", "--info", "--json"])?.stdout)
    }

    /// By name or UUID, with or without braces.
    fn find(&self, vm: &str) -> Result<Vm> {
        let id = vm.trim_matches(['{', '}']);
        let fits = |one: &Vm| one.summary.name == vm || one.summary.id.as_deref() == Some(id);
        let mut found: Vec<_> = self.vms()?.into_iter().filter(fits).collect();
        let (place, name) = (self.uri.to_string(), vm.to_owned());
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Error::NotFound { place, what: "VM", name }),
            _ => {
                let ids = found.into_iter().filter_map(|one| one.summary.id).collect();
                Err(Error::Ambiguous { place, what: "VM", name, ids })
            }
        }
    }

    fn description(&self, vm: &Vm) -> Result<Description> {
        let file =
            vm.file.as_deref().ok_or_else(|| Error::reply("prlctl list", "it has no Home path"))?;
        if self.runner.is_local() {
            let options = ReadOptions { anywhere: true, ..ReadOptions::default() };
            let mut vms = spec::foreign::read(file.as_ref(), &options)?;
            return vms.pop().ok_or_else(|| Error::reply(file, "it describes no VM"));
        }
        let bytes = self.runner.read_file(file, describe::LONGEST)?;
        describe::read(&bytes, "pvs", file, false)
    }

    fn snapshots_of(&self, id: &str) -> Result<Vec<Snapshot>> {
        parse::snapshots(&self.prlctl(&["snapshot-list", id, "--json"])?.stdout)
    }

    /// The identity of the snapshot with this name.
    fn snapshot(&self, vm: &str, name: &str) -> Result<String> {
        let all = self.snapshots_of(vm)?;
        let mut found: Vec<_> =
            all.into_iter().filter(|one| one.name == name || one.id == name).collect();
        let (place, name) = (self.uri.to_string(), name.to_owned());
        match found.len() {
            1 => Ok(found.remove(0).id),
            0 => Err(Error::NotFound { place, what: "snapshot", name }),
            _ => {
                let ids = found.into_iter().map(|one| one.id).collect();
                Err(Error::Ambiguous { place, what: "snapshot", name, ids })
            }
        }
    }
}

impl Platform for Parallels {
    fn product(&self) -> Result<String> {
        let output = self.prlctl(&["--version"])?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        Ok(self.vms()?.into_iter().map(|vm| vm.summary).collect())
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let vm = self.find(vm)?;
        let description = self.description(&vm)?;
        Ok(VmDetails { summary: vm.summary, description })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let vm = self.find(vm)?;
        self.snapshots_of(vm.id())
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let vm = self.find(vm)?;
        let id = vm.id();
        let snapshot;
        let args = match action {
            Action::Start => vec!["start", id],
            Action::Stop { force: false } => vec!["stop", id],
            Action::Stop { force: true } => vec!["stop", id, "--kill"],
            Action::Pause => vec!["pause", id],
            Action::Resume => vec!["resume", id],
            Action::Reset { force: false } => vec!["restart", id],
            Action::Reset { force: true } => vec!["reset", id],
            Action::CreateSnapshot { name, description } => {
                let mut args = vec!["snapshot", id, "--name", name];
                if let Some(text) = description {
                    args.extend(["--description", text]);
                }
                args
            }
            Action::RevertSnapshot { name } => {
                snapshot = self.snapshot(id, name)?;
                vec!["snapshot-switch", id, "--id", &snapshot]
            }
            Action::DeleteSnapshot { name } => {
                snapshot = self.snapshot(id, name)?;
                vec!["snapshot-delete", id, "--id", &snapshot]
            }
        };
        let runner = match args[0].starts_with("snapshot") {
            true => self.runner.clone().time_limit(SNAPSHOT_TIME),
            false => self.runner.clone(),
        };
        self.expect(&runner, &args).map(drop)
    }
    fn disks(&self) -> Option<&dyn RemoteDisks> {
        Some(self)
    }

    fn pull(&self) -> Option<&dyn Pull> {
        Some(self)
    }
}

impl HasVmDisks for Parallels {
    fn vm_disks(&self, vm: &str) -> Result<VmDisks> {
        let vm = self.find(vm)?;
        let file = vm.file.as_deref().unwrap_or_default();
        let name = vm.summary.name.clone();
        Ok(VmDisks {
            place: self.place.clone(),
            name: crate::VmName { uri: Some(self.uri.clone()), name }.to_string(),
            state: vm.summary.state,
            description: self.description(&vm)?,
            document: (describe::file_name(file), self.runner.read_file(file, describe::LONGEST)?),
            home: describe::folder(file),
            format: None,
        })
    }
}
