//! Proxmox's archives of virtual machines (pve-qemu, vma_spec.txt): one disk of one.
//!
//! An archive is made to be read from its start to its end. Opening one reads the headers of all extents and
//! remembers where each cluster lies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layer::{self, Layer, Place, Run};
use crate::open::{MAX_LENGTH, Parsed};
use crate::source::{Source, read_struct, read_vec};
use crate::{Error, Format, Result, Snapshot};

const CLUSTER: u64 = 64 << 10;
const BLOCK: u64 = 4096;
/// Blocks of a cluster, each with a bit of its own.
const ALL_BLOCKS: u16 = u16::MAX;
/// Longest header with its names and configurations.
const MAX_HEADER: u32 = 32 << 20;
const DEVICES: usize = 256;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32,
    uuid: [u8; 16],
    ctime: U64,
    md5sum: [u8; 16],
    blob_buffer_offset: U32,
    blob_buffer_size: U32,
    header_size: U32,
    reserved: [u8; 1984],
    config_names: [U32; 256],
    config_data: [U32; 256],
    reserved1: [u8; 4],
    devices: [DeviceInfo; DEVICES],
}

const _: () = assert!(size_of::<Header>() == 12288);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DeviceInfo {
    name: U32,
    reserved0: U32,
    size: U64,
    reserved1: U64,
    reserved2: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentHeader {
    magic: [u8; 4],
    reserved1: [u8; 2],
    block_count: U16,
    uuid: [u8; 16],
    md5sum: [u8; 16],
    blocks: [BlockInfo; 59],
}

const _: () = assert!(size_of::<ExtentHeader>() == 512);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockInfo {
    /// Which blocks of the cluster follow.
    mask: U16,
    reserved: u8,
    device: u8,
    cluster: U32,
}

struct Vma {
    sources: [Arc<dyn Source>; 1],
    /// Where each cluster's first block lies, and which of its blocks there are.
    clusters: BTreeMap<u32, (u64, u16)>,
}

/// Reads the disk of this name, or the only one.
pub(crate) fn parse(source: Arc<dyn Source>, wanted: Option<&str>) -> Result<Parsed> {
    let header = Header::read(&*source)?;
    let disks = disks(&header, &Blobs::read(&*source, &header)?)?;
    let names = || disks.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let (device, _, length) = match wanted {
        Some(wanted) => disks.iter().find(|(_, name, _)| name == wanted).ok_or_else(|| {
            unsupported(format!("it has no disk \"{wanted}\"; its disks are {}", names()))
        })?,
        None => match disks.as_slice() {
            [disk] => disk,
            [] => return Err(unsupported("it has no disks")),
            _ => return Err(unsupported(format!("one of its disks must be named: {}", names()))),
        },
    };
    let clusters =
        read_extents(&*source, u64::from(header.header_size.get()), *device, &header.uuid)?;
    if clusters.last_key_value().is_some_and(|(&last, _)| u64::from(last) * CLUSTER >= *length) {
        return Err(damaged("it has more than its disk is long"));
    }
    let mut parsed = Parsed::new(Vma { sources: [source], clusters }, *length);
    let listed = disks.iter().map(|(number, name, length)| Snapshot {
        id: number.to_string(),
        name: name.clone(),
        created: header.ctime.get(),
        length: *length,
        machine_state: 0,
    });
    parsed.snapshots = listed.collect();
    parsed.details = vec![("disks", names())];
    Ok(parsed)
}

/// The names of the disks in an archive of Proxmox's, and the files that describe their VM, by name; nothing if the source is
/// none.
///
/// # Errors
/// Reading fails, or it is damaged.
pub fn vma_contents(source: &dyn Source) -> Result<Option<VmaContents>> {
    if Format::detect(source)? != Format::Vma {
        return Ok(None);
    }
    let header = Header::read(source)?;
    let blobs = Blobs::read(source, &header)?;
    let mut contents = VmaContents::default();
    contents.disks.extend(disks(&header, &blobs)?.into_iter().map(|(_, name, _)| name));
    for (name, data) in header.config_names.iter().zip(&header.config_data) {
        if name.get() != 0 {
            let name = blobs.name(name.get())?;
            contents.configurations.push((name, blobs.get(data.get())?.to_vec()));
        }
    }
    Ok(Some(contents))
}

/// What is in an archive of Proxmox's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmaContents {
    /// The disks' names.
    pub disks: Vec<String>,
    /// Files, by name.
    pub configurations: Vec<(String, Vec<u8>)>,
}

