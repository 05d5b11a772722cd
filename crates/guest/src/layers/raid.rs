//! RAID 4, 5, 6 and 10 as Linux lays them out (drivers/md/raid5.c, `raid5_compute_sector`; drivers/md/raid10.c,
//! `__raid10_find_phys`), for arrays and for logical volumes.

use std::sync::Arc;

use crate::parity::{Role, Share, restore};
use crate::volume::Volume;
use crate::{Error, Result};

/// Where chunks lie, and what makes up for a member that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A row of chunks has a sum.
    Parity(Parity),
    /// Each chunk is there several times.
    Copies(Copies),
}

/// Where the sums of rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parity {
    turn: Turn,
    /// Data begins behind the sum and goes around; otherwise on the first member.
    is_symmetric: bool,
    second: Second,
    /// The second sum goes by the members' numbers, as DDF has it; otherwise by their order behind it.
    is_by_number: bool,
}

/// The member with the sum of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The last one first, then the one before it.
    Left,
    /// The same, from the second row on.
    LeftFromSecond,
    /// The first one first.
    Right,
    /// Always the first one.
    First,
    /// Always the last one.
    Last,
}

/// Where RAID 6 has its second sum, which is of another kind ([`crate::parity`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    None,
    Behind,
    Before,
    /// On the last member; the others are as if that were not there.
    Last,
}

/// Copies side by side (near), and others further down on the next members (far).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    pub near: usize,
    pub far: usize,
    /// The far ones are in the next row, not in the next part of the members.
    pub is_offset: bool,
}

impl Layout {
    /// By the numbers that Linux has for levels and layouts; `None` for others.
    pub fn of_number(level: u32, layout: u32) -> Option<Self> {
        use Turn::{First, Last, Left, LeftFromSecond, Right};
        let parity = |turn, is_symmetric, second| {
            let is_by_number = level == 6 && (8..=10).contains(&layout);
            Self::Parity(Parity { turn, is_symmetric, second, is_by_number })
        };
        let simple = |number, second| {
            Some(match number {
                0 => parity(Left, false, second),
                1 => parity(Right, false, second),
                2 => parity(Left, true, second),
                3 => parity(Right, true, second),
                4 => parity(First, false, second),
                5 => parity(Last, false, second),
                _ => return None,
            })
        };
        match (level, layout) {
            (4, _) => simple(5, Second::None),
            (5, _) => simple(layout, Second::None),
            (6, 8) => simple(1, Second::Behind),
            (6, 9) => Some(parity(LeftFromSecond, false, Second::Behind)),
            (6, 10) => Some(parity(Left, true, Second::Before)),
            (6, 16..=20) => simple(layout - 16, Second::Last),
            (6, _) => simple(layout, Second::Behind),
            (10, 0..=0x1_ffff) => Some(Self::Copies(Copies {
                near: (layout & 0xff) as usize,
                far: (layout >> 8 & 0xff) as usize,
                is_offset: layout >> 16 != 0,
            })),
            _ => None,
        }
    }
}

impl Parity {
    /// The members with a row's sums.
    fn sums(self, row: u64, count: usize) -> (usize, Option<usize>) {
        let count = count - usize::from(self.second == Second::Last);
        let turn = |row: u64| (row % count as u64) as usize;
        let first = match self.turn {
            Turn::Left => count - 1 - turn(row),
            Turn::LeftFromSecond => count - 1 - turn(row + 1),
            Turn::Right => turn(row),
            Turn::First => 0,
            Turn::Last => count - 1 - usize::from(self.second == Second::Behind),
        };
        let second = match self.second {
            Second::None => None,
            Second::Behind => Some((first + 1) % count),
            Second::Before => Some((first + count - 1) % count),
            Second::Last => Some(count),
        };
        (first, second)
    }

    /// The member that has a column of a row.
    fn member(self, row: u64, column: usize, count: usize) -> usize {
        let (first, second) = self.sums(row, count);
        if self.is_symmetric {
            let begin = first + 1 + usize::from(self.second == Second::Behind);
            return (begin + column) % (count - usize::from(self.second == Second::Last));
        }
        let is_data = |member: &usize| *member != first && Some(*member) != second;
        (0..count).filter(is_data).nth(column).unwrap_or(0)
    }

