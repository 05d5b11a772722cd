//! The master boot record and its logical partitions.

use super::Partition;
use crate::Result;
use crate::volume::{Volume, at, read_up_to};

const SECTOR: u64 = 512;
const TABLE: usize = 446;
const ENTRY: usize = 16;
/// Most logical partitions that are followed; Linux stops at 256 partitions.
const MAX_LOGICAL: usize = 252;

/// What an MBR holds.
pub struct Mbr {
    /// It only says that there is a GPT.
    pub is_protective: bool,
    pub notes: Vec<String>,
    pub partitions: Vec<Partition>,
}

/// One of the four entries of a record.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The entries of a boot record; `None` if it is none.
fn entries(sector: &[u8]) -> Option<[Option<Entry>; 4]> {
    if sector.len() < SECTOR as usize || sector[510..512] != [0x55, 0xaa] {
        return None;
    }
    let mut entries = [None; 4];
    for (index, slot) in entries.iter_mut().enumerate() {
        let bytes = &sector[TABLE + index * ENTRY..][..ENTRY];
        let (start, sectors) = (at::le32(bytes, 8)?.into(), at::le32(bytes, 12)?.into());
        if bytes[4] != 0 && sectors != 0 {
            *slot = Some(Entry { status: bytes[0], kind: bytes[4], start, sectors });
        }
    }
    Some(entries)
}

/// The MBR of `disk` with its logical partitions; `None` if there is none.
pub fn read(disk: &dyn Volume) -> Result<Option<Mbr>> {
    let sector = read_up_to(disk, 0, SECTOR as usize)?;
    let Some(entries) = entries(&sector) else { return Ok(None) };
    // The first sector of a FAT or NTFS file system ends with the same signature; there these bytes are its code.
    if entries.iter().flatten().any(|entry| entry.status & 0x7f != 0) || is_boot_sector(&sector) {
        return Ok(None);
    }
    let mut mbr = Mbr { is_protective: false, notes: Vec::new(), partitions: Vec::new() };
    let signature = at::le32(&sector, 440).unwrap_or(0);
    let mut extended = None;
    for (slot, number) in entries.into_iter().zip(1..) {
        let Some(entry) = slot else { continue };
        mbr.is_protective |= entry.kind == 0xee;
        if entry.is_extended() {
            extended.get_or_insert(entry.start);
        } else {
            mbr.add(disk, &entry, number, signature);
        }
    }
    if let Some(start) = extended {
        mbr.add_logical(disk, start, signature)?;
    }
    Ok(Some(mbr))
}

/// It is the first sector of a file system: a jump, and a known name.
fn is_boot_sector(sector: &[u8]) -> bool {
    let jumps = matches!(sector[0], 0xeb | 0xe9);
    let named = sector[54..].starts_with(b"FAT")
        || sector[82..].starts_with(b"FAT32")
        || sector[3..].starts_with(b"NTFS    ")
        || sector[3..].starts_with(b"EXFAT   ");
    jumps && named
}

impl Mbr {
    fn add(&mut self, disk: &dyn Volume, entry: &Entry, number: u32, signature: u32) {
        let start = entry.start * SECTOR;
        let end = start + entry.sectors * SECTOR;
        if start >= disk.len() || start == 0 && entry.kind != 0xee {
            self.notes.push(format!("partition {number} does not lie on the disk"));
            return;
        }
        if end > disk.len() {
            self.notes.push(format!("partition {number} passes the end of the disk"));
        }
        self.partitions.push(Partition {
            number,
            range: start..end.min(disk.len()),
            kind: format!("{:02x}", entry.kind),
            uuid: (signature != 0).then(|| format!("{signature:08x}-{number:02x}")),
            name: None,
            is_active: entry.status & 0x80 != 0,
        });
    }

    /// Follows the chain of extended boot records: each has its partition, relative to itself, and the next record,
    /// relative to the first.
    fn add_logical(&mut self, disk: &dyn Volume, first: u64, signature: u32) -> Result<()> {
        let mut place = first;
        let mut seen = Vec::new();
        let mut number = 5;
        while !seen.contains(&place) && seen.len() < MAX_LOGICAL {
            seen.push(place);
            let Some(offset) = place.checked_mul(SECTOR).filter(|&end| end < disk.len()) else {
                break;
            };
            let sector = read_up_to(disk, offset, SECTOR as usize)?;
            let Some(entries) = entries(&sector) else {
                self.notes.push("the chain of logical partitions is broken".into());
                break;
            };
            let mut next = None;
            for mut entry in entries.into_iter().flatten() {
                if entry.is_extended() {
                    next = next.or(Some(first + entry.start));
                } else {
                    entry.start += place;
                    self.add(disk, &entry, number, signature);
                    number += 1;
                }
            }
            match next {
                Some(next) => place = next,
                None => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Memory;

    fn put(disk: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
        let sector = &mut disk[sector * 512..][..512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (index, (kind, start, sectors)) in entries.iter().enumerate() {
            let entry = &mut sector[TABLE + index * ENTRY..][..ENTRY];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
        }
    }

    #[test]
    fn logical_partitions_are_relative_to_two_things() {
        let mut disk = vec![0; 200 * 512];
        put(&mut disk, 0, &[(0x83, 1, 9), (0x05, 10, 190)]);
        put(&mut disk, 10, &[(0x83, 1, 20), (0x05, 50, 50)]);
        put(&mut disk, 60, &[(0x82, 2, 500)]);
        let mbr = read(&Memory(disk)).unwrap().unwrap();
        let ranges: Vec<_> = mbr.partitions.iter().map(|p| (p.number, p.range.clone())).collect();
        assert_eq!(ranges, [(1, 512..5120), (5, 5632..15872), (6, 31744..102400)]);
        assert_eq!(mbr.notes, ["partition 6 passes the end of the disk"]);
    }

    #[test]
    fn a_chain_that_leads_back_ends() {
        let mut disk = vec![0; 200 * 512];
        put(&mut disk, 0, &[(0x05, 10, 190)]);
        put(&mut disk, 10, &[(0x83, 1, 20), (0x05, 50, 50)]);
        put(&mut disk, 60, &[(0x83, 1, 5), (0x05, 0, 50)]);
        assert_eq!(read(&Memory(disk)).unwrap().unwrap().partitions.len(), 2);
    }
}
