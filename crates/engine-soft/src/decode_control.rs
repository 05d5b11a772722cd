//! Decoding of jumps, calls and returns.

use iced_x86::{Code, Mnemonic, OpKind};

use crate::decode::{Decoder, rm, wide};
use crate::op::{Op, Run};
use crate::{branch, segments, system};

impl Decoder<'_> {
    pub fn control(&self, op: &mut Op) -> Option<Run> {
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
                branch::jmp
            }
            Mnemonic::Call if near => {
                op.imm = self.target();
                wide!(self.stack_bytes(), branch::call)
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
                rm!(memory, wide, size, branch::jmp_indirect)
            }
            Mnemonic::Call => {
                let (size, memory) = self.one(op, 0);
                rm!(memory, wide, size, branch::call_indirect)
            }
            Mnemonic::Ret => {
                if i.op_count() == 1 {
                    op.imm = i.immediate16().into();
                }
                match i.code() {
                    Code::Retnw | Code::Retnw_imm16 => branch::ret::<u16>,
                    Code::Retnd | Code::Retnd_imm16 => branch::ret::<u32>,
                    _ => branch::ret::<u64>,
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
                    Mnemonic::Loop => branch::looping::<0>,
                    Mnemonic::Loope => branch::looping::<1>,
                    Mnemonic::Loopne => branch::looping::<2>,
                    _ => branch::looping::<3>,
                }
            }
            Mnemonic::Int | Mnemonic::Int3 => {
                op.imm = if i.mnemonic() == Mnemonic::Int { i.immediate8().into() } else { 3 };
                system::int
            }
            Mnemonic::Int1 => system::icebp,
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
