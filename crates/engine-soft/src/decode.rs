//! From iced-x86's description of an instruction to the function that executes it.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{DS, ES, FLAT, FS, GS, Mode, SS};
use crate::host::Regs;
use crate::integer::{self as int, IMM, MEM, REG};
use crate::native::Stubs;
use crate::op::{Op, Run};
use crate::{decode_native, segments, system};

/// Chooses `$($f)::+::<W, ...>` by the operand size in bytes.
macro_rules! sized {
    ($size:expr, $($f:ident)::+ $(, $arg:tt)*) => {
        match $size {
            1 => $($f)::+::<u8 $(, $arg)*> as Run,
            2 => $($f)::+::<u16 $(, $arg)*>,
            4 => $($f)::+::<u32 $(, $arg)*>,
            _ => $($f)::+::<u64 $(, $arg)*>,
        }
    };
}
/// Without 8 bits.
macro_rules! wide {
    ($size:expr, $($f:ident)::+ $(, $arg:tt)*) => {
        match $size {
            2 => $($f)::+::<u16 $(, $arg)*> as Run,
            4 => $($f)::+::<u32 $(, $arg)*>,
            _ => $($f)::+::<u64 $(, $arg)*>,
        }
    };
}
/// Register or memory as the last argument.
macro_rules! rm {
    ($memory:expr, $kind:ident, $size:expr, $($f:ident)::+ $(, $arg:tt)*) => {
        if $memory { $kind!($size, $($f)::+ $(, $arg)*, true) } else { $kind!($size, $($f)::+ $(, $arg)*, false) }
    };
}
/// By a condition code.
macro_rules! condition {
    ($code:expr, $m:ident $(, $arg:expr)*) => {
        match $code {
            0 => $m!(0 $(, $arg)*), 1 => $m!(1 $(, $arg)*), 2 => $m!(2 $(, $arg)*), 3 => $m!(3 $(, $arg)*),
            4 => $m!(4 $(, $arg)*), 5 => $m!(5 $(, $arg)*), 6 => $m!(6 $(, $arg)*), 7 => $m!(7 $(, $arg)*),
            8 => $m!(8 $(, $arg)*), 9 => $m!(9 $(, $arg)*), 10 => $m!(10 $(, $arg)*), 11 => $m!(11 $(, $arg)*),
            12 => $m!(12 $(, $arg)*), 13 => $m!(13 $(, $arg)*), 14 => $m!(14 $(, $arg)*), _ => $m!(15 $(, $arg)*),
        }
    };
}

pub(crate) use {rm, sized, wide};

/// A decoded instruction, and whether it ends its block.
pub fn decode(i: &Instruction, mode: Mode, bytes: &[u8], stubs: &mut Stubs) -> (Op, bool) {
    let d = Decoder { i, mode };
    let mut op = Op::new(system::undefined, i.next_ip(), i.len() as u8);
    d.memory_operand(&mut op);
    let known = i.code() != Code::INVALID && (!i.has_lock_prefix() || d.memory(0));
    let run = if !known {
        Some(system::undefined as Run)
    } else {
        d.integer(&mut op)
            .or_else(|| d.control(&mut op))
            .or_else(|| d.system(&mut op))
            .or_else(|| d.string(&mut op))
            .or_else(|| decode_native::native(i, mode, bytes, stubs, &mut op))
    };
    op.run = run.unwrap_or(system::unimplemented);
    let ends = run.is_none()
        || !known
        || !matches!(i.flow_control(), iced_x86::FlowControl::Next)
        || matches!(
            i.mnemonic(),
            Mnemonic::Sti
                | Mnemonic::Hlt
                | Mnemonic::Pause
                | Mnemonic::Popf
                | Mnemonic::Popfd
                | Mnemonic::Popfq
                | Mnemonic::Wrmsr
                | Mnemonic::Invlpg
                | Mnemonic::Clts
                | Mnemonic::Lmsw
                | Mnemonic::In
                | Mnemonic::Out
                | Mnemonic::Lds
                | Mnemonic::Les
                | Mnemonic::Lfs
                | Mnemonic::Lgs
                | Mnemonic::Lss
        )
        || i.op_count() > 0 && (d.is_segment(0) || i.op0_register().is_cr());
    (op, ends)
}

/// An instruction that is being decoded.
pub struct Decoder<'a> {
    pub i: &'a Instruction,
    pub mode: Mode,
}

