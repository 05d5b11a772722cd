//! A suspended guest: in memory, and in a folder from which any engine goes on with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::cpuid::CpuidTable;
use engine::state::{VcpuState, VmState};
use engine::{GuestMemory, GuestRegion};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::{self, MemoryConfig};
use crate::{Error, Result};

/// Everything about a guest that stopped in the middle of its work, but for its disks.
#[derive(Debug)]
pub struct Saved {
    /// What each processor answers to CPUID.
    pub cpuid: Vec<CpuidTable>,
    /// The processors.
    pub vcpus: Vec<VcpuState>,
    /// What they share.
    pub vm: VmState,
    /// The devices, by name.
    pub devices: BTreeMap<String, devices::State>,
    /// Its memory.
    pub memory: GuestMemory,
}

/// The file of everything but memory.
const STATE: &str = "state.json";
/// The file of its memory: the regions one after the other, with holes for pages of zeroes.
const MEMORY: &str = "memory";
/// Of the files' form.
const VERSION: u32 = 1;
/// Longest file of state: a thousand processors take a few MiB.
const LONGEST_STATE: u64 = 64 << 20;
/// So much of the memory is looked at and copied at once.
const PIECE: usize = 64 << 10;

/// What [`STATE`] holds: `sha256` is that of `state`, which is JSON again, so that every byte of it counts.
#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    sha256: String,
    state: String,
}

/// The part that is not memory.
#[derive(Serialize, Deserialize)]
struct Parts {
    cpuid: Vec<CpuidTable>,
    vcpus: Vec<VcpuState>,
    vm: VmState,
    devices: BTreeMap<String, devices::State>,
    /// Bytes of memory.
    memory_size: u64,
    /// Of all bytes of memory.
    memory_sha256: String,
}

