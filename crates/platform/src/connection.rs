//! A platform that was reached, with a guard in front.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;

use crate::held::{self, Hold};
use crate::registry::{Driver, driver};
use crate::{
    Ability, Action, Change, Error, Options, Platform, Pull, Pullable, Result, Snapshot, Still,
    Uri, Verb, VmDetails, VmName, VmSummary,
};

/// A platform that was reached. What it cannot do is refused by name, before anything happens.
pub struct Connection {
    uri: Uri,
    driver: &'static Driver,
    platform: Arc<dyn Platform>,
    state_folder: Option<PathBuf>,
}

/// Reaches the platform that `uri` names.
///
/// # Errors
/// There is no driver for it, or it cannot be reached.
pub fn connect(uri: &Uri, options: &Options) -> Result<Connection> {
    let driver = driver(&uri.scheme).ok_or_else(|| Error::Name {
        text: uri.to_string(),
        message: format!("nobody knows {}", uri.scheme),
    })?;
    let platform = Arc::from((driver.connect)(uri, options)?);
    Ok(Connection {
        uri: uri.clone(),
        driver,
        platform,
        state_folder: options.state_folder.clone(),
    })
}

impl Connection {
    /// The platform's name.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The driver that reached it.
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// The product and its version.
    pub fn product(&self) -> Result<String> {
        self.platform.product()
    }

    /// Whether it can do something.
    pub fn ability(&self, verb: Verb) -> Ability {
        self.platform.ability(verb).unwrap_or_else(|| (self.driver.ability)(verb))
    }

    /// Refuses what it cannot do.
    ///
    /// # Errors
    /// [`Error::Lacks`].
    pub fn check(&self, verb: Verb) -> Result<()> {
        match self.ability(verb) {
            Ability::No(reason) => Err(self.lacks(verb, reason)),
            Ability::Yes | Ability::Partly(_) => Ok(()),
        }
    }

    /// All VMs, by name.
    pub fn list(&self) -> Result<Vec<VmSummary>> {
        self.check(Verb::List)?;
        let mut vms = self.platform.list()?;
        vms.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(vms)
    }

    /// One VM.
    pub fn show(&self, vm: &str) -> Result<VmDetails> {
        self.check(Verb::Show)?;
        self.platform.show(vm)
    }

