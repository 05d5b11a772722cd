//! x87, MMX, SSE and AVX instructions, executed by the host's own processor through [`stubs`](crate::stubs).

use std::mem::offset_of;

use crate::cpu::{CR0_EM, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, Cpu, NM, Step, UD, XM};
use crate::flags::Flags;
use crate::op::Op;

/// Bytes of the FXSAVE area (Intel SDM volume 1, section 10.5.1).
pub const FXSAVE: usize = 512;
pub const FCW: usize = 0;
pub const FSW: usize = 2;
pub const MXCSR: usize = 24;
pub const XMM: usize = 160;
/// Bytes of the upper halves of the vector registers, 16 each.
pub const UPPERS: usize = 256;
/// MXCSR's writable bits.
pub const MXCSR_MASK: u32 = 0xffff;
/// All exceptions masked.
const MXCSR_QUIET: u32 = 0x1f80;

/// x87 and SSE state as FXSAVE lays it out, upper halves of vector registers, and room for what a stub
/// exchanges.
#[repr(C, align(64))]
pub struct FpuState {
    pub area: [u8; FXSAVE],
    /// The memory operand.
    operand: [u8; FXSAVE],
    upper: [u8; UPPERS],
    /// RFLAGS after the instruction.
    flags: u64,
    host_mxcsr: u32,
    /// Every upper half is zero, whatever `upper` holds.
    zero_uppers: u32,
}

pub const OPERAND: usize = offset_of!(FpuState, operand);
pub const UPPER: usize = offset_of!(FpuState, upper);
pub const FLAGS: usize = offset_of!(FpuState, flags);
pub const HOST_MXCSR: usize = offset_of!(FpuState, host_mxcsr);
pub const ZERO_UPPERS: usize = offset_of!(FpuState, zero_uppers);

impl Default for FpuState {
    fn default() -> Self {
        let mut state = Self {
            area: [0; FXSAVE],
            operand: [0; FXSAVE],
            upper: [0; UPPERS],
            flags: 0,
            host_mxcsr: 0,
            zero_uppers: 1,
        };
        state.put16(FCW, 0x40);
        state.put32(MXCSR, MXCSR_QUIET);
        state.put32(MXCSR + 4, MXCSR_MASK);
        state
    }
}

