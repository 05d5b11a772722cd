//! Arrays that a computer's firmware knows, too: they are named, and not put together.

use crate::fs::Recognised;
use crate::volume::{Volume, read_up_to};

const SECTOR: u64 = 512;
/// Sectors before the end, what is there, the name that blkid has for it, and its own (mdadm's super-intel.h, and SNIA's
/// Common RAID Disk Data Format, 4.2).
const FORMATS: [(u64, &[u8], &str, &str); 2] = [
    (2, b"Intel Raid ISM Cfg Sig. ", "isw_raid_member", "Intel Matrix Storage"),
    (1, &0xde11_de11_u32.to_be_bytes(), "ddf_raid_member", "DDF"),
];

/// What a disk is in such an array.
pub fn member(disk: &dyn Volume) -> Option<Recognised> {
    let found = FORMATS.iter().find(|(from_end, magic, ..)| {
        let sector = (disk.len() / SECTOR).checked_sub(*from_end);
        let bytes = sector.map(|sector| read_up_to(disk, sector * SECTOR, magic.len()));
        matches!(bytes, Some(Ok(bytes)) if bytes == *magic)
    });
    let (_, _, kind, format) = found?;
    let note = format!("it belongs to an array of the format {format}, which is not read here");
    Some(Recognised { kind, uuid: None, label: None, note: Some(note) })
}
