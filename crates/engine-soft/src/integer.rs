//! Integer instructions.

use crate::cpu::{Cpu, DE, RAX, RCX, RDX, Step};
use crate::flags::Flags;
use crate::host::Word;
use crate::op::Op;

pub const ADD: u8 = 0;
pub const OR: u8 = 1;
pub const ADC: u8 = 2;
pub const SBB: u8 = 3;
pub const AND: u8 = 4;
pub const SUB: u8 = 5;
pub const XOR: u8 = 6;
pub const CMP: u8 = 7;
pub const TEST: u8 = 8;

/// Sources of a second operand.
pub const REG: u8 = 0;
pub const IMM: u8 = 1;
pub const MEM: u8 = 2;

#[inline(always)]
fn compute<W: Word, const OP: u8>(flags: &mut Flags, a: u64, b: u64) -> u64 {
    let result = match OP {
        ADD => a.wrapping_add(b),
        OR => a | b,
        ADC => a.wrapping_add(b).wrapping_add(flags.cf().into()),
        SBB => a.wrapping_sub(b).wrapping_sub(flags.cf().into()),
        AND | TEST => a & b,
        XOR => a ^ b,
        _ => a.wrapping_sub(b),
    };
    match OP {
        ADD | ADC => flags.add::<W>(a, b, result),
        SBB | SUB | CMP => flags.sub::<W>(a, b, result),
        _ => flags.logic::<W>(result),
    }
    result
}

/// Two operands; `M`: the first is in memory, `L`: LOCK.
pub fn alu<W: Word, const OP: u8, const M: bool, const S: u8, const L: bool>(
    c: &mut Cpu,
    o: &Op,
) -> Step {
    let b = match S {
        REG => c.r.get::<W>(o.src).wide(),
        IMM => o.imm,
        _ => c.read::<W>(c.linear(o))?,
    };
    if OP == CMP || OP == TEST {
        let a = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.dst).wide() };
        compute::<W, OP>(&mut c.flags, a, b);
        return Ok(());
    }
    modify::<W, M, L>(c, o, |flags, a| compute::<W, OP>(flags, a, b))
}

/// Replaces the first operand. `change` may run more than once, each time with the flags as they were.
#[inline(always)]
pub fn modify<W: Word, const M: bool, const L: bool>(
    c: &mut Cpu,
    o: &Op,
    mut change: impl FnMut(&mut Flags, u64) -> u64,
) -> Step {
    if !M {
        let a = c.r.get::<W>(o.dst).wide();
        let result = change(&mut c.flags, a);
        c.r.put::<W>(o.dst, result);
        return Ok(());
    }
    let linear = c.linear(o);
    if !L {
        return c.update::<W>(linear, |c, a| change(&mut c.flags, a));
    }
    let before = c.flags;
    c.update_locked::<W>(linear, |c, a| {
        c.flags = before;
        change(&mut c.flags, a)
    })
}

pub const INC: u8 = 0;
pub const DEC: u8 = 1;
pub const NEG: u8 = 2;

/// One operand.
pub fn unary<W: Word, const OP: u8, const M: bool, const L: bool>(c: &mut Cpu, o: &Op) -> Step {
    modify::<W, M, L>(c, o, |flags, a| {
        let top = 1 << (W::BITS - 1);
        match OP {
            INC => {
                let result = W::cut(a.wrapping_add(1)).wide();
                flags.keep_carry::<W>(result == top, result & 15 == 0, result);
                result
            }
            DEC => {
                let result = W::cut(a.wrapping_sub(1)).wide();
                flags.keep_carry::<W>(a == top, a & 15 == 0, result);
                result
            }
            NEG => {
                let result = 0_u64.wrapping_sub(a);
                flags.sub::<W>(0, a, result);
                result
            }
            _ => !a,
        }
    })
}

