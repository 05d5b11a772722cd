//! Memory operands: from a guest address to a host address, through the TLB that the interpreter uses too.

use super::block::{Builder, Cold, Guest, Place};
use super::context;
use super::emit::{ABOVE, Mem, NOT_EQUAL, RSP, Rm};
use super::parts::Parts;
use super::registers::{A, B, STACK};
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

/// Offset of a TLB from RSP.
fn table(user: u64, write: bool) -> i32 {
    let tlb =
        if write { std::mem::offset_of!(Cpu, writes) } else { std::mem::offset_of!(Cpu, reads) };
    (tlb + Tlb::ring(user)) as i32
}

impl Builder<'_> {
    /// The instruction's memory operand at the host, by way of A; changes B and RFLAGS.
    pub fn operand(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, access: Use) -> Mem {
        self.clobber(guest);
        if let Some(linear) = constant(guest, parts)
            && linear % PAGE + u64::from(access.size) <= PAGE
            && (!access.aligned || linear.is_multiple_of(access.size.into()))
        {
            return self.constant_operand(guest, linear, access);
        }
        self.address(guest, parts);
        self.check(guest, access)
    }

    /// `size` bytes at RSP plus `displacement`.
    pub fn stack_operand(&mut self, guest: &Guest<'_>, displacement: i32, write: bool) -> Mem {
        self.clobber(guest);
        self.a.lea(A, Mem::at(STACK, displacement));
        self.check(guest, Use { size: 8, write, aligned: false })
    }

    /// 8 bytes at RBP.
    pub fn frame_operand(&mut self, guest: &Guest<'_>) -> Mem {
        self.clobber(guest);
        self.a.copy(A, super::emit::RBP);
        self.check(guest, Use { size: 8, write: false, aligned: false })
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
        if let Some(segment) = parts.segment {
            let segment = if segment == 0x64 { FS } else { GS };
            self.a.wide(0x03, A, Rm::Mem(Mem::at(RSP, context::segment_base(segment))));
        }
    }

    /// A is a linear address and becomes the host's.
    fn check(&mut self, guest: &Guest<'_>, access: Use) -> Mem {
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
        self.a.wide(0x03, A, entry(8)); // add
        let request = request(access.size, access.write);
        let (back, place) = (self.a.here(), Place::Entry(table));
        self.cold.push(Cold::Find { hole, back, rip, request, place });
        Mem::at(A, 0)
    }

    fn constant_operand(&mut self, guest: &Guest<'_>, linear: u64, access: Use) -> Mem {
        let entry = table(self.user, access.write) + 16 * Tlb::index(linear) as i32;
        let page = linear & !(PAGE - 1);
        if let Ok(page) = i32::try_from(page as i64) {
            self.a.alu_wide(7, Rm::Mem(Mem::at(RSP, entry)), page);
        } else {
            self.a.constant(A, page);
            self.a.wide(0x39, A, Rm::Mem(Mem::at(RSP, entry))); // cmp
        }
        let hole = self.a.jump(Some(NOT_EQUAL));
        self.a.load(A, Mem::at(RSP, entry + 8));
        let request = request(access.size, access.write);
        let (back, place) = (self.a.here(), Place::Constant(linear));
        self.cold.push(Cold::Find { hole, back, rip: guest.i.ip(), request, place });
        Mem::at(A, (linear % PAGE) as i32)
    }
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
