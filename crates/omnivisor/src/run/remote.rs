//! A VM of another host, run here at once: its disks come here as they are read, and the rest behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use disk::{Disk, Format};
use machine::disks::{OpenDisk, Writes};
use platform::{BootPart, Mirror, StillFile, Undo, VmName};
use spec::VmSpec;
use spec::foreign::{Description, DriveKind, FileRef, FileState};

use crate::cli::RunArgs;
use crate::disk::human;
use crate::failure::{FAILED, Failure};
use crate::platforms;
use crate::run::state;

/// Beside the disks: the VM as it was when the first of it came.
const DESCRIPTION: &str = "remote.json";

/// The disks of a VM of another host.
pub struct Remote {
    mirrors: Vec<(PathBuf, Arc<Mirror>)>,
    name: String,
}

/// Finds the VM that `args` name, if they name one of another host.
pub fn find(args: &RunArgs) -> Result<Option<(VmSpec, Remote)>, Failure> {
    let is_remote = |name: &&String| name.contains("://") && !disk::is_url(name);
    let Some(name) = args.image.as_ref().filter(is_remote) else {
        return Ok(None);
    };
    let vm: VmName = name.parse().map_err(platforms::failed)?;
    let folder = folder(args, name)?;
    if let Some(found) = all_here(&folder, name)? {
        if platform::is_held(&state::folder()?, &vm) {
            let_go(args, &vm);
        }
        return Ok(Some(found));
    }
    let (uri, vm) = platforms::split(&vm);
    let connection = args.reach.connect(&uri)?;
    let still = connection.still(vm, &mut platforms::say).map_err(platforms::failed)?;
    let undo = Arc::new(Mutex::new(Some(still.undo)));
    let options = args.copy.options(2);
    let mut description = still.description;
    let mut mirrors = Vec::new();
    for found in still.disks {
        let path = disk_path(&folder, found.drive);
        let mirror = Mirror::open(&path, found.disk, &found.stamp, &options);
        mirrors.push((path, Arc::new(mirror.map_err(platforms::failed)?)));
    }
    place(&mut description, &folder, &mirrors);
    keep_boot_files(&mut description, &folder, &still.files)?;
    let spec = spec_of(&description)?;
    keep(&folder, &description)?;
    copy_behind(&mirrors, name, &undo);
    Ok(Some((spec, Remote { mirrors, name: name.clone() })))
}

/// Takes away what a run that was killed left on the other host. Without it the VM runs all the same.
fn let_go(args: &RunArgs, name: &VmName) {
    let (uri, vm) = platforms::split(name);
    let done = args.reach.connect(&uri).and_then(|connection| {
        connection.let_go(vm, &mut platforms::say).map_err(platforms::failed)
    });
    if let Err(failure) = done {
        failure.report();
        tell!(
            "{name} may still have a snapshot that held it still; omnivisor snapshot list {name} tells, and \
             omnivisor snapshot delete removes it."
        );
    }
}

impl Remote {
    /// The disks of `spec`, those of the VM with an overlay for what the guest writes.
    pub fn open(&self, spec: &VmSpec) -> Result<Vec<OpenDisk>, Failure> {
        let mut opened = Vec::new();
        for disk in &spec.disks {
            match self.mirrors.iter().find(|(path, _)| *path == disk.path) {
                Some((path, mirror)) => opened.push(overlaid(disk, path, mirror)?),
                None => {
                    let alone = VmSpec { disks: vec![disk.clone()], ..spec.clone() };
                    opened.extend(super::disks::open(&alone)?);
                }
            }
        }
        Ok(opened)
    }

    /// Notes what is here, and tells it.
    pub fn close(&self) {
        let (mut here, mut total) = (0, 0);
        for (path, mirror) in &self.mirrors {
            if let Err(error) = mirror.close() {
                tracing::warn!(%error, "it cannot be noted what is in {}", path.display());
            }
            (here, total) = (here + mirror.here(), total + mirror.len());
        }
        match here == total {
            true => tell!("All of {} is here: the next run does not need it.", self.name),
            false => tell!(
                "{} of {} are here; the next run goes on with the rest.",
                human(here),
                human(total)
            ),
        }
    }
}

/// What a run before this one brought, if that was all.
fn all_here(folder: &Path, name: &str) -> Result<Option<(VmSpec, Remote)>, Failure> {
    let Ok(text) = std::fs::read_to_string(folder.join(DESCRIPTION)) else { return Ok(None) };
    let Ok(description) = serde_json::from_str::<Description>(&text) else { return Ok(None) };
    let mut mirrors = Vec::new();
    for (drive, found) in description.drives.iter().enumerate() {
        if found.kind != DriveKind::Disk {
            continue;
        }
        let path = disk_path(folder, drive);
        match Mirror::open_whole(&path).map_err(platforms::failed)? {
            Some(mirror) => mirrors.push((path, Arc::new(mirror))),
            None => return Ok(None),
        }
    }
    Ok(Some((spec_of(&description)?, Remote { mirrors, name: name.to_owned() })))
}