/// MOV: `M` into memory; otherwise into a register from `S`.
pub fn mov<W: Word, const M: bool, const S: u8>(c: &mut Cpu, o: &Op) -> Step {
    let value = match S {
        REG => c.r.get::<W>(o.src).wide(),
        IMM => o.imm,
        _ => c.read::<W>(c.linear(o))?,
    };
    if M {
        return c.write::<W>(c.linear(o), value);
    }
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// MOVZX, MOVSX and MOVSXD from `F` to `T`.
pub fn extend<F: Word, T: Word, const SIGNED: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = if M { c.read::<F>(c.linear(o))? } else { c.r.get::<F>(o.src).wide() };
    let value =
        if SIGNED { ((value << (64 - F::BITS)) as i64 >> (64 - F::BITS)) as u64 } else { value };
    c.r.put::<T>(o.dst, value);
    Ok(())
}

/// LEA.
pub fn lea<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let offset = c.offset(o);
    c.r.put::<W>(o.dst, offset);
    Ok(())
}

/// XCHG of registers.
pub fn xchg<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let (a, b) = (c.r.get::<W>(o.dst).wide(), c.r.get::<W>(o.src).wide());
    c.r.put::<W>(o.dst, b);
    c.r.put::<W>(o.src, a);
    Ok(())
}

/// XCHG with memory, which always locks.
pub fn xchg_memory<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let new = c.r.get::<W>(o.src).wide();
    let mut old = 0;
    c.update_locked::<W>(c.linear(o), |_, a| {
        old = a;
        new
    })?;
    c.r.put::<W>(o.src, old);
    Ok(())
}

/// XADD.
pub fn xadd<W: Word, const M: bool, const L: bool>(c: &mut Cpu, o: &Op) -> Step {
    let b = c.r.get::<W>(o.src).wide();
    let mut old = 0;
    modify::<W, M, L>(c, o, |flags, a| {
        old = a;
        compute::<W, ADD>(flags, a, b)
    })?;
    if M || o.dst != o.src {
        c.r.put::<W>(o.src, old);
    }
    Ok(())
}

/// CMPXCHG.
pub fn cmpxchg<W: Word, const M: bool, const L: bool>(c: &mut Cpu, o: &Op) -> Step {
    let (expected, new) = (W::cut(c.r.r(RAX)).wide(), c.r.get::<W>(o.src).wide());
    let mut old = 0;
    if M {
        modify::<W, M, L>(c, o, |flags, a| {
            old = a;
            compute::<W, CMP>(flags, expected, a);
            if a == expected { new } else { a }
        })?;
    } else {
        // A register that is not exchanged keeps its upper half.
        old = c.r.get::<W>(o.dst).wide();
        compute::<W, CMP>(&mut c.flags, expected, old);
        if old == expected {
            c.r.put::<W>(o.dst, new);
        }
    }
    if old != expected {
        c.r.put::<W>(0, old);
    }
    Ok(())
}

/// CMPXCHG8B, always locked.
pub fn cmpxchg8b(c: &mut Cpu, o: &Op) -> Step {
    let low = |c: &Cpu, r| c.r.r(r) & 0xffff_ffff;
    let expected = low(c, RAX) | low(c, RDX) << 32;
    let new = low(c, crate::cpu::RBX) | low(c, RCX) << 32;
    let mut old = 0;
    c.update_locked::<u64>(c.linear(o), |_, a| {
        old = a;
        if a == expected { new } else { a }
    })?;
    c.flags.set_zf(old == expected);
    if old != expected {
        c.r.put::<u32>(8 * RAX as u8, old);
        c.r.put::<u32>(8 * RDX as u8, old >> 32);
    }
    Ok(())
}

