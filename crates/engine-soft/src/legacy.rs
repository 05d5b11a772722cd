//! Instructions from before 64-bit mode: decimal arithmetic, BOUND, ARPL (Intel SDM volume 2).

use crate::cpu::{BR, Cpu, DE, RAX, Step, UD};
use crate::flags::{AF, CF, Flags};
use crate::host::Word;
use crate::op::Op;

/// SF, ZF and PF as after a logical operation with the result `al`, with these CF and AF.
fn set_flags(c: &mut Cpu, al: u64, carry: bool, adjust: bool) {
    c.flags.logic::<u8>(al & 0xff);
    let bits = c.flags.bits() | if carry { CF } else { 0 } | if adjust { AF } else { 0 };
    c.flags = Flags::from_bits(bits);
}

/// AAA, and AAS (`SUBTRACT`).
pub fn ascii_adjust<const SUBTRACT: bool>(c: &mut Cpu, _: &Op) -> Step {
    let ax = c.r.get::<u16>(0).wide();
    let adjust = ax & 15 > 9 || c.flags.bits() & AF != 0;
    let sum = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    c.r.put::<u16>(0, sum & 0xff0f);
    set_flags(c, sum & 15, adjust, adjust);
    Ok(())
}

/// AAM and AAD (`DIVIDE` false) with the base `imm`.
pub fn ascii_scale<const DIVIDE: bool>(c: &mut Cpu, o: &Op) -> Step {
    let (al, ah) = (c.r.get::<u8>(0).wide(), c.r.get::<u8>(1).wide());
    let ax = if DIVIDE {
        if o.imm == 0 {
            return Err(c.raise(DE));
        }
        ((al / o.imm) << 8) | (al % o.imm)
    } else {
        al.wrapping_add(ah.wrapping_mul(o.imm)) & 0xff
    };
    c.r.put::<u16>(0, ax);
    set_flags(c, ax, false, false);
    Ok(())
}

/// DAA, and DAS (`SUBTRACT`).
pub fn decimal_adjust<const SUBTRACT: bool>(c: &mut Cpu, _: &Op) -> Step {
    let old = c.r.get::<u8>(0).wide();
    let change = |al: u64, by: u64| {
        if SUBTRACT { al.wrapping_sub(by) & 0xff } else { al.wrapping_add(by) & 0xff }
    };
    let (mut al, mut carry) = (old, false);
    let adjust = old & 15 > 9 || c.flags.bits() & AF != 0;
    if adjust {
        al = change(al, 6);
        carry = c.flags.cf() || if SUBTRACT { old < 6 } else { old > 0xf9 };
    }
    if old > 0x99 || c.flags.cf() {
        al = change(al, 0x60);
        carry = true;
    }
    c.r.put::<u8>(0, al);
    set_flags(c, al, carry, adjust);
    Ok(())
}

/// SALC: all bits of AL become CF.
pub fn salc(c: &mut Cpu, _: &Op) -> Step {
    let value = if c.flags.cf() { 0xff } else { 0 };
    c.r.put::<u8>(8 * RAX as u8, value);
    Ok(())
}

/// BOUND.
pub fn bound<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let sign = |value: u64| (value << (64 - W::BITS)) as i64;
    let linear = c.linear(o);
    let low = sign(c.read::<W>(linear)?);
    let high = sign(c.read::<W>(linear.wrapping_add(W::BYTES) & c.linear_mask)?);
    let index = sign(c.r.get::<W>(o.dst).wide());
    if index < low || index > high {
        return Err(c.raise(BR));
    }
    Ok(())
}

/// ARPL of a register or (`M`) memory.
pub fn arpl<const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    if !c.protected() {
        return Err(c.raise(UD));
    }
    let level = c.r.get::<u16>(o.src).wide() & 3;
    let selector = if M { c.read::<u16>(c.linear(o))? } else { c.r.get::<u16>(o.dst).into() };
    let lower = selector & 3 < level;
    if lower {
        let raised = selector & !3 | level;
        if M {
            c.check_segment(o.segment, c.offset(o), 2, true)?;
            c.write::<u16>(c.linear(o), raised)?;
        } else {
            c.r.put::<u16>(o.dst, raised);
        }
    }
    c.flags.set_zf(lower);
    Ok(())
}
