//! Decoding of system and string instructions.

use iced_x86::{Code, Mnemonic, OpKind};

use crate::cpu::{ES, FLAT, Mode};
use crate::decode::{Decoder, register, rm, sized, wide};
use crate::features::features;
use crate::op::{Op, Run};
use crate::strings::{self, string};
use crate::{segments, system, x87, xsave};

impl Decoder<'_> {
    /// Instructions that touch the system's state, and the few x87 ones that need no stub.
    pub fn system(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        macro_rules! selector {
            ($($f:ident)::+ $(, $arg:tt)*) => {{
                let (_, memory) = self.one(op, 0);
                if memory { $($f)::+::<$($arg,)* true> as Run } else { $($f)::+::<$($arg,)* false> }
            }};
        }
        macro_rules! store {
            ($kind:tt) => {{
                let (size, memory) = self.one(op, 0);
                rm!(memory, wide, size, system::store_system, $kind)
            }};
        }
        macro_rules! look {
            ($kind:tt) => {{
                let last = i.op_count() - 1;
                let (_, memory) = self.one(op, last);
                op.dst = register(i.op0_register());
                rm!(memory, wide, self.size(0), system::look_at, $kind)
            }};
        }
        macro_rules! base {
            ($write:tt, $segment:tt) => {{
                let (size, _) = self.one(op, 0);
                if size == 4 {
                    system::segment_base::<u32, $write, $segment>
                } else {
                    system::segment_base::<u64, $write, $segment>
                }
            }};
        }
        Some(match i.mnemonic() {
            Mnemonic::Cli => system::interrupts::<false>,
            Mnemonic::Sti => system::interrupts::<true>,
            Mnemonic::Hlt => system::hlt,
            Mnemonic::Pause => system::pause,
            Mnemonic::Cpuid => system::cpuid,
            Mnemonic::Rdtsc => system::rdtsc::<false>,
            Mnemonic::Rdtscp => system::rdtsc::<true>,
            Mnemonic::Rdpid => {
                self.one(op, 0);
                system::rdpid
            }
            Mnemonic::Rdrand if features().rdrand => {
                let (size, _) = self.one(op, 0);
                wide!(size, system::random, false)
            }
            Mnemonic::Rdseed if features().rdseed => {
                let (size, _) = self.one(op, 0);
                wide!(size, system::random, true)
            }
            Mnemonic::Rdpmc => system::rdpmc,
            Mnemonic::Rdmsr => system::rdmsr,
            Mnemonic::Wrmsr => system::wrmsr,
            Mnemonic::Clts => system::clts,
            Mnemonic::Invlpg => system::invlpg,
            Mnemonic::Invd | Mnemonic::Wbinvd => system::write_back,
            Mnemonic::Swapgs => system::swapgs,
            Mnemonic::Lgdt | Mnemonic::Lidt => {
                op.extra = if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
                    2
                } else {
                    4
                };
                if i.mnemonic() == Mnemonic::Lidt {
                    system::load_table::<true>
                } else {
                    system::load_table::<false>
                }
            }
            Mnemonic::Sgdt => system::store_table::<false>,
            Mnemonic::Sidt => system::store_table::<true>,
            Mnemonic::Lldt => selector!(system::load_system, true),
            Mnemonic::Ltr => selector!(system::load_system, false),
            Mnemonic::Lmsw => selector!(system::lmsw),
            Mnemonic::Sldt => store!(0),
            Mnemonic::Str => store!(1),
            Mnemonic::Smsw => store!(2),
            Mnemonic::Lar => look!(0),
            Mnemonic::Lsl => look!(1),
            Mnemonic::Verr => look!(2),
            Mnemonic::Verw => look!(3),
            Mnemonic::Pushf => self.flags_of(op, 2, system::pushf),
            Mnemonic::Pushfd => self.flags_of(op, 4, system::pushf),
            Mnemonic::Pushfq => self.flags_of(op, 8, system::pushf),
            Mnemonic::Popf => self.flags_of(op, 2, system::popf),
            Mnemonic::Popfd => self.flags_of(op, 4, system::popf),
            Mnemonic::Popfq => self.flags_of(op, 8, system::popf),
            Mnemonic::In | Mnemonic::Out => {
                let (port, data) = if i.mnemonic() == Mnemonic::In { (1, 0) } else { (0, 1) };
                if self.is_immediate(port) {
                    op.imm = i.immediate(port) & 0xff;
                } else {
                    op.extra = 1;
                }
                let input = i.mnemonic() == Mnemonic::In;
                match (self.size(data), input) {
                    (1, true) => system::input::<u8>,
                    (2, true) => system::input::<u16>,
                    (_, true) => system::input::<u32>,
                    (1, false) => system::output::<u8>,
                    (2, false) => system::output::<u16>,
                    (_, false) => system::output::<u32>,
                }
            }
            Mnemonic::Les | Mnemonic::Lds | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => {
                op.extra = match i.mnemonic() {
                    Mnemonic::Les => 0,
                    Mnemonic::Lss => 2,
                    Mnemonic::Lds => 3,
                    Mnemonic::Lfs => 4,
                    _ => 5,
                };
                op.dst = register(i.op0_register());
                wide!(self.size(0), segments::load_far)
            }
            Mnemonic::Ud2 | Mnemonic::Ud0 | Mnemonic::Ud1 => system::undefined,
            Mnemonic::Fxsave | Mnemonic::Fxsave64 => xsave::fxsave::<true>,
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => xsave::fxsave::<false>,
            Mnemonic::Xsave | Mnemonic::Xsave64 => xsave::xsave::<{ xsave::PLAIN }>,
            Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::xsave::<{ xsave::OPTIMIZED }>,
            Mnemonic::Xsavec | Mnemonic::Xsavec64 => xsave::xsave::<{ xsave::COMPACT }>,
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => xsave::xsave::<{ xsave::RESTORE }>,
            Mnemonic::Xgetbv => xsave::get_control,
            Mnemonic::Xsetbv => xsave::set_control,
            Mnemonic::Rdfsbase => base!(false, 4),
            Mnemonic::Rdgsbase => base!(false, 5),
            Mnemonic::Wrfsbase => base!(true, 4),
            Mnemonic::Wrgsbase => base!(true, 5),
            Mnemonic::Ldmxcsr => xsave::mxcsr::<false, false>,
            Mnemonic::Stmxcsr => xsave::mxcsr::<true, false>,
            Mnemonic::Fninit => x87::control::<0>,
            Mnemonic::Fnclex => x87::control::<1>,
            Mnemonic::Wait => x87::control::<3>,
            Mnemonic::Emms => x87::control::<4>,
            Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => x87::control::<5>,
            Mnemonic::Fnstsw if !self.memory(0) => x87::control::<2>,
            Mnemonic::Fnstsw => x87::control_memory::<2>,
            Mnemonic::Fnstcw => x87::control_memory::<0>,
            Mnemonic::Fldcw => x87::control_memory::<1>,
            Mnemonic::Fnstenv | Mnemonic::Fldenv | Mnemonic::Fnsave | Mnemonic::Frstor => {
                op.extra = u32::from(matches!(self.size(0), 28 | 108));
                match i.mnemonic() {
                    Mnemonic::Fnstenv => x87::environment::<true, false>,
                    Mnemonic::Fldenv => x87::environment::<false, false>,
                    Mnemonic::Fnsave => x87::environment::<true, true>,
                    _ => x87::environment::<false, true>,
                }
            }
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu => {
                self.masked_operands(op);
                if i.mnemonic() == Mnemonic::Maskmovq {
                    x87::masked_move::<{ x87::MMX }>
                } else {
                    x87::masked_move::<{ x87::SSE }>
                }
            }
            _ => return None,
        })
    }

    /// MASKMOVDQU and the like.
    pub fn masked_operands(&self, op: &mut Op) {
        let i = self.i;
        op.segment = self.segment(i.memory_segment());
        op.address = match i.op0_kind() {
            OpKind::MemorySegDI => 2,
            OpKind::MemorySegEDI => 1,
            _ => 0,
        };
        op.dst = i.op1_register().number() as u8;
        op.src = i.op2_register().number() as u8;
    }

    fn flags_of(&self, op: &mut Op, bytes: u8, run: Run) -> Run {
        op.dst = bytes;
        run
    }

    /// String instructions.
    pub fn string(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        let repeat = if i.has_repne_prefix() {
            strings::REPNE
        } else if i.has_rep_prefix() {
            strings::REP
        } else {
            strings::ONCE
        };
        macro_rules! element {
            ($size:expr, $kind:tt) => {
                match repeat {
                    strings::ONCE => sized!($size, string, $kind, 0),
                    strings::REP => sized!($size, string, $kind, 1),
                    _ => sized!($size, string, $kind, 2),
                }
            };
        }
        let run = match i.mnemonic() {
            Mnemonic::Movsb => element!(1, 0),
            Mnemonic::Movsw => element!(2, 0),
            // Not the SSE2 instruction of the same name.
            Mnemonic::Movsd if i.code() == Code::Movsd_m32_m32 => element!(4, 0),
            Mnemonic::Movsq => element!(8, 0),
            Mnemonic::Stosb => element!(1, 1),
            Mnemonic::Stosw => element!(2, 1),
            Mnemonic::Stosd => element!(4, 1),
            Mnemonic::Stosq => element!(8, 1),
            Mnemonic::Lodsb => element!(1, 2),
            Mnemonic::Lodsw => element!(2, 2),
            Mnemonic::Lodsd => element!(4, 2),
            Mnemonic::Lodsq => element!(8, 2),
            Mnemonic::Scasb => element!(1, 3),
            Mnemonic::Scasw => element!(2, 3),
            Mnemonic::Scasd => element!(4, 3),
            Mnemonic::Scasq => element!(8, 3),
            Mnemonic::Cmpsb => element!(1, 4),
            Mnemonic::Cmpsw => element!(2, 4),
            Mnemonic::Cmpsd if i.code() == Code::Cmpsd_m32_m32 => element!(4, 4),
            Mnemonic::Cmpsq => element!(8, 4),
            Mnemonic::Insb => element!(1, 5),
            Mnemonic::Insw => element!(2, 5),
            Mnemonic::Insd => element!(4, 5),
            Mnemonic::Outsb => element!(1, 6),
            Mnemonic::Outsw => element!(2, 6),
            Mnemonic::Outsd => element!(4, 6),
            _ => return None,
        };
        op.segment = self.segment(i.memory_segment());
        op.dst = if self.mode == Mode::Bits64 { FLAT as u8 } else { ES as u8 };
        let kinds = (0..i.op_count()).map(|operand| i.op_kind(operand));
        for kind in kinds {
            match kind {
                OpKind::MemorySegSI | OpKind::MemoryESDI => op.address = 2,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => op.address = 1,
                OpKind::MemorySegRSI | OpKind::MemoryESRDI => op.address = 0,
                _ => {}
            }
        }
        Some(run)
    }
}
