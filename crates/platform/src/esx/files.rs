//! The files of a VM, as they are copied and read from afar.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use spec::foreign::{Description, DriveKind};

use super::datastore::{Datastore, DatastorePath};
use super::description::{self, DiskFile};
use super::inventory::{self, Object};
use super::session::Session;
use super::soap::{Element, Reference};
use super::{remote, snapshots};
use crate::held::PULL;
use crate::pull::hexadecimal;
use crate::{Error, Pullable, RemoteFile, Result, State, Still, StillDisk};

/// What is said of the snapshot that holds a running VM's disks still.
const WHY: &str =
    "Holds the disks still while omnivisor copies them. If no pull runs, it can be deleted.";

/// Longest descriptor of a disk.
const LONGEST_DESCRIPTOR: u64 = 64 << 10;
const LONGEST_VMX: u64 = 1 << 20;
const LONGEST_NVRAM: u64 = 4 << 20;
/// Most extents of a disk: 2 GB parts of 62 TB, rounded up.
const MOST_EXTENTS: usize = 32_768;
/// Most images in a chain.
const MOST_IMAGES: usize = 256;
/// Bytes that are handed on at once.
const BUFFER: usize = 64 << 10;

/// A file of a datastore.
struct Remote {
    datastore: Datastore,
    path: DatastorePath,
    name: String,
    length: u64,
    stamp: String,
}

