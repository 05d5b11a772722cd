//! VMware ESXi and vCenter, by the vSphere Web Services API (`/sdk`) and the file service (`/folder`).

mod datastore;
mod description;
mod export;
mod files;
mod fuzz;
mod inventory;
mod power;
mod remote;
mod session;
mod snapshots;
mod soap;

use std::sync::Arc;

use disk::Disk;
pub use fuzz::fuzz;
use session::Session;
use soap::Reference;

use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Change, Error, Options, Platform, Pull, Pullable, RemoteDisks, Result,
    Snapshot, Still, Uri, Verb, VmDetails, VmSummary, Watch,
};
use datastore::{Datastore, DatastorePath};

/// Hosts: `esx://root@host`.
pub(crate) const HOST: Driver = Driver {
    platform: "VMware ESXi",
    schemes: &["esx"],
    is_local: false,
    path_parts: 0,
    met: Met::Simulator("VMware's vSphere simulator 6.5 as a host"),
    ability,
    connect: |uri, options| Ok(Box::new(Esx::connect(uri, options)?)),
};

/// vCenters, with the data center whose VMs are meant: `vc://administrator@vsphere.local@vcenter/DC`.
pub(crate) const VCENTER: Driver = Driver {
    platform: "VMware vCenter",
    schemes: &["vc"],
    path_parts: 1,
    met: Met::Simulator("VMware's vSphere simulator 6.5 as a vCenter"),
    ..HOST
};

/// A host or a vCenter that we are logged in at.
struct Esx {
    session: Arc<Session>,
    /// Below which VMs are looked for.
    container: Reference,
}

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::Pause => Ability::partly("it is suspended: its memory goes into a file"),
        Verb::Stop | Verb::Reset => {
            Ability::partly("the guest is asked through VMware Tools, or --force")
        }
        Verb::ConsoleLog => Ability::no("vSphere keeps no console"),
        _ => Ability::Yes,
    }
}

impl Esx {
    fn connect(uri: &Uri, options: &Options) -> Result<Self> {
        let session = Arc::new(Session::open(uri, options)?);
        let container = match uri.path.as_slice() {
            [] => session.content.root.clone(),
            path => inventory::datacenter(&session, path)?,
        };
        Ok(Self { session, container })
    }

    fn find(&self, vm: &str, properties: &[&str]) -> Result<inventory::Object> {
        inventory::find(&self.session, &self.container, vm, properties)
    }

    /// What a description and a line of a list are made of.
    fn properties(&self) -> Vec<&'static str> {
        inventory::SUMMARY.iter().chain(description::PROPERTIES).copied().collect()
    }

    fn datastore(&self, vm: &Reference) -> Result<Datastore> {
        let datacenter = inventory::datacenter_path(&self.session, vm)?;
        Ok(Datastore { session: self.session.clone(), datacenter })
    }
}

impl Platform for Esx {
    fn product(&self) -> Result<String> {
        Ok(self.session.content.product.clone())
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        inventory::list(&self.session, &self.container)
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let found = self.find(vm, &self.properties())?;
        let files = self.datastore(&found.reference)?;
        let description = description::describe(&self.session, &found, &files)?;
        Ok(VmDetails { summary: found.summary(), description })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        snapshots::list(&self.session, &self.find(vm, &["name"])?.reference)
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        power::perform(&self.session, &self.find(vm, &["name"])?.reference, action)
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

impl RemoteDisks for Esx {
    fn open_disk(&self, vm: &str, drive: usize) -> Result<Arc<dyn Disk>> {
        let found = self.find(vm, &self.properties())?;
        let datastore = self.datastore(&found.reference)?;
        let description = description::describe(&self.session, &found, &datastore)?;
        let file = description
            .drives
            .get(drive)
            .and_then(|drive| DatastorePath::parse(&drive.file.as_ref()?.written));
        let file = file.ok_or_else(|| Error::NotFound {
            place: self.session.http.place.clone(),
            what: "disk",
            name: format!("{vm}, drive {drive}"),
        })?;
        remote::open(&datastore, &file)
    }
}

impl Pull for Esx {
    fn makes_snapshots(&self) -> bool {
        true
    }

    fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        let found = self.find(vm, &self.properties())?;
        let datastore = self.datastore(&found.reference)?;
        if !datastore.gives_files(&found) {
            tell(format!("the datastore of {vm} gives no files: its disks are exported"));
            return export::pullable(&self.session, &found);
        }
        files::hold(&self.session, &found, datastore, tell)?.pullable()
    }

    fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
        let found = self.find(vm, &self.properties())?;
        let datastore = self.datastore(&found.reference)?;
        if !datastore.gives_files(&found) {
            return Err(Error::Failed {
                what: format!("running {vm} before it is here"),
                message: "its datastore gives no files".into(),
                repair: Some("omnivisor pull copies it whole; run what is in that folder".into()),
            });
        }
        // Before there is a snapshot, which would show in it.
        let description = description::describe(&self.session, &found, &datastore)?;
        files::hold(&self.session, &found, datastore, tell)?.open(description)
    }
}

impl Watch for Esx {
    fn watch(&self, tell: &mut dyn FnMut(Change) -> bool) -> Result<()> {
        inventory::watch(&self.session, &self.container, tell)
    }
}
