//! A decoded instruction, and what executing most of them needs.

use crate::cpu::{Cpu, Mode, RSP, SS, Step};
use crate::host::{Regs, Word};

/// Executes an instruction.
pub type Run = fn(&mut Cpu, &Op) -> Step;

/// A decoded instruction. The meaning of `imm`, `dst` and `src` is that of the function in `run`.
#[derive(Clone, Copy)]
pub struct Op {
    pub run: Run,
    pub imm: u64,
    pub displacement: u64,
    /// Instruction pointer behind it.
    pub next: u64,
    /// Offsets into `Regs`.
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    /// Shift of the index.
    pub scale: u8,
    /// Index of `Cpu::base`.
    pub segment: u8,
    /// Address size: 0 for 64 bits, 1 for 32, 2 for 16.
    pub address: u8,
    /// Bytes of the instruction.
    pub length: u8,
    pub extra: u32,
}

/// Masks of the three address sizes.
pub const ADDRESS_MASKS: [u64; 3] = [u64::MAX, 0xffff_ffff, 0xffff];

impl Op {
    /// Nothing but a function.
    pub fn new(run: Run, next: u64, length: u8) -> Self {
        Self {
            run,
            imm: 0,
            displacement: 0,
            next,
            dst: 0,
            src: 0,
            base: Regs::NONE,
            index: Regs::NONE,
            scale: 0,
            segment: crate::cpu::FLAT as u8,
            address: 0,
            length,
            extra: 0,
        }
    }
}

impl Cpu {
    /// Offset of the memory operand in its segment.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        let base = self.r.get::<u64>(op.base);
        let index = self.r.get::<u64>(op.index) << op.scale;
        let sum = base.wrapping_add(index).wrapping_add(op.displacement);
        if op.address == 0 { sum } else { sum & ADDRESS_MASKS[usize::from(op.address & 3) % 3] }
    }

    /// Linear address of the memory operand.
    #[inline(always)]
    pub fn linear(&self, op: &Op) -> u64 {
        self.offset(op).wrapping_add(self.base[usize::from(op.segment & 7)]) & self.linear_mask
    }

    /// Linear address of the top of the stack at `pointer`.
    #[inline(always)]
    pub fn stack(&self, pointer: u64) -> u64 {
        let base = if self.mode == Mode::Bits64 { 0 } else { self.base[SS] };
        (pointer & self.stack_mask).wrapping_add(base) & self.linear_mask
    }

    /// Sets as many bits of RSP as the stack has.
    #[inline(always)]
    pub fn set_sp(&mut self, value: u64) {
        let old = self.r.r(RSP);
        self.r.set(RSP, old & !self.stack_mask | value & self.stack_mask);
    }

    /// PUSH.
    #[inline(always)]
    pub fn push<W: Word>(&mut self, value: u64) -> Step {
        let pointer = self.r.r(RSP).wrapping_sub(W::BYTES);
        self.write::<W>(self.stack(pointer), value)?;
        self.set_sp(pointer);
        Ok(())
    }

    /// POP.
    #[inline(always)]
    pub fn pop<W: Word>(&mut self) -> Step<u64> {
        let pointer = self.r.r(RSP);
        let value = self.read::<W>(self.stack(pointer))?;
        self.set_sp(pointer.wrapping_add(W::BYTES));
        Ok(value)
    }

    /// PUSH of 2, 4 or 8 bytes.
    pub fn push_sized(&mut self, bytes: u8, value: u64) -> Step {
        match bytes {
            2 => self.push::<u16>(value),
            4 => self.push::<u32>(value),
            _ => self.push::<u64>(value),
        }
    }

    /// POP of 2, 4 or 8 bytes.
    pub fn pop_sized(&mut self, bytes: u8) -> Step<u64> {
        match bytes {
            2 => self.pop::<u16>(),
            4 => self.pop::<u32>(),
            _ => self.pop::<u64>(),
        }
    }
}
