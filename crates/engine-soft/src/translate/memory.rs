//! Memory operands: from a guest address to a host address, through the TLB that the interpreter uses too.

use super::block::{Builder, Entry, Guest};
use super::cold::{Cold, Place};
use super::context;
use super::emit::{ABOVE, Hole, Mem, NOT_BELOW, NOT_EQUAL, RBP, RSP, Rm};
use super::merge::Check;
use super::parts::{Address, Parts};
use super::registers::{A, B, STACK, host, slot};
use super::stubs::request;
use crate::cpu::{Cpu, FS, GS};
use crate::host::{PAGE, Tlb};

/// An operand that is nearer to its base than this is in all likelihood on the same page.
const NEAR: i32 = 512;

/// What is to be done at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub size: u8,
    pub write: bool,
    /// To its size, or the interpreter raises an exception.
    pub aligned: bool,
}

/// What is added to a page's distance, to address an operand in it: a register or memory, then a register and
/// its shift, then a constant.
#[derive(Clone, Copy)]
pub struct Distant {
    add: Option<Rm>,
    index: Option<(u8, u8)>,
    displacement: i32,
    /// The host register that the address is but for the displacement.
    alone: Option<u8>,
}

/// A run's first operand: where the run begins before it, how many bytes it spans, and how the block without
/// runs is entered where they are not on one page.
#[derive(Clone, Copy)]
pub struct Lead {
    pub before: i32,
    pub span: i32,
    pub entry: Entry,
}

/// A look into the TLB at `table` for so many bytes.
#[derive(Clone, Copy)]
pub struct Probe {
    table: i32,
    size: i32,
}

impl Probe {
    /// A field of the entry at B.
    pub fn entry(self, offset: i32) -> Rm {
        let displacement = self.table + offset;
        Rm::Mem(Mem { base: Some(RSP), index: Some((B, 0)), displacement })
    }
}

/// Offset of a TLB from RSP.
fn table(user: u64, write: bool) -> i32 {
    let tlb =
        if write { std::mem::offset_of!(Cpu, writes) } else { std::mem::offset_of!(Cpu, reads) };
    (tlb + Tlb::ring(user)) as i32
}

