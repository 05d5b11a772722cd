//! FXSAVE, XSAVE and their opposites, and MXCSR (Intel SDM volume 1, section 10.5 and chapter 13).

use crate::cpu::{CR0_EM, CR0_TS, CR4_OSXSAVE, Cpu, Mode, NM, RAX, RCX, RDX, Step, Stop, UD};
use crate::features::v3;
use crate::native::{FXSAVE, FpuState, MXCSR, MXCSR_MASK, UPPERS, XMM, check, check_vex};
use crate::op::Op;

/// Components of the state.
const X87: u64 = 1;
const SSE: u64 = 2;
/// The upper halves of the vector registers.
pub const AVX: u64 = 4;
/// Bytes of the legacy region and the header.
pub const XSAVE: usize = 576;
/// Offset of the header, which starts with the components that are there.
pub const XSTATE_BV: usize = 512;
/// In the header: how a compacted area is laid out.
const XCOMP_BV: usize = 520;
/// The area is compacted. With three components that changes nothing but what must be in the header.
const COMPACTED: u64 = 1 << 63;
/// Bytes with all components.
const ALL: usize = XSAVE + UPPERS;
/// What software may keep in the legacy region.
const UNUSED: std::ops::Range<usize> = 416..512;

/// Components that there are.
pub fn components() -> u64 {
    if v3() { X87 | SSE | AVX } else { X87 | SSE }
}

/// Bytes of an area with these components, in either format.
pub fn area_size(components: u64) -> usize {
    if components & AVX != 0 { ALL } else { XSAVE }
}

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