/// CMPXCHG16B, always locked.
pub fn cmpxchg16b(c: &mut Cpu, o: &Op) -> Step {
    let linear = c.linear(o);
    if !linear.is_multiple_of(16) {
        return Err(c.gp());
    }
    let expected = [c.r.r(RAX), c.r.r(RDX)];
    let new = [c.r.r(crate::cpu::RBX), c.r.r(RCX)];
    let old = match c.host_range(linear, true)? {
        Some(host) => host.compare_exchange_16(expected, new),
        None => {
            let vm = std::sync::Arc::clone(&c.vm);
            let _alone = vm.lock_split();
            let old = [c.read::<u64>(linear)?, c.read::<u64>(linear + 8)?];
            let value = if old == expected { new } else { old };
            c.write::<u64>(linear, value[0])?;
            c.write::<u64>(linear + 8, value[1])?;
            old
        }
    };
    c.flags.set_zf(old == expected);
    if old != expected {
        c.r.set(RAX, old[0]);
        c.r.set(RDX, old[1]);
    }
    Ok(())
}

/// SETcc.
pub fn setcc<const CODE: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = c.flags.condition::<CODE>().into();
    if M {
        return c.write::<u8>(c.linear(o), value);
    }
    c.r.put::<u8>(o.dst, value);
    Ok(())
}

/// CMOVcc; a memory operand is read in any case.
pub fn cmov<W: Word, const CODE: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.src).wide() };
    let value = if c.flags.condition::<CODE>() { value } else { c.r.get::<W>(o.dst).wide() };
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// MUL and one-operand IMUL.
pub fn multiply<W: Word, const SIGNED: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let b = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.dst).wide() };
    let a = W::cut(c.r.r(RAX)).wide();
    let bits = W::BITS;
    let wide = if SIGNED {
        (i128::from(signed::<W>(a)) * i128::from(signed::<W>(b))) as u128
    } else {
        u128::from(a) * u128::from(b)
    };
    let low = W::cut(wide as u64).wide();
    let high = W::cut((wide >> bits) as u64).wide();
    if bits == 8 {
        c.r.put::<u16>(0, wide as u64);
    } else {
        c.r.put::<W>(0, low);
        c.r.put::<W>(8 * RDX as u8, high);
    }
    let overflow = if SIGNED { signed::<W>(low) as i128 as u128 != wide } else { high != 0 };
    c.flags.result::<W>(low, overflow, overflow);
    Ok(())
}

/// IMUL with a register for its result: `S` is the last factor; with `THREE` the other is register or
/// memory and the last `imm`.
pub fn imul<W: Word, const S: u8, const THREE: bool>(c: &mut Cpu, o: &Op) -> Step {
    let b = match S {
        REG => c.r.get::<W>(o.src).wide(),
        _ => c.read::<W>(c.linear(o))?,
    };
    let a = if THREE { o.imm } else { c.r.get::<W>(o.dst).wide() };
    let wide = i128::from(signed::<W>(a)) * i128::from(signed::<W>(b));
    let low = W::cut(wide as u64).wide();
    c.r.put::<W>(o.dst, low);
    let overflow = i128::from(signed::<W>(low)) != wide;
    c.flags.result::<W>(low, overflow, overflow);
    Ok(())
}

fn signed<W: Word>(value: u64) -> i64 {
    (value << (64 - W::BITS)) as i64 >> (64 - W::BITS)
}

/// DIV and IDIV.
pub fn divide<W: Word, const SIGNED: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let b = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.dst).wide() };
    let bits = W::BITS;
    let dividend = if bits == 8 {
        u128::from(c.r.r(RAX) & 0xffff)
    } else {
        u128::from(W::cut(c.r.r(RDX)).wide()) << bits | u128::from(W::cut(c.r.r(RAX)).wide())
    };
    if b == 0 {
        return Err(c.raise(DE));
    }
    let (quotient, remainder, fits) = if SIGNED {
        let unused = 128 - 2 * bits;
        let dividend = (dividend << unused) as i128 >> unused;
        let divisor = i128::from(signed::<W>(b));
        let (Some(quotient), Some(remainder)) =
            (dividend.checked_div(divisor), dividend.checked_rem(divisor))
        else {
            return Err(c.raise(DE));
        };
        let fits = quotient == i128::from(signed::<W>(quotient as u64));
        (quotient as u64, remainder as u64, fits)
    } else if bits < 64 || dividend >> 64 == 0 {
        let (dividend, divisor) = (dividend as u64, b);
        let quotient = dividend / divisor;
        (quotient, dividend % divisor, W::cut(quotient).wide() == quotient)
    } else {
        let quotient = dividend / u128::from(b);
        ((quotient as u64), (dividend % u128::from(b)) as u64, quotient >> bits == 0)
    };
    if !fits {
        return Err(c.raise(DE));
    }
    if bits == 8 {
        c.r.put::<u8>(0, quotient);
        c.r.put::<u8>(1, remainder);
    } else {
        c.r.put::<W>(0, quotient);
        c.r.put::<W>(8 * RDX as u8, remainder);
    }
    Ok(())
}