impl Builder<'_> {
    /// The instruction's memory operand at the host, by way of A; changes B and RFLAGS. The registers of its
    /// address may be part of it.
    pub fn operand(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, access: Use) -> Mem {
        let check = guest.checks.operand;
        let place = distant(parts);
        if let (Check::Follows { run }, Some(place)) = (check, place) {
            return self.follow(guest, run, place);
        }
        self.clobber(guest);
        if let Some(linear) = constant(guest, parts)
            && linear % PAGE + u64::from(access.size) <= PAGE
            && (!access.aligned || linear.is_multiple_of(access.size.into()))
        {
            return self.constant_operand(guest, linear, access);
        }
        if let Some(address) = parts.address
            && (address.base, address.index, parts.segment) == (Some(4), None, None)
            && access.size <= 8
            && !access.aligned
            && !parts.address_32
        {
            return self.stack_operand(guest, address.displacement, access, check);
        }
        self.address(guest, parts, access, check.before());
        self.check(guest, access, place, check)
    }

    /// 8 bytes at RSP plus `displacement`, which the instruction pushes or pops.
    pub fn pushed(&mut self, guest: &Guest<'_>, displacement: i32, write: bool) -> Mem {
        let access = Use { size: 8, write, aligned: false };
        self.stack_operand(guest, displacement, access, guest.checks.stack)
    }

    /// At most 8 bytes at RSP plus `displacement`.
    fn stack_operand(
        &mut self,
        guest: &Guest<'_>,
        displacement: i32,
        access: Use,
        check: Check,
    ) -> Mem {
        let place = Distant { add: None, index: Some((STACK, 0)), displacement, alone: None };
        if let Check::Follows { run } = check {
            return self.follow(guest, run, place);
        }
        self.clobber(guest);
        let entry = (std::mem::offset_of!(Cpu, writes) + Tlb::stack(self.user)) as i32;
        let entry = |offset| Mem::at(RSP, entry + offset);
        self.a.lea(A, Mem::at(STACK, displacement - check.before()));
        self.a.wide(0x2b, A, Rm::Mem(entry(0))); // sub
        self.a.wide(0x3b, A, Rm::Mem(entry(16))); // cmp
        let hole = self.a.jump(Some(NOT_BELOW));
        let lead = self.lead(guest, check);
        // There is room for 8 bytes.
        let second = lead.filter(|lead| lead.span > 8).map(|lead| {
            self.a.alu_wide(7, Rm::Reg(A), PAGE as i32 - lead.span);
            self.a.jump(Some(ABOVE))
        });
        self.a.load(A, entry(8));
        let (back, request) = (self.a.here(), request(access.size, access.write));
        let holes = (hole, second);
        self.cold.push(Cold::Stack { holes, back, rip: guest.i.ip(), request, displacement, lead });
        self.reach(place, check)
    }

    /// 8 bytes at RBP.
    pub fn frame_operand(&mut self, guest: &Guest<'_>) -> Mem {
        let place = Distant { add: None, index: Some((RBP, 0)), displacement: 0, alone: None };
        let check = guest.checks.operand;
        if let Check::Follows { run } = check {
            return self.follow(guest, run, place);
        }
        self.clobber(guest);
        self.a.lea(A, Mem::at(RBP, -check.before()));
        self.check(guest, Use { size: 8, write: false, aligned: false }, Some(place), check)
    }

    /// An operand whose run was checked.
    fn follow(&mut self, guest: &Guest<'_>, run: u8, place: Distant) -> Mem {
        if place.add.is_some() {
            self.clobber(guest);
        }
        if self.held != Some(run) || self.a.named >> A & 1 != 0 {
            self.a.load(A, Mem::at(RSP, context::distance(run)));
            self.hold(run);
        }
        self.reach(place, Check::Alone)
    }

    /// A is a run's distance until it is named.
    fn hold(&mut self, run: u8) {
        (self.held, self.a.named) = (Some(run), 0);
    }

    /// The operand whose distance is in A, which a run's first one keeps.
    fn reach(&mut self, place: Distant, check: Check) -> Mem {
        if let Check::Leads { run, .. } = check {
            self.a.store(Mem::at(RSP, context::distance(run)), A);
            self.hold(run);
        }
        if let Some(add) = place.add {
            self.a.wide(0x03, A, add);
        }
        Mem { base: Some(A), index: place.index, displacement: place.displacement }
    }

    fn lead(&self, guest: &Guest<'_>, check: Check) -> Option<Lead> {
        let Check::Leads { before, span, .. } = check else { return None };
        Some(Lead { before, span, entry: self.entry(guest.i.ip(), guest.before != 0) })
    }

    /// An address of a register and a displacement to A, without segment.
    pub fn effective(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, to: u8, narrow: bool) {
        let Some(address) = parts.address else { return };
        if address.relative {
            let place = guest.i.next_ip().wrapping_add(address.displacement as i64 as u64);
            return self.a.constant(to, if narrow { place & 0xffff_ffff } else { place });
        }
        let base = address.base.map(|number| self.resident(number, A));
        let index = address.index.map(|(number, shift)| (self.resident(number, B), shift));
        let mem = Mem { base, index, displacement: address.displacement };
        if narrow || parts.address_32 {
            self.a.narrow(0x8d, to, Rm::Mem(mem));
        } else if address.displacement == 0 && index.is_none() && base.is_some() {
            self.a.copy(to, base.unwrap_or(A));
        } else {
            self.a.lea(to, mem);
        }
    }

    /// The linear address to A, less `before`. If it is to be aligned and is not, the instruction is the
    /// interpreter's.
    fn address(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, access: Use, before: i32) {
        let earlier = if access.aligned { 0 } else { before };
        let address = parts.address.map(|address| Address {
            displacement: address.displacement.wrapping_sub(earlier),
            ..address
        });
        self.effective(guest, &Parts { address, ..parts.clone() }, A, false);
        if let Some(segment) = segment(parts) {
            self.a.wide(0x03, A, Rm::Mem(segment));
        }
        if access.aligned {
            self.a.narrow(0xf7, 0, Rm::Reg(A)); // test
            self.a.bytes(&(u32::from(access.size) - 1).to_le_bytes());
            let hole = self.a.jump(Some(NOT_EQUAL));
            self.cold.push(Cold::Interpret { hole, rip: guest.i.ip() });
            if before != 0 {
                self.a.lea(A, Mem::at(A, -before));
            }
        }
    }

    /// A is a linear address, or where a run begins, and becomes the host's, or the distance of both for a
    /// `place`, which those of runs have.
    fn check(
        &mut self,
        guest: &Guest<'_>,
        access: Use,
        place: Option<Distant>,
        check: Check,
    ) -> Mem {
        let rip = guest.i.ip();
        let lead = self.lead(guest, check);
        let probe = Probe {
            table: table(self.user, access.write),
            size: lead.map_or(access.size.into(), |lead| lead.span),
        };
        // The entry is that of the base alone, in all likelihood on the same page: nothing waits for the sum.
        let base = place.and_then(|place| place.alone).unwrap_or(A);
        let hole = self.probe(probe, base);
        let request = request(access.size, access.write);
        // A run that is not on one page goes elsewhere before.
        let again = (base != A).then_some(Probe { size: access.size.into(), ..probe });
        let cold = |back, place| Cold::Find { hole, back, rip, request, place, lead, again };
        let Some(place) = place else {
            self.a.wide(0x03, A, probe.entry(0)); // add
            self.a.wide(0x03, A, probe.entry(8));
            let place = Place::Entry { table: probe.table, distance: false };
            self.cold.push(cold(self.a.here(), place));
            return Mem::at(A, 0);
        };
        self.a.wide(0x8b, A, probe.entry(8));
        self.cold.push(cold(self.a.here(), Place::Entry { table: probe.table, distance: true }));
        self.reach(place, check)
    }

    /// B becomes the offset of the TLB's entry for the register `of`, and A is reduced by that entry's page: jumps
    /// where it was not in it.
    pub fn probe(&mut self, probe: Probe, of: u8) -> Hole {
        // An entry has 16 bytes.
        self.a.shifted(B, of, 8);
        self.a.alu_narrow(4, Rm::Reg(B), (Tlb::ENTRIES as u32 - 1) << 4);
        self.a.wide(0x2b, A, probe.entry(0)); // sub
        self.a.alu_wide(7, Rm::Reg(A), PAGE as i32 - probe.size);
        self.a.jump(Some(ABOVE))
    }

    fn constant_operand(&mut self, guest: &Guest<'_>, linear: u64, access: Use) -> Mem {
        let entry = table(self.user, access.write) + 16 * Tlb::index(linear) as i32;
        let page = linear & !(PAGE - 1);
        // An address that a displacement can be needs only the distance.
        let near = i32::try_from(linear as i64).ok();
        if near.is_some() {
            self.a.alu_wide(7, Rm::Mem(Mem::at(RSP, entry)), page as i32);
        } else {
            self.a.constant(A, page);
            self.a.wide(0x39, A, Rm::Mem(Mem::at(RSP, entry))); // cmp
        }
        let hole = self.a.jump(Some(NOT_EQUAL));
        let load = if near.is_some() { 0x8b } else { 0x03 };
        self.a.wide(load, A, Rm::Mem(Mem::at(RSP, entry + 8)));
        let request = request(access.size, access.write);
        let place = Place::Constant { linear, distance: near.is_some() };
        let (back, rip) = (self.a.here(), guest.i.ip());
        let (lead, again) = (None, None);
        self.cold.push(Cold::Find { hole, back, rip, request, place, lead, again });
        Mem::at(A, near.unwrap_or((linear % PAGE) as i32))
    }
}

