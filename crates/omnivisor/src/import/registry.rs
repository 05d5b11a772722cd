//! Windows' registry: which drivers of storage its boot loader starts, changed in the new disks.

use std::sync::Arc;

use disk::{Disk, FilePolicy, ImageOptions};
use guest::{Guest, RegistryChange, RegistryPlan};
use spec::VmSpec;

use crate::disk::failed;
use crate::failure::{FAILED, Failure, USAGE};

/// The changes of a plan, unless Windows may undo them or be hurt by them, and nobody has said `--force`.
pub fn plan(
    plan: RegistryPlan,
    force: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<RegistryChange>, Failure> {
    notes.extend(plan.notes);
    if plan.obstacles.is_empty() {
        return Ok(plan.changes);
    }
    if !force {
        let text = format!(
            "Windows' registry cannot be prepared for AHCI and NVMe: {}",
            plan.obstacles.join("; ")
        );
        return Err(Failure::new(USAGE, text).help(
            "shut it down with `shutdown /s /t 0` where it runs; or leave its registry as it is with --unchanged, \
             or change what can be changed with --force",
        ));
    }
    notes.extend(plan.obstacles);
    Ok(plan.changes)
}

/// What is changed, a sentence for each driver.
pub fn sentences(changes: &[RegistryChange]) -> Vec<String> {
    let words = |change: &RegistryChange| {
        format!(
            "{}: {}\\{} becomes {}, it was {}",
            change.hive, change.key, change.value, change.to, change.from
        )
    };
    changes.iter().map(words).collect()
}

/// Changes the registry in the disks of the new VM, and sees that nothing is left to be changed.
pub fn change(spec: &VmSpec, changes: &[RegistryChange]) -> Result<(), Failure> {
    let disks = open(spec, false)?;
    for change in changes {
        change.apply(&disks).map_err(|error| Failure::from_error(FAILED, error))?;
    }
    for disk in &disks {
        disk.flush().map_err(failed)?;
    }
    drop(disks);
    let left = Guest::open(&open(spec, true)?).registry_plan();
    if left.is_none_or(|plan| !plan.changes.is_empty()) {
        return Err(Failure::new(FAILED, "Windows' registry is not as it was made"));
    }
    tell!("The registry is changed: {} values.", changes.len());
    Ok(())
}

fn open(spec: &VmSpec, read_only: bool) -> Result<Vec<Arc<dyn Disk>>, Failure> {
    let open = |disk: &spec::Disk| {
        let files = if disk.outside { FilePolicy::Anywhere } else { FilePolicy::SameFolder };
        let format = disk.format.as_deref().map(str::parse).transpose();
        let format = format.map_err(|error| Failure::from_error(USAGE, error))?;
        let read_only = read_only || disk.readonly;
        let options = ImageOptions { read_only, format, files, ..ImageOptions::default() };
        Ok(disk::open_chain(&disk.path, &options).map_err(failed)?.0)
    };
    spec.disks.iter().map(open).collect()
}
