//! Decoding of integer instructions.

use iced_x86::{Code, Mnemonic, Register};

use crate::cpu::FLAT;
use crate::decode::{Decoder, condition, condition_of, register, rm, segment_number, sized, wide};
use crate::features::{features, v3};
use crate::integer::{self as int, IMM, MEM, REG};
use crate::op::{Op, Run};
use crate::{branch, legacy, shifts, system};

impl Decoder<'_> {
    pub fn integer(&self, op: &mut Op) -> Option<Run> {
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
                    (false, true) => sized!(size, shifts::shift, $code, false, 1),
                    (false, false) => sized!(size, shifts::shift, $code, false, 0),
                    (true, true) => sized!(size, shifts::shift, $code, true, 1),
                    (true, false) => sized!(size, shifts::shift, $code, true, 0),
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
                    (false, true) => wide!(size, shifts::shift_double, $left, false, 1),
                    (false, false) => wide!(size, shifts::shift_double, $left, false, 0),
                    (true, true) => wide!(size, shifts::shift_double, $left, true, 1),
                    (true, false) => wide!(size, shifts::shift_double, $left, true, 0),
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
            Mnemonic::Tzcnt if v3() => scan!(3),
            Mnemonic::Lzcnt if v3() => scan!(4),
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
            | Mnemonic::Reservednop => int::nop,
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => int::touch,
            Mnemonic::Mfence | Mnemonic::Sfence => int::fence,
            Mnemonic::Crc32 => {
                let memory = self.memory(1);
                op.dst = register(i.op0_register());
                if !memory {
                    op.src = register(i.op1_register());
                }
                rm!(memory, sized, self.size(1), int::crc32)
            }
            Mnemonic::Movbe => {
                let (size, memory, _) = self.two(op);
                rm!(memory, wide, size, int::movbe)
            }
            Mnemonic::Adcx | Mnemonic::Adox if features().adx => {
                let (size, _, source) = self.two(op);
                match (i.mnemonic() == Mnemonic::Adox, source == MEM) {
                    (false, false) => wide!(size, int::add_with_flag, false, false),
                    (false, true) => wide!(size, int::add_with_flag, false, true),
                    (true, false) => wide!(size, int::add_with_flag, true, false),
                    (true, true) => wide!(size, int::add_with_flag, true, true),
                }
            }
            Mnemonic::Aaa => legacy::ascii_adjust::<false>,
            Mnemonic::Aas => legacy::ascii_adjust::<true>,
            Mnemonic::Aam | Mnemonic::Aad => {
                op.imm = i.immediate8().into();
                if i.mnemonic() == Mnemonic::Aam {
                    legacy::ascii_scale::<true>
                } else {
                    legacy::ascii_scale::<false>
                }
            }
            Mnemonic::Daa => legacy::decimal_adjust::<false>,
            Mnemonic::Das => legacy::decimal_adjust::<true>,
            Mnemonic::Salc => legacy::salc,
            Mnemonic::Bound => {
                op.dst = register(i.op0_register());
                if i.op0_register().size() == 2 {
                    legacy::bound::<u16>
                } else {
                    legacy::bound::<u32>
                }
            }
            Mnemonic::Arpl => {
                let (_, memory, _) = self.two(op);
                if memory { legacy::arpl::<true> } else { legacy::arpl::<false> }
            }
            Mnemonic::Push => return self.push(op),
            Mnemonic::Pop => return self.pop(op),
            Mnemonic::Pusha => branch::push_all::<u16>,
            Mnemonic::Pushad => branch::push_all::<u32>,
            Mnemonic::Popa => branch::pop_all::<u16>,
            Mnemonic::Popad => branch::pop_all::<u32>,
            Mnemonic::Leave => match i.code() {
                Code::Leavew => branch::leave::<u16>,
                Code::Leaved => branch::leave::<u32>,
                _ => branch::leave::<u64>,
            },
            Mnemonic::Enter => {
                op.extra = u32::from(i.immediate8_2nd() & 31);
                op.imm = i.immediate16().into();
                match i.code() {
                    Code::Enterw_imm16_imm8 => branch::enter::<u16>,
                    Code::Enterd_imm16_imm8 => branch::enter::<u32>,
                    _ => branch::enter::<u64>,
                }
            }
            _ => return None,
        })
    }

    fn conditional(&self, op: &mut Op, code: u8) -> Option<Run> {
        macro_rules! jump {
            ($code:tt) => {
                branch::jcc::<$code> as Run
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
        // MOVSXD reads 32 bits even if it keeps 16.
        let source = if self.i.mnemonic() == Mnemonic::Movsxd { 4 } else { self.size(1) };
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
                match source {
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
    pub fn stack_bytes(&self) -> usize {
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
            return Some(wide!(bytes, branch::push, 1));
        }
        let (_, memory) = self.one(op, 0);
        Some(if memory { wide!(bytes, branch::push, 2) } else { wide!(bytes, branch::push, 0) })
    }

    fn pop(&self, op: &mut Op) -> Option<Run> {
        let bytes = self.stack_bytes();
        if self.is_segment(0) {
            op.extra = segment_number(self.i.op0_register());
            op.dst = bytes as u8;
            return Some(system::pop_segment);
        }
        let (_, memory) = self.one(op, 0);
        Some(rm!(memory, wide, bytes, branch::pop))
    }
}
