//! The blocks of one page, with a copy of the lines of it that they were made from: one glance tells in most
//! cases that none of them has changed.

use crate::host::{HostAddress, PAGE};

/// Bytes of a line: one bit of [`Residents::lines`] stands for each.
const LINE: usize = PAGE as usize / 64;

/// See the module.
#[derive(Default)]
pub struct Residents {
    pub blocks: Vec<u32>,
    /// Lines that some block was made from.
    lines: u64,
    /// The page, as far as `lines` goes.
    copy: Vec<u8>,
    /// Where blocks begin, one bit for each byte of the page.
    heads: Vec<u64>,
}

fn touched(ranges: &[(usize, usize)]) -> u64 {
    let lines = ranges.iter().filter(|(start, end)| start < end);
    lines.flat_map(|&(start, end)| start / LINE..=(end - 1) / LINE).fold(0, |all, n| all | 1 << n)
}

fn each(lines: u64) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..64).filter(move |n| lines >> n & 1 != 0).map(|n| n * LINE..(n + 1) * LINE)
}

impl Residents {
    /// Whether the page's content `page` is that of the copy, where `ranges` touch lines that it has.
    pub fn agree(&self, page: &[u8], ranges: &[(usize, usize)]) -> bool {
        each(touched(ranges) & self.lines).all(|line| self.copy[line.clone()] == page[line])
    }

    /// Adds a block that was made from `ranges` of the page's content `page`, with which the copy agrees.
    /// It begins at `head`, if it does so in this page.
    pub fn add(&mut self, block: u32, head: Option<u64>, page: &[u8], ranges: &[(usize, usize)]) {
        self.blocks.push(block);
        self.heads.resize(PAGE as usize / 64, 0);
        if let Some(rip) = head {
            self.heads[(rip % PAGE / 64) as usize] |= 1 << (rip % 64);
        }
        self.copy.resize(PAGE as usize, 0);
        let lines = touched(ranges);
        self.lines |= lines;
        each(lines).for_each(|line| self.copy[line.clone()].copy_from_slice(&page[line]));
    }

    /// Whether a block begins there.
    pub fn begins(&self, rip: u64) -> bool {
        self.heads.get((rip % PAGE / 64) as usize).is_some_and(|word| word >> (rip % 64) & 1 != 0)
    }

    /// The block that began there died.
    pub fn forget_head(&mut self, rip: u64) {
        if let Some(word) = self.heads.get_mut((rip % PAGE / 64) as usize) {
            *word &= !(1 << (rip % 64));
        }
    }

    /// Whether the page at `page` still holds the copy.
    pub fn unchanged(&self, page: HostAddress) -> bool {
        each(self.lines).all(|line| page.plus(line.start as u64).holds(&self.copy[line]))
    }

    /// The page's content `page` was compared with the blocks: those that are left agree with it.
    pub fn refresh(&mut self, page: &[u8]) {
        each(self.lines).for_each(|line| self.copy[line.clone()].copy_from_slice(&page[line]));
    }
}
