//! The GUID partition table (UEFI specification, section 5.3).

use flate2::Crc;

use super::{Partition, Table, TableKind};
use crate::Result;
use crate::volume::{Volume, at, read_up_to, uuid_of};

const SIGNATURE: &[u8] = b"EFI PART";
const HEADER: usize = 92;
/// Most entries that are read: tables in use have 128.
const MAX_ENTRIES: u32 = 1024;
/// Largest entry.
const MAX_ENTRY: u32 = 4096;

struct Header {
    alternate: u64,
    entries_at: u64,
    count: u32,
    size: u32,
    entries_crc: u32,
}

/// Reads the table at the start of `disk`, or its backup if that is damaged; `None` if there is none. The backup is
/// looked for only where an MBR says that there is a GPT or the table's start is there: a disk that was given a new
/// MBR may still have an old backup.
pub fn read(disk: &dyn Volume, is_announced: bool) -> Result<Option<Table>> {
    let mut damaged = false;
    for sector in [512, 4096] {
        let start = read_up_to(disk, sector, HEADER.max(512))?;
        if start.starts_with(SIGNATURE) {
            if let Some(table) = table(disk, sector, sector)? {
                return Ok(Some(table));
            }
            damaged = true;
        }
    }
    if !damaged && !is_announced {
        return Ok(None);
    }
    for sector in [512, 4096] {
        let stated = header(disk, sector, sector, false)?.map(|header| header.alternate);
        let last = (disk.len() / sector).checked_sub(1);
        for place in [stated, last].into_iter().flatten() {
            let Some(offset) = place.checked_mul(sector) else { continue };
            if let Some(mut table) = table(disk, offset, sector)? {
                table
                    .notes
                    .push("the first partition table is damaged; its backup was read".into());
                return Ok(Some(table));
            }
        }
    }
    Ok(None)
}

fn header(disk: &dyn Volume, offset: u64, sector: u64, checked: bool) -> Result<Option<Header>> {
    let bytes = read_up_to(disk, offset, sector as usize)?;
    Ok(parse_header(&bytes, checked))
}

fn parse_header(bytes: &[u8], checked: bool) -> Option<Header> {
    let length = at::le32(bytes, 12)? as usize;
    if !bytes.starts_with(SIGNATURE) || !(HEADER..=512).contains(&length) {
        return None;
    }
    let mut covered = bytes.get(..length)?.to_vec();
    covered[16..20].fill(0);
    if checked && crc(&covered) != at::le32(bytes, 16)? {
        return None;
    }
    let header = Header {
        alternate: at::le64(bytes, 32)?,
        entries_at: at::le64(bytes, 72)?,
        count: at::le32(bytes, 80)?,
        size: at::le32(bytes, 84)?,
        entries_crc: at::le32(bytes, 88)?,
    };
    let sizes = header.count <= MAX_ENTRIES && (128..=MAX_ENTRY).contains(&header.size);
    sizes.then_some(header)
}

/// The table whose header is at `offset`, if it is whole.
fn table(disk: &dyn Volume, offset: u64, sector: u64) -> Result<Option<Table>> {
    let Some(header) = header(disk, offset, sector, true)? else { return Ok(None) };
    let Some(start) = header.entries_at.checked_mul(sector) else { return Ok(None) };
    let bytes = read_up_to(disk, start, header.count as usize * header.size as usize)?;
    if bytes.len() < header.count as usize * header.size as usize
        || crc(&bytes) != header.entries_crc
    {
        return Ok(None);
    }
    let mut table = Table { kind: TableKind::Gpt, notes: Vec::new(), partitions: Vec::new() };
    for (entry, number) in bytes.chunks_exact(header.size as usize).zip(1..) {
        let Some(partition) = partition(entry, number, sector) else { continue };
        if partition.range.start < partition.range.end && partition.range.end <= disk.len() {
            table.partitions.push(partition);
        } else {
            table.notes.push(format!("partition {number} does not lie on the disk"));
        }
    }
    Ok(Some(table))
}

fn partition(entry: &[u8], number: u32, sector: u64) -> Option<Partition> {
    let kind: &[u8; 16] = entry.first_chunk()?;
    if kind == &[0; 16] {
        return None;
    }
    let first = at::le64(entry, 32)?.checked_mul(sector)?;
    let end = at::le64(entry, 40)?.checked_add(1)?.checked_mul(sector)?;
    let name: Vec<u16> = entry[56..128]
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    Some(Partition {
        number,
        range: first..end,
        kind: guid(kind),
        uuid: Some(guid(entry[16..].first_chunk()?)),
        name: (!name.is_empty()).then(|| String::from_utf16_lossy(&name)),
        // Attribute bit 2: "legacy BIOS bootable".
        is_active: at::le64(entry, 48)? & 4 != 0,
    })
}

/// A GUID: its first three fields are little-endian.
fn guid(bytes: &[u8; 16]) -> String {
    let mut ordered = *bytes;
    ordered[..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    uuid_of(&ordered)
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
