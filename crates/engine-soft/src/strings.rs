//! String instructions.

use crate::cpu::{Cpu, FLAG_DF, Mode, RAX, RCX, RDI, RDX, RSI, Step, Stop};
use crate::flags::Flags;
use crate::host::{PAGE, Word};
use crate::op::{ADDRESS_MASKS, Op};

pub const MOVS: u8 = 0;
pub const STOS: u8 = 1;
pub const LODS: u8 = 2;
pub const SCAS: u8 = 3;
pub const CMPS: u8 = 4;
pub const INS: u8 = 5;
pub const OUTS: u8 = 6;

/// REP prefixes.
pub const ONCE: u8 = 0;
pub const REP: u8 = 1;
pub const REPNE: u8 = 2;

/// Repetitions after which it is asked whether somebody waits.
const PATIENCE: u32 = 256;

/// One string instruction; `segment` is the source's, `dst` the destination's.
pub fn string<W: Word, const KIND: u8, const REPEAT: u8>(c: &mut Cpu, o: &Op) -> Step {
    let mask = ADDRESS_MASKS[usize::from(o.address) % 3];
    let backwards = c.rflags & FLAG_DF != 0;
    let step = if backwards { W::BYTES.wrapping_neg() } else { W::BYTES };
    if KIND == INS || KIND == OUTS {
        c.check_port((c.r.r(RDX) & 0xffff) as u16, W::BYTES)?;
    }
    if c.mode != Mode::Bits64 && (REPEAT == ONCE || c.r.r(RCX) & mask != 0) {
        // Only the first element is looked at.
        if matches!(KIND, MOVS | LODS | CMPS | OUTS) {
            c.check_segment(o.segment, c.r.r(RSI) & mask, W::BYTES, false)?;
        }
        if matches!(KIND, MOVS | STOS | SCAS | CMPS | INS) {
            let write = !matches!(KIND, SCAS | CMPS);
            c.check_segment(o.dst, c.r.r(RDI) & mask, W::BYTES, write)?;
        }
    }
    let mut rounds = 0;
    loop {
        let count = c.r.r(RCX) & mask;
        if REPEAT != ONCE && count == 0 {
            return finish::<KIND>(c, o);
        }
        let source = address(c, RSI, o.segment, mask);
        let target = address(c, RDI, o.dst, mask);
        if REPEAT != ONCE && !backwards && (KIND == MOVS || KIND == STOS) && count > 1 {
            let done = bulk::<W, KIND>(c, source, target, count)?;
            if done > 0 {
                if KIND == MOVS {
                    advance(c, RSI, done * W::BYTES, o.address);
                }
                advance(c, RDI, done * W::BYTES, o.address);
                advance(c, RCX, done.wrapping_neg(), o.address);
                if c.shared.attention() != 0 && c.r.r(RCX) & mask != 0 {
                    return Err(Stop::Again);
                }
                continue;
            }
        }
        element::<W, KIND>(c, source, target)?;
        if matches!(KIND, MOVS | LODS | CMPS | OUTS) {
            advance(c, RSI, step, o.address);
        }
        if matches!(KIND, MOVS | STOS | SCAS | CMPS | INS) {
            advance(c, RDI, step, o.address);
        }
        if REPEAT == ONCE {
            return finish::<KIND>(c, o);
        }
        advance(c, RCX, u64::MAX, o.address);
        if (KIND == SCAS || KIND == CMPS) && c.flags.zf() != (REPEAT == REP) {
            return Ok(());
        }
        rounds += 1;
        let patience = if KIND == INS || KIND == OUTS { 1 } else { PATIENCE };
        if rounds % patience == 0 && c.shared.attention() != 0 && c.r.r(RCX) & mask != 0 {
            return Err(Stop::Again);
        }
    }
}

/// Port I/O ends its block: a device may have asked for a stop.
fn finish<const KIND: u8>(c: &mut Cpu, o: &Op) -> Step {
    if KIND == INS || KIND == OUTS {
        c.rip = o.next;
        return Err(Stop::Branch);
    }
    Ok(())
}

fn address(c: &Cpu, register: usize, segment: u8, mask: u64) -> u64 {
    (c.r.r(register) & mask).wrapping_add(c.base[usize::from(segment & 7)]) & c.linear_mask
}

fn advance(c: &mut Cpu, register: usize, by: u64, address: u8) {
    let value = c.r.r(register).wrapping_add(by);
    match address {
        0 => c.r.set(register, value),
        1 => c.r.put::<u32>(8 * register as u8, value),
        _ => c.r.put::<u16>(8 * register as u8, value),
    }
}

fn element<W: Word, const KIND: u8>(c: &mut Cpu, source: u64, target: u64) -> Step {
    let accumulator = W::cut(c.r.r(RAX)).wide();
    match KIND {
        MOVS => {
            let value = c.read::<W>(source)?;
            c.write::<W>(target, value)
        }
        STOS => c.write::<W>(target, accumulator),
        LODS => {
            let value = c.read::<W>(source)?;
            c.r.put::<W>(0, value);
            Ok(())
        }
        SCAS => {
            let value = c.read::<W>(target)?;
            compare::<W>(&mut c.flags, accumulator, value);
            Ok(())
        }
        CMPS => {
            let (a, b) = (c.read::<W>(source)?, c.read::<W>(target)?);
            compare::<W>(&mut c.flags, a, b);
            Ok(())
        }
        INS => {
            // A fault must come before the device is read.
            c.probe_write(target, W::BYTES)?;
            let value = c.port_in((c.r.r(RDX) & 0xffff) as u16, W::BYTES);
            c.write::<W>(target, value)
        }
        _ => {
            let value = c.read::<W>(source)?;
            c.port_out((c.r.r(RDX) & 0xffff) as u16, W::BYTES, value);
            Ok(())
        }
    }
}

fn compare<W: Word>(flags: &mut Flags, a: u64, b: u64) {
    flags.sub::<W>(a, b, a.wrapping_sub(b));
}

/// As many elements as lie in one page at both ends; 0 where that is not plain memory.
fn bulk<W: Word, const KIND: u8>(c: &mut Cpu, source: u64, target: u64, count: u64) -> Step<u64> {
    let room = |linear: u64| (PAGE - linear % PAGE) / W::BYTES;
    let mut count = count.min(room(target));
    if KIND == MOVS {
        count = count.min(room(source));
    }
    if count < 2 {
        return Ok(0);
    }
    if KIND == STOS {
        let Some(to) = c.host_range(target, true)? else { return Ok(0) };
        let value = W::cut(c.r.r(RAX)).wide();
        if W::BITS == 8 {
            to.fill(value as u8, count as usize);
            return Ok(count);
        }
        for index in 0..count {
            to.plus(index * W::BYTES).store::<W>(value);
        }
        return Ok(count);
    }
    let Some(from) = c.host_range(source, false)? else { return Ok(0) };
    let Some(to) = c.host_range(target, true)? else { return Ok(0) };
    // An overlap that copies its own output must go element by element.
    let ahead = to.distance(from);
    if ahead != 0 && ahead < count * W::BYTES {
        return Ok(0);
    }
    to.copy(from, (count * W::BYTES) as usize);
    Ok(count)
}