    /// Kept states of a VM.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        self.check(Verb::SnapshotList)?;
        self.platform.snapshots(vm)
    }

    /// Changes a VM.
    pub fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        self.check(action.verb())?;
        self.platform.perform(vm, action)
    }

    /// The last `limit` bytes, at most, of what a guest wrote to its console.
    pub fn console_log(&self, vm: &str, limit: usize) -> Result<Vec<u8>> {
        self.check(Verb::ConsoleLog)?;
        let console = self.platform.console();
        console.ok_or_else(|| self.lacks(Verb::ConsoleLog, NO_WAY))?.console_log(vm, limit)
    }

    /// Opens a drive of a VM for reading: its place in the drives of [`show`](Self::show)'s description.
    pub fn open_disk(&self, vm: &str, drive: usize) -> Result<Arc<dyn Disk>> {
        self.check(Verb::ReadDisks)?;
        let disks = self.platform.disks();
        disks.ok_or_else(|| self.lacks(Verb::ReadDisks, NO_WAY))?.open_disk(vm, drive)
    }

    /// Makes a VM ready to be copied; `tell` is told what is done to it for that.
    pub fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        let pull = self.puller()?;
        let (hold, mut ready) = self.holding(pull, vm, tell, |tell| pull.pullable(vm, tell))?;
        if let Some(hold) = hold {
            let platform = self.platform.clone();
            ready.undo = Some(held::until_all_is_here(hold, platform, vm, ready.undo.take()));
        }
        Ok(ready)
    }

    /// Holds the disks of a VM still and opens them; `tell` is told what is done to it for that.
    pub fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
        let pull = self.puller()?;
        let (hold, mut still) = self.holding(pull, vm, tell, |tell| pull.still(vm, tell))?;
        if let Some(hold) = hold {
            let platform = self.platform.clone();
            still.undo = held::until_all_is_here(hold, platform, vm, Some(still.undo));
        }
        Ok(still)
    }

    /// Takes away what a process of ours that was killed left on the platform to hold a VM still; `tell` is told. All of
    /// the VM must be here.
    pub fn let_go(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<()> {
        let (hold, ()) = self.holding(self.puller()?, vm, tell, |_| Ok(()))?;
        hold.map_or(Ok(()), |hold| hold.let_go(&*self.platform, vm))
    }

    fn puller(&self) -> Result<&dyn Pull> {
        self.check(Verb::ReadDisks)?;
        self.platform.pull().ok_or_else(|| self.lacks(Verb::ReadDisks, NO_WAY))
    }

    /// Notes that a VM is held still before `work` does that. What was left before and is of no use to it is told.
    fn holding<T>(
        &self,
        pull: &dyn Pull,
        vm: &str,
        tell: &mut dyn FnMut(String),
        work: impl FnOnce(&mut dyn FnMut(String)) -> Result<T>,
    ) -> Result<(Option<Hold>, T)> {
        let Some(state) = self.state_folder.as_ref().filter(|_| pull.makes_snapshots()) else {
            return Ok((None, work(tell)?));
        };
        let name = VmName { uri: Some(self.uri.clone()), name: vm.to_owned() };
        let hold = Hold::take(state, &name)?;
        let mut told = Vec::new();
        let result = work(&mut |sentence| {
            told.push(sentence.clone());
            tell(sentence);
        });
        let done = result.inspect_err(|_| {
            // A VM that does not even exist needs no note.
            hold.iter().for_each(|hold| hold.forget_if_nothing_is_left(&*self.platform, vm));
        })?;
        for left in hold.iter().flat_map(|hold| hold.left(&*self.platform, vm)).flatten() {
            if !told.iter().any(|sentence| sentence.contains(&left.name)) {
                tell(format!(
                    "{vm} has the snapshot {:?} of a copy that was broken off: it is deleted when all is here",
                    left.name
                ));
            }
        }
        Ok((hold, done))
    }

    /// Calls `tell` with each change until it returns `false`, beginning with all VMs. A platform that does not tell
    /// of changes itself is asked every `interval`.
    pub fn watch(&self, interval: Duration, tell: &mut dyn FnMut(Change) -> bool) -> Result<()> {
        self.check(Verb::Watch)?;
        match self.platform.watch() {
            Some(watch) => watch.watch(tell),
            None => self.poll(interval, tell),
        }
    }

    fn poll(&self, interval: Duration, tell: &mut dyn FnMut(Change) -> bool) -> Result<()> {
        let mut known = BTreeMap::new();
        loop {
            let now = by_identity(self.list()?);
            for change in changes(&known, &now) {
                if !tell(change) {
                    return Ok(());
                }
            }
            known = now;
            std::thread::sleep(interval);
        }
    }

    fn lacks(&self, verb: Verb, reason: impl Into<String>) -> Error {
        Error::Lacks { platform: self.driver.platform.into(), verb, reason: reason.into() }
    }
}

/// Said if a driver promises what it does not have.
const NO_WAY: &str = "there is no way to do it yet";

/// VMs by what tells them apart.
type Known = BTreeMap<(String, String), VmSummary>;

fn by_identity(vms: Vec<VmSummary>) -> Known {
    let key = |vm: &VmSummary| (vm.id.clone().unwrap_or_default(), vm.name.clone());
    vms.into_iter().map(|vm| (key(&vm), vm)).collect()
}

/// What is different now: what is gone first, then by name, as lists are.
pub(crate) fn changes<K: Ord>(
    before: &BTreeMap<K, VmSummary>,
    now: &BTreeMap<K, VmSummary>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, vm) in before {
        if !now.contains_key(key) {
            changes.push(Change::Vanished { vm: vm.clone() });
        }
    }
    let mut by_name: Vec<_> = now.iter().collect();
    by_name.sort_by_key(|(_, vm)| &vm.name);
    for (key, vm) in by_name {
        match before.get(key) {
            None => changes.push(Change::Appeared { vm: vm.clone() }),
            Some(old) if old != vm => changes.push(Change::Changed { vm: vm.clone() }),
            Some(_) => {}
        }
    }
    changes
}
