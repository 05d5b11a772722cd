//! The disks of a VM that are files or block devices of its computer: read where they are, and copied.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use disk::{Disk, Format, ImageInfo, ImageOptions, NewParent, RemoteSource, Source};
use sha2::{Digest, Sha256};
use spec::foreign::{Description, Drive, DriveKind, FileRef};

use super::names::{self, Names};
use super::{Opened, Place, PlacedFile};
use crate::pull::hexadecimal;
use crate::traits::{BootPart, StillFile};
use crate::{Error, Pull, Pullable, RemoteDisks, RemoteFile, Result, State, Still, StillDisk};

/// Longest kernel or initial RAM disk.
const LONGEST_BOOT_FILE: u64 = 1 << 30;

/// A VM whose disks lie where its platform runs.
pub(crate) struct VmDisks {
    /// Whose files they are.
    pub place: Arc<Place>,
    /// `URI/NAME`.
    pub name: String,
    /// What it does.
    pub state: State,
    /// What it is made of.
    pub description: Description,
    /// Its own description, as it is written beside copied disks: a name and a content.
    pub document: (String, Vec<u8>),
    /// The folder from which it names files.
    pub home: Option<String>,
    /// What a disk is whose format is not said.
    pub format: Option<Format>,
}

/// A platform whose VMs' disks are such: they can be read and copied.
pub(crate) trait HasVmDisks {
    /// The VM with the places of its disks.
    fn vm_disks(&self, vm: &str) -> Result<VmDisks>;
}

impl<T: HasVmDisks> RemoteDisks for T {
    fn open_disk(&self, vm: &str, drive: usize) -> Result<Arc<dyn Disk>> {
        self.vm_disks(vm)?.open_disk(drive)
    }
}

impl<T: HasVmDisks> Pull for T {
    fn pullable(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        self.vm_disks(vm)?.pullable(tell)
    }

    fn still(&self, vm: &str, tell: &mut dyn FnMut(String)) -> Result<Still> {
        self.vm_disks(vm)?.still(tell)
    }
}

/// A disk that was opened.
struct Open {
    drive: usize,
    disk: Arc<dyn Disk>,
    images: Vec<ImageInfo>,
    files: Vec<Arc<PlacedFile>>,
}

impl VmDisks {
    /// Opens one of the disks, whether the VM runs or not.
    pub fn open_disk(&self, drive: usize) -> Result<Arc<dyn Disk>> {
        let found = self.description.drives.get(drive).ok_or_else(|| Error::NotFound {
            place: self.name.clone(),
            what: "drive",
            name: drive.to_string(),
        })?;
        Ok(self.open(drive, found)?.disk)
    }

    /// Opens all disks of a VM that does not run.
    pub fn still(self, tell: &mut dyn FnMut(String)) -> Result<Still> {
        let opened = self.hold(tell)?;
        let files = self.boot_files()?;
        let stamp = |open: &Open| {
            let stamps: String =
                open.files.iter().map(|file| format!("{} {};", file.path, file.stamp)).collect();
            hexadecimal(&Sha256::digest(stamps))
        };
        let disks = opened
            .into_iter()
            .map(|open| StillDisk { drive: open.drive, stamp: stamp(&open), disk: open.disk })
            .collect();
        Ok(Still { description: self.description, disks, files, undo: Box::new(|_| Ok(())) })
    }

    /// The files of all disks of a VM that does not run, and a description that names them as they are called here.
    pub fn pullable(self, tell: &mut dyn FnMut(String)) -> Result<Pullable> {
        let opened = self.hold(tell)?;
        let mut names = Names::of(self.home.clone());
        let mut files: Vec<Arc<dyn RemoteFile>> = Vec::new();
        let mut renamed = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        for open in &opened {
            for file in &open.files {
                let name = names.add(&file.path, file.changed.is_device);
                renamed.push((file.path.clone(), name.clone()));
                if !seen.contains(&file.path) {
                    seen.push(file.path.clone());
                    let parent = open.parent_of(file, &mut names);
                    files.push(Arc::new(Copied { file: file.clone(), name, parent }));
                }
            }
            // What the description calls it by, which may be relative, or the bundle that it is in.
            let drive = &self.description.drives[open.drive];
            if let (Some(file), Some(first)) = (&drive.file, open.files.first()) {
                let name = names.add(&first.path, first.changed.is_device);
                let is_bundle = name.ends_with(DESCRIPTOR) && !file.written.ends_with(DESCRIPTOR);
                let name = if is_bundle { names::folder(&name).to_owned() } else { name };
                renamed.push((file.written.clone(), name));
            }
        }
        for file in self.other_files() {
            let Some(path) = self.path(file) else { continue };
            match self.place.open(&path, &Arc::default()) {
                Ok(found) => {
                    let name = names.add(&path, false);
                    renamed.push((file.written.clone(), name.clone()));
                    files.push(Arc::new(Copied { file: found, name, parent: None }));
                }
                Err(error) => tell(format!("{} is not copied: {error}", file.written)),
            }
        }
        let (name, text) = self.document;
        let documents = vec![(name, names::replaced(&text, &renamed))];
        Ok(Pullable { files, streams: Vec::new(), documents, undo: None })
    }

