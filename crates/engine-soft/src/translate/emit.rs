//! A small assembler: host instructions as bytes.

use crate::features::v3;
use crate::vex::Vex;

/// Host registers by number.
pub const RAX: u8 = 0;
pub const RDX: u8 = 2;
pub const RBX: u8 = 3;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RSI: u8 = 6;
pub const RDI: u8 = 7;

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    pub base: Option<u8>,
    /// Register (not RSP) and shift.
    pub index: Option<(u8, u8)>,
    pub displacement: i32,
}

impl Mem {
    /// `[base + displacement]`.
    pub fn at(base: u8, displacement: i32) -> Self {
        Self { base: Some(base), index: None, displacement }
    }
}

/// Register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rm {
    Reg(u8),
    Mem(Mem),
}

/// What stands around an opcode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefixes {
    pub lock: bool,
    pub word: bool,
    /// F2 or F3.
    pub repeat: Option<u8>,
    pub wide: bool,
    /// A REX prefix even where no bit of it is set.
    pub rex: bool,
}

/// A jump whose target is not known yet: where its 32-bit displacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole(usize);

/// Condition codes.
pub const NOT_BELOW: u8 = 3;
pub const EQUAL: u8 = 4;
pub const NOT_EQUAL: u8 = 5;
pub const ABOVE: u8 = 7;

/// Code that will be at `base`.
pub struct Assembler {
    pub code: Vec<u8>,
    /// Registers by number that were operands, though not parts of addresses, since this was 0: others hold what they
    /// held, whatever [`Assembler::bytes`] added.
    pub named: u16,
    base: u64,
}

impl Assembler {
    /// Nothing yet.
    pub fn new(base: u64) -> Self {
        Self { code: Vec::with_capacity(1024), named: 0, base }
    }

    /// The same in a buffer that was used before.
    pub fn reusing(mut code: Vec<u8>, base: u64) -> Self {
        code.clear();
        Self { code, named: 0, base }
    }

    /// Where the next byte will be.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction with ModRM. `opcode` has its escape bytes.
    pub fn instruction(&mut self, prefixes: Prefixes, opcode: &[u8], reg: u8, rm: Rm) {
        self.name(reg, rm);
        if prefixes.lock {
            self.code.push(0xf0);
        }
        if prefixes.word {
            self.code.push(0x66);
        }
        self.code.extend(prefixes.repeat);
        let (index, base) = match rm {
            Rm::Reg(number) => (0, number),
            Rm::Mem(mem) => (mem.index.map_or(0, |(number, _)| number), mem.base.unwrap_or(0)),
        };
        let rex = u8::from(prefixes.wide) << 3
            | (reg >> 3 & 1) << 2
            | (index >> 3 & 1) << 1
            | base >> 3 & 1;
        if rex != 0 || prefixes.rex {
            self.code.push(0x40 | rex);
        }
        self.bytes(opcode);
        self.modrm(reg & 7, rm);
    }

