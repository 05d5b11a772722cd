//! AVX instructions that the host may not execute as they are: their memory operands are elements of which
//! each may be somewhere else, or missing without harm. And VZEROUPPER.

use crate::cpu::{Cpu, Mode, Step, UD};
use crate::native::{XMM, check_vex};
use crate::op::{ADDRESS_MASKS, Op};

/// VZEROUPPER, VZEROALL (`ALL`).
pub fn zero<const ALL: bool>(c: &mut Cpu, _: &Op) -> Step {
    check_vex(c)?;
    let registers = if c.mode == Mode::Bits64 { 16 } else { 8 };
    if ALL {
        c.fpu.area[XMM..XMM + 16 * registers].fill(0);
    }
    let mut uppers = c.fpu.uppers();
    uppers[..16 * registers].fill(0);
    if registers == 16 {
        c.fpu.clear_uppers();
    } else {
        c.fpu.set_uppers(&uppers);
    }
    Ok(())
}

/// Fields of `extra` of the following: the vector with indices or data, 256 bits.
const NUMBER: u32 = 15;
pub const LONG: u32 = 1 << 4;
/// Elements of 64 bits, and indices of 64 bits.
pub const WIDE: u32 = 1 << 5;
pub const WIDE_INDEX: u32 = 1 << 6;

/// An element of a vector register.
fn element(vector: &[u8; 32], number: usize, bytes: usize) -> u64 {
    crate::cpu::number(&vector[number * bytes..(number + 1) * bytes])
}

fn sign(value: u64, bytes: usize) -> bool {
    value >> (8 * bytes - 1) & 1 != 0
}

/// Offset and linear address of an element at `index` bytes.
fn place(c: &Cpu, o: &Op, index: u64) -> (u64, u64) {
    let offset = c.offset(o).wrapping_add(index) & ADDRESS_MASKS[usize::from(o.address) % 3];
    (offset, offset.wrapping_add(c.base[usize::from(o.segment & 7)]) & c.linear_mask)
}

fn load(c: &mut Cpu, o: &Op, index: u64, bytes: usize) -> Step<u64> {
    let (offset, linear) = place(c, o, index);
    c.check_segment(o.segment, offset, bytes as u64, false)?;
    if bytes == 8 { c.read::<u64>(linear) } else { c.read::<u32>(linear) }
}

/// VMASKMOVPS, VPMASKMOVD and the like: a load to `dst` with the mask in `src`, or with `STORE` of `extra`'s
/// register. Elements that are not selected cause no fault; they are loaded as zeros.
pub fn masked<const STORE: bool>(c: &mut Cpu, o: &Op) -> Step {
    check_vex(c)?;
    let bytes = if o.extra & WIDE != 0 { 8 } else { 4 };
    let count = if o.extra & LONG != 0 { 32 } else { 16 } / bytes;
    let mask = c.fpu.vector(o.src.into());
    let selected = (0..count).filter(|number| sign(element(&mask, *number, bytes), bytes));
    if !STORE {
        let mut result = [0; 32];
        for number in selected {
            let value = load(c, o, (number * bytes) as u64, bytes)?;
            result[number * bytes..(number + 1) * bytes]
                .copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
        c.fpu.set_vector(o.dst.into(), &result);
        return Ok(());
    }
    let data = c.fpu.vector((o.extra & NUMBER) as usize);
    // All or nothing.
    for number in selected.clone() {
        let (offset, linear) = place(c, o, (number * bytes) as u64);
        c.check_segment(o.segment, offset, bytes as u64, true)?;
        c.probe_write(linear, bytes as u64)?;
    }
    for number in selected {
        let (_, linear) = place(c, o, (number * bytes) as u64);
        let value = element(&data, number, bytes);
        if bytes == 8 {
            c.write::<u64>(linear, value)?;
        } else {
            c.write::<u32>(linear, value)?;
        }
    }
    Ok(())
}

/// VGATHERDPS, VPGATHERQD and the like: to `dst` elements that the mask in `src` selects, at the indices in
/// `extra`'s register. What was done before a fault stays done, and the mask
/// is zero there, as AMD's processors have it.
pub fn gather(c: &mut Cpu, o: &Op) -> Step {
    check_vex(c)?;
    let index_register = (o.extra & NUMBER) as u8;
    if o.dst == o.src || o.dst == index_register || o.src == index_register {
        return Err(c.raise(UD));
    }
    let bytes = if o.extra & WIDE != 0 { 8 } else { 4 };
    let index_bytes = if o.extra & WIDE_INDEX != 0 { 8 } else { 4 };
    let count = if o.extra & LONG != 0 { 32 } else { 16 } / bytes.max(index_bytes);
    let indices = c.fpu.vector(index_register.into());
    let (old, mask) = (c.fpu.vector(o.dst.into()), c.fpu.vector(o.src.into()));
    let (mut result, mut left) = (old, mask);
    for number in 0..count {
        let range = number * bytes..(number + 1) * bytes;
        if !sign(element(&mask, number, bytes), bytes) {
            left[range].fill(0);
            continue;
        }
        let index = element(&indices, number, index_bytes);
        let index = if index_bytes == 4 { index as i32 as u64 } else { index };
        match load(c, o, index << o.scale, bytes) {
            Ok(value) => {
                result[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes]);
                left[range].fill(0);
            }
            Err(stop) => {
                c.fpu.set_vector(o.dst.into(), &result);
                c.fpu.set_vector(o.src.into(), &left);
                return Err(stop);
            }
        }
    }
    result[count * bytes..].fill(0);
    c.fpu.set_vector(o.dst.into(), &result);
    c.fpu.set_vector(o.src.into(), &[0; 32]);
    Ok(())
}
