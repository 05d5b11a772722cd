//! The guest's vector registers: into the host's and back.

use std::mem::offset_of;

use super::context::{self, CLEARED, INTERPRET, LOWER, WHOLE};
use super::emit::{Assembler, EQUAL, Mem, NOT_EQUAL, Prefixes, RSP, Rm};
use super::registers::{A, B};
use super::stubs::{LOAD, STORE, ctx, set};
use crate::cpu::{CR0_EM, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, Cpu};
use crate::features::v3;
use crate::native::{FpuState, UPPER, VECTORS, ZERO_UPPERS};
use crate::vex::Vex;

/// MXCSR in the FXSAVE area, and its masks.
const MXCSR: i32 = 24;
const XMM: i32 = 160;
const MASKED: u32 = 0x1f80;
/// A host's MXCSR, stored where the guest's is not.
static HOST_MXCSR: u32 = MASKED;

/// Prefixes of instructions in map 0F, and of those that move upper halves.
const SHORT: Vex = Vex { map: 1, prefix: 0, wide: false, long: false, second: 0 };
const HALVES: Vex = Vex { map: 3, prefix: 1, wide: false, long: true, second: 0 };

/// Moves the lower halves of all vector registers, and MXCSR; `opcode` 0x10 loads, 0x11 stores. When loaded, the
/// host's upper halves are zero. Changes B.
fn move_vectors(a: &mut Assembler, below: i32, opcode: u8) {
    if opcode == 0x10 {
        zero_upper(a);
    }
    a.load(B, Mem::at(RSP, below + context::fpu()));
    let area = offset_of!(FpuState, area) as i32;
    for number in 0..16 {
        let place = Rm::Mem(Mem::at(B, area + XMM + 16 * i32::from(number)));
        // Without VEX, Intel's processors take a hundred cycles while some upper half is in use.
        if v3() {
            a.vex(SHORT, opcode, number, place);
        } else {
            a.instruction(Prefixes::default(), &[0x0f, opcode], number, place);
        }
    }
    // ldmxcsr, stmxcsr
    let digit = if opcode == 0x10 { 2 } else { 3 };
    a.instruction(Prefixes::default(), &[0x0f, 0xae], digit, Rm::Mem(Mem::at(B, area + MXCSR)));
    if opcode == 0x11 {
        a.constant(B, &raw const HOST_MXCSR as u64);
        a.instruction(Prefixes::default(), &[0x0f, 0xae], 2, Rm::Mem(Mem::at(B, 0)));
    }
}

/// Loads the upper halves into registers where they are zero. Changes B and RFLAGS.
fn load_uppers(a: &mut Assembler, below: i32) {
    a.load(B, Mem::at(RSP, below + context::fpu()));
    let zero = Rm::Mem(Mem::at(B, ZERO_UPPERS as i32));
    a.alu_narrow(7, zero, 0);
    let none = a.jump(Some(NOT_EQUAL));
    for number in 0..16 {
        // vinsertf128 ymm, ymm, [upper], 1
        let place = Mem::at(B, UPPER as i32 + 16 * i32::from(number));
        a.vex(Vex { second: number, ..HALVES }, 0x18, number, Rm::Mem(place));
        a.bytes(&[1]);
    }
    a.bind(none);
    set(a, Mem::at(B, ZERO_UPPERS as i32), 0);
}

/// Stores the upper halves of registers whose lower ones are stored, and notes whether all are zero: what was loaded
/// is in use to Intel's processors, even if it is zero, and makes each change to an instruction without VEX dear.
/// Both halves are lost. Changes B, RAX and RFLAGS.
fn store_uppers(a: &mut Assembler, below: i32) {
    a.load(B, Mem::at(RSP, below + context::fpu()));
    for number in 0..16 {
        // vextractf128 [upper], ymm, 1
        let place = Mem::at(B, UPPER as i32 + 16 * i32::from(number));
        a.vex(HALVES, 0x19, number, Rm::Mem(place));
        a.bytes(&[1]);
    }
    for distance in [8, 4, 2, 1] {
        for number in 0..distance {
            // vorps ymm, ymm, ymm
            let vex = Vex { long: true, second: number, ..SHORT };
            a.vex(vex, 0x56, number, Rm::Reg(number + distance));
        }
    }
    a.vex(HALVES, 0x19, 0, Rm::Reg(0));
    a.bytes(&[1]);
    // vptest xmm0, xmm0; sete al; movzx eax, al
    a.vex(Vex { map: 2, prefix: 1, ..SHORT }, 0x17, 0, Rm::Reg(0));
    a.bytes(&[0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0]);
    a.narrow(STORE, 0, Rm::Mem(Mem::at(B, ZERO_UPPERS as i32)));
    zero_upper(a);
}

