//! Jumps, calls, and the stack.

use crate::cpu::{Cpu, RBP, RCX, RSP, Step, Stop};
use crate::host::Word;
use crate::integer::{IMM, REG};
use crate::op::Op;

/// Jcc: `imm` is the target.
pub fn jcc<const CODE: u8>(c: &mut Cpu, o: &Op) -> Step {
    c.rip = if c.flags.condition::<CODE>() { o.imm } else { o.next };
    Err(Stop::Branch)
}

/// JMP to `imm`.
pub fn jmp(c: &mut Cpu, o: &Op) -> Step {
    c.rip = o.imm;
    Err(Stop::Branch)
}

/// A branch to where no address can be faults before it is taken.
#[inline(always)]
fn check_target<W: Word>(c: &mut Cpu, target: u64) -> Step {
    if W::BITS == 64 && (target << 16) as i64 >> 16 != target as i64 {
        return Err(c.gp());
    }
    Ok(())
}

/// JMP through a register or memory.
pub fn jmp_indirect<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let target = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.dst).wide() };
    check_target::<W>(c, target)?;
    c.rip = target;
    Err(Stop::Branch)
}

/// CALL of `imm`.
pub fn call<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    c.push::<W>(o.next)?;
    c.rip = o.imm;
    Err(Stop::Branch)
}

/// CALL through a register or memory.
pub fn call_indirect<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let target = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.dst).wide() };
    if W::BITS == 64 {
        // A fault of the push comes first.
        let top = c.stack(c.r.r(RSP).wrapping_sub(W::BYTES));
        if c.writes.find::<W>(top, c.user).is_none() {
            c.probe_write(top, W::BYTES)?;
        }
    }
    check_target::<W>(c, target)?;
    c.push::<W>(o.next)?;
    c.rip = target;
    Err(Stop::Branch)
}

/// RET, and `imm` more bytes.
pub fn ret<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let before = c.r.r(RSP);
    let target = c.read::<W>(c.stack(before))?;
    check_target::<W>(c, target)?;
    c.rip = target;
    c.set_sp(before.wrapping_add(W::BYTES).wrapping_add(o.imm));
    Err(Stop::Branch)
}

/// LOOP (0), LOOPE (1), LOOPNE (2) and JCXZ (3).
pub fn looping<const KIND: u8>(c: &mut Cpu, o: &Op) -> Step {
    let mask = crate::op::ADDRESS_MASKS[usize::from(o.address) % 3];
    let mut count = c.r.r(RCX) & mask;
    if KIND != 3 {
        count = count.wrapping_sub(1) & mask;
        match o.address {
            0 => c.r.set(RCX, count),
            1 => c.r.put::<u32>(8, count),
            _ => c.r.put::<u16>(8, count),
        }
    }
    let taken = match KIND {
        0 => count != 0,
        1 => count != 0 && c.flags.zf(),
        2 => count != 0 && !c.flags.zf(),
        _ => count == 0,
    };
    c.rip = if taken { o.imm } else { o.next };
    Err(Stop::Branch)
}

/// PUSH.
pub fn push<W: Word, const S: u8>(c: &mut Cpu, o: &Op) -> Step {
    let value = match S {
        REG => c.r.get::<W>(o.dst).wide(),
        IMM => o.imm,
        _ => c.read::<W>(c.linear(o))?,
    };
    c.push::<W>(value)
}

/// POP.
pub fn pop<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    if !M {
        let value = c.pop::<W>()?;
        c.r.put::<W>(o.dst, value);
        return Ok(());
    }
    // The address is computed with the stack pointer after the pop; a fault must not move it.
    let before = c.r.r(RSP);
    let value = c.pop::<W>()?;
    let result = c.write::<W>(c.linear(o), value);
    if result.is_err() {
        c.r.set(RSP, before);
    }
    result
}

/// PUSHA and POPA.
pub fn push_all<W: Word>(c: &mut Cpu, _: &Op) -> Step {
    let start = c.r.r(RSP);
    for number in 0..8_u64 {
        let value = c.r.r(number as usize);
        let place = start.wrapping_sub((number + 1) * W::BYTES);
        c.write::<W>(c.stack(place), value)?;
    }
    c.set_sp(start.wrapping_sub(8 * W::BYTES));
    Ok(())
}

/// See [`push_all`].
pub fn pop_all<W: Word>(c: &mut Cpu, _: &Op) -> Step {
    let start = c.r.r(RSP);
    let mut values = [0; 8];
    for (value, number) in values.iter_mut().zip(0..) {
        *value = c.read::<W>(c.stack(start.wrapping_add(number * W::BYTES)))?;
    }
    for (number, value) in values.into_iter().rev().enumerate() {
        if number != RSP {
            c.r.put::<W>(8 * number as u8, value);
        }
    }
    c.set_sp(start.wrapping_add(8 * W::BYTES));
    Ok(())
}

/// LEAVE.
pub fn leave<W: Word>(c: &mut Cpu, _: &Op) -> Step {
    let frame = c.r.r(RBP);
    let value = c.read::<W>(c.stack(frame))?;
    c.set_sp(frame.wrapping_add(W::BYTES));
    c.r.put::<W>(8 * RBP as u8, value);
    Ok(())
}

/// ENTER: `imm` bytes of locals, nesting level `extra`.
pub fn enter<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let start = c.r.r(RSP);
    let result = enter_parts::<W>(c, o);
    if result.is_err() {
        c.r.set(RSP, start);
    }
    result
}

fn enter_parts<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let outer = c.r.r(RBP);
    c.push::<W>(outer)?;
    let frame = c.r.r(RSP);
    for level in 1..u64::from(o.extra) {
        let value = c.read::<W>(c.stack(outer.wrapping_sub(level * W::BYTES)))?;
        c.push::<W>(value)?;
    }
    if o.extra > 0 {
        c.push::<W>(frame)?;
    }
    let pointer = c.r.r(RSP).wrapping_sub(o.imm);
    // The new top of the stack must be writable.
    c.probe_write(c.stack(pointer), W::BYTES)?;
    c.r.put::<W>(8 * RBP as u8, frame);
    c.set_sp(pointer);
    Ok(())
}
