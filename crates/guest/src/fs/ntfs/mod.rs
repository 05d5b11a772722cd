//! NTFS, by the crate ntfs but for folders. Its journal is not replayed: Windows writes all metadata before it says that it is clean.

mod index;

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::structured_values::NtfsVolumeFlags;
use ntfs::{Ntfs, NtfsAttributeFlags, NtfsAttributeType, NtfsError, NtfsReadSeek};

use self::index::{Capitals, Index};
use super::walk::{Nodes, Walk};
use super::{Entry, Kind, MAX_ENTRIES, MAX_IN_MEMORY, Metadata};
use crate::layers::{Piece, Pieces};
use crate::volume::{Memory, Volume};
use crate::{Error, Result};

/// Records in the master file table: the root folder, and `$UpCase`.
const ROOT: u64 = 5;
const CAPITALS: u64 = 10;
/// Records before this one are the file system's own.
const FIRST_FILE: u64 = 16;
/// Longest attribute that is in a record.
const MAX_ROOT: u64 = 64 << 10;
/// What the attributes of a folder's index are called.
const INDEX: &str = "$I30";

struct Windows {
    inner: Ntfs,
    reader: RefCell<Reader>,
    capitals: Capitals,
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
    let inner = Ntfs::new(&mut reader).map_err(explain)?;
    let (_, capitals) = stream(&inner, &mut reader, CAPITALS, Some(MAX_IN_MEMORY))?;
    let capitals = Capitals::of(&capitals)?;
    let label = inner.volume_name(&mut reader).and_then(std::result::Result::ok);
    let label = label.map_or(String::new(), |label| label.name().to_string_lossy());
    let state = inner.volume_info(&mut reader);
    let is_dirty = state.is_ok_and(|state| state.flags().contains(NtfsVolumeFlags::IS_DIRTY));
    Ok(Walk::new(Windows { inner, reader: RefCell::new(reader), capitals, label, is_dirty }))
}

/// The content of a file's unnamed stream, up to a limit, and its length.
fn stream(
    inner: &Ntfs,
    reader: &mut Reader,
    number: u64,
    limit: Option<u64>,
) -> Result<(u64, Vec<u8>)> {
    let file = inner.file(reader, number).map_err(explain)?;
    let Some(item) = file.data(reader, "") else { return Ok((0, Vec::new())) };
    let item = item.map_err(explain)?;
    let attribute = item.to_attribute().map_err(explain)?;
    let mut value = attribute.value(reader).map_err(explain)?;
    let length = value.len();
    if limit.is_some() && attribute.flags().intersects(packed()) {
        return Err(Error::unsupported("NTFS", "a file in it is compressed or encrypted"));
    }
    let bytes = bytes_of(&mut value, reader, limit.unwrap_or(0))?;
    Ok((length, bytes))
}

/// The first bytes of an attribute.
fn bytes_of(
    value: &mut NtfsAttributeValue<'_, '_>,
    reader: &mut Reader,
    limit: u64,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; limit.min(value.len()) as usize];
    value.read_exact(reader, &mut bytes).map_err(explain)?;
    Ok(bytes)
}

/// An attribute as a volume, where it lies in one piece after another on the file system's.
fn pieces_of(
    value: &NtfsAttributeValue<'_, '_>,
    reader: &Reader,
) -> Result<Option<Arc<dyn Volume>>> {
    let NtfsAttributeValue::NonResident(value) = value else { return Ok(None) };
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

impl Windows {
    fn index(&self, folder: u64) -> Result<Index> {
        let reader = &mut *self.reader.borrow_mut();
        let folder = self.inner.file(reader, folder).map_err(explain)?;
        let mut attributes = folder.attributes();
        let (mut root, mut blocks) = (None, None);
        while let Some(item) = attributes.next(reader) {
            let item = item.map_err(explain)?;
            let attribute = item.to_attribute().map_err(explain)?;
            if attribute.name().map_err(explain)? != INDEX {
                continue;
            }
            let mut value = attribute.value(reader).map_err(explain)?;
            match attribute.ty().map_err(explain)? {
                NtfsAttributeType::IndexRoot => {
                    root = Some(bytes_of(&mut value, reader, MAX_ROOT)?);
                }
                NtfsAttributeType::IndexAllocation => {
                    blocks = Some(match pieces_of(&value, reader)? {
                        Some(volume) => volume,
                        None => Arc::new(Memory(bytes_of(&mut value, reader, MAX_IN_MEMORY)?)),
                    });
                }
                _ => {}
            }
        }
        let root = root.ok_or_else(|| damaged("a folder has no index"))?;
        Index::new(root, blocks, self.inner.cluster_size().into())
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
        let dirty = "it was not shut down cleanly, or Windows found an error in it";
        if self.is_dirty { vec![dirty.to_owned()] } else { Vec::new() }
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn child(&self, folder: &u64, name: &str) -> Result<Option<u64>> {
        self.index(*folder)?.find(&self.capitals, name)
    }

    fn list(&self, folder: &u64) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.index(*folder)?.each(&mut |name| {
            // Among the root's names are the root itself, and the file system's own files.
            if name.is_short || name.file < FIRST_FILE {
                return Ok(());
            }
            if entries.len() == MAX_ENTRIES {
                return Err(damaged("a folder has no end"));
            }
            let kind = if name.is_folder { Kind::Folder } else { Kind::File };
            entries.push(Entry { name: name.text(), kind });
            Ok(())
        })?;
        Ok(entries)
    }

    fn stat(&self, file: &u64) -> Result<Metadata> {
        let is_folder = {
            let reader = &mut *self.reader.borrow_mut();
            self.inner.file(reader, *file).map_err(explain)?.is_directory()
        };
        let (kind, length) = match is_folder {
            true => (Kind::Folder, 0),
            false => {
                let reader = &mut *self.reader.borrow_mut();
                (Kind::File, stream(&self.inner, reader, *file, None)?.0)
            }
        };
        Ok(Metadata { kind, length, mode: 0o755 })
    }

    fn pieces(&self, file: &u64) -> Result<Option<Arc<dyn Volume>>> {
        let reader = &mut *self.reader.borrow_mut();
        let file = self.inner.file(reader, *file).map_err(explain)?;
        let Some(item) = file.data(reader, "") else { return Ok(None) };
        let item = item.map_err(explain)?;
        let attribute = item.to_attribute().map_err(explain)?;
        if attribute.flags().intersects(packed()) {
            return Ok(None);
        }
        pieces_of(&attribute.value(reader).map_err(explain)?, reader)
    }

    fn content(&self, file: &u64, length: u64) -> Result<Vec<u8>> {
        let reader = &mut *self.reader.borrow_mut();
        Ok(stream(&self.inner, reader, *file, Some(length))?.1)
    }
}

/// What the crate does not unpack.
fn packed() -> NtfsAttributeFlags {
    NtfsAttributeFlags::COMPRESSED | NtfsAttributeFlags::ENCRYPTED
}

fn explain(error: NtfsError) -> Error {
    damaged(&error.to_string())
}

fn damaged(why: &str) -> Error {
    Error::damaged("NTFS file system", why)
}
