//! Bytes by offset beneath a format: a file, a block device, a file of an HTTP server, what gzip compressed, memory.

mod ahead;
mod file;
pub(crate) mod gzip;
mod http;
mod memory;
mod part;
mod window;

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use zerocopy::FromBytes;

pub use ahead::ReadAhead;
pub use file::FileSource;
pub(crate) use file::version;
pub use gzip::{GzipSource, fuzz_gzip_index};
pub use http::{HttpError, HttpOptions, HttpSource, is_url};
pub use memory::MemorySource;
pub use part::PartSource;

use crate::{Error, Result};

/// Bytes by offset that a format reads its structures and its guest's bytes from.
pub trait Source: Send + Sync + fmt::Debug {
    /// Bytes in it. They may grow when it is written to, and only then.
    fn len(&self) -> u64;

    /// It has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset`; [`Error::Truncated`] if that passes the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Capability: its name, without its folder.
    fn name(&self) -> Option<String> {
        None
    }

    /// Capability: its bytes are those of one file, offset by offset.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Capability: what tells its bytes from all others, and from what they were before a change.
    fn version(&self) -> Option<String> {
        None
    }

    /// Capability: it can be changed.
    fn writable(&self) -> Option<&dyn WritableSource> {
        None
    }
}

/// A file of another computer, which is only read.
pub trait RemoteSource: Source {
    /// Its address or path, without anything secret.
    fn address(&self) -> String;

    /// What tells it from every other file.
    fn identity(&self) -> String {
        self.address()
    }

    /// What tells its bytes from what they were before a change, if anything does.
    fn state(&self) -> Option<String>;

    /// The file that an image in this one calls so: [`Error::NotFound`] if it is not there, or may not be looked for.
    fn sibling(&self, name: &str) -> Result<Arc<dyn RemoteSource>>;
}

/// A source that can be changed. What is written may be lost, in any order, until the next
/// [`flush`](WritableSource::flush).
pub trait WritableSource: Send + Sync {
    /// Writes all of `buffer` at `offset`; grows the source where that passes its end.
    fn write_at(&self, buffer: &[u8], offset: u64) -> Result<()>;

    /// Whether [`share`](Self::share) may work with that file.
    fn can_share(&self, _from: BorrowedFd<'_>) -> bool {
        false
    }

    /// Lets `length` bytes at `offset` share the space of those of a file, as far as both lie in one file system
    /// that can: `false` if nothing was done.
    fn share(&self, _from: BorrowedFd<'_>, _from_offset: u64, _offset: u64, _length: u64) -> bool {
        false
    }

    /// Makes it exactly this long; bytes that are new read as zeroes.
    fn set_len(&self, length: u64) -> Result<()>;

    /// Gives back the space of `range`, which reads as zeroes afterwards, or does nothing at all where
    /// the file system cannot.
    fn punch(&self, range: Range<u64>) -> Result<()>;

    /// Returns when everything written so far would survive a loss of power.
    fn flush(&self) -> Result<()>;
}

/// Fills `buffer` from `offset`, with zeroes for what lies past the end. A cluster that was written only
/// in part when it was the last one of its file ends there; one that *begins* past the end does not exist.
pub(crate) fn read_padded(source: &dyn Source, buffer: &mut [u8], offset: u64) -> Result<()> {
    let there = source.len().saturating_sub(offset);
    let count = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
    let (stored, rest) = buffer.split_at_mut(count);
    rest.fill(0);
    if count == 0 { Ok(()) } else { source.read_at(stored, offset) }
}

/// Reads a structure at `offset`.
pub(crate) fn read_struct<T: FromBytes>(source: &dyn Source, offset: u64) -> Result<T> {
    let mut bytes = vec![0; size_of::<T>()];
    source.read_at(&mut bytes, offset)?;
    // The buffer has exactly the structure's size, so this cannot fail.
    T::read_from_bytes(&bytes).map_err(|_| truncated(source, offset, size_of::<T>()))
}

/// Reads `length` bytes at `offset`, of which a caller has checked that they are not too many.
pub(crate) fn read_vec(source: &dyn Source, offset: u64, length: usize) -> Result<Vec<u8>> {
    // Before the memory is taken: a header may claim anything.
    if source.len().checked_sub(offset).is_none_or(|there| there < length as u64) {
        return Err(truncated(source, offset, length));
    }
    let mut bytes = vec![0; length];
    source.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The largest of `count` numbers of `N` bytes in a table at `offset`, as `number` reads them.
pub(crate) fn largest<const N: usize>(
    source: &dyn Source,
    offset: u64,
    count: u64,
    number: impl Fn([u8; N]) -> u64,
) -> Result<u64> {
    let mut found = 0;
    let mut buffer = vec![0; TABLE_PIECE.min(count.saturating_mul(N as u64)) as usize];
    let mut done = 0;
    while done < count {
        let part = (count - done).min((buffer.len() / N) as u64);
        let part_bytes = &mut buffer[..part as usize * N];
        source.read_at(part_bytes, offset.saturating_add(done * N as u64))?;
        let entries = part_bytes.as_chunks::<N>().0;
        found = entries.iter().fold(found, |found, &entry| number(entry).max(found));
        done += part;
    }
    Ok(found)
}

/// Bytes of a table that are read at once, a multiple of every entry's.
const TABLE_PIECE: u64 = 256 << 10;

pub(crate) fn truncated(source: &dyn Source, offset: u64, length: usize) -> Error {
    let range = offset..offset.saturating_add(length as u64);
    Error::Truncated { range, length: source.len() }
}
