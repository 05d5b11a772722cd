//! From iced-x86's description of an instruction to the function that executes it.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{DS, ES, FLAT, FLAT_STACK, FS, GS, Mode, SS};
use crate::host::Regs;
use crate::integer::{IMM, MEM, REG};
use crate::op::{Op, Run};
use crate::stubs::Stubs;
use crate::{decode_native, system};

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

pub(crate) use {condition, rm, sized, wide};

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
            .or_else(|| d.vex(&mut op))
            .or_else(|| decode_native::native(i, mode, bytes, stubs, &mut op))
    };
    op.run = run.unwrap_or(system::unimplemented);
    if run.is_none() {
        op.imm = i.code() as u64;
    }
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
                | Mnemonic::Xsetbv
        )
        || i.op_count() > 0
            && (d.is_segment(0) || i.op0_register().is_cr() || i.op0_register().is_dr());
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

pub fn segment_number(register: Register) -> u32 {
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

    pub fn is_segment(&self, operand: u32) -> bool {
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
            // Only indices that are vectors: the displacement tells.
            _ if sized.is_vector_register() => u8::from(i.memory_displ_size() != 8),
            8 => 0,
            2 => 2,
            _ => 1,
        };
        op.segment = self.segment(i.memory_segment());
        // Prefixes for the other segments mean nothing in 64-bit mode.
        let stack = matches!(base.full_register(), Register::RSP | Register::RBP);
        if usize::from(op.segment) == FLAT && stack {
            op.segment = FLAT_STACK as u8;
        }
    }

    pub fn immediate(&self, operand: u32, size: usize) -> u64 {
        let mask = if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
        self.i.immediate(operand) & mask
    }

    pub fn target(&self) -> u64 {
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
    pub fn two(&self, op: &mut Op) -> (usize, bool, u8) {
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
}

/// The condition code of a conditional instruction.
pub fn condition_of(i: &Instruction) -> Option<u8> {
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
