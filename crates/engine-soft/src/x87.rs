//! x87 and MMX instructions that change more than the host may be asked to: the control word, the environment,
//! and what stands in memory (Intel SDM volume 1, chapter 8).

use crate::cpu::{Cpu, MF, RDI, Step};
use crate::native::{FCW, FSW, FpuState, XMM, check, check_vex};
use crate::op::Op;

/// Abridged tags in the FXSAVE area.
const FTW: usize = 4;
/// Registers in the FXSAVE area, 16 bytes each, the top of the stack first.
const ST: usize = 32;
/// Exception flags of the status word, and masks of the control word.
const EXCEPTIONS: u16 = 0x3f;
/// Exception summary and busy.
const SUMMARY: u16 = 0x8080;

impl FpuState {
    /// FNINIT.
    pub fn initialize(&mut self) {
        self.set_top(0);
        self.area[..24].fill(0);
        self.put16(FCW, 0x37f);
    }

    fn top(&self) -> usize {
        usize::from(self.get16(FSW) >> 11 & 7)
    }

    /// Changes the top of the stack; the registers stay where they are.
    fn set_top(&mut self, top: usize) {
        let by = (top + 8 - self.top()) % 8;
        self.area[ST..ST + 128].rotate_left(16 * by);
        let status = self.get16(FSW) & !0x3800 | (top as u16) << 11;
        self.put16(FSW, status);
    }

    /// Makes the summary agree with flags and masks.
    pub fn summarize(&mut self) {
        let status = self.get16(FSW) & !SUMMARY;
        let pending = status & EXCEPTIONS & !self.get16(FCW) != 0;
        self.put16(FSW, if pending { status | SUMMARY } else { status });
    }

    /// The tag word of two bits a register: valid, zero, special, empty.
    fn full_tags(&self) -> u16 {
        let top = self.top();
        (0..8).fold(0, |tags, physical| {
            let from = ST + 16 * ((physical + 8 - top) % 8);
            let number = &self.area[from..from + 10];
            let exponent = u16::from_le_bytes([number[8], number[9]]) & 0x7fff;
            let tag = if self.area[FTW] & 1 << physical == 0 {
                3
            } else if exponent == 0 && number[..8].iter().all(|&byte| byte == 0) {
                1
            } else if exponent == 0 || exponent == 0x7fff || number[7] & 0x80 == 0 {
                2
            } else {
                0
            };
            tags | tag << (2 * physical)
        })
    }

    fn set_full_tags(&mut self, tags: u16) {
        let used = (0..8).filter(|number| tags >> (2 * number) & 3 != 3);
        self.area[FTW] = used.fold(0, |bits, number| bits | 1 << number);
    }

    /// FLDCW.
    pub fn set_control(&mut self, value: u16) {
        self.put16(FCW, value & 0x1f7f | 0x40);
        self.summarize();
    }
}

impl Cpu {
    /// #MF where an exception of an earlier instruction waits.
    pub fn check_pending(&mut self) -> Step {
        if self.fpu.get16(FSW) & EXCEPTIONS & !self.fpu.get16(FCW) != 0 {
            return Err(self.raise(MF));
        }
        Ok(())
    }
}

/// FNINIT (0), FNCLEX (1), FNSTSW AX (2), FWAIT (3), EMMS (4), and what the 8087 and 80287 had: nothing (5).
pub fn control<const KIND: u8>(c: &mut Cpu, _: &Op) -> Step {
    check(c, true)?;
    if matches!(KIND, 3 | 4) {
        c.check_pending()?;
    }
    match KIND {
        0 => c.fpu.initialize(),
        1 => {
            let status = c.fpu.get16(FSW) & 0x7f00;
            c.fpu.put16(FSW, status);
        }
        2 => {
            let status = c.fpu.get16(FSW);
            c.r.put::<u16>(0, status.into());
        }
        4 => {
            c.fpu.set_top(0);
            c.fpu.area[FTW] = 0;
        }
        _ => {}
    }
    Ok(())
}