/// Offset of a general register in `Regs`.
pub fn register(register: Register) -> u8 {
    match register {
        Register::AH => 1,
        Register::CH => 9,
        Register::DH => 17,
        Register::BH => 25,
        Register::None => Regs::NONE,
        _ if register.is_gpr() => 8 * register.full_register().number() as u8,
        _ => Regs::NONE,
    }
}

fn segment_number(register: Register) -> u32 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

impl Decoder<'_> {
    pub fn memory(&self, operand: u32) -> bool {
        operand < self.i.op_count() && self.i.op_kind(operand) == OpKind::Memory
    }

    fn is_segment(&self, operand: u32) -> bool {
        operand < self.i.op_count()
            && self.i.op_kind(operand) == OpKind::Register
            && self.i.op_register(operand).is_segment_register()
    }

    /// Bytes of an operand.
    pub fn size(&self, operand: u32) -> usize {
        match self.i.op_kind(operand) {
            OpKind::Register => self.i.op_register(operand).size(),
            OpKind::Memory => self.i.memory_size().size(),
            _ => 8,
        }
    }

    pub fn segment(&self, register: Register) -> u8 {
        let number = match register {
            Register::FS => FS,
            Register::GS => GS,
            _ if self.mode == Mode::Bits64 => FLAT,
            Register::ES => ES,
            Register::CS => crate::cpu::CS,
            Register::SS => SS,
            _ => DS,
        };
        number as u8
    }

    fn memory_operand(&self, op: &mut Op) {
        let i = self.i;
        if !(0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory) {
            return;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        op.displacement = i.memory_displacement64();
        if !matches!(base, Register::RIP | Register::EIP) {
            op.base = register(base);
        }
        op.index = register(index);
        op.scale = i.memory_index_scale().trailing_zeros() as u8;
        let sized = if base != Register::None { base } else { index };
        op.address = match sized.size() {
            _ if sized == Register::None && self.mode == Mode::Bits64 => 0,
            8 => 0,
            2 => 2,
            _ => 1,
        };
        op.segment = self.segment(i.memory_segment());
    }

    fn immediate(&self, operand: u32, size: usize) -> u64 {
        let mask = if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
        self.i.immediate(operand) & mask
    }

    fn target(&self) -> u64 {
        self.i.near_branch_target()
    }

    pub fn is_immediate(&self, operand: u32) -> bool {
        matches!(
            self.i.op_kind(operand),
            OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    }

    /// Fills in two operands; tells size, whether the first is memory, and what the second is.
    fn two(&self, op: &mut Op) -> (usize, bool, u8) {
        let size = self.size(0);
        let memory = self.memory(0);
        if !memory {
            op.dst = register(self.i.op_register(0));
        }
        let source = if self.is_immediate(1) {
            op.imm = self.immediate(1, size);
            IMM
        } else if self.memory(1) {
            MEM
        } else {
            op.src = register(self.i.op_register(1));
            REG
        };
        (size, memory, source)
    }

    /// Fills in one operand that is a register (into `dst` and `src`) or memory.
    pub fn one(&self, op: &mut Op, operand: u32) -> (usize, bool) {
        let memory = self.memory(operand);
        if !memory {
            op.dst = register(self.i.op_register(operand));
            op.src = op.dst;
        }
        (self.size(operand), memory)
    }

    fn integer(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        let lock = i.has_lock_prefix();
        macro_rules! alu {
            ($code:tt) => {{
                let (size, memory, source) = self.two(op);
                match (memory, source, lock) {
                    (false, REG, _) => sized!(size, int::alu, $code, false, 0, false),
                    (false, IMM, _) => sized!(size, int::alu, $code, false, 1, false),
                    (false, _, _) => sized!(size, int::alu, $code, false, 2, false),
                    (true, IMM, false) => sized!(size, int::alu, $code, true, 1, false),
                    (true, _, false) => sized!(size, int::alu, $code, true, 0, false),
                    (true, IMM, true) => sized!(size, int::alu, $code, true, 1, true),
                    (true, _, true) => sized!(size, int::alu, $code, true, 0, true),
                }
            }};
        }
        macro_rules! unary {
            ($code:tt) => {{
                let (size, memory) = self.one(op, 0);
                match (memory, lock) {
                    (false, _) => sized!(size, int::unary, $code, false, false),
                    (true, false) => sized!(size, int::unary, $code, true, false),
                    (true, true) => sized!(size, int::unary, $code, true, true),
                }
            }};
        }
        macro_rules! shift {
            ($code:tt) => {{
                let (size, memory) = self.one(op, 0);
                let immediate = self.is_immediate(1);
                if immediate {
                    op.imm = i.immediate(1) & 0xff;
                }
                match (memory, immediate) {
                    (false, true) => sized!(size, int::shift, $code, false, 1),
                    (false, false) => sized!(size, int::shift, $code, false, 0),
                    (true, true) => sized!(size, int::shift, $code, true, 1),
                    (true, false) => sized!(size, int::shift, $code, true, 0),
                }
            }};
        }
        macro_rules! shift_double {
            ($left:tt) => {{
                let (size, memory, _) = self.two(op);
                let immediate = self.is_immediate(2);
                if immediate {
                    op.imm = i.immediate(2) & 0xff;
                }
                match (memory, immediate) {
                    (false, true) => wide!(size, int::shift_double, $left, false, 1),
                    (false, false) => wide!(size, int::shift_double, $left, false, 0),
                    (true, true) => wide!(size, int::shift_double, $left, true, 1),
                    (true, false) => wide!(size, int::shift_double, $left, true, 0),
                }
            }};
        }
        macro_rules! bit {
            ($code:tt) => {{
                let (size, memory, source) = self.two(op);
                match (memory, source == IMM, lock) {
                    (false, false, _) => wide!(size, int::bit, $code, false, 0, false),
                    (false, true, _) => wide!(size, int::bit, $code, false, 1, false),
                    (true, false, false) => wide!(size, int::bit, $code, true, 0, false),
                    (true, true, false) => wide!(size, int::bit, $code, true, 1, false),
                    (true, false, true) => wide!(size, int::bit, $code, true, 0, true),
                    (true, true, true) => wide!(size, int::bit, $code, true, 1, true),
                }
            }};
        }
        macro_rules! exchange_add {
            ($($f:ident)::+) => {{
                let (size, memory, _) = self.two(op);
                match (memory, lock) {
                    (false, _) => sized!(size, $($f)::+, false, false),
                    (true, false) => sized!(size, $($f)::+, true, false),
                    (true, true) => sized!(size, $($f)::+, true, true),
                }
            }};
        }
        macro_rules! scan {
            ($kind:tt) => {{
                let (size, _, source) = self.two(op);
                rm!(source == MEM, wide, size, int::scan, $kind)
            }};
        }
        if let Some(code) = condition_of(i) {
            return self.conditional(op, code);
        }
        Some(match i.mnemonic() {
            Mnemonic::Add => alu!(0),
            Mnemonic::Or => alu!(1),
            Mnemonic::Adc => alu!(2),
            Mnemonic::Sbb => alu!(3),
            Mnemonic::And => alu!(4),
            Mnemonic::Sub => alu!(5),
            Mnemonic::Xor => alu!(6),
            Mnemonic::Cmp => alu!(7),
            Mnemonic::Test => alu!(8),
            Mnemonic::Inc => unary!(0),
            Mnemonic::Dec => unary!(1),
            Mnemonic::Neg => unary!(2),
            Mnemonic::Not => unary!(3),
            Mnemonic::Rol => shift!(0),
            Mnemonic::Ror => shift!(1),
            Mnemonic::Rcl => shift!(2),
            Mnemonic::Rcr => shift!(3),
            Mnemonic::Shl | Mnemonic::Sal => shift!(4),
            Mnemonic::Shr => shift!(5),
            Mnemonic::Sar => shift!(7),
            Mnemonic::Shld => shift_double!(true),
            Mnemonic::Shrd => shift_double!(false),
            Mnemonic::Bt => bit!(0),
            Mnemonic::Bts => bit!(1),
            Mnemonic::Btr => bit!(2),
            Mnemonic::Btc => bit!(3),
            // Without BMI1 and ABM their prefix means nothing.
            Mnemonic::Bsf | Mnemonic::Tzcnt => scan!(0),
            Mnemonic::Bsr | Mnemonic::Lzcnt => scan!(1),
            Mnemonic::Popcnt => scan!(2),
            Mnemonic::Mov | Mnemonic::Movnti => return self.mov(op),
            Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => self.extend(op),
            Mnemonic::Lea => {
                let (size, _, _) = self.two(op);
                op.segment = FLAT as u8;
                wide!(size, int::lea)
            }
            Mnemonic::Xchg => {
                let (size, mut memory, source) = self.two(op);
                if source == MEM {
                    (op.src, memory) = (op.dst, true);
                }
                if memory { sized!(size, int::xchg_memory) } else { sized!(size, int::xchg) }
            }
            Mnemonic::Xadd => exchange_add!(int::xadd),
            Mnemonic::Cmpxchg => exchange_add!(int::cmpxchg),
            Mnemonic::Cmpxchg8b => int::cmpxchg8b,
            Mnemonic::Cmpxchg16b => int::cmpxchg16b,
            Mnemonic::Mul => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, sized, size, int::multiply, false)
            }
            Mnemonic::Imul if i.op_count() == 1 => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, sized, size, int::multiply, true)
            }
            Mnemonic::Imul => {
                let (size, _, source) = self.two(op);
                let three = i.op_count() == 3;
                if three {
                    op.imm = self.immediate(2, size);
                }
                match (source == MEM, three) {
                    (false, false) => wide!(size, int::imul, 0, false),
                    (false, true) => wide!(size, int::imul, 0, true),
                    (true, false) => wide!(size, int::imul, 2, false),
                    (true, true) => wide!(size, int::imul, 2, true),
                }
            }
            Mnemonic::Div => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, sized, size, int::divide, false)
            }
            Mnemonic::Idiv => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, sized, size, int::divide, true)
            }
            Mnemonic::Bswap => {
                let (size, _) = self.one(op, 0);
                wide!(size, int::bswap)
            }
            Mnemonic::Cbw => int::widen::<u16>,
            Mnemonic::Cwde => int::widen::<u32>,
            Mnemonic::Cdqe => int::widen::<u64>,
            Mnemonic::Cwd => int::widen_to_rdx::<u16>,
            Mnemonic::Cdq => int::widen_to_rdx::<u32>,
            Mnemonic::Cqo => int::widen_to_rdx::<u64>,
            Mnemonic::Xlatb => {
                op.segment = self.segment(i.memory_segment());
                op.address = match i.memory_base().size() {
                    8 => 0,
                    2 => 2,
                    _ => 1,
                };
                int::xlat
            }
            Mnemonic::Clc => int::flag::<0>,
            Mnemonic::Stc => int::flag::<1>,
            Mnemonic::Cmc => int::flag::<2>,
            Mnemonic::Cld => int::flag::<3>,
            Mnemonic::Std => int::flag::<4>,
            Mnemonic::Lahf => int::lahf,
            Mnemonic::Sahf => int::sahf,
            Mnemonic::Nop
            | Mnemonic::Endbr64
            | Mnemonic::Endbr32
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw
            | Mnemonic::Lfence
            | Mnemonic::Clflush
            | Mnemonic::Reservednop => int::nop,
            Mnemonic::Mfence | Mnemonic::Sfence => int::fence,
            Mnemonic::Crc32 => {
                let memory = self.memory(1);
                op.dst = register(i.op0_register());
                if !memory {
                    op.src = register(i.op1_register());
                }
                rm!(memory, sized, self.size(1), int::crc32)
            }
            Mnemonic::Push => return self.push(op),
            Mnemonic::Pop => return self.pop(op),
            Mnemonic::Pusha => int::push_all::<u16>,
            Mnemonic::Pushad => int::push_all::<u32>,
            Mnemonic::Popa => int::pop_all::<u16>,
            Mnemonic::Popad => int::pop_all::<u32>,
            Mnemonic::Leave => match i.code() {
                Code::Leavew => int::leave::<u16>,
                Code::Leaved => int::leave::<u32>,
                _ => int::leave::<u64>,
            },
            Mnemonic::Enter if i.immediate8_2nd() == 0 => {
                op.imm = i.immediate16().into();
                match i.code() {
                    Code::Enterw_imm16_imm8 => int::enter::<u16>,
                    Code::Enterd_imm16_imm8 => int::enter::<u32>,
                    _ => int::enter::<u64>,
                }
            }
            _ => return None,
        })
    }

    fn conditional(&self, op: &mut Op, code: u8) -> Option<Run> {
        macro_rules! jump {
            ($code:tt) => {
                int::jcc::<$code> as Run
            };
        }
        macro_rules! set {
            ($code:tt, $memory:expr) => {
                if $memory { int::setcc::<$code, true> as Run } else { int::setcc::<$code, false> }
            };
        }
        macro_rules! cmov {
            ($code:tt, $size:expr, $memory:expr) => {
                rm!($memory, wide, $size, int::cmov, $code)
            };
        }
        if self.i.is_jcc_short_or_near() {
            op.imm = self.target();
            return Some(condition!(code, jump));
        }
        if self.i.op_count() == 1 {
            let (_, memory) = self.one(op, 0);
            return Some(condition!(code, set, memory));
        }
        let (size, _, source) = self.two(op);
        Some(condition!(code, cmov, size, source == MEM))
    }

    fn mov(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        if self.is_segment(1) {
            op.extra = segment_number(i.op1_register());
            let (size, memory) = self.one(op, 0);
            return Some(rm!(memory, wide, size, system::store_system, 3));
        }
        if self.is_segment(0) {
            op.extra = segment_number(i.op0_register());
            if i.op0_register() == Register::CS {
                return Some(system::undefined);
            }
            let (_, memory) = self.one(op, 1);
            return Some(if memory {
                system::load_segment::<true>
            } else {
                system::load_segment::<false>
            });
        }
        let registers = [i.op0_register(), i.op1_register()];
        if registers[0].is_cr() || registers[0].is_dr() {
            op.src = register(registers[1]);
            op.extra = registers[0].number() as u32;
            return Some(if registers[0].is_cr() {
                system::write_control
            } else {
                system::write_debug
            });
        }
        if registers[1].is_cr() || registers[1].is_dr() {
            op.dst = register(registers[0]);
            op.extra = registers[1].number() as u32;
            return Some(if registers[1].is_cr() {
                system::read_control
            } else {
                system::read_debug
            });
        }
        let (size, memory, source) = self.two(op);
        Some(match (memory, source) {
            (false, REG) => sized!(size, int::mov, false, 0),
            (false, IMM) => sized!(size, int::mov, false, 1),
            (false, _) => sized!(size, int::mov, false, 2),
            (true, IMM) => sized!(size, int::mov, true, 1),
            (true, _) => sized!(size, int::mov, true, 0),
        })
    }

    fn extend(&self, op: &mut Op) -> Run {
        let memory = self.memory(1);
        op.dst = register(self.i.op0_register());
        if !memory {
            op.src = register(self.i.op1_register());
        }
        let signed = self.i.mnemonic() != Mnemonic::Movzx;
        macro_rules! extend {
            ($from:tt, $signed:tt, $memory:tt) => {
                match self.size(0) {
                    2 => int::extend::<$from, u16, $signed, $memory> as Run,
                    4 => int::extend::<$from, u32, $signed, $memory>,
                    _ => int::extend::<$from, u64, $signed, $memory>,
                }
            };
        }
        macro_rules! from {
            ($signed:tt, $memory:tt) => {
                match self.size(1) {
                    1 => extend!(u8, $signed, $memory),
                    2 => extend!(u16, $signed, $memory),
                    _ => extend!(u32, $signed, $memory),
                }
            };
        }
        match (signed, memory) {
            (false, false) => from!(false, false),
            (false, true) => from!(false, true),
            (true, false) => from!(true, false),
            (true, true) => from!(true, true),
        }
    }

    /// Bytes that an instruction moves the stack pointer by.
    fn stack_bytes(&self) -> usize {
        self.i.stack_pointer_increment().unsigned_abs() as usize
    }

    fn push(&self, op: &mut Op) -> Option<Run> {
        let bytes = self.stack_bytes();
        if self.is_segment(0) {
            op.extra = segment_number(self.i.op0_register());
            op.dst = bytes as u8;
            return Some(system::push_segment);
        }
        if self.is_immediate(0) {
            op.imm = self.i.immediate(0);
            return Some(wide!(bytes, int::push, 1));
        }
        let (_, memory) = self.one(op, 0);
        Some(if memory { wide!(bytes, int::push, 2) } else { wide!(bytes, int::push, 0) })
    }

    fn pop(&self, op: &mut Op) -> Option<Run> {
        let bytes = self.stack_bytes();
        if self.is_segment(0) {
            op.extra = segment_number(self.i.op0_register());
            op.dst = bytes as u8;
            return Some(system::pop_segment);
        }
        let (_, memory) = self.one(op, 0);
        Some(rm!(memory, wide, bytes, int::pop))
    }

    fn control(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        let far_bytes = |code: Code| match code {
            Code::Jmp_ptr1616
            | Code::Call_ptr1616
            | Code::Jmp_m1616
            | Code::Call_m1616
            | Code::Retfw
            | Code::Retfw_imm16 => 2,
            Code::Jmp_m1664 | Code::Call_m1664 | Code::Retfq | Code::Retfq_imm16 => 8,
            _ => 4,
        };
        let far_pointer = matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
        let near = matches!(
            i.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        Some(match i.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call if far_pointer => {
                op.dst = far_bytes(i.code());
                op.extra = i.far_branch_selector().into();
                op.imm = if i.op0_kind() == OpKind::FarBranch16 {
                    i.far_branch16().into()
                } else {
                    i.far_branch32().into()
                };
                if i.mnemonic() == Mnemonic::Jmp {
                    segments::jump_direct
                } else {
                    segments::call_direct
                }
            }
            Mnemonic::Jmp if near => {
                op.imm = self.target();
                int::jmp
            }
            Mnemonic::Call if near => {
                op.imm = self.target();
                wide!(self.stack_bytes(), int::call)
            }
            Mnemonic::Jmp
                if matches!(i.code(), Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664) =>
            {
                op.dst = far_bytes(i.code());
                segments::through_memory::<false>
            }
            Mnemonic::Call
                if matches!(i.code(), Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664) =>
            {
                op.dst = far_bytes(i.code());
                segments::through_memory::<true>
            }
            Mnemonic::Jmp => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, wide, size, int::jmp_indirect)
            }
            Mnemonic::Call => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, wide, size, int::call_indirect)
            }
            Mnemonic::Ret => {
                if i.op_count() == 1 {
                    op.imm = i.immediate16().into();
                }
                match i.code() {
                    Code::Retnw | Code::Retnw_imm16 => int::ret::<u16>,
                    Code::Retnd | Code::Retnd_imm16 => int::ret::<u32>,
                    _ => int::ret::<u64>,
                }
            }
            Mnemonic::Retf => {
                if i.op_count() == 1 {
                    op.imm = i.immediate16().into();
                }
                op.dst = far_bytes(i.code());
                system::retf
            }
            Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jcxz
            | Mnemonic::Jecxz
            | Mnemonic::Jrcxz => {
                op.imm = self.target();
                op.address = match i.mnemonic() {
                    Mnemonic::Jcxz => 2,
                    Mnemonic::Jecxz => 1,
                    Mnemonic::Jrcxz => 0,
                    _ => self.loop_address(),
                };
                match i.mnemonic() {
                    Mnemonic::Loop => int::looping::<0>,
                    Mnemonic::Loope => int::looping::<1>,
                    Mnemonic::Loopne => int::looping::<2>,
                    _ => int::looping::<3>,
                }
            }
            Mnemonic::Int | Mnemonic::Int3 => {
                op.imm = if i.mnemonic() == Mnemonic::Int { i.immediate8().into() } else { 3 };
                system::int
            }
            Mnemonic::Int1 => return None,
            Mnemonic::Into => system::into,
            Mnemonic::Iret => {
                op.dst = 2;
                system::iret
            }
            Mnemonic::Iretd => {
                op.dst = 4;
                system::iret
            }
            Mnemonic::Iretq => {
                op.dst = 8;
                system::iret
            }
            Mnemonic::Syscall => system::syscall,
            Mnemonic::Sysret => system::sysret::<false>,
            Mnemonic::Sysretq => system::sysret::<true>,
            _ => return None,
        })
    }

    /// The counter that LOOP uses stands in the names of iced's codes.
    fn loop_address(&self) -> u8 {
        let name = format!("{:?}", self.i.code());
        if name.ends_with("_RCX") {
            0
        } else if name.ends_with("_ECX") {
            1
        } else {
            2
        }
    }
}

/// The condition code of a conditional instruction.
fn condition_of(i: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    let string_or_loop = i.is_loop() || i.is_loopcc() || i.is_jcx_short();
    if string_or_loop || i.mnemonic() >= Mnemonic::Fcmovb && i.mnemonic() <= Mnemonic::Fcmovu {
        return None;
    }
    Some(match i.condition_code() {
        C::None => return None,
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    })
}
