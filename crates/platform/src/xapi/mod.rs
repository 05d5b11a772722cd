//! XenServer and XCP-ng, by the XenAPI: JSON-RPC at `/jsonrpc`, whole VMs from `/export`, disks by NBD.
//!
//! Source: Citrix's "XenServer Management API", chapters "Wire protocol", "Classes" and "VM import/export".

mod description;
mod disks;
mod export;
mod nbd;
mod power;
mod records;
mod session;

use std::sync::Arc;
use std::time::Duration;

use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Change, Error, Platform, Pull, Pullable, Result, Snapshot, Still, Uri, Verb,
    VmDetails, VmSummary, Watch,
};
use records::Vm;
use session::Session;
pub(crate) use session::fuzz;

/// How it is reached.
pub(crate) const DRIVER: Driver = Driver {
    platform: "XenServer",
    schemes: &["xapi"],
    is_local: false,
    path_parts: 0,
    met: Met::Recorded(
        "a server of the tests that answers as the XenAPI's documentation says, and that the XenAPI's own client talks to",
    ),
    ability,
    connect: |uri, options| {
        let session = Arc::new(Session::open(uri, options)?);
        Ok(Box::new(Xapi { session, uri: uri.clone() }))
    },
};

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::Stop | Verb::Reset => {
            Ability::partly("the guest is asked through its tools, or --force")
        }
        Verb::ConsoleLog => Ability::no("XenServer keeps no console"),
        Verb::ReadDisks => Ability::partly(
            "whole by `pull`; by `run` if a network of the pool has the purpose \"nbd\"",
        ),
        _ => Ability::Yes,
    }
}

/// A pool whose master we are logged in at.
struct Xapi {
    session: Arc<Session>,
    uri: Uri,
}

/// How long the server may wait for something to happen.
const WAIT: Duration = Duration::from_secs(25);

impl Xapi {
    /// By name, UUID or reference.
    fn find(&self, vm: &str) -> Result<Vm> {
        let all = records::all(&self.session)?;
        let mut found: Vec<_> = all.iter().filter(|one| one.name == vm).collect();
        if found.is_empty() {
            found = all.iter().filter(|one| one.uuid == vm || one.reference == vm).collect();
        }
        let (place, name) = (self.uri.to_string(), vm.to_owned());
        match found[..] {
            [one] => Ok(one.clone()),
            [] => Err(Error::NotFound { place, what: "VM", name }),
            _ => {
                let ids = found.iter().map(|one| one.uuid.clone()).collect();
                Err(Error::Ambiguous { place, what: "VM", name, ids })
            }
        }
    }
}

impl Platform for Xapi {
    fn product(&self) -> Result<String> {
        records::product(&self.session)
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        records::summaries(&self.session)
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let found = self.find(vm)?;
        let summary = records::summaries(&self.session)?
            .into_iter()
            .find(|one| one.id.as_deref() == Some(found.uuid.as_str()));
        let label = crate::VmName { uri: Some(self.uri.clone()), name: found.name.clone() };
        let description = description::describe(&self.session, &found, &label.to_string())?;
        Ok(VmDetails { summary: summary.unwrap_or_default(), description })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let found = self.find(vm)?;
        records::snapshots(&self.session, &found)
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        power::perform(&self.session, &self.find(vm)?, action)
    }

    fn pull(&self) -> Option<&dyn Pull> {
        Some(self)
    }

    fn watch(&self) -> Option<&dyn Watch> {
        Some(self)
    }
}

impl Pull for Xapi {
    fn makes_snapshots(&self) -> bool {
        true
    }

    fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        export::pullable(&self.session, &self.find(vm)?, tell)
    }

    fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
        let found = self.find(vm)?;
        let label = crate::VmName { uri: Some(self.uri.clone()), name: found.name.clone() };
        disks::still(&self.session, &found, &label.to_string(), tell)
    }
}

impl Watch for Xapi {
    fn watch(&self, tell: &mut dyn FnMut(Change) -> bool) -> Result<()> {
        records::watch(&self.session, WAIT, tell)
    }
}
