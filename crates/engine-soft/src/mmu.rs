//! Page tables (Intel SDM volume 3, chapter 4).

use crate::cpu::{
    Access, CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMEP, Cpu, EFER_LMA, EFER_NXE, PF, Step,
};
use crate::host::{PAGE, Word};

/// Bits of a guest-physical address.
pub const PHYSICAL_BITS: u32 = 46;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = (1 << 52) - PAGE;
const RESERVED: u64 = (1 << 52) - (1 << PHYSICAL_BITS);

/// Bits of a page fault's error code.
const ERROR_PRESENT: u32 = 1;
const ERROR_WRITE: u32 = 2;
const ERROR_USER: u32 = 4;
const ERROR_RESERVED: u32 = 8;
const ERROR_FETCH: u32 = 16;

/// What the tables say about one page.
struct Mapping {
    physical: u64,
    writable: bool,
    /// In every address space.
    global: bool,
}

impl Cpu {
    /// The guest-physical address of `linear`, which is then in the TLB if it is memory; #PF, or #GP where
    /// the address is not canonical.
    pub fn translate(&mut self, linear: u64, access: Access, user: u64) -> Step<u64> {
        if self.mode == crate::cpu::Mode::Bits64 && ((linear << 16) as i64 >> 16) as u64 != linear {
            self.impossible = Some(linear);
            return Err(self.gp());
        }
        let mapping = if self.cr0 & CR0_PG == 0 {
            Mapping { physical: linear & 0xffff_ffff, writable: true, global: false }
        } else {
            self.walk(linear, access, user)?
        };
        if access != Access::Fetch && self.is_watched(linear) {
            return Ok(mapping.physical);
        }
        let Some(page) = self.ram.page(mapping.physical) else { return Ok(mapping.physical) };
        match access {
            Access::Read => self.reads.insert(linear, user, page.host(), mapping.global),
            Access::Fetch => {
                self.fetched_global = mapping.global;
                let page = mapping.physical & !(PAGE - 1);
                self.fetches.insert_number(linear, user, page, mapping.global);
            }
            Access::Write => {
                if mapping.writable && !page.read_only() {
                    page.set_dirty();
                    if !page.has_code() && self.journal.is_none() {
                        self.writes.insert(linear, user, page.host(), mapping.global);
                    }
                }
            }
        }
        Ok(mapping.physical)
    }

    fn page_fault(
        &mut self,
        linear: u64,
        access: Access,
        user: u64,
        cause: u32,
    ) -> crate::cpu::Stop {
        let mut code = cause;
        if access == Access::Write {
            code |= ERROR_WRITE;
        }
        if user != 0 {
            code |= ERROR_USER;
        }
        if access == Access::Fetch && (self.efer & EFER_NXE != 0 || self.cr4 & CR4_SMEP != 0) {
            code |= ERROR_FETCH;
        }
        self.cr2 = linear;
        self.raise_code(PF, code)
    }