pub const BT: u8 = 0;
pub const BTS: u8 = 1;
pub const BTR: u8 = 2;
pub const BTC: u8 = 3;

/// Bit tests; with a register for the bit's number, memory may be far from the operand's address.
pub fn bit<W: Word, const OP: u8, const M: bool, const S: u8, const L: bool>(
    c: &mut Cpu,
    o: &Op,
) -> Step {
    let number = if S == IMM { o.imm } else { signed::<W>(c.r.get::<W>(o.src).wide()) as u64 };
    let mask = 1_u64 << (number % u64::from(W::BITS));
    let change = |a: u64| match OP {
        BTS => a | mask,
        BTR => a & !mask,
        BTC => a ^ mask,
        _ => a,
    };
    let mut old = 0;
    if !M {
        old = c.r.get::<W>(o.dst).wide();
        if OP != BT {
            c.r.put::<W>(o.dst, change(old));
        }
    } else {
        let mut linear = c.linear(o);
        if S == REG {
            let words = (number as i64).div_euclid(i64::from(W::BITS));
            let offset = c.offset(o).wrapping_add((words as u64).wrapping_mul(W::BYTES));
            let offset = offset & crate::op::ADDRESS_MASKS[usize::from(o.address) % 3];
            c.check_segment(o.segment, offset, W::BYTES, OP != BT)?;
            linear = offset.wrapping_add(c.base[usize::from(o.segment & 7)]) & c.linear_mask;
        }
        if OP == BT {
            old = c.read::<W>(linear)?;
        } else if L {
            c.update_locked::<W>(linear, |_, a| {
                old = a;
                change(a)
            })?;
        } else {
            c.update::<W>(linear, |_, a| {
                old = a;
                change(a)
            })?;
        }
    }
    c.flags.set_cf(old & mask != 0);
    Ok(())
}

/// BSF, BSR, POPCNT, TZCNT and LZCNT as 0 to 4.
pub fn scan<W: Word, const KIND: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.src).wide() };
    if KIND == 2 {
        c.flags.logic::<W>(u64::from(value != 0) << 8);
        let count = value.count_ones().into();
        c.flags = Flags::from_bits(if value == 0 { crate::flags::ZF } else { 0 });
        c.r.put::<W>(o.dst, count);
        return Ok(());
    }
    if KIND > 2 {
        let zeros = if KIND == 3 { value.trailing_zeros() } else { value.leading_zeros() };
        let above = if KIND == 3 { 0 } else { u64::BITS - W::BITS };
        let count = (zeros - above.min(zeros)).min(W::BITS).into();
        c.flags.result::<W>(count, value == 0, false);
        c.r.put::<W>(o.dst, count);
        return Ok(());
    }
    if value == 0 {
        c.flags.set_zf(true);
        return Ok(());
    }
    let found = if KIND == 0 { value.trailing_zeros() } else { 63 - value.leading_zeros() };
    c.flags.set_zf(false);
    c.r.put::<W>(o.dst, found.into());
    Ok(())
}

