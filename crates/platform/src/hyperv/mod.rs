//! Hyper-V, by the PowerShell module of its host: through WinRM, or through ssh.
//!
//! Source: Microsoft's documentation of the module Hyper-V and of the WMI namespace root\virtualization\v2. No real product
//! was asked by this driver.

mod clixml;
mod description;
mod disks;
mod exchange;
mod fuzz;
mod reader;
mod reply;
mod talk;
mod winrm;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use disk::Disk;
use serde::de::DeserializeOwned;
use spec::foreign::{Description, DriveKind};

pub use fuzz::fuzz;

use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Error, Options, Platform, Pull, Pullable, RemoteDisks, Result, Runner,
    Snapshot, Still, Uri, Verb, VmDetails, VmSummary,
};
use exchange::{Complaint, Outcome, Remote, Way};
use reply::{Kept, List, Product, Shown, Snapshots, Summary};
use winrm::Winrm;

/// How it is reached.
pub(crate) const DRIVER: Driver = Driver {
    platform: "Hyper-V",
    schemes: &["hyperv", "hyperv+https", "hyperv+ssh"],
    is_local: false,
    path_parts: 0,
    met: Met::Recorded(
        "answers written from Microsoft's documentation, through a WinRM server of our own",
    ),
    ability,
    connect,
};

/// Who logs in if nobody is named.
const USUAL_USER: &str = "Administrator";
/// Checkpoints write memory to disk, and merge disks.
const LONG: Duration = Duration::from_secs(3600);

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::ConsoleLog => Ability::no("Hyper-V keeps no console"),
        Verb::Stop | Verb::Reset => {
            Ability::partly("the guest is asked through its integration services, or --force")
        }
        Verb::SnapshotCreate => {
            Ability::partly("without a description, for which Hyper-V has no command")
        }
        Verb::Watch => Ability::partly("by asking again and again"),
        _ => Ability::Yes,
    }
}

fn connect(uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let way = match uri.is_ssh() {
        true => Way::Ssh(Runner::new(uri, options.time_limit)),
        false => Way::Winrm(Winrm::new(uri, options)?),
    };
    let remote = Arc::new(Remote { way, limit: options.time_limit });
    Ok(Box::new(Hyperv { remote, uri: uri.clone(), product: Arc::default() }))
}

/// A host.
#[derive(Clone)]
struct Hyperv {
    remote: Arc<Remote>,
    uri: Uri,
    /// What it said of itself, if it was asked.
    product: Arc<OnceLock<Product>>,
}

impl Hyperv {
    /// Runs a script about `vm` that answers with one value.
    fn ask<T: DeserializeOwned>(
        &self,
        script: &str,
        words: &[&str],
        limit: Duration,
        vm: &str,
    ) -> Result<T> {
        let outcome: Outcome<T> = self.remote.ask(script, words, limit)?;
        outcome.map_err(|complaint| self.failure(complaint, vm, words))
    }

    /// Runs a script about `vm`.
    fn run(&self, script: &str, words: &[&str], limit: Duration, vm: &str) -> Result<Vec<u8>> {
        let outcome = self.remote.run(script, words, limit)?;
        outcome.map_err(|complaint| self.failure(complaint, vm, words))
    }

    fn shown(&self, vm: &str) -> Result<Shown> {
        self.ask(include_str!("scripts/show.ps1"), &[vm], self.remote.limit, vm)
    }

    /// What a VM is found by without a doubt.
    fn identity<'a>(&self, shown: &'a Shown) -> &'a str {
        match shown.summary.id.is_empty() {
            true => &shown.summary.name,
            false => &shown.summary.id,
        }
    }

    fn describe(&self, shown: &Shown) -> Result<Description> {
        let name = crate::VmName { uri: Some(self.uri.clone()), name: shown.summary.name.clone() };
        description::describe(shown, &name.to_string())
    }

    /// What a script complains of, in our words.
    fn failure(&self, complaint: Complaint, vm: &str, words: &[&str]) -> Error {
        let Complaint { message, id, category } = complaint;
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let message = crate::xml::shortened(message.trim_end_matches('.'));
        let (place, name) = (self.uri.to_string(), vm.to_owned());
        let snapshot = || words.last().map(|word| (*word).to_owned()).unwrap_or_default();
        let ids = |text: &str| text.split_whitespace().skip(1).map(str::to_owned).collect();
        match message.split(' ').next().unwrap_or_default() {
            "OmnivisorNotFound" => return Error::NotFound { place, what: "VM", name },
            "OmnivisorAmbiguous" => {
                return Error::Ambiguous { place, what: "VM", name, ids: ids(&message) };
            }
            "OmnivisorNoSnapshot" => {
                return Error::NotFound { place, what: "snapshot", name: snapshot() };
            }
            "OmnivisorAmbiguousSnapshot" => {
                return Error::Ambiguous {
                    place,
                    what: "snapshot",
                    name: snapshot(),
                    ids: ids(&message),
                };
            }
            "OmnivisorState" => {
                let state = reply::state(message.split(' ').nth(1).unwrap_or_default());
                return Error::WrongState { name, state, repair: None };
            }
            "OmnivisorGuest" => {
                let code = message.split(' ').nth(1).unwrap_or_default();
                return Error::Failed {
                    what: format!("asking the guest of {vm}"),
                    message: format!(
                        "its integration services do not take it (Hyper-V's code {code})"
                    ),
                    repair: Some("--force does it without asking the guest".into()),
                };
            }
            _ => {}
        }
        let place = self.remote.place().to_owned();
        if id.starts_with("CommandNotFoundException") || id.contains("CouldNotAutoLoadModule") {
            return Error::Failed {
                what: format!("PowerShell on {place}"),
                message,
                repair: Some(
                    "its module Hyper-V is missing: Install-WindowsFeature Hyper-V-PowerShell on the host".into(),
                ),
            };
        }
        let denied =
            ["AccessDenied", "AuthorizationFailed", "UnauthorizedAccess", "PermissionDenied"];
        if category == "PermissionDenied" || denied.iter().any(|word| id.contains(word)) {
            return Error::Credentials { place, message, repair: Some(RIGHTS.into()) };
        }
        Error::Failed { what: format!("Hyper-V on {place}"), message, repair: None }
    }
}

