//! FXSAVE and FXRSTOR, and MXCSR (Intel SDM volume 1, section 10.5).

use crate::cpu::{CR0_EM, CR0_TS, Cpu, NM, Step};
use crate::native::{FXSAVE, MXCSR, MXCSR_MASK, check};
use crate::op::Op;

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