/// How the operand is reached with its page's distance in A, if A and one more register are enough.
pub fn distant(parts: &Parts<'_>) -> Option<Distant> {
    let address = parts.address?;
    if parts.address_32 || address.relative {
        return None;
    }
    let displacement = address.displacement;
    let segment = segment(parts).map(Rm::Mem);
    let (add, index) = match (address.base, address.index) {
        (Some(base), None) => match host(base) {
            Some(base) => (segment, Some((base, 0))),
            None if segment.is_none() => (Some(Rm::Mem(slot(base))), None),
            None => return None,
        },
        (base, Some((index, shift))) if base.is_none() || segment.is_none() => {
            let base = base.map(|base| host(base).map_or(Rm::Mem(slot(base)), Rm::Reg));
            (base.or(segment), Some((host(index)?, shift)))
        }
        (None, None) => (segment, None),
        _ => return None,
    };
    let near = (-NEAR..NEAR).contains(&displacement);
    let alone =
        index.filter(|(_, shift)| *shift == 0 && add.is_none() && near).map(|index| index.0);
    Some(Distant { add, index, displacement, alone })
}

/// The base of the segment that the operand names.
fn segment(parts: &Parts<'_>) -> Option<Mem> {
    let segment = if parts.segment? == 0x64 { FS } else { GS };
    Some(Mem::at(RSP, context::segment_base(segment)))
}

/// An address that no register has part in.
fn constant(guest: &Guest<'_>, parts: &Parts<'_>) -> Option<u64> {
    let address = parts.address?;
    if address.base.is_some() || address.index.is_some() || parts.segment.is_some() {
        return None;
    }
    if parts.address_32 {
        return None;
    }
    let base = if address.relative { guest.i.next_ip() } else { 0 };
    Some(base.wrapping_add(address.displacement as i64 as u64))
}