/// Where the VM's disks are kept: by the name that it has here, or by the one that it is called by.
fn folder(args: &RunArgs, name: &str) -> Result<PathBuf, Failure> {
    let plain = |letter: char| {
        if letter.is_alphanumeric() || "-_.".contains(letter) { letter } else { '_' }
    };
    let vm = match &args.name {
        Some(name) => name.clone(),
        None => name.chars().map(plain).collect(),
    };
    let folder = state::folder()?.join(vm.replace('/', "_").trim_start_matches('.'));
    std::fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(FAILED, format!("Cannot create {}: {error}", folder.display()))
    })?;
    Ok(folder)
}

fn disk_path(folder: &Path, drive: usize) -> PathBuf {
    folder.join(format!("remote-{drive}.raw"))
}

/// Says where the disks are here. What is in other drives stays where it is.
fn place(description: &mut Description, folder: &Path, mirrors: &[(PathBuf, Arc<Mirror>)]) {
    for (index, drive) in description.drives.iter_mut().enumerate() {
        let path = disk_path(folder, index);
        if mirrors.iter().any(|(mirrored, _)| *mirrored == path) {
            (drive.file, drive.format) = (Some(here(path)), Some("raw".into()));
        } else if drive.kind != DriveKind::Disk {
            drive.file = None;
        }
    }
}

/// Keeps what the VM is booted with beside its disks.
fn keep_boot_files(
    description: &mut Description,
    folder: &Path,
    files: &[StillFile],
) -> Result<(), Failure> {
    for file in files {
        let (name, place) = match file.part {
            BootPart::Kernel => ("remote-kernel", &mut description.boot.kernel),
            BootPart::Initrd => ("remote-initrd", &mut description.boot.initrd),
        };
        let path = folder.join(name);
        std::fs::write(&path, &file.content).map_err(|error| {
            Failure::new(FAILED, format!("Cannot write {}: {error}", path.display()))
        })?;
        *place = Some(here(path));
    }
    Ok(())
}

/// A file of this computer.
fn here(path: PathBuf) -> FileRef {
    let written = path.display().to_string();
    FileRef { written, path: Some(path), state: FileState::Present, ..FileRef::default() }
}

fn spec_of(description: &Description) -> Result<VmSpec, Failure> {
    let spec = description.to_spec()?;
    crate::description::tell_differences(description);
    Ok(spec)
}

fn keep(folder: &Path, description: &Description) -> Result<(), Failure> {
    let path = folder.join(DESCRIPTION);
    let write = || -> std::io::Result<()> {
        let new = path.with_added_extension("new");
        std::fs::write(&new, serde_json::to_vec(description)?)?;
        std::fs::rename(&new, &path)
    };
    write()
        .map_err(|error| Failure::new(FAILED, format!("Cannot write {}: {error}", path.display())))
}

/// Copies the rest of all disks; after the last one the VM there is let go.
fn copy_behind(mirrors: &[(PathBuf, Arc<Mirror>)], name: &str, undo: &Arc<Mutex<Option<Undo>>>) {
    let left = Arc::new(AtomicUsize::new(mirrors.len()));
    for (_, mirror) in mirrors {
        let (left, undo, name) = (left.clone(), undo.clone(), name.to_owned());
        mirror.copy_behind(Box::new(move || {
            if left.fetch_sub(1, Ordering::AcqRel) != 1 {
                return;
            }
            tracing::info!("all of {name} is here");
            let undo = undo.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Err(error)) = undo.map(|undo| undo(true)) {
                tracing::warn!(%error, "{name} is not as it was before");
            }
        }));
    }
}

/// A disk with a place for what the guest writes.
fn overlaid(spec: &spec::Disk, path: &Path, mirror: &Arc<Mirror>) -> Result<OpenDisk, Failure> {
    let base: Arc<dyn Disk> = mirror.clone();
    let overlay = path.with_extension("qcow2");
    let open = |disk, writes| OpenDisk { spec: spec.clone(), disk, format: Format::Raw, writes };
    if spec.readonly {
        return Ok(open(base, Writes::Nowhere));
    }
    let is_new = !overlay.exists();
    if spec.discard {
        let file = path.with_extension(format!("{}.qcow2", std::process::id()));
        let disk = disk::overlay(&file, base, None);
        let _ = std::fs::remove_file(&file);
        let kept = (!is_new).then_some(overlay);
        return Ok(open(
            disk.map_err(platform::Error::from).map_err(platforms::failed)?,
            Writes::Discarded { kept },
        ));
    }
    let disk =
        if is_new { disk::overlay(&overlay, base, None) } else { disk::open_over(&overlay, base) };
    let disk = disk.map_err(platform::Error::from).map_err(platforms::failed)?;
    Ok(open(disk, Writes::Overlay { path: overlay, is_new }))
}
