//! NTFS, by the crate ntfs. Its journal is not replayed: Windows writes all metadata before it says that it is clean.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::indexes::NtfsFileNameIndex;
use ntfs::structured_values::{NtfsFileNamespace, NtfsVolumeFlags};
use ntfs::{Ntfs, NtfsAttributeFlags, NtfsError, NtfsReadSeek};

use super::walk::{Nodes, Walk};
use super::{Entry, Kind, MAX_ENTRIES, Metadata};
use crate::layers::{Piece, Pieces};
use crate::volume::Volume;
use crate::{Error, Result};

/// Record of the root folder in the master file table.
const ROOT: u64 = 5;

struct Windows {
    inner: Ntfs,
    reader: RefCell<Reader>,
    label: String,
    is_dirty: bool,
}

/// A volume as a stream.
struct Reader {
    volume: Arc<dyn Volume>,
    place: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.volume.len().saturating_sub(self.place);
        let count = left.min(buffer.len() as u64) as usize;
        self.volume.read_at(&mut buffer[..count], self.place).map_err(io::Error::other)?;
        self.place += count as u64;
        Ok(count)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::Current(by) => self.place.checked_add_signed(by),
            SeekFrom::End(by) => self.volume.len().checked_add_signed(by),
        };
        self.place = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.place)
    }
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Walk<impl Nodes>> {
    let mut reader = Reader { volume, place: 0 };
    let mut inner = Ntfs::new(&mut reader).map_err(explain)?;
    inner.read_upcase_table(&mut reader).map_err(explain)?;
    let label = inner.volume_name(&mut reader).and_then(std::result::Result::ok);
    let label = label.map_or(String::new(), |label| label.name().to_string_lossy());
    let state = inner.volume_info(&mut reader);
    let is_dirty = state.is_ok_and(|state| state.flags().contains(NtfsVolumeFlags::IS_DIRTY));
    Ok(Walk::new(Windows { inner, reader: RefCell::new(reader), label, is_dirty }))
}

impl Windows {
    /// The content of a file's unnamed stream, and its length.
    fn stream(&self, number: u64, limit: Option<u64>) -> Result<(u64, Vec<u8>)> {
        let reader = &mut *self.reader.borrow_mut();
        let file = self.inner.file(reader, number).map_err(explain)?;
        let Some(item) = file.data(reader, "") else { return Ok((0, Vec::new())) };
        let item = item.map_err(explain)?;
        let attribute = item.to_attribute().map_err(explain)?;
        let mut value = attribute.value(reader).map_err(explain)?;
        let length = value.len();
        if limit.is_some() && attribute.flags().intersects(packed()) {
            return Err(Error::unsupported("NTFS", "a file in it is compressed or encrypted"));
        }
        let mut bytes = Vec::new();
        if let Some(limit) = limit {
            bytes.resize(limit.min(length) as usize, 0);
            value.read_exact(reader, &mut bytes).map_err(explain)?;
        }
        Ok((length, bytes))
    }
}

impl Nodes for Windows {
    type Id = u64;

    fn kind(&self) -> &'static str {
        "ntfs"
    }

    fn uuid(&self) -> Option<String> {
        Some(format!("{:016X}", self.inner.serial_number()))
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn notes(&self) -> Vec<String> {
        /// From here on, the crate looks for a folder's blocks in the wrong places, and finds none.
        const LARGE_CLUSTER: u32 = 8192;
        let dirty = "it was not shut down cleanly, or Windows found an error in it";
        let large = "folders with many names are not read where clusters are larger than 4 KiB";
        let is_large = self.inner.cluster_size() >= LARGE_CLUSTER;
        let notes = [(self.is_dirty, dirty), (is_large, large)].into_iter();
        notes.filter(|(applies, _)| *applies).map(|(_, note)| note.to_owned()).collect()
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn child(&self, folder: &u64, name: &str) -> Result<Option<u64>> {
        let reader = &mut *self.reader.borrow_mut();
        let folder = self.inner.file(reader, *folder).map_err(explain)?;
        let index = folder.directory_index(reader).map_err(explain)?;
        let mut finder = index.finder();
        match NtfsFileNameIndex::find(&mut finder, &self.inner, reader, name) {
            Some(entry) => Ok(Some(entry.map_err(explain)?.file_reference().file_record_number())),
            None => Ok(None),
        }
    }

    fn list(&self, folder: &u64) -> Result<Vec<Entry>> {
        let reader = &mut *self.reader.borrow_mut();
        let folder = self.inner.file(reader, *folder).map_err(explain)?;
        let index = folder.directory_index(reader).map_err(explain)?;
        let mut iterator = index.entries();
        let mut entries = Vec::new();
        while let Some(entry) = iterator.next(reader) {
            let entry = entry.map_err(explain)?;
            let Some(key) = entry.key() else { continue };
            let key = key.map_err(explain)?;
            let name = key.name().to_string_lossy();
            // Short names beside long ones, the root itself, and the file system's own files.
            let is_own = entry.file_reference().file_record_number() < 16;
            if key.namespace() == NtfsFileNamespace::Dos || is_own {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Err(Error::damaged("NTFS file system", "a folder has no end"));
            }
            let kind = if key.is_directory() { Kind::Folder } else { Kind::File };
            entries.push(Entry { name, kind });
        }
        Ok(entries)
    }

    fn stat(&self, file: &u64) -> Result<Metadata> {
        let is_folder = {
            let reader = &mut *self.reader.borrow_mut();
            self.inner.file(reader, *file).map_err(explain)?.is_directory()
        };
        let (kind, length) = match is_folder {
            true => (Kind::Folder, 0),
            false => (Kind::File, self.stream(*file, None)?.0),
        };
        Ok(Metadata { kind, length, mode: 0o755 })
    }

    fn pieces(&self, file: &u64) -> Result<Option<Arc<dyn Volume>>> {
        let reader = &mut *self.reader.borrow_mut();
        let file = self.inner.file(reader, *file).map_err(explain)?;
        let Some(item) = file.data(reader, "") else { return Ok(None) };
        let item = item.map_err(explain)?;
        let attribute = item.to_attribute().map_err(explain)?;
        let is_plain = !attribute.flags().intersects(packed());
        let value = attribute.value(reader).map_err(explain)?;
        let (true, NtfsAttributeValue::NonResident(value)) = (is_plain, value) else {
            return Ok(None);
        };
        let mut pieces = Vec::new();
        let mut start = 0;
        for run in value.data_runs() {
            let run = run.map_err(explain)?;
            let length = run.allocated_size().min(value.len().saturating_sub(start));
            // A hole is read as a whole with the rest.
            let Some(place) = run.data_position().value() else { return Ok(None) };
            if length == 0 {
                break;
            }
            if pieces.len() == MAX_ENTRIES {
                return Ok(None);
            }
            let on = vec![(Arc::clone(&reader.volume), place.get())];
            pieces.push(Piece { start, length, stripe: length, on });
            start += length;
        }
        Ok(Pieces::new(pieces).map(|pieces| Arc::new(pieces) as Arc<dyn Volume>))
    }

    fn content(&self, file: &u64, length: u64) -> Result<Vec<u8>> {
        Ok(self.stream(*file, Some(length))?.1)
    }
}

/// What the crate does not unpack.
fn packed() -> NtfsAttributeFlags {
    NtfsAttributeFlags::COMPRESSED | NtfsAttributeFlags::ENCRYPTED
}

fn explain(error: NtfsError) -> Error {
    Error::damaged("NTFS file system", error.to_string())
}
