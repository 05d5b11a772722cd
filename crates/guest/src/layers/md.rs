//! Linux software RAID with metadata 1.x (drivers/md, `struct mdp_superblock_1`): RAID 0 and RAID 1.

use std::sync::Arc;

use super::{Piece, Pieces};
use crate::volume::{Part, Volume, at, read_up_to, text_of, uuid_of};

const MAGIC: u32 = 0xa92b_4efc;
const SECTOR: u64 = 512;
/// A member that has no role in the array.
const SPARE: u16 = 0xfff0;

/// A member of an array.
pub struct Member {
    volume: Arc<dyn Volume>,
    pub array: String,
    /// The array's name, without that of the computer it was made on.
    pub name: String,
    level: i32,
    members: u32,
    role: u16,
    chunk: u64,
    /// Length of the array's part on each member, in bytes; 0 where they differ.
    size: u64,
    events: u64,
    data: (u64, u64),
}

/// Reads the superblock of a member; `None` if there is none.
pub fn member(volume: &Arc<dyn Volume>) -> Option<Member> {
    // Version 1.1 at the start, 1.2 4 KiB after it, 1.0 at the end.
    let end = (volume.len() / SECTOR).checked_sub(16).map(|sector| (sector & !7) * SECTOR);
    [Some(4096), Some(0), end].into_iter().flatten().find_map(|place| superblock(volume, place))
}

fn superblock(volume: &Arc<dyn Volume>, place: u64) -> Option<Member> {
    let bytes = read_up_to(&**volume, place, 4096).ok()?;
    let number = |offset| at::le32(&bytes, offset);
    let sectors = |offset| at::le64(&bytes, offset)?.checked_mul(SECTOR);
    if number(0)? != MAGIC || number(4)? != 1 || sectors(144)? != place {
        return None;
    }
    let index = number(160)? as usize;
    let full = text_of(bytes.get(32..64)?);
    Some(Member {
        volume: Arc::clone(volume),
        array: uuid_of(bytes[16..].first_chunk()?),
        name: full.rsplit(':').next().unwrap_or("").to_owned(),
        level: number(72)?.cast_signed(),
        members: number(92)?,
        role: at::le16(&bytes, 256 + index.checked_mul(2)?)?,
        chunk: u64::from(number(88)?) * SECTOR,
        size: sectors(80)?,
        events: at::le64(&bytes, 200)?,
        data: (sectors(128)?, sectors(136)?),
    })
}

/// Puts an array together, or says why that is not possible.
pub fn assemble(members: &[Member]) -> Result<Arc<dyn Volume>, String> {
    let newest = members.iter().map(|member| member.events).max().unwrap_or(0);
    // One that fell out of the array has old data.
    let mut active: Vec<&Member> = members
        .iter()
        .filter(|member| member.role < SPARE && member.events + 1 >= newest)
        .collect();
    active.sort_by_key(|member| member.role);
    let first = *active.first().ok_or("it has no active member")?;
    let bad = || "its superblocks are damaged".to_owned();
    let part = |member: &Member, length: u64| -> Result<Arc<dyn Volume>, String> {
        let (start, there) = member.data;
        let end = start.checked_add(length.min(there)).ok_or_else(bad)?;
        Ok(Arc::new(Part::new(Arc::clone(&member.volume), start..end)))
    };
    let piece = match first.level {
        1 => {
            let on = part(first, first.size)?;
            Piece { start: 0, length: on.len(), stripe: on.len().max(1), on: vec![(on, 0)] }
        }
        0 => {
            if active.len() != first.members as usize {
                return Err(format!("{} of its {} members are there", active.len(), first.members));
            }
            let chunk = Some(first.chunk).filter(|&chunk| chunk > 0).ok_or_else(bad)?;
            let length = first.data.1 / chunk * chunk;
            if active.iter().any(|member| member.data.1 / chunk * chunk != length) {
                return Err("its members differ in size".into());
            }
            let on = active.iter().map(|member| Ok((part(member, length)?, 0)));
            let on = on.collect::<Result<Vec<_>, String>>()?;
            let total = length.checked_mul(on.len() as u64).ok_or_else(bad)?;
            Piece { start: 0, length: total, stripe: chunk, on }
        }
        level => return Err(format!("RAID {level} is not read")),
    };
    Pieces::new(vec![piece]).map(|pieces| Arc::new(pieces) as Arc<dyn Volume>).ok_or_else(bad)
}