impl RemoteFile for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn stamp(&self) -> &str {
        &self.stamp
    }

    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (part, mut reader) = self.datastore.get(&self.path, range.start, range.end)?;
        if (part.total, &part.stamp) != (self.length, &self.stamp) {
            return Err(Error::Failed {
                what: format!("copying {}", self.path),
                message: "the file is changed while it is copied".into(),
                repair: Some("power the VM off, or pull again".into()),
            });
        }
        let mut buffer = vec![0; BUFFER];
        let mut left = part.length.min(range.end - range.start);
        while left > 0 {
            let want = left.min(BUFFER as u64) as usize;
            match reader.read(&mut buffer[..want]) {
                Ok(0) => {
                    return Err(self.datastore.lost(&std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(read) => {
                    take(&buffer[..read])?;
                    left -= read as u64;
                }
                Err(error) => return Err(self.datastore.lost(&error)),
            }
        }
        // The end of the answer, after which the connection can be used again.
        let _ = reader.read(&mut [0]);
        Ok(())
    }
}

/// A VM whose disks are held still.
pub(super) struct Held {
    pub datastore: Datastore,
    pub disks: Vec<DiskFile>,
    /// The configuration that has these disks.
    config: Element,
    snapshot: Option<Reference>,
}

/// Holds the disks of a VM still: a running one gets a snapshot, which `tell` is told.
pub(super) fn hold(
    session: &Arc<Session>,
    vm: &Object,
    datastore: Datastore,
    tell: &mut dyn FnMut(String),
) -> Result<Held> {
    let config = |object: &Object| {
        let config = object.property("config").cloned();
        config.ok_or_else(|| session.wrong("RetrievePropertiesEx", "the VM has no config"))
    };
    let before = config(vm)?;
    if matches!(vm.summary().state, State::Stopped | State::Suspended) {
        let disks = description::disks(&before);
        return Ok(Held { datastore, disks, config: before, snapshot: None });
    }
    let name = vm.summary().name;
    let kept = snapshots::list(session, &vm.reference)?;
    let snapshot = match kept.iter().any(|kept| kept.name == PULL) {
        true => {
            tell(format!("{name} has the snapshot {PULL:?} of a pull before; it is used"));
            snapshots::find(session, &vm.reference, PULL)?
        }
        false => {
            tell(format!(
                "{name} is running: the snapshot {PULL:?} is made for as long as its disks are copied"
            ));
            snapshots::create(session, &vm.reference, PULL, WHY, false)?
        }
    };
    // As it was then: the disks below the snapshot, which nobody writes to.
    let then = inventory::get(session, &snapshot, &["config"])?;
    let config = config(&then)?;
    let disks = description::disks(&config);
    Ok(Held { datastore, disks, config, snapshot: Some(snapshot) })
}

impl Held {
    /// The VM with its disks opened.
    pub fn open(mut self, description: Description) -> Result<Still> {
        let snapshot = self.snapshot.take();
        let session = self.datastore.session.clone();
        match self.open_disks(&description) {
            Ok(disks) => {
                let undo = move |is_complete: bool| match is_complete {
                    true => Self::release(snapshot, &session),
                    false => Ok(()),
                };
                Ok(Still { description, disks, files: Vec::new(), undo: Box::new(undo) })
            }
            Err(error) => {
                let _ = Self::release(snapshot, &session);
                Err(error)
            }
        }
    }

    fn open_disks(&self, description: &Description) -> Result<Vec<StillDisk>> {
        let mut opened = Vec::new();
        for (drive, found) in description.drives.iter().enumerate() {
            let place = (found.bus, found.controller, found.unit);
            let same = |disk: &&DiskFile| (disk.bus, disk.controller, disk.unit) == place;
            let is_disk = found.kind == DriveKind::Disk;
            let Some(file) = self.disks.iter().find(same).filter(|_| is_disk) else { continue };
            let disk = remote::open(&self.datastore, &file.file)?;
            opened.push(StillDisk { drive, disk, stamp: self.stamp(file)? });
        }
        Ok(opened)
    }

    /// The state of all files of a disk.
    fn stamp(&self, disk: &DiskFile) -> Result<String> {
        let mut stamp = String::new();
        for image in disk.chain.iter().take(MOST_IMAGES) {
            for path in self.image_files(image)? {
                let (part, _) = self.datastore.get(&path, 0, 1)?;
                stamp.push_str(&format!("{path} {} {};", part.total, part.stamp));
            }
        }
        Ok(hexadecimal(&Sha256::digest(stamp)))
    }

    /// Lets go of the disks.
    fn release(snapshot: Option<Reference>, session: &Session) -> Result<()> {
        snapshot.map_or(Ok(()), |snapshot| snapshots::delete(session, &snapshot))
    }

    /// All that is to be copied.
    pub fn pullable(mut self) -> Result<Pullable> {
        let snapshot = self.snapshot.take();
        let session = self.datastore.session.clone();
        match self.collect() {
            Ok((files, documents)) => {
                let undo = move |is_complete: bool| match is_complete {
                    true => Self::release(snapshot, &session),
                    // Without it a later pull would find other bytes, and begin again.
                    false => Ok(()),
                };
                Ok(Pullable { files, streams: Vec::new(), documents, undo: Some(Box::new(undo)) })
            }
            Err(error) => {
                let _ = Self::release(snapshot, &session);
                Err(error)
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "the two parts of a Pullable")]
    fn collect(&self) -> Result<(Vec<Arc<dyn RemoteFile>>, Vec<(String, Vec<u8>)>)> {
        let vmx_path = description::vmx_path(&self.config);
        let home = vmx_path.as_ref().and_then(|path| path.beside("x")).map(|path| folder(&path));
        let mut names = Names { folders: home.into_iter().collect() };
        let mut files: Vec<Arc<dyn RemoteFile>> = Vec::new();
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            for image in disk.chain.iter().take(MOST_IMAGES) {
                for path in self.image_files(image)? {
                    if seen.insert(path.clone()) {
                        files.push(Arc::new(self.remote(path, &mut names)?));
                    }
                }
            }
        }
        let mut documents = Vec::new();
        let vmx_name = vmx_path.as_ref().map_or("vm.vmx", DatastorePath::name).to_owned();
        let own =
            vmx_path.as_ref().and_then(|path| self.datastore.read_small(path, LONGEST_VMX).ok());
        let own = own.filter(|bytes| !bytes.is_empty());
        let text = own.unwrap_or_else(|| description::vmx(&self.config).into_bytes());
        let drives: Vec<_> = self
            .disks
            .iter()
            .map(|disk| {
                let key = format!("{}{}:{}", disk.bus.name(), disk.controller, disk.unit);
                (format!("{key}.filename"), names.local(&disk.file))
            })
            .collect();
        documents.push((vmx_name, renamed(&text, &drives)));
        // A machine without its variables starts all the same.
        if let Some(nvram) = nvram_name(&text).and_then(|name| vmx_path.as_ref()?.beside(&name))
            && let Ok(bytes) = self.datastore.read_small(&nvram, LONGEST_NVRAM)
        {
            documents.push((nvram.name().to_owned(), bytes));
        }
        Ok((files, documents))
    }

    /// An image's own file and its extents'.
    fn image_files(&self, image: &DatastorePath) -> Result<Vec<DatastorePath>> {
        let mut files = vec![image.clone()];
        let (part, reader) = self.datastore.get(image, 0, LONGEST_DESCRIPTOR)?;
        let mut head = Vec::new();
        let taken = reader.take(LONGEST_DESCRIPTOR).read_to_end(&mut head);
        taken.map_err(|error| self.datastore.lost(&error))?;
        let is_descriptor =
            part.total <= LONGEST_DESCRIPTOR && head.starts_with(b"# Disk DescriptorFile");
        if !is_descriptor {
            return Ok(files);
        }
        for name in extents(&head) {
            let wrong = || Error::reply(image.to_string(), format!("it names the extent {name:?}"));
            files.push(image.beside(&name).ok_or_else(wrong)?);
            if files.len() > MOST_EXTENTS {
                return Err(Error::reply(
                    image.to_string(),
                    "it has more extents than any real one",
                ));
            }
        }
        Ok(files)
    }

    fn remote(&self, path: DatastorePath, names: &mut Names) -> Result<Remote> {
        let (part, _) = self.datastore.get(&path, 0, 1)?;
        let name = names.add(&path);
        let datastore = self.datastore.clone();
        Ok(Remote { datastore, path, name, length: part.total, stamp: part.stamp })
    }
}

/// Where files of several folders and datastores lie in one folder here.
struct Names {
    /// The VM's own folder, then those that get a number.
    folders: Vec<(String, String)>,
}

impl Names {
    fn add(&mut self, path: &DatastorePath) -> String {
        let folder = folder(path);
        if !self.folders.contains(&folder) {
            self.folders.push(folder);
        }
        self.local(path)
    }

    fn local(&self, path: &DatastorePath) -> String {
        let folder = folder(path);
        match self.folders.iter().position(|known| *known == folder) {
            Some(0) | None => path.name().to_owned(),
            Some(index) => format!("{index}/{}", path.name()),
        }
    }
}

fn folder(path: &DatastorePath) -> (String, String) {
    let folder = path.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    (path.datastore.clone(), folder.to_owned())
}

/// Files that a text descriptor names: `RW 2048 VMFS "web-flat.vmdk"`.
fn extents(descriptor: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(descriptor);
    let extent = |line: &str| {
        let mut words = line.split_whitespace();
        let is_extent = matches!(words.next(), Some("RW" | "RDONLY" | "NOACCESS"))
            && words.next().is_some_and(|word| word.parse::<u64>().is_ok());
        let kind = words.next()?;
        let name = line.split('"').nth(1)?;
        (is_extent && kind != "ZERO").then(|| name.to_owned())
    };
    text.lines().filter_map(|line| extent(line.trim())).collect()
}

/// A `.vmx` with other files for these keys.
pub(super) fn renamed(vmx: &[u8], drives: &[(String, String)]) -> Vec<u8> {
    let mut text = Vec::with_capacity(vmx.len());
    for line in vmx.split_inclusive(|byte| *byte == b'\n') {
        let key = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        let key = String::from_utf8_lossy(key).trim().to_ascii_lowercase();
        match drives.iter().find(|(name, _)| *name == key) {
            Some((name, file)) => text.extend(format!("{name} = \"{file}\"\n").bytes()),
            None => text.extend(line),
        }
    }
    text
}

fn nvram_name(vmx: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(vmx);
    let line = text.lines().find(|line| {
        let key = line.split('=').next().unwrap_or_default();
        key.trim().eq_ignore_ascii_case("nvram")
    })?;
    Some(line.split('"').nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_read_from_a_descriptor() {
        let text = "# Disk DescriptorFile\nversion=1\nRW 2048 VMFS \"a b-flat.vmdk\"\r\n  RDONLY 1 SPARSE \"c.vmdk\"\n\
            RW 5 ZERO\nRW x VMFS \"no\"\nddb.uuid = \"60\"\n";
        assert_eq!(extents(text.as_bytes()), ["a b-flat.vmdk", "c.vmdk"]);
    }

    #[test]
    fn a_vmx_names_the_files_that_were_copied() {
        let vmx = b"displayName = \"a\"\nSCSI0:0.fileName = \"/vmfs/volumes/x/a-000001.vmdk\"\nnvram = \"a.nvram\"";
        let drives = [("scsi0:0.filename".to_owned(), "a.vmdk".to_owned())];
        let text = String::from_utf8(renamed(vmx, &drives)).unwrap();
        assert_eq!(text, "displayName = \"a\"\nscsi0:0.filename = \"a.vmdk\"\nnvram = \"a.nvram\"");
        assert_eq!(nvram_name(vmx).as_deref(), Some("a.nvram"));
    }

    #[test]
    fn disks_of_other_datastores_get_folders_of_their_own() {
        let path = |text| DatastorePath::parse(text).unwrap();
        let mut names = Names { folders: vec![("ds".into(), "web".into())] };
        assert_eq!(names.add(&path("[ds] web/web.vmdk")), "web.vmdk");
        assert_eq!(names.add(&path("[other] web/web.vmdk")), "1/web.vmdk");
        assert_eq!(names.add(&path("[other] web/web-flat.vmdk")), "1/web-flat.vmdk");
    }
}