impl Header {
    fn read(source: &dyn Source) -> Result<Self> {
        let header: Self = read_struct(source, 0)?;
        if &header.magic != b"VMA\0" || header.version.get() != 1 {
            return Err(damaged("it does not begin as it should"));
        }
        let size = header.header_size.get();
        if size > MAX_HEADER || (size as usize) < size_of::<Self>() {
            return Err(damaged("its header has a wrong length"));
        }
        Ok(header)
    }
}

/// Names and files, each behind its length.
struct Blobs(Vec<u8>);

impl Blobs {
    fn read(source: &dyn Source, header: &Header) -> Result<Self> {
        let (start, length) = (header.blob_buffer_offset.get(), header.blob_buffer_size.get());
        let end = start.checked_add(length).filter(|&end| end <= header.header_size.get());
        end.ok_or_else(|| damaged("its names lie outside its header"))?;
        Ok(Self(read_vec(source, u64::from(start), length as usize)?))
    }

    fn get(&self, offset: u32) -> Result<&[u8]> {
        // A length of 16 bits, little-endian in this big-endian format.
        let found = self.0.get(offset as usize..).and_then(|blob| {
            let (length, blob) = blob.split_first_chunk()?;
            blob.get(..usize::from(u16::from_le_bytes(*length)))
        });
        found.ok_or_else(|| damaged("a name of it is wrong"))
    }

    fn name(&self, offset: u32) -> Result<String> {
        Ok(String::from_utf8_lossy(self.get(offset)?).trim_end_matches('\0').to_owned())
    }
}

/// The numbers, names and lengths of all disks.
fn disks(header: &Header, blobs: &Blobs) -> Result<Vec<(u8, String, u64)>> {
    let mut disks = Vec::new();
    for (number, device) in header.devices.iter().enumerate() {
        // The state of the memory, which is no disk, has a name of its own.
        if device.name.get() == 0 || device.size.get() == 0 {
            continue;
        }
        let name = blobs.name(device.name.get())?;
        let length = device.size.get();
        if length > MAX_LENGTH {
            return Err(damaged("a disk of it is longer than any can be"));
        }
        if name != "vmstate" {
            // There are 256.
            disks.push((number as u8, name, length));
        }
    }
    Ok(disks)
}

fn read_extents(
    source: &dyn Source,
    mut offset: u64,
    device: u8,
    uuid: &[u8; 16],
) -> Result<BTreeMap<u32, (u64, u16)>> {
    let mut clusters = BTreeMap::new();
    while offset < source.len() {
        let header: ExtentHeader = read_struct(source, offset)?;
        if &header.magic != b"VMAE" || &header.uuid != uuid {
            return Err(damaged(format!("there is no extent at {offset}")));
        }
        offset += size_of::<ExtentHeader>() as u64;
        let mut blocks = 0;
        for info in &header.blocks {
            let mask = info.mask.get();
            if info.device == device && device != 0 {
                clusters.insert(info.cluster.get(), (offset + blocks * BLOCK, mask));
            }
            blocks += u64::from(mask.count_ones());
        }
        if blocks != u64::from(header.block_count.get()) {
            return Err(damaged("an extent counts its blocks wrongly"));
        }
        offset += blocks * BLOCK;
        if offset > source.len() {
            return Err(damaged("it was cut off"));
        }
    }
    Ok(clusters)
}

impl Vma {
    fn step(&self, offset: u64) -> Result<Run> {
        // A disk whose clusters' numbers do not fit ends in zeroes.
        let number = u32::try_from(offset / CLUSTER).ok();
        let found = number.and_then(|number| self.clusters.get(&number));
        let start = offset / CLUSTER * CLUSTER;
        let Some(&(first, mask)) = found else {
            return Ok(Run { end: start + CLUSTER, place: Place::Absent });
        };
        if mask == ALL_BLOCKS {
            let place = Place::Stored { source: 0, offset: first + (offset - start) };
            return Ok(Run { end: start + CLUSTER, place });
        }
        let block = (offset - start) / BLOCK;
        let end = start + (block + 1) * BLOCK;
        if mask >> block & 1 == 0 {
            return Ok(Run { end, place: Place::Zero });
        }
        let before = (mask & ((1 << block) - 1)).count_ones();
        let offset = first + u64::from(before) * BLOCK + offset % BLOCK;
        Ok(Run { end, place: Place::Stored { source: 0, offset } })
    }
}

impl Layer for Vma {
    fn locate(&self, range: Range<u64>) -> Result<Run> {
        layer::join(range, |offset| self.step(offset))
    }

    fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    fn block_size(&self) -> u64 {
        CLUSTER
    }
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Vma, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { format: Format::Vma, what: what.into() }
}
