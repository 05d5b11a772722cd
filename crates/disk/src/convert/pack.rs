//! Compression on all processors, in order.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use flate2::{Compress, FlushCompress, Status};

use super::deflate::Deflater;
use crate::codec::Codec;
use crate::{Error, Result};

/// QEMU reads zlib clusters with a window of 4 KiB.
const WINDOW_BITS: u8 = 12;
const ZLIB_LEVEL: i32 = 6;
/// Of libdeflate, whose streams are then as long as zlib's of level 6.
const STREAM_LEVEL: i32 = 5;
/// Up to here, and by default, an encoder of our own is used with windows of 4 KiB: higher levels take far more time
/// for little.
const FAST_LEVEL: i32 = 2;
const ZSTD_LEVEL: i32 = 3;
/// Clusters that are on their way for each thread, and bytes of all of them, so that memory stays bounded.
const QUEUE: usize = 4;
const MAX_BYTES: usize = 6 << 20;
/// Bytes of the compressors of all threads, but for the first one's.
const MAX_STATES: usize = 24 << 20;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Deflate, which every program reads.
    #[default]
    Zlib,
    /// Zstandard, faster and smaller; QEMU reads it since 5.1.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        })
    }
}

/// A name that is no [`Compression`]'s.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("There is no compression \"{0}\"; there are zlib and zstd")]
pub struct UnknownCompression(pub String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownCompression> {
        match name {
            "zlib" => Ok(Self::Zlib),
            "zstd" => Ok(Self::Zstd),
            other => Err(UnknownCompression(other.to_owned())),
        }
    }
}

pub(super) struct Packing {
    pub codec: Codec,
    pub level: Option<i32>,
    pub jobs: usize,
    pub block: usize,
}

/// A cluster with its number in the order of reading and its guest offset.
type Cluster<T> = (u64, u64, T);
/// The stream, or the cluster itself where that is not shorter.
type Packed = std::result::Result<Vec<u8>, Vec<u8>>;

impl Packing {
    /// Calls `write` on another thread with each cluster that `read` sends, in the order of sending;
    /// returns how many bytes were compressed.
    pub fn run(
        &self,
        read: impl FnOnce(&mut dyn FnMut(u64, Vec<u8>) -> Result<()>) -> Result<()>,
        mut write: impl FnMut(u64, Packed) -> Result<()> + Send,
    ) -> Result<u64> {
        let most = MAX_BYTES / self.block;
        // A thread that never gets a cluster would still keep what it allocated.
        let jobs = self.jobs.min(MAX_STATES / self.state_size()).min(most).max(1);
        let limit = (jobs * QUEUE).min(most).max(2);
        let (to_pack, waiting) = sync_channel::<Cluster<Vec<u8>>>(limit);
        let (packed, to_write) = sync_channel::<Cluster<Packed>>(limit);
        let waiting = Mutex::new(Some(waiting));
        let written_up_to = Progress::default();
        thread::scope(|scope| {
            let (receiver, done) = (&waiting, &written_up_to);
            let writer = scope.spawn(move || {
                let written = self.write_in_order(&to_write, done, &mut write);
                done.set(u64::MAX);
                // After an error nobody takes clusters any more, so nobody may wait for that.
                if written.is_err() {
                    receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
                    while to_write.recv().is_ok() {}
                }
                written
            });
            let workers: Vec<_> = (0..jobs)
                .map(|_| {
                    let (packed, waiting) = (packed.clone(), &waiting);
                    scope.spawn(move || self.work(waiting, packed))
                })
                .collect();
            drop(packed);
            let mut number = 0_u64;
            let mut stopped = false;
            let read = read(&mut |start, bytes| {
                // One slow cluster must not let all that follow it pile up.
                written_up_to.wait((number + 1).saturating_sub(limit as u64));
                stopped = to_pack.send((number, start, bytes)).is_err();
                number += 1;
                // The writer's or a worker's error tells more.
                if stopped { Err(Error::Stopped) } else { Ok(()) }
            });
            drop(to_pack);
            let worked = workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or(Err(Error::Stopped)));
            let written = writer.join().unwrap_or(Err(Error::Stopped));
            match (read, worked, written) {
                (Err(error), _, Ok(_)) if !stopped => Err(error),
                (_, _, Err(error)) | (_, Err(error), _) | (Err(error), ..) => Err(error),
                (Ok(()), Ok(()), Ok(compressed)) => Ok(compressed),
            }
        })
    }

    /// About how much memory a thread's compressor takes.
    fn state_size(&self) -> usize {
        let level = self.level.unwrap_or(0);
        match self.codec {
            // Its tables grow with the cluster.
            Codec::Zstd if level > 5 => (self.block * 32).max(1 << 20),
            Codec::Zstd => (self.block * 2).max(1 << 20),
            // The levels that look for the best way.
            Codec::Zlib if level >= 10 => 10 << 20,
            _ => 1 << 20,
        }
    }

    fn write_in_order(
        &self,
        to_write: &Receiver<Cluster<Packed>>,
        done: &Progress,
        write: &mut dyn FnMut(u64, Packed) -> Result<()>,
    ) -> Result<u64> {
        let (mut next, mut compressed) = (0, 0);
        let mut early = BTreeMap::new();
        while let Ok((number, start, packed)) = to_write.recv() {
            early.insert(number, (start, packed));
            while let Some((start, packed)) = early.remove(&next) {
                if packed.is_ok() {
                    compressed += self.block as u64;
                }
                write(start, packed)?;
                next += 1;
                done.set(next);
            }
        }
        Ok(compressed)
    }

    fn work(
        &self,
        waiting: &Mutex<Option<Receiver<Cluster<Vec<u8>>>>>,
        packed: SyncSender<Cluster<Packed>>,
    ) -> Result<()> {
        let mut packer = Packer::new(self)?;
        loop {
            let received = {
                let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.as_ref().and_then(|waiting| waiting.recv().ok())
            };
            let Some((number, start, bytes)) = received else { return Ok(()) };
            // A library's mistake costs a cluster its compression, not the whole work its end.
            let attempt = catch_unwind(AssertUnwindSafe(|| packer.pack(&bytes)));
            if attempt.is_err() {
                packer = Packer::new(self)?;
            }
            let result = attempt.ok().flatten().ok_or(bytes);
            if packed.send((number, start, result)).is_err() {
                return Ok(());
            }
        }
    }
}

