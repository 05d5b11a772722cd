//! Shifts and rotations.

use crate::cpu::{Cpu, RCX, Step};
use crate::flags::Flags;
use crate::host::Word;
use crate::integer::{IMM, modify};
use crate::op::Op;

pub const ROL: u8 = 0;
pub const ROR: u8 = 1;
pub const RCL: u8 = 2;
pub const SHL: u8 = 4;
pub const SHR: u8 = 5;
pub const SAR: u8 = 7;

#[inline(always)]
fn shift_value<W: Word, const OP: u8>(flags: &mut Flags, a: u64, count: u64) -> u64 {
    let bits = u64::from(W::BITS);
    let count = count & if bits == 64 { 63 } else { 31 };
    if count == 0 {
        return a;
    }
    let top = |value: u64| value >> (bits - 1) & 1 != 0;
    match OP {
        SHL => {
            let result = if count < bits { W::cut(a << count).wide() } else { 0 };
            let carry = count <= bits && a >> (bits - count) & 1 != 0;
            flags.result::<W>(result, carry, top(result) != carry);
            result
        }
        SHR => {
            let result = if count < bits { a >> count } else { 0 };
            let carry = count <= bits && a >> (count - 1) & 1 != 0;
            flags.result::<W>(result, carry, top(a));
            result
        }
        SAR => {
            let wide = (a << (64 - bits)) as i64 >> (64 - bits);
            let result = W::cut((wide >> count.min(63)) as u64).wide();
            flags.result::<W>(result, wide >> (count - 1).min(63) & 1 != 0, false);
            result
        }
        ROL => {
            let turn = count % bits;
            let result = if turn == 0 { a } else { W::cut(a << turn | a >> (bits - turn)).wide() };
            let carry = result & 1 != 0;
            flags.set_carry_overflow(carry, top(result) != carry);
            result
        }
        ROR => {
            let turn = count % bits;
            let result = if turn == 0 { a } else { W::cut(a >> turn | a << (bits - turn)).wide() };
            let carry = top(result);
            flags.set_carry_overflow(carry, carry != (result >> (bits - 2) & 1 != 0));
            result
        }
        _ => {
            let turn = count % (bits + 1);
            let (mut value, mut carry) = (a, flags.cf());
            for _ in 0..turn {
                if OP == RCL {
                    let out = top(value);
                    value = W::cut(value << 1).wide() | u64::from(carry);
                    carry = out;
                } else {
                    let out = value & 1 != 0;
                    value = value >> 1 | u64::from(carry) << (bits - 1);
                    carry = out;
                }
            }
            let overflow = if OP == RCL {
                top(value) != carry
            } else {
                top(value) != (value >> (bits - 2) & 1 != 0)
            };
            flags.set_carry_overflow(carry, overflow);
            value
        }
    }
}

/// Shifts and rotations by `imm` (`S == IMM`) or CL.
pub fn shift<W: Word, const OP: u8, const M: bool, const S: u8>(c: &mut Cpu, o: &Op) -> Step {
    let count = if S == IMM { o.imm } else { c.r.r(RCX) };
    modify::<W, M, false>(c, o, |flags, a| shift_value::<W, OP>(flags, a, count))
}

/// SHLD (`LEFT`) and SHRD.
pub fn shift_double<W: Word, const LEFT: bool, const M: bool, const S: u8>(
    c: &mut Cpu,
    o: &Op,
) -> Step {
    let bits = u64::from(W::BITS);
    let count = if S == IMM { o.imm } else { c.r.r(RCX) } & if bits == 64 { 63 } else { 31 };
    let b = c.r.get::<W>(o.src).wide();
    modify::<W, M, false>(c, o, |flags, a| {
        if count == 0 {
            return a;
        }
        let pair = if LEFT {
            u128::from(a) << bits | u128::from(b)
        } else {
            u128::from(b) << bits | u128::from(a)
        };
        // Counts beyond 16 bits of a word operand are undefined; the pair goes round.
        let count = if count > bits { count - bits } else { count };
        let (result, carry) = if LEFT {
            ((pair << count >> bits) as u64, a >> (bits - count) & 1 != 0)
        } else {
            ((pair >> count) as u64, a >> (count - 1) & 1 != 0)
        };
        let result = W::cut(result).wide();
        flags.result::<W>(result, carry, (result ^ a) >> (bits - 1) & 1 != 0);
        result
    })
}
