//! Memory operands: from a guest address to a host address, through the TLB that the interpreter uses too.

use super::block::{Builder, Cold, Guest, Place};
use super::context;
use super::emit::{ABOVE, Mem, NOT_BELOW, NOT_EQUAL, RBP, RSP, Rm};
use super::parts::Parts;
use super::registers::{A, B, STACK, host, slot};
use super::stubs::request;
use crate::cpu::{Cpu, FS, GS};
use crate::host::{PAGE, Tlb};

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
struct Distant {
    add: Option<Rm>,
    index: Option<(u8, u8)>,
    displacement: i32,
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
            return self.stack_operand(guest, address.displacement, access.size, access.write);
        }
        self.address(guest, parts);
        let place = self.distant(parts);
        self.check(guest, access, place)
    }

    /// `size` bytes, at most 8, at RSP plus `displacement`.
    pub fn stack_operand(
        &mut self,
        guest: &Guest<'_>,
        displacement: i32,
        size: u8,
        write: bool,
    ) -> Mem {
        self.clobber(guest);
        let entry = (std::mem::offset_of!(Cpu, writes) + Tlb::stack(self.user)) as i32;
        let entry = |offset| Mem::at(RSP, entry + offset);
        self.a.lea(A, Mem::at(STACK, displacement));
        self.a.wide(0x2b, A, Rm::Mem(entry(0))); // sub
        self.a.wide(0x3b, A, Rm::Mem(entry(16))); // cmp
        let hole = self.a.jump(Some(NOT_BELOW));
        self.a.load(A, entry(8));
        let (back, request) = (self.a.here(), request(size, write));
        self.cold.push(Cold::Stack { hole, back, rip: guest.i.ip(), request, displacement });
        Mem { base: Some(A), index: Some((STACK, 0)), displacement }
    }

    /// 8 bytes at RBP.
    pub fn frame_operand(&mut self, guest: &Guest<'_>) -> Mem {
        self.clobber(guest);
        self.a.copy(A, RBP);
        let place = Distant { add: None, index: Some((RBP, 0)), displacement: 0 };
        self.check(guest, Use { size: 8, write: false, aligned: false }, Some(place))
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

    fn address(&mut self, guest: &Guest<'_>, parts: &Parts<'_>) {
        self.effective(guest, parts, A, false);
        if let Some(segment) = segment(parts) {
            self.a.wide(0x03, A, Rm::Mem(segment));
        }
    }

    /// How the operand is reached with its page's distance in A, if A and one more register are enough.
    fn distant(&self, parts: &Parts<'_>) -> Option<Distant> {
        let address = parts.address?;
        if parts.address_32 || address.relative {
            return None;
        }
        let displacement = address.displacement;
        let segment = segment(parts).map(Rm::Mem);
        match (address.base, address.index) {
            (Some(base), None) => match host(base) {
                Some(base) => Some(Distant { add: segment, index: Some((base, 0)), displacement }),
                None if segment.is_none() => {
                    Some(Distant { add: Some(Rm::Mem(slot(base))), index: None, displacement })
                }
                None => None,
            },
            (base, Some((index, shift))) if base.is_none() || segment.is_none() => {
                let base = base.map(|base| host(base).map_or(Rm::Mem(slot(base)), Rm::Reg));
                let index = (host(index)?, shift);
                Some(Distant { add: base.or(segment), index: Some(index), displacement })
            }
            (None, None) => Some(Distant { add: segment, index: None, displacement }),
            _ => None,
        }
    }

    /// A is a linear address and becomes the host's, or the distance of both for a `place`.
    fn check(&mut self, guest: &Guest<'_>, access: Use, place: Option<Distant>) -> Mem {
        let rip = guest.i.ip();
        if access.aligned {
            self.a.narrow(0xf7, 0, Rm::Reg(A)); // test
            self.a.bytes(&(u32::from(access.size) - 1).to_le_bytes());
            let hole = self.a.jump(Some(NOT_EQUAL));
            self.cold.push(Cold::Interpret { hole, rip });
        }
        let table = table(self.user, access.write);
        let entry = |offset| {
            Rm::Mem(Mem { base: Some(RSP), index: Some((B, 0)), displacement: table + offset })
        };
        // An entry has 16 bytes.
        self.a.copy(B, A);
        self.a.wide(0xc1, 5, Rm::Reg(B)); // shr
        self.a.bytes(&[8]);
        self.a.alu_narrow(4, Rm::Reg(B), (Tlb::ENTRIES as u32 - 1) << 4);
        self.a.wide(0x2b, A, entry(0)); // sub
        self.a.alu_wide(7, Rm::Reg(A), PAGE as i32 - i32::from(access.size));
        let hole = self.a.jump(Some(ABOVE));
        let request = request(access.size, access.write);
        let cold = |back, place| Cold::Find { hole, back, rip, request, place };
        let Some(place) = place else {
            self.a.wide(0x03, A, entry(0)); // add
            self.a.wide(0x03, A, entry(8));
            self.cold.push(cold(self.a.here(), Place::Entry { table, distance: false }));
            return Mem::at(A, 0);
        };
        self.a.wide(0x8b, A, entry(8));
        self.cold.push(cold(self.a.here(), Place::Entry { table, distance: true }));
        if let Some(add) = place.add {
            self.a.wide(0x03, A, add);
        }
        Mem { base: Some(A), index: place.index, displacement: place.displacement }
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
        self.cold.push(Cold::Find { hole, back: self.a.here(), rip: guest.i.ip(), request, place });
        Mem::at(A, near.unwrap_or((linear % PAGE) as i32))
    }
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