/// What gives a user the right to steer VMs.
const RIGHTS: &str = "let the user into the host's group Hyper-V Administrators";

impl Platform for Hyperv {
    fn product(&self) -> Result<String> {
        let product: Product =
            self.ask(include_str!("scripts/product.ps1"), &[], self.remote.limit, "")?;
        let system = product.system.clone().unwrap_or_else(|| "Windows".into());
        let version =
            product.version.as_ref().map(|version| format!(" ({version})")).unwrap_or_default();
        let module = match &product.module {
            Some(module) => format!("module Hyper-V {module}"),
            None => "without the module Hyper-V".into(),
        };
        let _ = self.product.set(product);
        Ok(format!("{system}{version}, {module}"))
    }

    fn ability(&self, _verb: Verb) -> Option<Ability> {
        match self.product.get()? {
            Product { module: None, .. } => Some(Ability::no(
                "the host has no PowerShell module Hyper-V: Install-WindowsFeature Hyper-V-PowerShell",
            )),
            Product { denied: Some(message), .. } => {
                let message: String = message.split_whitespace().collect::<Vec<_>>().join(" ");
                let message = crate::xml::shortened(message.trim_end_matches('.'));
                Some(Ability::no(format!("{message}; {RIGHTS}")))
            }
            _ => None,
        }
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        let list: List = self.ask(include_str!("scripts/list.ps1"), &[], self.remote.limit, "")?;
        Ok(list.vms.into_iter().map(Summary::into_summary).collect())
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let shown = self.shown(vm)?;
        let mut description = self.describe(&shown)?;
        description.snapshots = self.snapshots(self.identity(&shown))?;
        Ok(VmDetails { summary: shown.summary.into_summary(), description })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let found: Snapshots =
            self.ask(include_str!("scripts/snapshots.ps1"), &[vm], self.remote.limit, vm)?;
        let mut all: Vec<_> = found.snapshots.into_iter().map(Kept::into_snapshot).collect();
        // Parents before their children.
        all.sort_by(|a, b| a.created.cmp(&b.created));
        Ok(all)
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let words = match action {
            Action::Start => vec![vm, "start"],
            Action::Stop { force: false } => vec![vm, "stop"],
            Action::Stop { force: true } => vec![vm, "turn-off"],
            Action::Pause => vec![vm, "pause"],
            Action::Resume => vec![vm, "resume"],
            Action::Reset { force: false } => vec![vm, "reboot"],
            Action::Reset { force: true } => vec![vm, "reset"],
            Action::CreateSnapshot { description: Some(_), .. } => {
                return Err(Error::Lacks {
                    platform: DRIVER.platform.into(),
                    verb: Verb::SnapshotCreate,
                    reason:
                        "Hyper-V has no command to describe a checkpoint; leave --description out"
                            .into(),
                });
            }
            Action::CreateSnapshot { name, description: None } => vec![vm, "snapshot", name],
            Action::RevertSnapshot { name } => vec![vm, "revert", name],
            Action::DeleteSnapshot { name } => vec![vm, "delete", name],
        };
        let limit = if words.len() > 2 { LONG } else { self.remote.limit };
        self.run(include_str!("scripts/perform.ps1"), &words, limit, vm).map(drop)
    }

    fn disks(&self) -> Option<&dyn RemoteDisks> {
        Some(self)
    }

    fn pull(&self) -> Option<&dyn Pull> {
        Some(self)
    }
}

impl RemoteDisks for Hyperv {
    fn open_disk(&self, vm: &str, drive: usize) -> Result<Arc<dyn Disk>> {
        let shown = self.shown(vm)?;
        let description = self.describe(&shown)?;
        let missing = || Error::NotFound {
            place: self.uri.to_string(),
            what: "disk",
            name: format!("{vm}, drive {drive}"),
        };
        let found = description.drives.get(drive).filter(|one| one.kind == DriveKind::Disk);
        let path = found.and_then(|one| one.file.as_ref()).ok_or_else(missing)?;
        let chain = self.ask::<reply::HeldDisk>(
            include_str!("scripts/chain.ps1"),
            &[&path.written],
            self.remote.limit,
            vm,
        )?;
        disks::open_chain(&reader::Files::new(self.remote.clone()), &chain.chain)
    }
}

impl Pull for Hyperv {
    fn makes_snapshots(&self) -> bool {
        true
    }

    fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        disks::pullable(self, vm, tell)
    }

    fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
        disks::still(self, vm, tell)
    }
}
