//! BMI1 and BMI2: integer instructions with a VEX prefix. `dst` is the register in ModRM's `reg`, `src` that
//! in VEX.vvvv, and the third operand is memory (`M`) or the register in `index`.

use crate::cpu::{Cpu, RDX, Step, UD};
use crate::host::Word;
use crate::op::Op;

#[inline(always)]
fn third<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step<u64> {
    // "VEX-encoded GPR instructions": #UD in real and virtual-8086 mode (Intel SDM volume 2, table 2-29).
    if !c.protected() {
        return Err(c.raise(UD));
    }
    if M { c.read::<W>(c.linear(o)) } else { Ok(c.r.get::<W>(o.index).wide()) }
}

/// The low `count` bits, all of them from 64 on.
fn low_bits(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// ANDN.
pub fn and_not<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)? & !c.r.get::<W>(o.src).wide();
    c.flags.result::<W>(value, false, false);
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// BEXTR: bits from the start in the low byte of `src`, as many as the second byte says.
pub fn extract<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)?;
    let control = c.r.get::<W>(o.src).wide();
    let (start, length) = (control & 0xff, control >> 8 & 0xff);
    let value = value.checked_shr(start as u32).unwrap_or(0) & low_bits(length);
    c.flags.result::<W>(value, false, false);
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// BZHI: without the bits from a number on.
pub fn zero_high<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)?;
    let first = c.r.get::<W>(o.src).wide() & 0xff;
    let value = value & low_bits(first);
    c.flags.result::<W>(value, first >= W::BITS.into(), false);
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// SHLX, SHRX, SARX as 0, 1, 2, and RORX by `imm` as 3: no flags.
pub fn shift<W: Word, const KIND: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)?;
    let mask = u64::from(W::BITS - 1);
    let count = (if KIND == 3 { o.imm } else { c.r.get::<W>(o.src).wide() } & mask) as u32;
    let result = match KIND {
        0 => value << count,
        1 => value >> count,
        2 => ((value << (64 - W::BITS)) as i64 >> (64 - W::BITS) >> count) as u64,
        _ => value >> count | value << ((W::BITS - count) & mask as u32),
    };
    c.r.put::<W>(o.dst, W::cut(result).wide());
    Ok(())
}

/// PDEP and PEXT (`EXTRACT`).
pub fn scatter<W: Word, const EXTRACT: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let mut mask = third::<W, M>(c, o)?;
    let value = c.r.get::<W>(o.src).wide();
    let (mut result, mut number) = (0, 0);
    while mask != 0 {
        let bit = mask.trailing_zeros();
        let (from, to) = if EXTRACT { (bit, number) } else { (number, bit) };
        result |= (value >> from & 1) << to;
        number += 1;
        mask &= mask - 1;
    }
    c.r.put::<W>(o.dst, result);
    Ok(())
}

/// MULX: RDX times an operand, the upper half to `dst`, the lower to `src`; no flags.
pub fn multiply<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)?;
    let product = u128::from(value) * u128::from(W::cut(c.r.r(RDX)).wide());
    c.r.put::<W>(o.src, product as u64);
    c.r.put::<W>(o.dst, (product >> W::BITS) as u64);
    Ok(())
}

/// BLSR, BLSMSK, BLSI as 1, 2, 3, the digit of their group; to `src`.
pub fn lowest<W: Word, const KIND: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = third::<W, M>(c, o)?;
    let less = value.wrapping_sub(1);
    let result = match KIND {
        1 => value & less,
        2 => value ^ less,
        _ => value & value.wrapping_neg(),
    };
    let result = W::cut(result).wide();
    c.flags.result::<W>(result, (value == 0) != (KIND == 3), false);
    c.r.put::<W>(o.src, result);
    Ok(())
}
