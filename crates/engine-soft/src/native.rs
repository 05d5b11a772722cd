//! x87, MMX and SSE instructions, executed by the host's own processor through [`stubs`](crate::stubs).

use crate::cpu::{CR0_EM, CR0_TS, CR4_OSFXSR, Cpu, NM, Step, UD, XM};
use crate::flags::Flags;
use crate::op::Op;

/// Bytes of the FXSAVE area (Intel SDM volume 1, section 10.5.1).
pub const FXSAVE: usize = 512;
const FCW: usize = 0;
const FSW: usize = 2;
pub const MXCSR: usize = 24;
pub const XMM: usize = 160;
/// MXCSR's writable bits.
const MXCSR_MASK: u32 = 0xffff;
/// All exceptions masked.
const MXCSR_QUIET: u32 = 0x1f80;

/// x87 and SSE state as FXSAVE lays it out, with room for what a stub exchanges.
#[repr(C, align(64))]
pub struct FpuState {
    pub area: [u8; FXSAVE],
    /// The memory operand.
    operand: [u8; FXSAVE],
    /// RFLAGS after the instruction.
    flags: u64,
    host_mxcsr: u32,
}

pub const OPERAND: usize = FXSAVE;
pub const FLAGS: usize = 2 * FXSAVE;
pub const HOST_MXCSR: usize = FLAGS + 8;

impl Default for FpuState {
    fn default() -> Self {
        let mut state = Self { area: [0; FXSAVE], operand: [0; FXSAVE], flags: 0, host_mxcsr: 0 };
        state.put16(FCW, 0x40);
        state.put32(MXCSR, MXCSR_QUIET);
        state.put32(MXCSR + 4, MXCSR_MASK);
        state
    }
}