/// LDMXCSR and STMXCSR (`STORE`), or with a `VEX` prefix.
pub fn mxcsr<const STORE: bool, const VEX: bool>(c: &mut Cpu, o: &Op) -> Step {
    if VEX {
        check_vex(c)?;
    } else {
        check(c, false)?;
    }
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

/// XGETBV: XCR0, or which of its components are not as after a reset.
pub fn get_control(c: &mut Cpu, _: &Op) -> Step {
    check_enabled(c)?;
    let value = match c.r.r(RCX) as u32 {
        0 => c.xcr0,
        1 => c.xcr0 & in_use(&c.fpu),
        _ => return Err(c.gp()),
    };
    c.r.set(RAX, value & 0xffff_ffff);
    c.r.set(RDX, value >> 32);
    Ok(())
}

/// XSETBV.
pub fn set_control(c: &mut Cpu, o: &Op) -> Step {
    check_enabled(c)?;
    let value = c.r.r(RAX) & 0xffff_ffff | c.r.r(RDX) << 32;
    let possible = c.cpl == 0 && c.r.r(RCX) as u32 == 0 && allowed(value);
    if !possible {
        return Err(c.gp());
    }
    c.xcr0 = value;
    // Code that is being executed has looked at it.
    c.rip = o.next;
    Err(Stop::Branch)
}

/// What XCR0 may be.
pub fn allowed(xcr0: u64) -> bool {
    xcr0 & X87 != 0 && xcr0 & !components() == 0 && (xcr0 & AVX == 0 || xcr0 & SSE != 0)
}

/// Components that are not as after a reset; x87 and SSE are taken for such.
fn in_use(fpu: &FpuState) -> u64 {
    let uppers = fpu.uppers().iter().any(|byte| *byte != 0);
    X87 | SSE | if uppers { AVX } else { 0 }
}

/// All state in the standard format.
pub fn whole(fpu: &FpuState) -> Vec<u8> {
    let mut bytes = vec![0; area_size(components())];
    bytes[..FXSAVE].copy_from_slice(&fpu.area);
    bytes[XSTATE_BV] = in_use(fpu) as u8;
    if let Some(place) = bytes.get_mut(XSAVE..ALL) {
        place.copy_from_slice(&fpu.uppers());
    }
    bytes
}

/// The state in an area of the standard format that has a header at least; a component that is not there is
/// as after a reset.
pub fn from_whole(bytes: &[u8]) -> FpuState {
    let mut area = [0; FXSAVE];
    area.copy_from_slice(&bytes[..FXSAVE]);
    let mut fpu = FpuState::default();
    let present = u64::from(bytes[XSTATE_BV]);
    if present & X87 == 0 {
        area[..24].fill(0);
        area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[32..XMM].copy_from_slice(&fpu.area[32..XMM]);
    }
    if present & SSE == 0 {
        area[XMM..UNUSED.start].fill(0);
    }
    fpu.load(&area);
    let uppers = bytes.get(XSAVE..ALL).and_then(|bytes| bytes.try_into().ok());
    if let Some(uppers) = uppers.filter(|_| present & components() & AVX != 0) {
        fpu.set_uppers(uppers);
    }
    fpu
}

fn check_enabled(c: &mut Cpu) -> Step {
    if c.cr4 & CR4_OSXSAVE == 0 { Err(c.raise(UD)) } else { Ok(()) }
}

/// Kinds of [`xsave`].
pub const PLAIN: u8 = 0;
pub const OPTIMIZED: u8 = 1;
pub const COMPACT: u8 = 2;
pub const RESTORE: u8 = 3;

/// XSAVE, XSAVEOPT, XSAVEC and XRSTOR.
pub fn xsave<const KIND: u8>(c: &mut Cpu, o: &Op) -> Step {
    check_enabled(c)?;
    if c.cr0 & CR0_TS != 0 {
        return Err(c.raise(NM));
    }
    let linear = c.linear(o);
    if !linear.is_multiple_of(64) {
        return Err(c.gp());
    }
    let wanted = (c.r.r(RAX) & 0xffff_ffff | c.r.r(RDX) << 32) & c.xcr0;
    if KIND == RESTORE { restore(c, linear, wanted) } else { save(c, linear, wanted, KIND) }
}

fn save(c: &mut Cpu, linear: u64, wanted: u64, kind: u8) -> Step {
    let user = c.user;
    let used = wanted & in_use(&c.fpu);
    // Nothing is written unless all can be; what is not asked for stays as it is.
    let size = area_size(wanted);
    c.probe_write(linear, size as u64)?;
    let mut bytes = [0; XSAVE];
    c.read_bytes(linear, &mut bytes, user)?;
    for range in parts(wanted, c.mode) {
        bytes[range.clone()].copy_from_slice(&c.fpu.area[range]);
    }
    if kind != COMPACT && wanted & AVX != 0 {
        bytes[MXCSR..MXCSR + 8].copy_from_slice(&c.fpu.area[MXCSR..MXCSR + 8]);
    }
    c.write_bytes(linear, &bytes[..UNUSED.start], user)?;
    let at = |offset: usize, c: &Cpu| linear.wrapping_add(offset as u64) & c.linear_mask;
    if kind == COMPACT {
        c.write::<u64>(at(XSTATE_BV, c), used)?;
        c.write::<u64>(at(XCOMP_BV, c), wanted | COMPACTED)?;
    } else {
        let before = crate::cpu::number(&bytes[XSTATE_BV..XSTATE_BV + 8]);
        c.write::<u64>(at(XSTATE_BV, c), before & !wanted | used)?;
    }
    // The two others leave out what is as after a reset.
    if used & AVX != 0 || kind == PLAIN && wanted & AVX != 0 {
        let uppers = c.fpu.uppers();
        c.write_bytes(at(XSAVE, c), &uppers[..uppers_in(c.mode)], user)?;
    }
    Ok(())
}

fn restore(c: &mut Cpu, linear: u64, wanted: u64) -> Step {
    let mut bytes = [0; XSAVE];
    c.read_bytes(linear, &mut bytes, c.user)?;
    let field = |at: usize| crate::cpu::number(&bytes[at..at + 8]);
    let (present, layout) = (field(XSTATE_BV), field(XCOMP_BV));
    let control = crate::cpu::number(&bytes[MXCSR..MXCSR + 4]) as u32;
    let compacted = layout & COMPACTED != 0;
    let zero = if compacted { 528..XSAVE } else { XCOMP_BV..536 };
    let refused = if compacted {
        layout & !(c.xcr0 | COMPACTED) != 0 || present & !layout != 0
    } else {
        present & !c.xcr0 != 0
    };
    // In a compacted area MXCSR is part of SSE's component.
    let loads = if compacted { wanted & present & SSE } else { wanted & (SSE | AVX) } != 0;
    if refused || bytes[zero].iter().any(|byte| *byte != 0) || loads && control & !MXCSR_MASK != 0 {
        return Err(c.gp());
    }
    let mut uppers = c.fpu.uppers();
    let length = uppers_in(c.mode);
    if wanted & AVX != 0 {
        uppers[..length].fill(0);
        if present & AVX != 0 {
            let at = linear.wrapping_add(XSAVE as u64) & c.linear_mask;
            c.read_bytes(at, &mut uppers[..length], c.user)?;
        }
        c.fpu.set_uppers(&uppers);
    }
    let mut area = c.fpu.area;
    let fresh = FpuState::default();
    for component in [X87, SSE].into_iter().filter(|component| wanted & component != 0) {
        let source = if present & component != 0 { &bytes[..FXSAVE] } else { &fresh.area[..] };
        for range in parts(component, c.mode) {
            area[range.clone()].copy_from_slice(&source[range]);
        }
    }
    if loads {
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

/// Registers above the eighth belong to 64-bit mode.
fn uppers_in(mode: Mode) -> usize {
    if mode == Mode::Bits64 { UPPERS } else { UPPERS / 2 }
}

/// Where components are in the legacy region; XMM8 to XMM15 belong to 64-bit mode.
fn parts(components: u64, mode: Mode) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = if mode == Mode::Bits64 { UNUSED.start } else { XMM + 8 * 16 };
    let x87 = [0..MXCSR, 32..XMM].into_iter().filter(move |_| components & X87 != 0);
    let sse = [MXCSR..32, XMM..end].into_iter().filter(move |_| components & SSE != 0);
    x87.chain(sse)
}
