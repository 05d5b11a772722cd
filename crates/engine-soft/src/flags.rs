//! The six arithmetic flags, kept as results instead of bits until somebody asks.

use crate::host::Word;

pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;

const TOP: u64 = 1 << 63;
const NEXT: u64 = 1 << 62;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The last result, sign-extended: ZF, SF and PF.
    result: u64,
    /// Carries: CF is bit 63, OF is bit 63 xor bit 62, AF is bit 3.
    carry: u64,
    /// For combinations that no result has: bit 0 turns SF around, bit 1 PF.
    fix: u64,
}

#[inline(always)]
fn extend<W: Word>(value: u64) -> u64 {
    ((value << (64 - W::BITS)) as i64 >> (64 - W::BITS)) as u64
}

impl Flags {
    /// From the bits of RFLAGS.
    pub fn from_bits(bits: u64) -> Self {
        let result = u64::from(bits & ZF == 0);
        // 0 has even parity, 1 has not.
        let parity = result == 0;
        let fix = u64::from(bits & SF != 0) | u64::from((bits & PF != 0) != parity) << 1;
        let mut flags = Self { result, carry: 0, fix };
        flags.carry = if bits & AF != 0 { 8 } else { 0 };
        flags.set_carry_overflow(bits & CF != 0, bits & OF != 0);
        flags
    }

    /// The bits of RFLAGS.
    pub fn bits(&self) -> u64 {
        let pick = |set: bool, flag: u64| if set { flag } else { 0 };
        pick(self.cf(), CF)
            | pick(self.pf(), PF)
            | pick(self.carry & 8 != 0, AF)
            | pick(self.zf(), ZF)
            | pick(self.sf(), SF)
            | pick(self.of(), OF)
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.carry & TOP != 0
    }
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.result == 0
    }
    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.result >> 63) ^ (self.fix & 1) != 0
    }
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.carry ^ self.carry << 1) & TOP != 0
    }
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.result as u8).count_ones() & 1 == 0) ^ (self.fix & 2 != 0)
    }

    /// After an addition with or without carry in.
    #[inline(always)]
    pub fn add<W: Word>(&mut self, a: u64, b: u64, result: u64) {
        self.carries::<W>((a & b) | ((a | b) & !result), result);
    }

    /// After a subtraction with or without borrow.
    #[inline(always)]
    pub fn sub<W: Word>(&mut self, a: u64, b: u64, result: u64) {
        self.carries::<W>((!a & b) | ((!a | b) & result), result);
    }

    /// After a logical operation.
    #[inline(always)]
    pub fn logic<W: Word>(&mut self, result: u64) {
        *self = Self { result: extend::<W>(result), carry: 0, fix: 0 };
    }

    #[inline(always)]
    fn carries<W: Word>(&mut self, vector: u64, result: u64) {
        self.carry = (vector << (64 - W::BITS)) & (TOP | NEXT) | vector & 8;
        self.result = extend::<W>(result);
        self.fix = 0;
    }

    /// After INC or DEC: all but CF.
    #[inline(always)]
    pub fn keep_carry<W: Word>(&mut self, overflow: bool, half: bool, result: u64) {
        let carry = self.cf();
        self.logic::<W>(result);
        self.carry = u64::from(half) << 3;
        self.set_carry_overflow(carry, overflow);
    }

    /// A result with these CF and OF; AF is clear.
    #[inline(always)]
    pub fn result<W: Word>(&mut self, result: u64, carry: bool, overflow: bool) {
        self.logic::<W>(result);
        self.set_carry_overflow(carry, overflow);
    }

    /// Changes CF and OF.
    #[inline(always)]
    pub fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.carry = self.carry & 8 | u64::from(carry) << 63 | u64::from(carry ^ overflow) << 62;
    }

    /// Changes CF.
    #[inline(always)]
    pub fn set_cf(&mut self, carry: bool) {
        let overflow = self.of();
        self.set_carry_overflow(carry, overflow);
    }

    /// Changes ZF.
    pub fn set_zf(&mut self, zero: bool) {
        let bits = self.bits();
        *self = Self::from_bits(if zero { bits | ZF } else { bits & !ZF });
    }

    /// Condition `code` of Jcc, SETcc and CMOVcc.
    #[inline(always)]
    pub fn condition<const CODE: u8>(&self) -> bool {
        let holds = match CODE >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds ^ (CODE & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_bits_survives() {
        for number in 0..64_u64 {
            let pick = |bit: u64, flag: u64| if number >> bit & 1 != 0 { flag } else { 0 };
            let bits =
                pick(0, CF) | pick(1, PF) | pick(2, AF) | pick(3, ZF) | pick(4, SF) | pick(5, OF);
            assert_eq!(Flags::from_bits(bits).bits(), bits, "{bits:#x}");
        }
    }

    #[test]
    fn additions_and_subtractions_set_what_the_architecture_says() {
        let mut flags = Flags::default();
        flags.add::<u8>(0x7f, 1, 0x80);
        assert_eq!(flags.bits(), OF | SF | AF);
        flags.add::<u8>(0xff, 1, 0x100);
        assert_eq!(flags.bits(), CF | ZF | AF | PF);
        flags.sub::<u64>(0, 1, u64::MAX);
        assert_eq!(flags.bits(), CF | SF | AF | PF);
        flags.sub::<u32>(0x8000_0000, 1, 0x7fff_ffff);
        assert_eq!(flags.bits(), OF | AF | PF);
    }
}
