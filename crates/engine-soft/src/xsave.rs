//! FXSAVE, XSAVE and their opposites, and MXCSR (Intel SDM volume 1, section 10.5 and chapter 13).

use crate::cpu::{CR0_EM, CR0_TS, CR4_OSXSAVE, Cpu, Mode, NM, RAX, RCX, RDX, Step, UD};
use crate::native::{FXSAVE, FpuState, MXCSR, MXCSR_MASK, XMM, check};
use crate::op::Op;

/// Components of the state.
const X87: u64 = 1;
const SSE: u64 = 2;
/// All that there are.
pub const COMPONENTS: u64 = X87 | SSE;
/// Bytes of the legacy region and the header.
pub const XSAVE: usize = 576;
/// Offset of the header, which starts with the components that are there.
pub const XSTATE_BV: usize = 512;
/// What software may keep in the legacy region.
const UNUSED: std::ops::Range<usize> = 416..512;

/// FXSAVE (`STORE`) and FXRSTOR.
pub fn fxsave<const STORE: bool>(c: &mut Cpu, o: &Op) -> Step {
    if c.cr0 & (CR0_EM | CR0_TS) != 0 {
        return Err(c.raise(NM));
    }
    let linear = c.linear(o);
    if !linear.is_multiple_of(16) {
        return Err(c.gp());
    }
    // The last 96 bytes belong to the software.
    let (mut bytes, user) = ([0; 416], c.user);
    if STORE {
        bytes.copy_from_slice(&c.fpu.area[..416]);
        return c.write_bytes(linear, &bytes, user);
    }
    c.read_bytes(linear, &mut bytes, user)?;
    let mxcsr =
        u32::from_le_bytes([bytes[MXCSR], bytes[MXCSR + 1], bytes[MXCSR + 2], bytes[MXCSR + 3]]);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(c.gp());
    }
    let mut area = [0; FXSAVE];
    area[..416].copy_from_slice(&bytes);
    c.fpu.load(&area);
    Ok(())
}

/// LDMXCSR and STMXCSR (`STORE`).
pub fn mxcsr<const STORE: bool>(c: &mut Cpu, o: &Op) -> Step {
    check(c, false)?;
    let linear = c.linear(o);
    if STORE {
        let value = c.fpu.get32(MXCSR);
        return c.write::<u32>(linear, value.into());
    }
    let value = c.read::<u32>(linear)? as u32;
    if value & !MXCSR_MASK != 0 {
        return Err(c.gp());
    }
    c.fpu.put32(MXCSR, value);
    Ok(())
}

/// XGETBV.
pub fn get_control(c: &mut Cpu, _: &Op) -> Step {
    check_enabled(c)?;
    if c.r.r(RCX) as u32 != 0 {
        return Err(c.gp());
    }
    let value = c.xcr0;
    c.r.set(RAX, value & 0xffff_ffff);
    c.r.set(RDX, value >> 32);
    Ok(())
}

/// XSETBV.
pub fn set_control(c: &mut Cpu, _: &Op) -> Step {
    check_enabled(c)?;
    let value = c.r.r(RAX) & 0xffff_ffff | c.r.r(RDX) << 32;
    let possible = c.cpl == 0 && c.r.r(RCX) as u32 == 0 && allowed(value);
    if !possible {
        return Err(c.gp());
    }
    c.xcr0 = value;
    Ok(())
}

/// What XCR0 may be.
pub fn allowed(xcr0: u64) -> bool {
    xcr0 & X87 != 0 && xcr0 & !COMPONENTS == 0
}

fn check_enabled(c: &mut Cpu) -> Step {
    if c.cr4 & CR4_OSXSAVE == 0 { Err(c.raise(UD)) } else { Ok(()) }
}

/// XSAVE (`STORE`) and XRSTOR, in the standard format.
pub fn xsave<const STORE: bool>(c: &mut Cpu, o: &Op) -> Step {
    check_enabled(c)?;
    if c.cr0 & CR0_TS != 0 {
        return Err(c.raise(NM));
    }
    let linear = c.linear(o);
    if !linear.is_multiple_of(64) {
        return Err(c.gp());
    }
    let wanted = (c.r.r(RAX) & 0xffff_ffff | c.r.r(RDX) << 32) & c.xcr0;
    if STORE { save(c, linear, wanted) } else { restore(c, linear, wanted) }
}

fn save(c: &mut Cpu, linear: u64, wanted: u64) -> Step {
    let user = c.user;
    let mut bytes = [0; XSAVE];
    // Nothing is written unless all can be; what is not asked for stays as it is.
    c.probe_write(linear, XSAVE as u64)?;
    c.read_bytes(linear, &mut bytes, user)?;
    for range in parts(wanted, c.mode) {
        bytes[range.clone()].copy_from_slice(&c.fpu.area[range]);
    }
    let present = crate::cpu::number(&bytes[XSTATE_BV..XSTATE_BV + 8]) & !wanted | wanted;
    c.write_bytes(linear, &bytes[..UNUSED.start], user)?;
    c.write::<u64>(linear.wrapping_add(XSTATE_BV as u64) & c.linear_mask, present)
}

fn restore(c: &mut Cpu, linear: u64, wanted: u64) -> Step {
    let mut bytes = [0; XSAVE];
    c.read_bytes(linear, &mut bytes, c.user)?;
    let present = crate::cpu::number(&bytes[XSTATE_BV..XSTATE_BV + 8]);
    let control = crate::cpu::number(&bytes[MXCSR..MXCSR + 4]) as u32;
    let reserved = bytes[XSTATE_BV + 8..XSTATE_BV + 24].iter().any(|byte| *byte != 0);
    if present & !c.xcr0 != 0 || reserved || wanted & SSE != 0 && control & !MXCSR_MASK != 0 {
        return Err(c.gp());
    }
    let mut area = c.fpu.area;
    let fresh = FpuState::default();
    for component in [X87, SSE].into_iter().filter(|component| wanted & component != 0) {
        let source = if present & component != 0 { &bytes[..FXSAVE] } else { &fresh.area[..] };
        for range in parts(component, c.mode) {
            area[range.clone()].copy_from_slice(&source[range]);
        }
    }
    if wanted & SSE != 0 {
        area[MXCSR..MXCSR + 4].copy_from_slice(&control.to_le_bytes());
    }
    if wanted & X87 != 0 && present & X87 == 0 {
        area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    }
    c.fpu.load(&area);
    let control = c.fpu.get16(0);
    if wanted & X87 != 0 {
        c.fpu.set_control(control);
    }
    Ok(())
}

/// Where components are in the legacy region; XMM8 to XMM15 belong to 64-bit mode.
fn parts(components: u64, mode: Mode) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = if mode == Mode::Bits64 { UNUSED.start } else { XMM + 8 * 16 };
    let x87 = [0..MXCSR, 32..XMM].into_iter().filter(move |_| components & X87 != 0);
    let sse = [MXCSR..32, XMM..end].into_iter().filter(move |_| components & SSE != 0);
    x87.chain(sse)
}