/// How many clusters are written.
#[derive(Default)]
struct Progress {
    count: Mutex<u64>,
    moved: Condvar,
}

impl Progress {
    fn set(&self, count: u64) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) = count;
        self.moved.notify_all();
    }

    fn wait(&self, least: u64) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.moved.wait_while(count, |count| *count < least));
    }
}

enum Packer {
    Fast(Box<Deflater>),
    Deflate(Box<Compress>),
    Zlib(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    fn new(packing: &Packing) -> Result<Self> {
        match packing.codec {
            Codec::Zlib => {
                let level = packing.level.unwrap_or(STREAM_LEVEL).clamp(1, 12);
                let level = libdeflater::CompressionLvl::new(level).unwrap_or_default();
                Ok(Self::Zlib(libdeflater::Compressor::new(level)))
            }
            Codec::Deflate if packing.level.is_none_or(|level| level <= FAST_LEVEL) => {
                Ok(Self::Fast(Box::new(Deflater::new())))
            }
            Codec::Deflate => {
                // Not more than nine, so it fits.
                let level = packing.level.unwrap_or(ZLIB_LEVEL).clamp(2, 9) as u32;
                let level = flate2::Compression::new(level);
                Ok(Self::Deflate(Box::new(Compress::new_with_window_bits(
                    level,
                    false,
                    WINDOW_BITS,
                ))))
            }
            // Nothing here makes the others.
            Codec::Bzip2 | Codec::Xz | Codec::Lzfse | Codec::Adc => Err(Error::Stopped),
            Codec::Zstd => {
                let level = packing.level.unwrap_or(ZSTD_LEVEL).clamp(-7, 22);
                zstd::bulk::Compressor::new(level).map(Self::Zstd).map_err(|_| Error::Stopped)
            }
        }
    }

    /// The stream, if it is shorter or has to be one: VMDK's compressed grains all are.
    fn pack(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut stream = vec![0; bytes.len() - 1];
        let length = match self {
            Self::Fast(state) => return state.compress(bytes),
            Self::Zlib(state) => {
                stream.resize(state.zlib_compress_bound(bytes.len()), 0);
                state.zlib_compress(bytes, &mut stream).ok()?
            }
            Self::Deflate(state) => {
                state.reset();
                let status = state.compress(bytes, &mut stream, FlushCompress::Finish).ok()?;
                if status != Status::StreamEnd {
                    return None;
                }
                usize::try_from(state.total_out()).ok()?
            }
            Self::Zstd(state) => state.compress_to_buffer(bytes, &mut stream[..]).ok()?,
        };
        stream.truncate(length);
        Some(stream)
    }
}