    /// What each member has of a row.
    fn roles(self, row: u64, count: usize) -> Vec<Role> {
        let (first, second) = self.sums(row, count);
        let begin = if self.is_by_number { 0 } else { second.map_or(0, |second| second + 1) };
        let mut roles = vec![Role::P; count];
        let mut power = 0;
        for member in (begin..begin + count).map(|member| member % count) {
            roles[member] = match member {
                member if member == first => Role::P,
                member if Some(member) == second => Role::Q,
                _ => Role::Data(power),
            };
            power += usize::from(self.is_by_number || matches!(roles[member], Role::Data(_)));
        }
        roles
    }

    fn data_members(self, count: usize) -> usize {
        count.saturating_sub(if self.second == Second::None { 1 } else { 2 })
    }
}

/// An array.
pub struct Raid {
    members: Vec<Option<Arc<dyn Volume>>>,
    layout: Layout,
    chunk: u64,
    /// Chunks on each member.
    rows: u64,
    length: u64,
}

impl Raid {
    /// The array of these members, of each of which `size` bytes are used; `None` where one is missing. The error is for
    /// a report.
    pub fn new(
        members: Vec<Option<Arc<dyn Volume>>>,
        layout: Layout,
        chunk: u64,
        size: u64,
    ) -> std::result::Result<Self, String> {
        let bad = || "its description contradicts itself".to_owned();
        let count = members.len();
        let there = members.iter().flatten().count();
        let rows = size.checked_div(chunk).ok_or_else(bad)?;
        let chunks = match layout {
            Layout::Parity(parity) => rows.checked_mul(parity.data_members(count) as u64),
            Layout::Copies(Copies { near, far, .. }) => {
                let plausible = near > 0 && far > 0 && near.saturating_mul(far) <= count;
                let all =
                    plausible.then(|| (rows / far as u64).checked_mul(count as u64)).flatten();
                all.map(|all| all / near as u64)
            }
        };
        let enough = match layout {
            Layout::Parity(parity) => parity.data_members(count),
            // Whether too many copies are missing is seen where they are read.
            Layout::Copies(_) => 1,
        };
        if there < enough {
            return Err(format!("{there} of its {count} members are there"));
        }
        let length = chunks.and_then(|chunks| chunks.checked_mul(chunk));
        let length = length.filter(|&length| length > 0).ok_or_else(bad)?;
        Ok(Self { members, layout, chunk, rows, length })
    }

    /// Reads a part of a chunk.
    fn read_chunk(&self, buffer: &mut [u8], number: u64, into: u64) -> Result<()> {
        match self.layout {
            Layout::Parity(parity) => {
                let count = self.members.len();
                let data = parity.data_members(count) as u64;
                let (row, column) = (number / data, (number % data) as usize);
                let place = row * self.chunk + into;
                let member = parity.member(row, column, count);
                match &self.members[member] {
                    Some(volume) => volume.read_at(buffer, place),
                    None => self.restore(buffer, &parity.roles(row, count), member, place),
                }
            }
            Layout::Copies(copies) => {
                for (member, row) in self.copies(copies, number) {
                    if let Some(volume) = &self.members[member] {
                        return volume.read_at(buffer, row * self.chunk + into);
                    }
                }
                Err(Error::unsupported("array", "too many of its members are missing"))
            }
        }
    }

    /// Fills `buffer` with what a missing member would have at a place, by what the others have there.
    fn restore(&self, buffer: &mut [u8], roles: &[Role], member: usize, place: u64) -> Result<()> {
        let row = roles
            .iter()
            .zip(&self.members)
            .map(|(&role, on)| Share { role, at: on.as_ref().map(|volume| (&**volume, place)) });
        let row: Vec<_> = row.collect();
        match roles[member] {
            Role::Data(power) => restore(buffer, power, &row),
            Role::P | Role::Q => Err(Error::damaged("array", "a sum is taken for data")),
        }
    }

    /// The members and rows that have a chunk.
    fn copies(&self, copies: Copies, number: u64) -> impl Iterator<Item = (usize, u64)> {
        let Copies { near, far, is_offset } = copies;
        let count = self.members.len();
        let first = number * near as u64;
        let (row, member) = (first / count as u64, (first % count as u64) as usize);
        let (row, stride) =
            if is_offset { (row * far as u64, 1) } else { (row, self.rows / far as u64) };
        (0..near).flat_map(move |copy| {
            let (member, down) = ((member + copy) % count, ((member + copy) / count) as u64);
            // In the next row, if that is where the copy beside it is.
            let row = row + down * if is_offset { far as u64 } else { 1 };
            (0..far).map(move |copy| ((member + copy * near) % count, row + copy as u64 * stride))
        })
    }
}