impl FpuState {
    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.area[at], self.area[at + 1]])
    }
    fn put16(&mut self, at: usize, value: u16) {
        self.area[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }
    fn put32(&mut self, at: usize, value: u32) {
        self.area[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// FNINIT.
    fn initialize(&mut self) {
        self.area[..24].fill(0);
        self.put16(FCW, 0x37f);
    }

    /// Takes a state from outside, made harmless.
    pub fn load(&mut self, area: &[u8; FXSAVE]) {
        self.area = *area;
        self.put32(MXCSR, self.get32(MXCSR) & MXCSR_MASK);
        self.put32(MXCSR + 4, MXCSR_MASK);
    }
}

/// What a stub does besides the instruction; bits of `Op::extra` above the size of the operand.
pub const READS: u32 = 1 << 16;
pub const WRITES: u32 = 1 << 17;
pub const ALIGNED: u32 = 1 << 18;
pub const X87: u32 = 1 << 19;
pub const FLOATS: u32 = 1 << 20;
pub const SETS_FLAGS: u32 = 1 << 21;

/// `#NM` or `#UD` where the guest has turned the unit off.
fn check(c: &mut Cpu, x87: bool) -> Step {
    if c.cr0 & (CR0_EM | CR0_TS) != 0 || !x87 && c.cr4 & CR4_OSFXSR == 0 {
        let undefined = !x87 && (c.cr0 & CR0_EM != 0 || c.cr4 & CR4_OSFXSR == 0);
        return Err(c.raise(if undefined { UD } else { NM }));
    }
    Ok(())
}

/// Executes the stub at `imm`.
pub fn execute(c: &mut Cpu, o: &Op) -> Step {
    let x87 = o.extra & X87 != 0;
    check(c, x87)?;
    let size = (o.extra & 0x3ff) as usize;
    let linear = c.linear(o);
    if size > 0 {
        if o.extra & ALIGNED != 0 && !linear.is_multiple_of(16) {
            return Err(c.gp());
        }
        if o.extra & WRITES != 0 {
            c.probe_write(linear, size as u64)?;
        }
        if o.extra & READS != 0 {
            if size == 8 {
                let value = c.read::<u64>(linear)?;
                c.fpu.operand[..8].copy_from_slice(&value.to_le_bytes());
            } else if size == 4 {
                let value = c.read::<u32>(linear)? as u32;
                c.fpu.operand[..4].copy_from_slice(&value.to_le_bytes());
            } else {
                let mut operand = [0; FXSAVE];
                c.read_bytes(linear, &mut operand[..size], c.user)?;
                c.fpu.operand[..size].copy_from_slice(&operand[..size]);
            }
        }
    }
    if x87 {
        run_x87(c, o);
    } else if o.extra & FLOATS != 0 {
        run_floats(c, o)?;
    } else {
        call(c, o);
    }
    if o.extra & SETS_FLAGS != 0 {
        c.flags = Flags::from_bits(c.fpu.flags);
    }
    if size > 0 && o.extra & WRITES != 0 {
        let mut operand = [0; FXSAVE];
        operand[..size].copy_from_slice(&c.fpu.operand[..size]);
        let user = c.user;
        c.write_bytes(linear, &operand[..size], user)?;
    }
    Ok(())
}

/// With every exception masked, since the host must not get a signal.
fn run_x87(c: &mut Cpu, o: &Op) {
    let control = c.fpu.get16(FCW);
    let status = c.fpu.get16(FSW);
    c.fpu.put16(FCW, control | 0x3f);
    c.fpu.put16(FSW, status & 0x7f7f);
    let mxcsr = c.fpu.get32(MXCSR);
    c.fpu.put32(MXCSR, mxcsr | MXCSR_QUIET);
    call(c, o);
    let raised = c.fpu.get32(MXCSR) & 0x3f;
    c.fpu.put32(MXCSR, mxcsr | raised);
    c.fpu.put16(FCW, control);
    let raised = c.fpu.get16(FSW);
    if raised & !control & 0x3f != 0 {
        c.fpu.put16(FSW, raised | 0x8080);
    }
    // Instruction and data pointers would be the host's.
    c.fpu.area[6..24].fill(0);
}

fn run_floats(c: &mut Cpu, o: &Op) -> Step {
    let mxcsr = c.fpu.get32(MXCSR);
    if mxcsr & MXCSR_QUIET == MXCSR_QUIET {
        call(c, o);
        return Ok(());
    }
    let area = c.fpu.area;
    let registers: [u64; 16] = std::array::from_fn(|number| c.r.r(number));
    c.fpu.put32(MXCSR, mxcsr & !0x3f | MXCSR_QUIET);
    call(c, o);
    let raised = c.fpu.get32(MXCSR) & 0x3f;
    if raised & !(mxcsr >> 7) & 0x3f != 0 {
        c.fpu.area = area;
        c.fpu.put32(MXCSR, mxcsr | raised);
        for (number, value) in registers.into_iter().enumerate() {
            c.r.set(number, value);
        }
        return Err(c.raise(XM));
    }
    c.fpu.put32(MXCSR, mxcsr | raised);
    Ok(())
}

fn call(c: &mut Cpu, o: &Op) {
    let fpu: *mut FpuState = &mut *c.fpu;
    let registers = c.r.as_mut_ptr();
    // SAFETY: `imm` is the address of a stub that `Stubs::make` wrote; stubs are only ever dropped together
    // with every decoded instruction. It accesses `fpu` and `registers`, both of which live.
    unsafe {
        let stub: extern "sysv64" fn(*mut FpuState, *mut u64) =
            std::mem::transmute::<usize, _>(o.imm as usize);
        stub(fpu, registers);
    }
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

/// FNINIT (0), FNCLEX (1), FNSTSW AX (2), FWAIT (3), EMMS (4).
pub fn control<const KIND: u8>(c: &mut Cpu, _: &Op) -> Step {
    check(c, true)?;
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
        4 => c.fpu.area[4] = 0,
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
            let value = c.read::<u16>(linear)? as u16;
            c.fpu.put16(FCW, value & 0x1f7f | 0x40);
            Ok(())
        }
        _ => c.write::<u16>(linear, c.fpu.get16(FSW).into()),
    }
}

/// FNSTENV (`STORE`) and FLDENV of 28 bytes; with `ALL`, FNSAVE and FRSTOR of 108.
pub fn environment<const STORE: bool, const ALL: bool>(c: &mut Cpu, o: &Op) -> Step {
    check(c, true)?;
    let (linear, user) = (c.linear(o), c.user);
    let length = if ALL { 108 } else { 28 };
    let mut bytes = [0_u8; 108];
    let top = usize::from(c.fpu.get16(FSW) >> 11 & 7);
    if STORE {
        for (place, value) in
            [(0, c.fpu.get16(FCW)), (4, c.fpu.get16(FSW)), (8, full_tags(&c.fpu, top))]
        {
            bytes[place..place + 2].copy_from_slice(&value.to_le_bytes());
            bytes[place + 2..place + 4].fill(0xff);
        }
        for register in 0..8 {
            let from = 32 + 16 * register;
            bytes[28 + 10 * register..][..10].copy_from_slice(&c.fpu.area[from..from + 10]);
        }
        c.write_bytes(linear, &bytes[..length], user)?;
        if ALL {
            c.fpu.initialize();
        } else {
            let masked = c.fpu.get16(FCW) | 0x3f;
            c.fpu.put16(FCW, masked);
        }
        return Ok(());
    }
    c.read_bytes(linear, &mut bytes[..length], user)?;
    let word = |place: usize| u16::from_le_bytes([bytes[place], bytes[place + 1]]);
    c.fpu.put16(FCW, word(0) & 0x1f7f | 0x40);
    c.fpu.put16(FSW, word(4));
    let tags = word(8);
    let used = (0..8).filter(|number| tags >> (2 * number) & 3 != 3);
    c.fpu.area[4] = used.fold(0, |bits, number| bits | 1 << number);
    if ALL {
        for register in 0..8 {
            let to = 32 + 16 * register;
            c.fpu.area[to..to + 10].copy_from_slice(&bytes[28 + 10 * register..][..10]);
        }
    }
    Ok(())
}

/// The tag word of two bits a register: valid, zero, special, empty.
fn full_tags(fpu: &FpuState, top: usize) -> u16 {
    (0..8).fold(0, |tags, physical| {
        let from = 32 + 16 * ((physical + 8 - top) % 8);
        let number = &fpu.area[from..from + 10];
        let exponent = u16::from_le_bytes([number[8], number[9]]) & 0x7fff;
        let tag = if fpu.area[4] & 1 << physical == 0 {
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