impl Saved {
    /// Writes it into `folder`, which must be there; whoever can read it can read the guest's secrets.
    ///
    /// # Errors
    /// A file cannot be written. One that was there before is then as it was.
    pub fn write(self, folder: &Path) -> Result<()> {
        let failed = |name: &str| {
            let path = folder.join(name);
            move |source| Error::SavedFile { action: "write", path, source }
        };
        let (memory_file, memory_sha256) =
            write_memory(&self.memory, folder).map_err(failed(MEMORY))?;
        let memory_size = self.memory.iter().map(|region| region.len()).sum();
        let Self { cpuid, vcpus, vm, devices, .. } = self;
        let parts = Parts { cpuid, vcpus, vm, devices, memory_size, memory_sha256 };
        let sealed = seal(&parts).map_err(|error| failed(STATE)(error.into()))?;
        let mut state_file = NamedTempFile::new_in(folder).map_err(failed(STATE))?;
        state_file.write_all(&sealed).map_err(failed(STATE))?;
        state_file.as_file().sync_all().map_err(failed(STATE))?;
        // The state names its memory by its digest: a pair that does not belong together is not taken.
        memory_file.persist(folder.join(MEMORY)).map_err(|error| failed(MEMORY)(error.error))?;
        state_file.persist(folder.join(STATE)).map_err(|error| failed(STATE)(error.error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(""))
    }

    /// Reads what [`Saved::write`] wrote; `memory` says how the host backs the memory, and its size is not heeded.
    ///
    /// # Errors
    /// A file is missing, damaged, or of a later version.
    pub fn read(folder: &Path, memory: &MemoryConfig) -> Result<Self> {
        let failed = |name: &str| {
            let path = folder.join(name);
            move |source| Error::SavedFile { action: "read", path, source }
        };
        let bytes = read_limited(&folder.join(STATE)).map_err(failed(STATE))?;
        let parts = unseal(&bytes).map_err(failed(STATE))?;
        let size = parts.memory_size;
        let memory = memory::allocate(&MemoryConfig { size, prealloc: false, ..*memory })?;
        let digest = read_memory(&memory, size, folder.join(MEMORY)).map_err(failed(MEMORY))?;
        if digest != parts.memory_sha256 {
            return Err(Error::SavedState("its memory is not the one that was saved with it"));
        }
        let Parts { cpuid, vcpus, vm, devices, .. } = parts;
        Ok(Self { cpuid, vcpus, vm, devices, memory })
    }
}

fn seal(parts: &Parts) -> serde_json::Result<Vec<u8>> {
    let state = serde_json::to_string(parts)?;
    let sha256 = hex(Sha256::digest(state.as_bytes()).as_slice());
    serde_json::to_vec(&Sealed { version: VERSION, sha256, state })
}

fn unseal(bytes: &[u8]) -> io::Result<Parts> {
    let sealed: Sealed = serde_json::from_slice(bytes)?;
    if sealed.version > VERSION {
        let text = format!("it is of version {}, later than {VERSION}", sealed.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if sealed.sha256 != hex(Sha256::digest(sealed.state.as_bytes()).as_slice()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not fit"));
    }
    Ok(serde_json::from_str(&sealed.state)?)
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_STATE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_STATE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    Ok(bytes)
}

/// The file, flushed and still without its name, and the digest of what is in it.
fn write_memory(memory: &GuestMemory, folder: &Path) -> io::Result<(NamedTempFile, String)> {
    let file = NamedTempFile::new_in(folder)?;
    let (length, digest) = walk(memory, |region, at, offset, piece| {
        region.read_slice(piece, at).map_err(io::Error::other)?;
        if is_zero(piece) { Ok(()) } else { file.as_file().write_all_at(piece, offset) }
    })?;
    file.as_file().set_len(length)?;
    file.as_file().sync_all()?;
    Ok((file, digest))
}

/// Fills fresh memory; pages of zeroes are not touched. Returns the digest of all that is in it.
fn read_memory(memory: &GuestMemory, size: u64, path: PathBuf) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() != size {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its length does not fit"));
    }
    let (_, digest) = walk(memory, |region, at, offset, piece| {
        file.read_exact_at(piece, offset)?;
        if is_zero(piece) {
            return Ok(());
        }
        region.write_slice(piece, at).map_err(io::Error::other)
    })?;
    Ok(digest)
}

/// Has `copy` fill and use the same buffer for each piece of memory: its region, where it is there, and its offset in the
/// file. Returns the bytes in all, and the digest of what the buffer held.
fn walk(
    memory: &GuestMemory,
    mut copy: impl FnMut(&GuestRegion, MemoryRegionAddress, u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<(u64, String)> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    for region in memory.iter() {
        for at in (0..region.len()).step_by(PIECE) {
            let length = PIECE.min((region.len() - at) as usize);
            let piece = &mut buffer[..length];
            copy(region, MemoryRegionAddress(at), offset, piece)?;
            digest.update(&*piece);
            offset += length as u64;
        }
    }
    Ok((offset, hex(digest.finalize().as_slice())))
}

fn is_zero(piece: &[u8]) -> bool {
    piece.iter().all(|&byte| byte == 0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;
    const CONFIG: MemoryConfig =
        MemoryConfig { size: SIZE, hugepages: false, prealloc: false, shared: false };

    /// A guest with a word at each end of its memory, in a folder.
    fn written() -> tempfile::TempDir {
        let memory = memory::allocate(&CONFIG).unwrap();
        memory.write_obj(0x1122_u16, vm_memory::GuestAddress(SIZE - 2)).unwrap();
        memory.write_obj(0x3344_u16, vm_memory::GuestAddress(0)).unwrap();
        let state = devices::State::new(&[1, 2, 3]).unwrap();
        let saved = Saved {
            cpuid: vec![CpuidTable::default()],
            vcpus: vec![VcpuState::default()],
            vm: VmState { clock_nanoseconds: 77, ..VmState::default() },
            devices: BTreeMap::from([("disk0".to_owned(), state)]),
            memory,
        };
        let folder = tempfile::tempdir().unwrap();
        saved.write(folder.path()).unwrap();
        folder
    }

    fn change(path: &Path, at: u64) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_zeroes_take_no_room() {
        let folder = written();
        let saved = Saved::read(folder.path(), &CONFIG).unwrap();
        assert_eq!(saved.vm.clock_nanoseconds, 77);
        assert_eq!(saved.devices["disk0"].get::<Vec<u8>>().unwrap(), [1, 2, 3]);
        let last: u16 = saved.memory.read_obj(vm_memory::GuestAddress(SIZE - 2)).unwrap();
        assert_eq!(last, 0x1122);
        let metadata = folder.path().join(MEMORY).metadata().unwrap();
        let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(allocated <= 4 * PIECE as u64, "{allocated} bytes");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_has_changed_is_refused() {
        for (name, at) in [(STATE, 100), (STATE, 300), (MEMORY, 5 << 20)] {
            let folder = written();
            change(&folder.path().join(name), at);
            assert!(Saved::read(folder.path(), &CONFIG).is_err(), "{name} at {at}");
        }
        let folder = written();
        File::options().write(true).open(folder.path().join(MEMORY)).unwrap().set_len(99).unwrap();
        assert!(Saved::read(folder.path(), &CONFIG).is_err());
    }

    #[test]
    fn a_later_versions_file_is_told_from_a_broken_one() {
        let sealed = Sealed { version: VERSION + 1, sha256: String::new(), state: "{}".into() };
        let error = unseal(&serde_json::to_vec(&sealed).unwrap()).err().unwrap();
        assert!(error.to_string().contains("later"), "{error}");
    }
}
