//! Linux software RAID (drivers/md), with metadata of version 1 (`struct mdp_superblock_1`) or 0.90 (`struct
//! mdp_superblock_s`): RAID 0, 1, 4, 5, 6 and 10.

use std::sync::Arc;

use super::raid::{Layout, Raid};
use super::{Piece, Pieces};
use crate::volume::{Part, Volume, at, read_up_to, text_of, uuid_of};

const MAGIC: u32 = 0xa92b_4efc;
const SECTOR: u64 = 512;
/// Most members.
const MAX_MEMBERS: u32 = 1024;

/// A member of an array.
pub struct Member {
    volume: Arc<dyn Volume>,
    pub array: String,
    /// The array's name, without that of the computer it was made on.
    pub name: String,
    level: i32,
    layout: u32,
    members: u32,
    /// Its place in the array; `None` if it has none, or not yet what belongs there.
    role: Option<u32>,
    chunk: u64,
    /// Length of the array's part on each member, in bytes; 0 where they differ.
    size: u64,
    events: u64,
    data: (u64, u64),
    is_reshaped: bool,
}

impl Member {
    /// It begins as the array does, and has all of it.
    pub fn is_alike(&self) -> bool {
        self.level == 1 && self.data.0 == 0
    }
}

/// Reads the superblock of a member; `None` if there is none.
pub fn member(volume: &Arc<dyn Volume>) -> Option<Member> {
    // Version 1.1 at the start, 1.2 4 KiB after it, 1.0 at the end.
    let end = (volume.len() / SECTOR).checked_sub(16).map(|sector| (sector & !7) * SECTOR);
    let places = [Some(4096), Some(0), end].into_iter().flatten();
    places.into_iter().find_map(|place| superblock(volume, place)).or_else(|| old(volume))
}

fn superblock(volume: &Arc<dyn Volume>, place: u64) -> Option<Member> {
    /// From here on a number is no role: spare, faulty or a journal.
    const SPARE: u16 = 0xfff0;
    const IS_REBUILT: u32 = 2;
    const IS_RESHAPED: u32 = 4;
    let bytes = read_up_to(&**volume, place, 4096).ok()?;
    let number = |offset| at::le32(&bytes, offset);
    let sectors = |offset| at::le64(&bytes, offset)?.checked_mul(SECTOR);
    if number(0)? != MAGIC || number(4)? != 1 || sectors(144)? != place {
        return None;
    }
    let index = number(160)? as usize;
    let full = text_of(bytes.get(32..64)?);
    let role = at::le16(&bytes, 256 + index.checked_mul(2)?)?;
    let is_whole = number(8)? & IS_REBUILT == 0;
    Some(Member {
        volume: Arc::clone(volume),
        array: uuid_of(bytes[16..].first_chunk()?),
        name: full.rsplit(':').next().unwrap_or("").to_owned(),
        level: number(72)?.cast_signed(),
        layout: number(76)?,
        members: number(92)?,
        role: Some(role.into()).filter(|_| role < SPARE && is_whole),
        chunk: u64::from(number(88)?) * SECTOR,
        size: sectors(80)?,
        events: at::le64(&bytes, 200)?,
        data: (sectors(128)?, sectors(136)?),
        is_reshaped: number(8)? & IS_RESHAPED != 0,
    })
}

/// The same of version 0.90, of a little-endian computer. Words are counted from the superblock's beginning.
fn old(volume: &Arc<dyn Volume>) -> Option<Member> {
    const RESERVED: u64 = 64 << 10;
    const THIS_MEMBER: usize = 992;
    const FAULTY: u32 = 1;
    const ACTIVE_AND_IN_SYNC: u32 = 2 | 4;
    let place = (volume.len() / RESERVED).checked_sub(1)? * RESERVED;
    let bytes = read_up_to(&**volume, place, 4096).ok()?;
    let word = |index: usize| at::le32(&bytes, index * 4);
    if word(0)? != MAGIC || word(1)? != 0 {
        return None;
    }
    let mut array = [0; 16];
    for (target, index) in array.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        target.copy_from_slice(&word(index)?.to_le_bytes());
    }
    let state = word(THIS_MEMBER + 4)?;
    let is_active = state & (ACTIVE_AND_IN_SYNC | FAULTY) == ACTIVE_AND_IN_SYNC;
    Some(Member {
        volume: Arc::clone(volume),
        array: uuid_of(&array),
        name: word(11)?.to_string(),
        level: word(7)?.cast_signed(),
        layout: word(64)?,
        members: word(10)?,
        role: word(THIS_MEMBER + 3).filter(|_| is_active),
        chunk: word(65)?.into(),
        size: u64::from(word(8)?) << 10,
        events: u64::from(word(39)?) | u64::from(word(40)?) << 32,
        data: (0, place),
        // Version 0.91 says so.
        is_reshaped: word(2)? > 90,
    })
}

/// Puts an array together, or says why that is not possible.
pub fn assemble(members: &[Member]) -> Result<Arc<dyn Volume>, String> {
    let newest = members.iter().map(|member| member.events).max().unwrap_or(0);
    // One that fell out of the array has old data.
    let mut active: Vec<&Member> = members
        .iter()
        .filter(|member| member.role.is_some() && member.events.saturating_add(1) >= newest)
        .collect();
    active.sort_by_key(|member| member.role);
    active.dedup_by_key(|member| member.role);
    let first = *active.first().ok_or("it has no active member")?;
    let bad = || "its superblocks are damaged".to_owned();
    if first.is_reshaped {
        return Err("it is being given another shape".into());
    }
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
        level => {
            let layout =
                level.try_into().ok().and_then(|level| Layout::of_number(level, first.layout));
            let layout = layout.ok_or_else(|| {
                format!("RAID {level} with the layout {} is not read", first.layout)
            })?;
            let count = Some(first.members).filter(|&count| count <= MAX_MEMBERS);
            let mut on = vec![None; count.ok_or_else(bad)? as usize];
            for member in active {
                let place = member.role.and_then(|role| on.get_mut(role as usize));
                *place.ok_or_else(bad)? = Some(part(member, first.size)?);
            }
            return Ok(Arc::new(Raid::new(on, layout, first.chunk, first.size)?));
        }
    };
    Pieces::new(vec![piece]).map(|pieces| Arc::new(pieces) as Arc<dyn Volume>).ok_or_else(bad)
}