/// FNSTCW (0), FLDCW (1), FNSTSW to memory (2).
pub fn control_memory<const KIND: u8>(c: &mut Cpu, o: &Op) -> Step {
    check(c, true)?;
    let linear = c.linear(o);
    match KIND {
        0 => c.write::<u16>(linear, c.fpu.get16(FCW).into()),
        1 => {
            c.check_pending()?;
            let value = c.read::<u16>(linear)? as u16;
            c.fpu.set_control(value);
            Ok(())
        }
        _ => c.write::<u16>(linear, c.fpu.get16(FSW).into()),
    }
}

/// FNSTENV (`STORE`) and FLDENV of 14 bytes, or of 28 where `extra` is 1; with `ALL`, FNSAVE and FRSTOR. The
/// addresses of the last instruction and operand are not kept and read as zeros.
pub fn environment<const STORE: bool, const ALL: bool>(c: &mut Cpu, o: &Op) -> Step {
    check(c, true)?;
    let (linear, user) = (c.linear(o), c.user);
    let wide = o.extra == 1;
    let (step, head) = if wide { (4, 28) } else { (2, 14) };
    let length = if ALL { head + 80 } else { head };
    let mut bytes = [0_u8; 108];
    if STORE {
        let words = [c.fpu.get16(FCW), c.fpu.get16(FSW), c.fpu.full_tags()];
        for (place, value) in (0..).step_by(step).zip(words) {
            bytes[place..place + 2].copy_from_slice(&value.to_le_bytes());
            if wide {
                bytes[place + 2..place + 4].fill(0xff);
            }
        }
        for register in 0..8 {
            let from = ST + 16 * register;
            bytes[head + 10 * register..][..10].copy_from_slice(&c.fpu.area[from..from + 10]);
        }
        c.write_bytes(linear, &bytes[..length], user)?;
        if ALL {
            c.fpu.initialize();
        } else {
            let masked = c.fpu.get16(FCW) | EXCEPTIONS;
            c.fpu.set_control(masked);
        }
        return Ok(());
    }
    c.check_pending()?;
    c.read_bytes(linear, &mut bytes[..length], user)?;
    let word = |place: usize| u16::from_le_bytes([bytes[place], bytes[place + 1]]);
    let status = word(step);
    c.fpu.set_top(usize::from(status >> 11 & 7));
    c.fpu.put16(FSW, status);
    c.fpu.set_control(word(0));
    c.fpu.set_full_tags(word(2 * step));
    if ALL {
        for register in 0..8 {
            let to = ST + 16 * register;
            c.fpu.area[to..to + 10].copy_from_slice(&bytes[head + 10 * register..][..10]);
            c.fpu.area[to + 10..to + 16].fill(0);
        }
    }
    Ok(())
}

/// Kinds of [`masked_move`].
pub const MMX: u8 = 0;
pub const SSE: u8 = 1;
pub const AVX: u8 = 2;

/// MASKMOVDQU of the vector registers `dst` and `src`, VMASKMOVDQU, MASKMOVQ: bytes of the first, where the
/// second has its top bit set, go to where RDI points.
pub fn masked_move<const KIND: u8>(c: &mut Cpu, o: &Op) -> Step {
    if KIND == AVX {
        check_vex(c)?;
    } else {
        check(c, KIND == MMX)?;
    }
    if KIND == MMX {
        c.check_pending()?;
        c.fpu.set_top(0);
        c.fpu.area[FTW] = 0xff;
    }
    let place = |register: u8| (if KIND == MMX { ST } else { XMM }) + 16 * usize::from(register);
    let (data, selection) = (place(o.dst), place(o.src));
    let start = c.r.r(RDI) & crate::op::ADDRESS_MASKS[usize::from(o.address) % 3];
    let base = c.base[usize::from(o.segment & 7)];
    let length = if KIND == MMX { 8 } else { 16 };
    let selected: Vec<usize> =
        (0..length).filter(|byte| c.fpu.area[selection + byte] & 0x80 != 0).collect();
    let linear =
        |c: &Cpu, byte: usize| start.wrapping_add(byte as u64).wrapping_add(base) & c.linear_mask;
    c.check_segment(o.segment, start, length as u64, true)?;
    // All or nothing; the processor may look at the place even if nothing goes there.
    c.probe_write(linear(c, 0), 1)?;
    for byte in &selected {
        c.probe_write(linear(c, *byte), 1)?;
    }
    for byte in selected {
        c.write::<u8>(linear(c, byte), c.fpu.area[data + byte].into())?;
    }
    Ok(())
}
