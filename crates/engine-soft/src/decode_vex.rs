//! Decoding of instructions with a VEX prefix that are not left to the host's own processor as they are.

use iced_x86::{EncodingKind, Mnemonic, OpKind};

use crate::bits;
use crate::decode::{Decoder, register, rm, wide};
use crate::features::v3;
use crate::op::{Op, Run};
use crate::vectors::{self, LONG, WIDE, WIDE_INDEX};
use crate::{x87, xsave};

impl Decoder<'_> {
    pub fn vex(&self, op: &mut Op) -> Option<Run> {
        let i = self.i;
        if i.encoding() != EncodingKind::VEX || !v3() {
            return None;
        }
        macro_rules! three {
            ($reg:expr, $second:expr, $third:expr, $($f:ident)::+ $(, $arg:tt)*) => {{
                let memory = self.three(op, $reg, $second, $third);
                rm!(memory, wide, self.size(0), $($f)::+ $(, $arg)*)
            }};
        }
        let (none, first, second, third) = (u32::MAX, 0, 1, 2);
        Some(match i.mnemonic() {
            Mnemonic::Andn => three!(first, second, third, bits::and_not),
            Mnemonic::Bextr => three!(first, third, second, bits::extract),
            Mnemonic::Bzhi => three!(first, third, second, bits::zero_high),
            Mnemonic::Shlx => three!(first, third, second, bits::shift, 0),
            Mnemonic::Shrx => three!(first, third, second, bits::shift, 1),
            Mnemonic::Sarx => three!(first, third, second, bits::shift, 2),
            Mnemonic::Rorx => {
                op.imm = i.immediate8().into();
                three!(first, none, second, bits::shift, 3)
            }
            Mnemonic::Pdep => three!(first, second, third, bits::scatter, false),
            Mnemonic::Pext => three!(first, second, third, bits::scatter, true),
            Mnemonic::Mulx => three!(first, second, third, bits::multiply),
            Mnemonic::Blsr => three!(none, first, second, bits::lowest, 1),
            Mnemonic::Blsmsk => three!(none, first, second, bits::lowest, 2),
            Mnemonic::Blsi => three!(none, first, second, bits::lowest, 3),
            Mnemonic::Vzeroupper => vectors::zero::<false>,
            Mnemonic::Vzeroall => vectors::zero::<true>,
            Mnemonic::Vldmxcsr => xsave::mxcsr::<false, true>,
            Mnemonic::Vstmxcsr => xsave::mxcsr::<true, true>,
            Mnemonic::Vmaskmovdqu => {
                self.masked_operands(op);
                x87::masked_move::<{ x87::AVX }>
            }
            Mnemonic::Vmaskmovps
            | Mnemonic::Vmaskmovpd
            | Mnemonic::Vpmaskmovd
            | Mnemonic::Vpmaskmovq => {
                let store = self.memory(0);
                let vector = if store { i.op2_register() } else { i.op0_register() };
                op.dst = vector.number() as u8;
                op.src = i.op1_register().number() as u8;
                let wide = matches!(i.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
                op.extra = u32::from(op.dst)
                    | if vector.is_ymm() { LONG } else { 0 }
                    | if wide { WIDE } else { 0 };
                if store { vectors::masked::<true> } else { vectors::masked::<false> }
            }
            _ if i.memory_index().is_vector_register() => self.gather(op)?,
            _ => return None,
        })
    }

    fn gather(&self, op: &mut Op) -> Option<Run> {
        use Mnemonic as M;
        let (wide, wide_index) = match self.i.mnemonic() {
            M::Vgatherdps | M::Vpgatherdd => (false, false),
            M::Vgatherdpd | M::Vpgatherdq => (true, false),
            M::Vgatherqps | M::Vpgatherqd => (false, true),
            M::Vgatherqpd | M::Vpgatherqq => (true, true),
            _ => return None,
        };
        let (i, index) = (self.i, self.i.memory_index());
        op.dst = i.op0_register().number() as u8;
        op.src = i.op2_register().number() as u8;
        // One of them is shorter where the elements' sizes differ.
        let long = index.is_ymm() || i.op0_register().is_ymm();
        op.extra = index.number() as u32
            | if long { LONG } else { 0 }
            | if wide { WIDE } else { 0 }
            | if wide_index { WIDE_INDEX } else { 0 };
        Some(vectors::gather)
    }

    /// Fills in operands by their numbers; tells whether the last is memory.
    fn three(&self, op: &mut Op, reg: u32, second: u32, third: u32) -> bool {
        let number = |operand: u32| {
            let named = operand < self.i.op_count() && self.i.op_kind(operand) == OpKind::Register;
            if named { register(self.i.op_register(operand)) } else { op.index }
        };
        let (dst, src, index) = (number(reg), number(second), number(third));
        (op.dst, op.src, op.index) = (dst, src, index);
        self.memory(third)
    }
}