/// BSWAP.
pub fn bswap<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let value = c.r.get::<W>(o.dst).wide().swap_bytes() >> (64 - W::BITS);
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// ADCX, ADOX (`OVERFLOW`): an addition that knows only one flag.
pub fn add_with_flag<W: Word, const OVERFLOW: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let b = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.src).wide() };
    let a = c.r.get::<W>(o.dst).wide();
    let (carry, overflow) = (c.flags.cf(), c.flags.of());
    let old = if OVERFLOW { overflow } else { carry };
    let sum = u128::from(a) + u128::from(b) + u128::from(old);
    let new = sum >> W::BITS != 0;
    if OVERFLOW {
        c.flags.set_carry_overflow(carry, new);
    } else {
        c.flags.set_carry_overflow(new, overflow);
    }
    c.r.put::<W>(o.dst, sum as u64);
    Ok(())
}

/// MOVBE to memory (`M`) or from it.
pub fn movbe<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let swap = |value: u64| value.swap_bytes() >> (64 - W::BITS);
    let linear = c.linear(o);
    if M {
        let value = swap(c.r.get::<W>(o.src).wide());
        return c.write::<W>(linear, value);
    }
    let value = swap(c.read::<W>(linear)?);
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator's lower half of `W`, sign-extended.
pub fn widen<W: Word>(c: &mut Cpu, _: &Op) -> Step {
    let half = W::BITS / 2;
    let value = (c.r.r(RAX) << (64 - half)) as i64 >> (64 - half);
    c.r.put::<W>(0, value as u64);
    Ok(())
}

/// CWD, CDQ, CQO.
pub fn widen_to_rdx<W: Word>(c: &mut Cpu, _: &Op) -> Step {
    let sign = signed::<W>(W::cut(c.r.r(RAX)).wide()) >> 63;
    c.r.put::<W>(8 * RDX as u8, sign as u64);
    Ok(())
}

/// XLAT: the memory operand is already `[rbx + al]`.
pub fn xlat(c: &mut Cpu, o: &Op) -> Step {
    let mask = crate::op::ADDRESS_MASKS[usize::from(o.address) % 3];
    let offset = c.r.r(crate::cpu::RBX).wrapping_add(c.r.r(RAX) & 0xff) & mask;
    let linear = offset.wrapping_add(c.base[usize::from(o.segment & 7)]) & c.linear_mask;
    let value = c.read::<u8>(linear)?;
    c.r.put::<u8>(0, value);
    Ok(())
}

/// CLC, STC, CMC, CLD, STD as 0 to 4.
pub fn flag<const KIND: u8>(c: &mut Cpu, _: &Op) -> Step {
    match KIND {
        0 => c.flags.set_cf(false),
        1 => c.flags.set_cf(true),
        2 => c.flags.set_cf(!c.flags.cf()),
        3 => c.rflags &= !crate::cpu::FLAG_DF,
        _ => c.rflags |= crate::cpu::FLAG_DF,
    }
    Ok(())
}

/// LAHF.
pub fn lahf(c: &mut Cpu, _: &Op) -> Step {
    let value = c.flags.bits() & 0xd5 | 2;
    c.r.put::<u8>(1, value);
    Ok(())
}

/// SAHF.
pub fn sahf(c: &mut Cpu, _: &Op) -> Step {
    let kept = c.flags.bits() & crate::flags::OF;
    c.flags = Flags::from_bits(c.r.get::<u8>(1).wide() & 0xd5 | kept);
    Ok(())
}

/// NOP, PAUSE, fences, prefetches.
pub fn nop(_: &mut Cpu, _: &Op) -> Step {
    Ok(())
}

/// CLFLUSH: memory is coherent, but a load would have to succeed.
pub fn touch(c: &mut Cpu, o: &Op) -> Step {
    c.read::<u8>(c.linear(o)).map(|_| ())
}

/// A fence that orders stores and loads.
pub fn fence(_: &mut Cpu, _: &Op) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// CRC32 of `W`.
pub fn crc32<W: Word, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = if M { c.read::<W>(c.linear(o))? } else { c.r.get::<W>(o.src).wide() };
    let mut crc = c.r.get::<u32>(o.dst);
    for byte in &value.to_le_bytes()[..W::BYTES as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // The Castagnoli polynomial, reflected.
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    c.r.put::<u64>(o.dst, crc.into());
    Ok(())
}
