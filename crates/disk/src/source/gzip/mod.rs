//! Files that are compressed as a whole by gzip (RFC 1952), read at any place without being unpacked to anywhere.
//!
//! One pass over the file checks it and finds places where unpacking can begin, which lie about evenly apart. Reading begins at the
//! nearest one, or where somebody else has just stopped. A folder can keep the places, so that the pass is made once.

mod decoder;
mod index;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Source, truncated};
use crate::cache::Cache;
use crate::{Error, Format, MemorySource, Result};

use decoder::Decoder;
use index::Index;
use store::Store;

/// Unit in which unpacked bytes are kept.
const CHUNK: u64 = 64 << 10;
/// Unpacked chunks that are kept: 8 MiB in sets of 4.
const CHUNK_SETS: usize = 32;
/// Decoders that may go on where they stopped, each of at most 180 KiB.
const MAX_PARKED: usize = 32;
/// On so long a way without a point, as through a block that does not end, decoders are left behind.
const STRIDE: u64 = 16 << 20;
/// Bytes that tell what an image is.
const HEAD: usize = 4096;
/// How such files begin.
pub(crate) const MAGIC: &[u8] = &[0x1f, 0x8b, 8];

/// What the first bytes of a source unpack to, as far as it goes.
pub(crate) fn head(packed: &dyn Source) -> Result<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut bytes = Vec::new();
    if decoder.begin(packed)? {
        while bytes.len() < HEAD && decoder.is_within {
            bytes.extend(decoder.step(packed, HEAD - bytes.len(), false)?);
        }
    }
    Ok(bytes)
}

/// The content of a source that gzip has compressed, to be read only.
pub struct GzipSource {
    packed: Arc<dyn Source>,
    index: Index,
    store: Option<Store>,
    parked: Mutex<Vec<Decoder>>,
    chunks: Cache<[u8]>,
}

impl GzipSource {
    /// Whether a source begins as gzip's files do.
    pub fn is_gzip(source: &dyn Source) -> Result<bool> {
        let mut magic = [0; 3];
        if source.len() < 18 {
            return Ok(false);
        }
        source.read_at(&mut magic, 0)?;
        Ok(magic == MAGIC)
    }

    /// Unpacks all of it once, unless `indexes`, a folder, keeps what was found out then and the source has a
    /// [`version`](Source::version) to be recognized by. The folder is made where it does not exist; nothing fails because of it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no gzip file, or its checksum is wrong; what the source says.
    pub fn open(packed: Arc<dyn Source>, indexes: Option<&Path>) -> Result<Self> {
        let store = indexes.and_then(|folder| Some(Store::new(folder, packed.version()?)));
        let index = match store.as_ref().and_then(|store| store.read(packed.len())) {
            Some(index) => index,
            None => {
                let index = Index::build(&*packed)?;
                if let Some(store) = store.as_ref().filter(|_| index.is_worth_keeping()) {
                    store.write(&index);
                }
                index
            }
        };
        Ok(Self::new(packed, index, store))
    }

    fn new(packed: Arc<dyn Source>, index: Index, store: Option<Store>) -> Self {
        let chunks = Cache::new(CHUNK_SETS, 4);
        Self { packed, index, store, parked: Mutex::default(), chunks }
    }

    /// Fills `target` from a place within a chunk, of which it is a part.
    fn read_chunk(&self, number: u64, within: usize, target: &mut [u8]) -> Result<()> {
        let part = within..within + target.len();
        if self.chunks.with(number, |chunk| target.copy_from_slice(&chunk[part.clone()])).is_some()
        {
            return Ok(());
        }
        let mut decoder = self.decoder(number * CHUNK)?;
        let mut last = decoder.output;
        loop {
            // A point can lie within a chunk.
            let here = decoder.output / CHUNK;
            let begin = decoder.output % CHUNK;
            let end = (self.len() - here * CHUNK).min(CHUNK);
            let mut bytes = vec![0; (end - begin) as usize];
            decoder.fill(&*self.packed, &mut bytes)?;
            if decoder.output - last >= STRIDE {
                last = decoder.output;
                self.park(decoder.clone());
            }
            if begin != 0 {
                continue;
            }
            if here != number {
                self.chunks.insert(here, bytes.into());
            } else {
                target.copy_from_slice(&bytes[part]);
                self.chunks.insert(here, bytes.into());
                self.park(decoder);
                return Ok(());
            }
        }
    }

    /// The one that comes to `start` soonest.
    fn decoder(&self, start: u64) -> Result<Decoder> {
        for point in self.index.before(start) {
            if let Some(parked) = self.take_parked(point.output.get()..=start) {
                return Ok(parked);
            }
            if let Some(decoder) = self.index.decoder(point, &*self.packed)? {
                return Ok(decoder);
            }
            // From the one before it is only farther; the next opening makes all of them anew.
            if let Some(store) = &self.store {
                store.remove();
            }
        }
        Err(damaged("its index has no start"))
    }

    fn take_parked(&self, range: RangeInclusive<u64>) -> Option<Decoder> {
        let mut parked = self.parked();
        let decoders = parked.iter().enumerate();
        let within = decoders.filter(|(_, decoder)| range.contains(&decoder.output));
        let (nearest, _) = within.max_by_key(|(_, decoder)| decoder.output)?;
        Some(parked.remove(nearest))
    }

    fn park(&self, decoder: Decoder) {
        let mut parked = self.parked();
        if parked.len() >= MAX_PARKED {
            parked.remove(0);
        }
        parked.push(decoder);
    }

    fn parked(&self) -> MutexGuard<'_, Vec<Decoder>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for GzipSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipSource").field("packed", &self.packed).finish_non_exhaustive()
    }
}

impl Source for GzipSource {
    fn len(&self) -> u64 {
        self.index.length
    }

    fn version(&self) -> Option<String> {
        Some(format!("unpacked {}", self.packed.version()?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(truncated(self, offset, buffer.len()));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = at % CHUNK;
            // No more than a chunk.
            let count = ((CHUNK - within) as usize).min(buffer.len() - done);
            let target = &mut buffer[done..done + count];
            self.read_chunk(at / CHUNK, within as usize, target)?;
            done += count;
        }
        Ok(())
    }
}

/// Reads what gzip has compressed by an index that a fuzzer made, whose checksum is made right; returns whatever both are. The
/// input is the length of the compressed file (16 bits), that, and the index.
pub fn fuzz_gzip_index(input: &[u8]) {
    let Some((length, rest)) = input.split_first_chunk() else { return };
    let Some((packed, index)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else {
        return;
    };
    let mut index = index.to_vec();
    index::seal(&mut index);
    let packed = Arc::new(MemorySource::read_only(packed.to_vec()));
    let index = Index::read(Arc::new(MemorySource::read_only(index)), "", packed.len());
    let Some(source) = index.map(|index| GzipSource::new(packed, index, None)) else { return };
    let mut bytes = [0; 4096];
    for part in 0..=4 {
        let _ = source.read_at(&mut bytes, source.len() / 4 * part);
    }
}

fn damaged(what: &str) -> Error {
    Error::Damaged { format: Format::Raw, what: format!("as a gzip file, {what}") }
}
