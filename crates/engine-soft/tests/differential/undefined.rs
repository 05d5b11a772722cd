//! What the architecture leaves undefined: flags by instruction, with the page of the Intel SDM volume 2
//! (AMD APM volume 3 agrees where it does not say otherwise).

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;

/// Undefined flags after an instruction whose count is `count` where that is known.
pub fn flags(i: &Instruction, count: Option<u64>) -> u64 {
    let bits = 8 * operand_size(i) as u64;
    // "The count is masked to 5 bits (or 6 bits with a 64-bit operand)" (SAL/SAR/SHL/SHR).
    let count = count.map(|count| count & if bits == 64 { 63 } else { 31 });
    match i.mnemonic() {
        // AAA, AAS: "The OF, SF, ZF, and PF flags are undefined."
        M::Aaa | M::Aas => OF | SF | ZF | PF,
        // AAD, AAM: "The OF, AF, and CF flags are undefined."
        M::Aad | M::Aam => OF | AF | CF,
        // DAA, DAS: "The OF flag is undefined."
        M::Daa | M::Das => OF,
        // AND, OR, XOR, TEST: "The state of the AF flag is undefined."
        M::And | M::Or | M::Xor | M::Test => AF,
        // BSF, BSR: "the CF, OF, SF, AF, and PF flags are undefined."
        M::Bsf | M::Bsr => CF | OF | SF | AF | PF,
        // BT, BTC, BTR, BTS: "The OF, SF, AF, and PF flags are undefined."
        M::Bt | M::Btc | M::Btr | M::Bts => OF | SF | AF | PF,
        // DIV, IDIV: "The CF, OF, SF, ZF, AF, and PF flags are undefined."
        M::Div | M::Idiv => CF | OF | SF | ZF | AF | PF,
        // MUL, IMUL: "The SF, ZF, AF, and PF flags are undefined."
        M::Mul | M::Imul => SF | ZF | AF | PF,
        // RCL/RCR/ROL/ROR: "The OF flag is defined only for the 1-bit rotates; it is undefined in all
        // other cases (except ... a zero-bit rotate does nothing)."
        M::Rcl | M::Rcr | M::Rol | M::Ror => match count {
            Some(0 | 1) => 0,
            _ => OF,
        },
        // SAL/SAR/SHL/SHR: "the CF flag is undefined for SHL and SHR instructions where the count is
        // greater than or equal to the size (in bits) of the destination operand. The OF flag is affected
        // only for 1-bit shifts; otherwise, it is undefined ... AF flag is undefined for a non-zero count."
        M::Shl | M::Sal | M::Shr | M::Sar => {
            let carry = if i.mnemonic() == M::Sar { 0 } else { CF };
            match count {
                Some(0) => 0,
                Some(1) => AF,
                Some(count) if count < bits => AF | OF,
                _ => AF | OF | carry,
            }
        }
        // SHLD, SHRD: "For a 1-bit shift, the OF flag is set if a sign change occurred; otherwise ...
        // undefined. ... AF undefined. If the count operand is greater than the operand size, the flags
        // are undefined."
        M::Shld | M::Shrd => match count {
            Some(0) => 0,
            Some(1) => AF,
            Some(count) if count <= bits => AF | OF,
            _ => CF | OF | SF | ZF | AF | PF,
        },
        // ANDN, BZHI, BLSI, BLSMSK, BLSR: "The AF and PF flags are undefined."
        M::Andn | M::Bzhi | M::Blsi | M::Blsmsk | M::Blsr => AF | PF,
        // BEXTR: "The AF, SF, and PF flags are undefined."
        M::Bextr => AF | SF | PF,
        // LZCNT, TZCNT: "the OF, SF, PF, and AF flags are undefined."
        M::Lzcnt | M::Tzcnt => OF | SF | PF | AF,
        _ => 0,
    }
}

/// Whether a register or memory may hold anything afterwards.
pub fn result(i: &Instruction, count: Option<u64>) -> bool {
    match i.mnemonic() {
        // SHLD, SHRD: "If the count is greater than the operand size, the result is undefined."
        M::Shld | M::Shrd => operand_size(i) == 2 && count.is_none_or(|count| count & 31 > 16),
        _ => false,
    }
}

/// The count of a shift or rotation, if `cl` or the instruction tells.
pub fn count(i: &Instruction, cl: Option<u64>) -> Option<u64> {
    let last = i.op_count().checked_sub(1)?;
    match i.op_kind(last) {
        OpKind::Immediate8 => Some(i.immediate(last) & 0xff),
        OpKind::Register if i.op_register(last) == Register::CL => cl.map(|cl| cl & 0xff),
        _ => None,
    }
}

fn operand_size(i: &Instruction) -> usize {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    }
}
