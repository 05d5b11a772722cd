//! The disks of a VM, held still and read from afar.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use disk::{Disk, ImageOptions};
use sha2::{Digest, Sha256};
use spec::foreign::{Bus, Description, DriveKind};

use super::reader::{Files, HostFile, file_name};
use super::reply::{Held, HeldDisk, Image, Shown};
use super::{Hyperv, LONG, description};
use crate::held::PULL;
use crate::pull::hexadecimal;
use crate::{Error, Platform, Pullable, RemoteFile, Result, State, Still, StillDisk, Undo};

/// Most images in a chain; `hold.ps1` tells of no more.
const MOST_IMAGES: usize = 64;
/// The end of a checkpoint is a merge of disks, which goes on without us.
const RELEASE: Duration = Duration::from_secs(600);

/// Holds the disks of a VM still: a running one gets a checkpoint, which `tell` is told.
fn hold(hyperv: &Hyperv, shown: &Shown, tell: &mut dyn FnMut(String)) -> Result<Held> {
    let name = &shown.summary.name;
    let id = hyperv.identity(shown);
    let state = super::reply::state(&shown.summary.state);
    match state {
        State::Stopped => {}
        State::Suspended => {
            tell(format!("{name} is suspended: what its memory holds is not taken along"));
        }
        _ if hyperv.snapshots(id)?.iter().any(|kept| kept.name == PULL) => {
            tell(format!("{name} has the checkpoint {PULL:?} of a pull before; it is used"));
        }
        _ => tell(format!(
            "{name} is {state}: the checkpoint {PULL:?} is made for as long as its disks are copied"
        )),
    }
    let held: Held = hyperv.ask(include_str!("scripts/hold.ps1"), &[id, PULL], LONG, name)?;
    let wrong = |message: &str| Error::reply(hyperv.remote.place(), message);
    for disk in &held.disks {
        let images = &disk.chain;
        let is_plain = |image: &Image| !image.path.is_empty() && !image.path.contains('\0');
        if images.len() >= MOST_IMAGES || !images.iter().all(is_plain) {
            return Err(wrong("a disk is based on more images than any real one"));
        }
        if images.is_empty() {
            let (bus, controller, unit) = place(disk);
            tell(format!(
                "the disk at {}{controller}:{unit} of {name} is one of the host's own and no file: it is not taken along",
                bus.name()
            ));
        }
    }
    Ok(held)
}

/// Removes the checkpoint when all is copied; without it a later pull would find other bytes, and begin again.
fn undo(hyperv: &Hyperv, shown: &Shown, held: &Held) -> Undo {
    let hyperv = hyperv.clone();
    let id = hyperv.identity(shown).to_owned();
    let name = shown.summary.name.clone();
    let checkpoint = held.checkpoint.clone();
    Box::new(move |is_complete| match checkpoint {
        Some(checkpoint) if is_complete => {
            let script = include_str!("scripts/release.ps1");
            hyperv.run(script, &[&id, &checkpoint], RELEASE, &name).map(drop)
        }
        _ => Ok(()),
    })
}

/// Opens all disks.
pub(super) fn still(hyperv: &Hyperv, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
    let shown = hyperv.shown(vm)?;
    // Before there is a checkpoint, which would show in it.
    let description = hyperv.describe(&shown)?;
    let held = hold(hyperv, &shown, tell)?;
    let undo = undo(hyperv, &shown, &held);
    match open(hyperv, &description, &held) {
        Ok(disks) => Ok(Still { description, disks, files: Vec::new(), undo }),
        Err(error) => {
            let _ = undo(true);
            Err(error)
        }
    }
}

fn open(hyperv: &Hyperv, description: &Description, held: &Held) -> Result<Vec<StillDisk>> {
    let files = Files::new(hyperv.remote.clone());
    let mut opened = Vec::new();
    for (drive, found) in description.drives.iter().enumerate() {
        let at = (found.bus, found.controller, found.unit);
        let is_disk = found.kind == DriveKind::Disk;
        let Some(disk) = held.disks.iter().find(|disk| is_disk && place(disk) == at) else {
            continue;
        };
        if disk.chain.is_empty() {
            continue;
        }
        let mut stamp = String::new();
        for image in &disk.chain {
            stamp.push_str(&format!("{} {} {};", image.path, image.length, image.stamp));
        }
        let stamp = hexadecimal(&Sha256::digest(stamp));
        opened.push(StillDisk { drive, disk: open_chain(&files, &disk.chain)?, stamp });
    }
    Ok(opened)
}

/// Opens an image with those below it.
pub(super) fn open_chain(files: &Arc<Files>, chain: &[Image]) -> Result<Arc<dyn Disk>> {
    let options = ImageOptions { read_only: true, ..ImageOptions::default() };
    let file = HostFile::new(files, chain, String::new());
    let file = file.ok_or_else(|| Error::reply("the host", "a disk has no file"))?;
    Ok(disk::open_remote(Arc::new(file), &[], &options)?.0)
}

/// All that is to be copied, and a description that names it.
pub(super) fn pullable(
    hyperv: &Hyperv,
    vm: &str,
    tell: &mut dyn FnMut(String),
) -> Result<Pullable> {
    let mut shown = hyperv.shown(vm)?;
    let held = hold(hyperv, &shown, tell)?;
    let undo = undo(hyperv, &shown, &held);
    let files = Files::new(hyperv.remote.clone());
    let mut names = BTreeMap::new();
    let mut copied: Vec<Arc<dyn RemoteFile>> = Vec::new();
    for disk in &held.disks {
        for at in 0..disk.chain.len() {
            let path = &disk.chain[at].path;
            if names.contains_key(path) {
                continue;
            }
            let name = unused(&names, file_name(path));
            names.insert(path.clone(), name.clone());
            let file = HostFile::new(&files, &disk.chain[at..], name);
            copied.extend(file.map(|file| Arc::new(file) as Arc<dyn RemoteFile>));
        }
        // What it has at this moment may be the checkpoint's.
        let same = |drive: &&mut super::reply::Drive| description::place(drive) == place(disk);
        if let Some(drive) = shown.drives.iter_mut().find(same)
            && let Some(top) = disk.chain.first()
        {
            drive.path = Some(top.path.clone());
        }
    }
    let document =
        description::xml(&shown, |path| names.get(path).map_or(path, String::as_str).to_owned());
    let plain = |letter: char| {
        if letter.is_alphanumeric() || "-_. ".contains(letter) { letter } else { '_' }
    };
    let name: String = shown.summary.name.chars().take(60).map(plain).collect();
    let name = format!("{}.xml", name.trim_matches(['.', ' ']));
    let documents =
        vec![(if name == ".xml" { "vm.xml".into() } else { name }, document.into_bytes())];
    Ok(Pullable { files: copied, streams: Vec::new(), documents, undo: Some(undo) })
}

/// A name for a file here that no other one has.
fn unused(names: &BTreeMap<String, String>, name: &str) -> String {
    let mut number = 0;
    let mut free = name.to_owned();
    while names.values().any(|known| known.eq_ignore_ascii_case(&free)) {
        number += 1;
        free = format!("{number}/{name}");
    }
    free
}

fn place(disk: &HeldDisk) -> (Bus, u32, u32) {
    let bus = match disk.bus.as_deref() {
        Some("IDE") => Bus::Ide,
        Some("PMEM") => Bus::Pmem,
        _ => Bus::Scsi,
    };
    (bus, disk.controller.unwrap_or(0), disk.unit.unwrap_or(0))
}