    /// Opens all disks, if nobody writes to them.
    fn hold(&self, tell: &mut dyn FnMut(String)) -> Result<Vec<Open>> {
        match self.state {
            State::Stopped => {}
            State::Suspended => {
                tell(format!(
                    "{} is suspended: what its memory holds is not taken along",
                    self.name
                ));
            }
            state => {
                return Err(Error::WrongState {
                    name: self.name.clone(),
                    state,
                    repair: Some(format!(
                        "its disks change while it is on; switch it off first: omnivisor stop '{}'",
                        self.name
                    )),
                });
            }
        }
        let disks = self.description.drives.iter().enumerate();
        let disks =
            disks.filter(|(_, drive)| drive.kind == DriveKind::Disk && drive.file.is_some());
        disks.map(|(index, drive)| self.open(index, drive)).collect()
    }

    fn open(&self, index: usize, drive: &Drive) -> Result<Open> {
        let file = drive.file.as_ref();
        let path = file.and_then(|file| self.path(file)).ok_or_else(|| Error::Failed {
            what: format!("reading a disk of {}", self.name),
            message: match file {
                Some(file) => format!("{:?} is no file of {}", file.written, self.place.name()),
                None => "the drive is empty".into(),
            },
            repair: None,
        })?;
        let said: Option<Format> = drive.format.as_deref().and_then(|name| name.parse().ok());
        let format = said.or(self.format);
        // Without a format, the guest could make its disk look like an image that names any file as its parent.
        let opened = Arc::new(Opened { anywhere: format.is_some(), ..Opened::default() });
        let path = match self.place.is_folder(&path)? {
            true => format!("{path}/{DESCRIPTOR}"),
            false => path,
        };
        let parents: Vec<_> = drive.parents.iter().filter_map(|file| self.path(file)).collect();
        let source: Arc<dyn RemoteSource> = self.place.open(&path, &opened)?;
        let options = ImageOptions { read_only: true, format, ..ImageOptions::default() };
        let (disk, images) = disk::open_remote(source, &parents, &options)?;
        let files = opened.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Open { drive: index, disk, images, files })
    }

    /// Where a file is that the description names.
    fn path(&self, file: &FileRef) -> Option<String> {
        let written = file.written.as_str();
        if written.starts_with('/') {
            return Some(written.to_owned());
        }
        let home = self.home.as_deref().filter(|_| !written.contains(':'))?;
        Some(format!("{home}/{written}"))
    }

    /// What else the VM needs.
    fn other_files(&self) -> impl Iterator<Item = &FileRef> {
        let vm = &self.description;
        [&vm.boot.kernel, &vm.boot.initrd, &vm.firmware.nvram].into_iter().flatten()
    }

    /// The kernel and initial RAM disk that lie outside of the VM's disks.
    fn boot_files(&self) -> Result<Vec<StillFile>> {
        let boot = &self.description.boot;
        let parts = [(BootPart::Kernel, &boot.kernel), (BootPart::Initrd, &boot.initrd)];
        let mut files = Vec::new();
        for (part, file) in parts {
            let Some(path) = file.as_ref().and_then(|file| self.path(file)) else { continue };
            let file = self.place.open(&path, &Arc::default())?;
            if file.len() > LONGEST_BOOT_FILE {
                return Err(Error::TooMuch { what: path, limit: LONGEST_BOOT_FILE as usize });
            }
            let mut content = Vec::new();
            file.pass(0..file.len(), &mut |bytes| {
                content.extend_from_slice(bytes);
                Ok(())
            })?;
            files.push(StillFile { part, content });
        }
        Ok(files)
    }
}

/// What describes a disk of Parallels, which is a folder.
const DESCRIPTOR: &str = "DiskDescriptor.xml";

impl Open {
    /// What an image is to call its parent here, if it calls it by a path that is not here.
    fn parent_of(&self, file: &PlacedFile, names: &mut Names) -> Option<(String, Format)> {
        let address = file.address();
        let at = self.images.iter().position(|image| image.path == Path::new(&address))?;
        // The other formats look for a parent in their own folder, too.
        let child = self.images.get(at).filter(|image| image.format == Format::Qcow2)?;
        let parent = self.images.get(at + 1)?;
        let parent_file =
            self.files.iter().find(|file| Path::new(&file.address()) == parent.path.as_path())?;
        let name = names.add(&parent_file.path, parent_file.changed.is_device);
        let own = names.add(&file.path, file.changed.is_device);
        let up = "../".repeat(own.matches('/').count());
        tracing::debug!(child = %child.path.display(), parent = %name, "it is renamed");
        Some((format!("{up}{name}"), parent.format))
    }
}

/// A file with its name here.
struct Copied {
    file: Arc<PlacedFile>,
    name: String,
    parent: Option<(String, Format)>,
}

impl RemoteFile for Copied {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn stamp(&self) -> &str {
        &self.file.stamp
    }

    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.file.pass(range, take)
    }

    fn adapt(&self, path: &Path) -> Result<bool> {
        let Some((name, format)) = &self.parent else { return Ok(false) };
        let parent = NewParent { path: name.into(), name: name.clone(), format: Some(*format) };
        let options = ImageOptions { format: Some(Format::Qcow2), ..ImageOptions::default() };
        disk::rebase(path, Some(&parent), &options, true)?;
        Ok(true)
    }
}