impl Volume for Raid {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(Error::damaged("array", format!("something leads to {offset:#x}")));
        }
        let mut done = 0;
        while done < buffer.len() {
            let place = offset + done as u64;
            let into = place % self.chunk;
            let step = (self.chunk - into).min((buffer.len() - done) as u64) as usize;
            self.read_chunk(&mut buffer[done..done + step], place / self.chunk, into)?;
            done += step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Memory, read};

    /// Rows of chunks as they lie on the members: data by its number, `P` and `Q` for sums.
    type Picture = &'static [&'static [&'static str]];

    /// As Linux 6.12 lays them out, and `md(4)` describes them.
    const PICTURES: [(u32, u32, Picture); 13] = [
        (4, 0, &[&["0", "1", "P"], &["2", "3", "P"]]),
        (5, 0, &[&["0", "1", "P"], &["2", "P", "3"], &["P", "4", "5"]]),
        (5, 1, &[&["P", "0", "1"], &["2", "P", "3"], &["4", "5", "P"]]),
        (5, 2, &[&["0", "1", "P"], &["3", "P", "2"], &["P", "4", "5"]]),
        (5, 3, &[&["P", "0", "1"], &["3", "P", "2"], &["4", "5", "P"]]),
        (5, 4, &[&["P", "0", "1"], &["P", "2", "3"]]),
        (6, 2, &[&["Q", "0", "1", "P"], &["2", "3", "P", "Q"], &["5", "P", "Q", "4"]]),
        (
            6,
            8,
            &[
                &["P", "Q", "0", "1"],
                &["2", "P", "Q", "3"],
                &["4", "5", "P", "Q"],
                &["Q", "6", "7", "P"],
            ],
        ),
        (6, 10, &[&["0", "1", "Q", "P"], &["3", "Q", "P", "2"], &["Q", "P", "4", "5"]]),
        (6, 18, &[&["0", "1", "P", "Q"], &["3", "P", "2", "Q"], &["P", "4", "5", "Q"]]),
        (10, 0x102, &[&["0", "0", "1"], &["1", "2", "2"], &["3", "3", "4"], &["4", "5", "5"]]),
        (10, 0x201, &[&["0", "1", "2"], &["3", "4", "5"], &["2", "0", "1"], &["5", "3", "4"]]),
        (10, 0x1_0201, &[&["0", "1", "2"], &["2", "0", "1"], &["3", "4", "5"], &["5", "3", "4"]]),
    ];

    #[test]
    fn chunks_are_found_in_every_layout_with_and_without_a_member() {
        const CHUNK: usize = 8;
        let chunk = |number: usize| -> Vec<u8> {
            (0..CHUNK).map(|index| (number * 31 + index * 7 + 1) as u8).collect()
        };
        for (level, layout, rows) in PICTURES {
            let count = rows[0].len();
            let mut disks = vec![Vec::new(); count];
            for row in rows {
                let data: Vec<_> = row.iter().map(|cell| cell.parse().ok().map(chunk)).collect();
                let mut sum = vec![0; CHUNK];
                for chunk in data.iter().flatten() {
                    sum.iter_mut().zip(chunk).for_each(|(sum, byte)| *sum ^= byte);
                }
                for ((disk, cell), chunk) in disks.iter_mut().zip(*row).zip(data) {
                    let other = if *cell == "P" { sum.clone() } else { vec![0xee; CHUNK] };
                    disk.extend(chunk.unwrap_or(other));
                }
            }
            let members: Vec<Option<Arc<dyn Volume>>> = disks
                .iter()
                .map(|disk| Some(Arc::new(Memory(disk.clone())) as Arc<dyn Volume>))
                .collect();
            let layout = Layout::of_number(level, layout).unwrap();
            let open =
                |members| Raid::new(members, layout, CHUNK as u64, (rows.len() * CHUNK) as u64);
            for missing in 0..=count {
                let mut members = members.clone();
                if let Some(member) = members.get_mut(missing) {
                    *member = None;
                }
                let raid = open(members).unwrap();
                let expected: Vec<u8> = (0..raid.len() as usize / CHUNK).flat_map(chunk).collect();
                let found = read(&raid, 0, expected.len()).unwrap();
                assert_eq!(found, expected, "{layout:?} without {missing}");
                assert_eq!(read(&raid, 5, 20).unwrap(), expected[5..25]);
                assert!(read(&raid, raid.len() - 1, 2).is_err());
            }
            let lost = open([vec![None; count - 1], members[..1].to_vec()].concat());
            assert!(lost.is_err() || read(&lost.unwrap(), 0, 5 * CHUNK).is_err());
        }
        assert_eq!((Layout::of_number(5, 6), Layout::of_number(7, 0)), (None, None));
    }
}