    /// An instruction with a VEX prefix.
    pub fn vex(&mut self, vex: Vex, opcode: u8, reg: u8, rm: Rm) {
        self.name(reg, rm);
        let (index, base) = match rm {
            Rm::Reg(number) => (0, number),
            Rm::Mem(mem) => (mem.index.map_or(0, |(number, _)| number), mem.base.unwrap_or(0)),
        };
        let rex = (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | base >> 3 & 1;
        let (bytes, length) = vex.bytes(rex);
        self.bytes(&bytes[..length]);
        self.code.push(opcode);
        self.modrm(reg & 7, rm);
    }

    fn name(&mut self, reg: u8, rm: Rm) {
        self.named |= 1 << reg;
        if let Rm::Reg(number) = rm {
            self.named |= 1 << number;
        }
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = reg << 3;
        let mem = match rm {
            Rm::Reg(number) => return self.code.push(0xc0 | reg | number & 7),
            Rm::Mem(mem) => mem,
        };
        let displacement = mem.displacement.to_le_bytes();
        let Some(base) = mem.base else {
            // No base: SIB with base 5 and mod 0.
            let (index, shift) = mem.index.map_or((4, 0), |(number, shift)| (number & 7, shift));
            self.bytes(&[reg | 4, shift << 6 | index << 3 | 5]);
            return self.bytes(&displacement);
        };
        let short = i8::try_from(mem.displacement);
        let mode = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if mem.index.is_some() || base & 7 == 4 {
            let (index, shift) = mem.index.map_or((4, 0), |(number, shift)| (number & 7, shift));
            self.bytes(&[mode | reg | 4, shift << 6 | index << 3 | base & 7]);
        } else {
            self.code.push(mode | reg | base & 7);
        }
        match mode {
            0x40 => self.code.push(displacement[0]),
            0x80 => self.bytes(&displacement),
            _ => {}
        }
    }

    /// 64 bits: `opcode reg, rm`.
    pub fn wide(&mut self, opcode: u8, reg: u8, rm: Rm) {
        self.instruction(Prefixes { wide: true, ..Prefixes::default() }, &[opcode], reg, rm);
    }

    /// 32 bits.
    pub fn narrow(&mut self, opcode: u8, reg: u8, rm: Rm) {
        self.instruction(Prefixes::default(), &[opcode], reg, rm);
    }

    /// `mov reg, [mem]`.
    pub fn load(&mut self, reg: u8, mem: Mem) {
        self.wide(0x8b, reg, Rm::Mem(mem));
    }

    /// `mov [mem], reg`.
    pub fn store(&mut self, mem: Mem, reg: u8) {
        self.wide(0x89, reg, Rm::Mem(mem));
    }

    /// `mov to, from`.
    pub fn copy(&mut self, to: u8, from: u8) {
        if to != from {
            self.wide(0x8b, to, Rm::Reg(from));
        }
    }

    /// The 64 bits of `from` shifted right by `by` to `to`, with what was shifted out at the upper end or without;
    /// RFLAGS may change.
    pub fn shifted(&mut self, to: u8, from: u8, by: u8) {
        if v3() {
            // rorx
            let vex = Vex { map: 3, prefix: 3, wide: true, long: false, second: 0 };
            self.vex(vex, 0xf0, to, Rm::Reg(from));
        } else {
            self.copy(to, from);
            self.wide(0xc1, 5, Rm::Reg(to)); // shr
        }
        self.bytes(&[by]);
    }

    /// `lea reg, [mem]`.
    pub fn lea(&mut self, reg: u8, mem: Mem) {
        self.wide(0x8d, reg, Rm::Mem(mem));
    }

    /// A constant, as short as it can be without touching flags.
    pub fn constant(&mut self, reg: u8, value: u64) {
        self.named |= 1 << reg;
        if let Ok(low) = u32::try_from(value) {
            if reg >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | reg & 7);
            self.bytes(&low.to_le_bytes());
        } else if let Ok(low) = i32::try_from(value as i64) {
            self.wide(0xc7, 0, Rm::Reg(reg));
            self.bytes(&low.to_le_bytes());
        } else {
            self.bytes(&[0x48 | reg >> 3, 0xb8 | reg & 7]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `mov qword [mem], value` for a constant that is sign-extended, else through `scratch`.
    pub fn store_constant(&mut self, mem: Mem, value: u64, scratch: u8) {
        if let Ok(low) = i32::try_from(value as i64) {
            self.wide(0xc7, 0, Rm::Mem(mem));
            self.bytes(&low.to_le_bytes());
        } else {
            self.constant(scratch, value);
            self.store(mem, scratch);
        }
    }

    /// `add/or/and/sub/xor/cmp rm, imm32` of 32 bits by the number of the operation.
    pub fn alu_narrow(&mut self, operation: u8, rm: Rm, value: u32) {
        self.narrow(0x81, operation, rm);
        self.bytes(&value.to_le_bytes());
    }

    /// The same of 64 bits.
    pub fn alu_wide(&mut self, operation: u8, rm: Rm, value: i32) {
        self.wide(0x81, operation, rm);
        self.bytes(&value.to_le_bytes());
    }

    /// `jmp` or, with a condition code, `jcc` to somewhere later.
    pub fn jump(&mut self, condition: Option<u8>) -> Hole {
        match condition {
            Some(code) => self.bytes(&[0x0f, 0x80 | code]),
            None => self.code.push(0xe9),
        }
        self.bytes(&[0; 4]);
        Hole(self.code.len())
    }

    /// The target of an earlier jump is here.
    pub fn bind(&mut self, hole: Hole) {
        let distance = (self.code.len() - hole.0) as u32;
        self.code[hole.0 - 4..hole.0].copy_from_slice(&distance.to_le_bytes());
    }

    /// The same, where it is in other code.
    pub fn bind_to(&mut self, hole: Hole, target: u64) {
        let distance = target.wrapping_sub(self.address(hole)) as u32;
        self.code[hole.0 - 4..hole.0].copy_from_slice(&distance.to_le_bytes());
    }

    /// Address behind a jump, by which it is patched later.
    pub fn address(&self, hole: Hole) -> u64 {
        self.base + hole.0 as u64
    }

    fn relative(&mut self, target: u64) {
        let distance = target.wrapping_sub(self.here() + 4) as u32;
        self.bytes(&distance.to_le_bytes());
    }

    /// `jmp target`.
    pub fn jump_to(&mut self, target: u64) {
        self.code.push(0xe9);
        self.relative(target);
    }

    /// `call target`.
    pub fn call(&mut self, target: u64) {
        self.named = u16::MAX;
        self.code.push(0xe8);
        self.relative(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn text(emit: impl FnOnce(&mut Assembler)) -> (String, usize) {
        let mut assembler = Assembler::new(0x1000);
        emit(&mut assembler);
        let mut decoder = Decoder::with_ip(64, &assembler.code, 0x1000, DecoderOptions::NONE);
        let i = decoder.decode();
        assert_eq!(i.len(), assembler.code.len(), "{:02x?}", assembler.code);
        (format!("{:?}", i.code()), i.len())
    }

    #[test]
    fn every_base_index_and_displacement_is_what_a_decoder_reads() {
        for base in (0..16).map(Some).chain([None]) {
            for index in (0..16).filter(|&n| n != 4).map(Some).chain([None]) {
                for displacement in [0, 1, -128, 128, i32::MIN] {
                    let mem = Mem { base, index: index.map(|n| (n, 2)), displacement };
                    let mut assembler = Assembler::new(0);
                    assembler.load(9, mem);
                    let i = Decoder::new(64, &assembler.code, DecoderOptions::NONE).decode();
                    assert_eq!(i.len(), assembler.code.len());
                    let number = |r: iced_x86::Register| {
                        (r != iced_x86::Register::None).then(|| r.number() as u8)
                    };
                    assert_eq!(number(i.memory_base()), base);
                    assert_eq!(number(i.memory_index()), index);
                    assert_eq!(i.memory_displacement64() as i32, displacement);
                    assert_eq!(i.op0_register().number(), 9);
                    if index.is_some() {
                        assert_eq!(i.memory_index_scale(), 4);
                    }
                }
            }
        }
    }

    #[test]
    fn constants_take_the_shortest_form() {
        assert_eq!(text(|a| a.constant(10, 5)), ("Mov_r32_imm32".into(), 6));
        assert_eq!(text(|a| a.constant(10, u64::MAX)), ("Mov_rm64_imm32".into(), 7));
        assert_eq!(text(|a| a.constant(10, 1 << 40)), ("Mov_r64_imm64".into(), 10));
    }

    #[test]
    fn jumps_reach_where_they_were_bound() {
        let mut a = Assembler::new(0x1000);
        let hole = a.jump(Some(EQUAL));
        a.bytes(&[0x90; 3]);
        a.bind(hole);
        let i = Decoder::with_ip(64, &a.code, 0x1000, DecoderOptions::NONE).decode();
        assert_eq!(i.near_branch_target(), 0x1009);
        let mut a = Assembler::new(0x1000);
        a.call(0x900);
        let i = Decoder::with_ip(64, &a.code, 0x1000, DecoderOptions::NONE).decode();
        assert_eq!(i.near_branch_target(), 0x900);
    }
}
