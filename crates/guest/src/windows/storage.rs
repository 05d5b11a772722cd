//! Which drivers of storage controllers Windows starts at boot. Setup disables those that it saw no controller for: on
//! another one, Windows stops before it can be helped.

use std::sync::Arc;

use disk::Disk;
use serde::Serialize;

use super::hive::Hive;
use super::{all_control_sets, open};
use crate::{Error, Result, Tree};

/// Drivers of AHCI, NVMe and IDE in Windows itself, and of virtio if they are installed.
const DRIVERS: [&str; 9] = [
    "storahci", "stornvme", "msahci", "pciide", "intelide", "atapi", "viostor", "vioscsi",
    "iaStorV",
];
/// Started by the boot loader.
const AT_BOOT: u32 = 0;

/// What must change in a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegistryPlan {
    /// Values that must change, each where it is.
    pub changes: Vec<RegistryChange>,
    /// Why they should not be changed, or cannot be.
    pub obstacles: Vec<String>,
    /// What else should be known.
    pub notes: Vec<String>,
}

/// A number in the registry that must become another one. Both have 32 bits, so that nothing else moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegistryChange {
    /// The hive: `SYSTEM`.
    pub hive: &'static str,
    /// The key in it.
    pub key: String,
    /// The value's name.
    pub value: String,
    /// What it is.
    pub from: u32,
    /// What it should be.
    pub to: u32,
    /// Which of the guest's disks it lies on.
    pub disk: usize,
    /// Where on that disk, in bytes.
    pub offset: u64,
}

impl RegistryChange {
    /// Makes the change on `disks`, which are the guest's in the same order: overlays, if its own are to stay as they
    /// are. Nothing is written unless the disk has the expected value there.
    pub fn apply(&self, disks: &[Arc<dyn Disk>]) -> Result<()> {
        let bad = || Error::damaged("registry", format!("{} has changed", self.key));
        let disk = disks.get(self.disk).ok_or_else(bad)?;
        let mut bytes = [0; 4];
        disk.read_at(&mut bytes, self.offset)?;
        match u32::from_le_bytes(bytes) {
            now if now == self.to => Ok(()),
            now if now == self.from => Ok(disk.write_at(&self.to.to_le_bytes(), self.offset)?),
            _ => Err(bad()),
        }
    }
}

/// What must change in the registry of the system in `tree`.
pub fn plan(tree: &Tree) -> RegistryPlan {
    let mut plan = RegistryPlan::default();
    let done = open(tree, "SYSTEM").and_then(|hive| changes(&hive, &mut plan));
    if let Err(error) = done {
        plan.changes.clear();
        plan.obstacles.push(crate::fs::error_text(&error));
    }
    if is_hibernated(tree) {
        plan.obstacles.push(
            "Windows is hibernated, as a fast start leaves it: it goes on with the registry that it had in memory".into(),
        );
    }
    plan.obstacles.extend(tree.notes().iter().map(|note| format!("Its volume: {note}")));
    plan
}

/// The file of a hibernated system says so in its first bytes.
fn is_hibernated(tree: &Tree) -> bool {
    let mut start = [0; 4];
    let file = tree.open("/hiberfil.sys");
    file.is_ok_and(|file| file.read_at(&mut start, 0).is_ok())
        && matches!(&start, b"HIBR" | b"hibr" | b"WAKE" | b"wake" | b"RSTR" | b"rstr")
}

/// Adds what must change in a hive.
pub fn changes(hive: &Hive, plan: &mut RegistryPlan) -> Result<()> {
    if hive.is_dirty() {
        plan.obstacles.push(
            "Windows was not shut down: its registry has changes in logs, which would undo others"
                .into(),
        );
        return Ok(());
    }
    for set in all_control_sets(hive)? {
        let mut found = 0;
        for driver in DRIVERS {
            let path = format!("{set}\\Services\\{driver}");
            let Some(key) = hive.key(&path)? else { continue };
            found += 1;
            if let Some(start) = hive.value(&key, "Start")? {
                add(hive, &path, &start, plan);
            }
            // Since Windows 8 a driver is started later if these say so, by the number of the hardware profile.
            let path = format!("{path}\\StartOverride");
            if let Some(key) = hive.key(&path)? {
                hive.values(&key)?.iter().for_each(|value| add(hive, &path, value, plan));
            }
        }
        if found == 0 {
            plan.notes.push(format!("{set} has no driver of AHCI, NVMe or IDE"));
        }
    }
    Ok(())
}

fn add(hive: &Hive, key: &str, value: &super::hive::Value, plan: &mut RegistryPlan) {
    let Some(from) = value.number().filter(|&from| from != AT_BOOT) else { return };
    let place = value.place().and_then(|place| hive.file().place(place));
    match place {
        Some((disk, offset)) => plan.changes.push(RegistryChange {
            hive: "SYSTEM",
            key: key.to_owned(),
            value: value.name.clone(),
            from,
            to: AT_BOOT,
            disk,
            offset,
        }),
        None => plan.obstacles.push(format!(
            "{key}\\{} cannot be changed in its place: the hive is compressed, encrypted or has holes",
            value.name
        )),
    }
}