    fn walk(&mut self, linear: u64, access: Access, user: u64) -> Step<Mapping> {
        if self.cr4 & CR4_PAE == 0 {
            return self.walk_32(linear, access, user);
        }
        let long = self.efer & EFER_LMA != 0;
        let mut table = if long { self.cr3 & ADDRESS } else { self.cr3 & 0xffff_ffe0 };
        let mut level = if long { 3 } else { 2 };
        let mut rights = WRITABLE | USER;
        let mut no_execute = 0;
        loop {
            let index = linear >> (12 + 9 * level) & if !long && level == 2 { 3 } else { 511 };
            let place = table + 8 * index;
            let (entry, at) = match self.ram.entry(place) {
                Some((at, writable)) => (at.load::<u64>().wide(), writable.then_some(at)),
                None => (u64::MAX, None),
            };
            if entry & PRESENT == 0 {
                return Err(self.page_fault(linear, access, user, 0));
            }
            let mut reserved = RESERVED;
            if self.efer & EFER_NXE == 0 {
                reserved |= NO_EXECUTE;
            }
            // The four entries that CR3 names outside of long mode hold no rights.
            let pointer = !long && level == 2;
            let last = level == 0 || level <= 2 && !pointer && entry & LARGE != 0;
            if level == 3 {
                reserved |= LARGE;
            }
            if last && level > 0 {
                reserved |= (1 << (12 + 9 * level)) - 0x2000;
            }
            if entry & reserved != 0 {
                return Err(self.page_fault(linear, access, user, ERROR_PRESENT | ERROR_RESERVED));
            }
            if !pointer {
                rights &= entry;
                no_execute |= entry & NO_EXECUTE;
            }
            if !last {
                if entry & ACCESSED == 0 && !pointer {
                    set_bits::<u64>(at, entry, ACCESSED);
                }
                table = entry & ADDRESS;
                level -= 1;
                continue;
            }
            let writable = self.check(linear, access, user, rights, no_execute != 0)?;
            let wanted = if access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
            if entry & wanted != wanted && !set_bits::<u64>(at, entry, wanted) {
                // Another processor changed the entry meanwhile.
                return self.walk(linear, access, user);
            }
            let offset = (1_u64 << (12 + 9 * level)) - 1;
            let physical = entry & ADDRESS & !offset | linear & offset;
            if level > 0 {
                self.note_large(linear, 12 + 9 * level);
            }
            let global = entry & GLOBAL != 0 && self.cr4 & CR4_PGE != 0;
            return Ok(Mapping { physical, writable, global });
        }
    }

    /// INVLPG in a large page must forget all of it.
    fn note_large(&mut self, linear: u64, shift: u32) {
        let noted = &mut self.large[(linear >> 63) as usize];
        *noted = shift.max(*noted);
    }

    /// Two levels with entries of 4 bytes.
    fn walk_32(&mut self, linear: u64, access: Access, user: u64) -> Step<Mapping> {
        let mut place = (self.cr3 & 0xffff_f000) + 4 * (linear >> 22 & 1023);
        let mut rights = WRITABLE | USER;
        for level in [1, 0] {
            let (entry, at) = match self.ram.entry(place) {
                Some((at, writable)) => (at.load::<u32>().wide(), writable.then_some(at)),
                None => (0xffff_ffff, None),
            };
            if entry & PRESENT == 0 {
                return Err(self.page_fault(linear, access, user, 0));
            }
            rights &= entry;
            let large = level == 1 && entry & LARGE != 0 && self.cr4 & CR4_PSE != 0;
            if level == 1 && !large {
                set_bits::<u32>(at, entry, ACCESSED);
                place = (entry & 0xffff_f000) + 4 * (linear >> 12 & 1023);
                continue;
            }
            let writable = self.check(linear, access, user, rights, false)?;
            let wanted = if access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
            if entry & wanted != wanted && !set_bits::<u32>(at, entry, wanted) {
                return self.walk_32(linear, access, user);
            }
            let physical = if large {
                entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff
            } else {
                entry & 0xffff_f000 | linear & 0xfff
            };
            if large {
                self.note_large(linear, 22);
            }
            let global = entry & GLOBAL != 0 && self.cr4 & CR4_PGE != 0;
            return Ok(Mapping { physical, writable, global });
        }
        Err(self.page_fault(linear, access, user, 0))
    }

    /// Checks access rights; tells whether the page may be written.
    fn check(
        &mut self,
        linear: u64,
        access: Access,
        user: u64,
        rights: u64,
        no_execute: bool,
    ) -> Step<bool> {
        let writable = rights & WRITABLE != 0 || user == 0 && self.cr0 & CR0_WP == 0;
        let denied = user != 0 && rights & USER == 0
            || access == Access::Write && !writable
            || access == Access::Fetch && no_execute
            || access == Access::Fetch
                && user == 0
                && rights & USER != 0
                && self.cr4 & CR4_SMEP != 0;
        if denied {
            return Err(self.page_fault(linear, access, user, ERROR_PRESENT));
        }
        Ok(writable)
    }
}

/// Sets accessed and dirty bits unless the entry has changed, which is told by `false`.
fn set_bits<W: Word>(at: Option<crate::host::HostAddress>, entry: u64, bits: u64) -> bool {
    match at {
        Some(at) => at.compare_exchange::<W>(entry, entry | bits) == entry,
        None => true,
    }
}