/// VZEROUPPER, where there are upper halves.
fn zero_upper(a: &mut Assembler) {
    if v3() {
        a.bytes(&[0xc5, 0xf8, 0x77]);
    }
}

/// Moves what is the guest's of the vector registers.
pub fn move_loaded_vectors(a: &mut Assembler, below: i32, opcode: u8) {
    a.alu_narrow(7, ctx(below + context::vectors()), 0);
    let none = a.jump(Some(EQUAL));
    move_vectors(a, below, opcode);
    if v3() {
        a.alu_narrow(7, ctx(below + context::vectors()), WHOLE.into());
        let lower = a.jump(Some(NOT_EQUAL));
        if opcode == 0x10 {
            load_uppers(a, below);
        } else {
            store_uppers(a, below);
        }
        a.bind(lower);
    }
    a.bind(none);
}

/// Loads the vector registers if the guest may use them, or leaves the instruction to the interpreter.
pub fn vectors(a: &mut Assembler, wide: bool, leave: u64) {
    let below = 8;
    if wide {
        // Right after VZEROUPPER, as between two of the C library's functions, there is nothing to ask or load.
        a.alu_narrow(7, ctx(below + context::vectors()), CLEARED.into());
        let others = a.jump(Some(NOT_EQUAL));
        a.load(B, Mem::at(RSP, below + context::fpu()));
        a.alu_narrow(7, Rm::Mem(Mem::at(B, ZERO_UPPERS as i32)), 0);
        let used = a.jump(Some(EQUAL));
        set(a, Mem::at(B, ZERO_UPPERS as i32), 0);
        set(a, Mem::at(RSP, below + context::vectors()), WHOLE.into());
        a.bytes(&[0xc3]);
        a.bind(others);
        a.bind(used);
    }
    let mut refused = Vec::new();
    a.narrow(LOAD, A, ctx(below + offset_of!(Cpu, cr0) as i32));
    a.alu_narrow(4, Rm::Reg(A), (CR0_EM | CR0_TS) as u32);
    refused.push(a.jump(Some(NOT_EQUAL)));
    let mut all = |a: &mut Assembler, offset: usize, bits: u64| {
        a.narrow(LOAD, A, ctx(below + offset as i32));
        a.alu_narrow(4, Rm::Reg(A), bits as u32);
        a.alu_narrow(7, Rm::Reg(A), bits as u32);
        refused.push(a.jump(Some(NOT_EQUAL)));
    };
    let control = if wide { CR4_OSFXSR | CR4_OSXSAVE } else { CR4_OSFXSR };
    all(a, offset_of!(Cpu, cr4), control);
    if wide {
        all(a, offset_of!(Cpu, xcr0), VECTORS);
    }
    a.alu_narrow(7, ctx(below + context::vectors()), 0);
    let loaded = a.jump(Some(NOT_EQUAL));
    a.load(B, Mem::at(RSP, below + context::fpu()));
    a.narrow(LOAD, A, Rm::Mem(Mem::at(B, offset_of!(FpuState, area) as i32 + MXCSR)));
    a.alu_narrow(4, Rm::Reg(A), MASKED);
    a.alu_narrow(7, Rm::Reg(A), MASKED);
    refused.push(a.jump(Some(NOT_EQUAL)));
    move_vectors(a, below, 0x10);
    a.bind(loaded);
    if wide {
        load_uppers(a, below);
    }
    set(a, Mem::at(RSP, below + context::vectors()), if wide { WHOLE } else { LOWER }.into());
    a.bytes(&[0xc3]);
    for hole in refused {
        a.bind(hole);
    }
    a.lea(RSP, Mem::at(RSP, 8));
    set(a, Mem::at(RSP, context::exit()), INTERPRET);
    a.jump_to(leave);
}