impl FpuState {
    pub fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.area[at], self.area[at + 1]])
    }
    pub fn put16(&mut self, at: usize, value: u16) {
        self.area[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    pub fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }
    pub fn put32(&mut self, at: usize, value: u32) {
        self.area[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Takes a state from outside, made harmless.
    pub fn load(&mut self, area: &[u8; FXSAVE]) {
        self.area = *area;
        self.put32(MXCSR, self.get32(MXCSR) & MXCSR_MASK);
        self.put32(MXCSR + 4, MXCSR_MASK);
        self.summarize();
    }

    /// The upper halves of the vector registers.
    pub fn uppers(&self) -> [u8; UPPERS] {
        if self.zero_uppers != 0 { [0; UPPERS] } else { self.upper }
    }

    /// See [`FpuState::uppers`].
    pub fn set_uppers(&mut self, uppers: &[u8; UPPERS]) {
        (self.upper, self.zero_uppers) = (*uppers, u32::from(*uppers == [0; UPPERS]));
    }

    /// Every upper half becomes zero.
    pub fn clear_uppers(&mut self) {
        self.zero_uppers = 1;
    }

    /// `upper` holds what it should, for a stub.
    pub fn settle_uppers(&mut self) {
        if std::mem::take(&mut self.zero_uppers) != 0 {
            self.upper = [0; UPPERS];
        }
    }

    /// A vector register, whole.
    pub fn vector(&self, number: usize) -> [u8; 32] {
        let mut value = [0; 32];
        let (low, high) = (XMM + 16 * number, 16 * number);
        value[..16].copy_from_slice(&self.area[low..low + 16]);
        if self.zero_uppers == 0 {
            value[16..].copy_from_slice(&self.upper[high..high + 16]);
        }
        value
    }

    /// See [`FpuState::vector`].
    pub fn set_vector(&mut self, number: usize, value: &[u8; 32]) {
        self.settle_uppers();
        let (low, high) = (XMM + 16 * number, 16 * number);
        self.area[low..low + 16].copy_from_slice(&value[..16]);
        self.upper[high..high + 16].copy_from_slice(&value[16..]);
    }
}

/// What a stub does besides the instruction; bits of `Op::extra` above the size of the operand.
pub const READS: u32 = 1 << 16;
pub const WRITES: u32 = 1 << 17;
pub const ALIGNED: u32 = 1 << 18;
pub const X87: u32 = 1 << 19;
pub const FLOATS: u32 = 1 << 20;
pub const SETS_FLAGS: u32 = 1 << 21;
pub const READS_FLAGS: u32 = 1 << 22;
pub const VEX: u32 = 1 << 23;

/// Invalid operation, denormal operand and division by zero in MXCSR.
const BEFORE_COMPUTATION: u32 = 7;

/// `#NM` or `#UD` where the guest has turned the unit off.
pub fn check(c: &mut Cpu, x87: bool) -> Step {
    if c.cr0 & (CR0_EM | CR0_TS) != 0 || !x87 && c.cr4 & CR4_OSFXSR == 0 {
        let undefined = !x87 && (c.cr0 & CR0_EM != 0 || c.cr4 & CR4_OSFXSR == 0);
        return Err(c.raise(if undefined { UD } else { NM }));
    }
    Ok(())
}

/// XCR0's components that an instruction with a VEX prefix needs.
pub const VECTORS: u64 = 6;

/// The same for vector instructions with a VEX prefix (Intel SDM volume 2, section 2.4).
pub fn check_vex(c: &mut Cpu) -> Step {
    if c.cr4 & CR4_OSXSAVE == 0 || c.xcr0 & VECTORS != VECTORS || !c.protected() {
        return Err(c.raise(UD));
    }
    if c.cr0 & CR0_TS != 0 {
        return Err(c.raise(NM));
    }
    Ok(())
}

/// Executes the stub at `imm`.
pub fn execute(c: &mut Cpu, o: &Op) -> Step {
    let x87 = o.extra & X87 != 0;
    if o.extra & VEX != 0 {
        check_vex(c)?;
        c.fpu.settle_uppers();
    } else {
        check(c, x87)?;
    }
    if x87 {
        c.check_pending()?;
    }
    let size = (o.extra & 0x3ff) as usize;
    let linear = c.linear(o);
    if size > 0 {
        if o.extra & ALIGNED != 0 && !linear.is_multiple_of(size as u64) {
            return Err(c.gp());
        }
        let mut reads = o.extra & READS != 0;
        if o.extra & WRITES != 0 {
            c.probe_write(linear, size as u64)?;
            // An unmasked exception leaves the memory as it is.
            reads |= x87 && c.fpu.get16(FCW) & 0x3f != 0x3f;
        }
        if reads {
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
    if o.extra & READS_FLAGS != 0 {
        c.fpu.flags = c.flags.bits();
    }
    if o.extra & FLOATS != 0 {
        run_floats(c, o, x87)?;
    } else if x87 {
        run_x87(c, o);
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

/// The guest's masks are in force: an x87 exception would come with the next x87 instruction that waits, and
/// the stub has none.
fn run_x87(c: &mut Cpu, o: &Op) {
    let mxcsr = c.fpu.get32(MXCSR);
    c.fpu.put32(MXCSR, mxcsr | MXCSR_QUIET);
    call(c, o);
    let raised = c.fpu.get32(MXCSR) & 0x3f;
    c.fpu.put32(MXCSR, mxcsr | raised);
    // Instruction and data pointers would be the host's.
    c.fpu.area[6..24].fill(0);
}

/// SSE exceptions come before the instruction has done anything: all are masked, and if one is raised that
/// the guest has not masked, nothing has happened but for the flags (Intel SDM volume 1, section 11.5.2).
fn run_floats(c: &mut Cpu, o: &Op, x87: bool) -> Step {
    let run = |c: &mut Cpu| if x87 { run_x87(c, o) } else { call(c, o) };
    let mxcsr = c.fpu.get32(MXCSR);
    if mxcsr & MXCSR_QUIET == MXCSR_QUIET {
        run(c);
        return Ok(());
    }
    let (area, upper) = (c.fpu.area, c.fpu.upper);
    let registers: [u64; 16] = std::array::from_fn(|number| c.r.r(number));
    c.fpu.put32(MXCSR, mxcsr & !0x3f | MXCSR_QUIET);
    run(c);
    let mut raised = c.fpu.get32(MXCSR) & 0x3f;
    let unmasked = raised & !(mxcsr >> 7);
    if unmasked & 0x3f != 0 {
        if unmasked & BEFORE_COMPUTATION != 0 {
            raised &= BEFORE_COMPUTATION;
        }
        (c.fpu.area, c.fpu.upper) = (area, upper);
        c.fpu.put32(MXCSR, mxcsr | raised);
        for (number, value) in registers.into_iter().enumerate() {
            c.r.set(number, value);
        }
        // An operating system that does not know #XM gets #UD.
        return Err(c.raise(if c.cr4 & CR4_OSXMMEXCPT != 0 { XM } else { UD }));
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
