//! Arrays that a computer's firmware knows, too: they are named, and not put together. A disk of a mirror, or one that only was in an
//! array once, is read like any other.

use crate::volume::{Volume, read_up_to};

const SECTOR: u64 = 512;
/// Sectors before the end, what is there, and the format (mdadm's super-intel.h, and SNIA's Common RAID Disk Data Format, 4.2).
const FORMATS: [(u64, &[u8], &str); 2] = [
    (2, b"Intel Raid ISM Cfg Sig. ", "Intel Matrix Storage"),
    (1, &0xde11_de11_u32.to_be_bytes(), "DDF"),
];

/// What should be known of a disk that has the marks of such an array.
pub fn note(disk: &dyn Volume) -> Option<String> {
    let found = FORMATS.iter().find(|(from_end, magic, _)| {
        let sector = (disk.len() / SECTOR).checked_sub(*from_end);
        let bytes = sector.map(|sector| read_up_to(disk, sector * SECTOR, magic.len()));
        matches!(bytes, Some(Ok(bytes)) if bytes == *magic)
    });
    let (_, _, format) = found?;
    Some(format!(
        "it has the marks of an array of the format {format}, and is read as a disk of its own: right for a mirror, and for an \
         array that is no more"
    ))
}
