//! Machine code that executes one instruction for the guest: for each encoding a stub is made that loads
//! what the instruction reads, executes it and stores what it wrote.

use std::collections::HashMap;

use crate::arena::Arena;
use crate::native::{FLAGS, HOST_MXCSR, MXCSR, OPERAND, UPPER, XMM};
use crate::vex::Vex;

/// What is to be executed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// 66, F2, F3 in their order.
    pub prefixes: Vec<u8>,
    /// REX.W, REX.R and REX.B as they are to be.
    pub rex: u8,
    /// In the place of `prefixes` and escape bytes.
    pub vex: Option<Vex>,
    /// With the escape bytes, or the x87 opcode.
    pub opcode: Vec<u8>,
    /// ModRM's `reg`, and `rm` where that is a register; memory is at RSI.
    pub reg: u8,
    pub rm: Option<u8>,
    pub has_modrm: bool,
    pub immediate: Vec<u8>,
    /// A general register: its number; the encoding has RAX in its place.
    pub general: Option<u8>,
    /// Vector registers that are read or written.
    pub vectors: Vec<u8>,
    pub x87: bool,
    pub floats: bool,
    pub flags: bool,
    pub reads_flags: bool,
    /// PCMPESTRI and its like, which take lengths from RAX and RDX and leave an index in RCX.
    pub strings: bool,
}

/// Executable memory for stubs.
pub struct Stubs {
    memory: Option<Arena>,
    known: HashMap<Encoding, usize>,
}

/// Bytes for stubs; a kernel and its programs use a few hundred, of 100 to 200 bytes each, programs that compute with
/// vectors thousands.
const ROOM: usize = 8 << 20;

impl Stubs {
    /// Without memory where the host forbids to execute what was written.
    pub fn new() -> Self {
        Self { memory: Arena::new(ROOM), known: HashMap::new() }
    }

    /// The address of the stub for `encoding`; `None` when there is no room (then [`Stubs::clear`]).
    pub fn make(&mut self, encoding: &Encoding) -> Option<usize> {
        if let Some(address) = self.known.get(encoding) {
            return Some(*address);
        }
        let code = assemble(encoding);
        let memory = self.memory.as_mut()?;
        let address = memory.next() as usize;
        if !memory.append(&code) {
            return None;
        }
        self.known.insert(encoding.clone(), address);
        Some(address)
    }

    /// Whether the stubs of another block might not fit.
    pub fn crowded(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.left() < ROOM / 2)
    }

    /// Forgets every stub. No decoded instruction may be kept.
    pub fn clear(&mut self) {
        self.known.clear();
        if let Some(memory) = &mut self.memory {
            memory.clear();
        }
    }
}

/// RDI: `FpuState`, RSI: the general registers, then the memory operand.
fn assemble(e: &Encoding) -> Vec<u8> {
    let mut code = Vec::with_capacity(128);
    let displacement = |code: &mut Vec<u8>, at: usize| code.extend((at as u32).to_le_bytes());
    // push rdx; mov rdx, rsi (the general registers); lea rsi, [rdi + OPERAND]
    code.extend([0x52, 0x48, 0x89, 0xf2, 0x48, 0x8d, 0xb7]);
    displacement(&mut code, OPERAND);
    if e.x87 {
        code.extend([0x48, 0x0f, 0xae, 0x0f]); // fxrstor64 [rdi]
    }
    if e.floats {
        code.extend([0x0f, 0xae, 0x9f]); // stmxcsr
        displacement(&mut code, HOST_MXCSR);
        code.extend([0x0f, 0xae, 0x57, MXCSR as u8]); // ldmxcsr
    }
    let vector_move = |code: &mut Vec<u8>, opcode: u8, register: u8| {
        if e.vex.is_some() {
            return wide_vector_move(code, opcode == 0x10, register);
        }
        if register >= 8 {
            code.push(0x44);
        }
        code.extend([0x0f, opcode, 0x87 | (register & 7) << 3]); // movups
        displacement(code, XMM + 16 * usize::from(register));
    };
    if !e.x87 {
        for register in &e.vectors {
            vector_move(&mut code, 0x10, *register);
        }
    }
    if let Some(register) = e.general {
        code.extend([0x48, 0x8b, 0x42, 8 * register]); // mov rax, [rdx + 8 * register]
    }
    if e.strings {
        // mov r8, rdx; mov rax, [r8]; mov rdx, [r8 + 16]; mov rcx, [r8 + 8]
        code.extend([0x49, 0x89, 0xd0, 0x49, 0x8b, 0x00, 0x49, 0x8b, 0x50, 0x10]);
        code.extend([0x49, 0x8b, 0x48, 0x08]);
    }
    if e.reads_flags {
        code.extend([0xff, 0xb7]); // push [rdi + FLAGS]
        displacement(&mut code, FLAGS);
        code.push(0x9d); // popfq
    }
    if let Some(vex) = e.vex {
        let (bytes, length) = vex.bytes(e.rex);
        code.extend(&bytes[..length]);
    } else {
        code.extend(&e.prefixes);
        if e.rex != 0 {
            code.push(0x40 | e.rex);
        }
    }
    code.extend(&e.opcode);
    if e.has_modrm {
        let rm = e.rm.map_or(6, |rm| 0xc0 | rm & 7);
        code.push(rm | (e.reg & 7) << 3);
    }
    code.extend(&e.immediate);
    if let Some(register) = e.general {
        code.extend([0x48, 0x89, 0x42, 8 * register]); // mov [rdx + 8 * register], rax
    }
    if e.strings {
        code.extend([0x49, 0x89, 0x48, 0x08]); // mov [r8 + 8], rcx
    }
    if e.flags {
        code.extend([0x9c, 0x8f, 0x87]); // pushfq; pop [rdi + FLAGS]
        displacement(&mut code, FLAGS);
    }
    if !e.x87 {
        for register in &e.vectors {
            vector_move(&mut code, 0x11, *register);
        }
    }
    if e.vex.is_some() {
        code.extend([0xc5, 0xf8, 0x77]); // vzeroupper
    }
    if e.floats {
        code.extend([0x0f, 0xae, 0x5f, MXCSR as u8]); // stmxcsr
        code.extend([0x0f, 0xae, 0x97]); // ldmxcsr
        displacement(&mut code, HOST_MXCSR);
    }
    if e.x87 {
        code.extend([0x48, 0x0f, 0xae, 0x07, 0xdb, 0xe3]); // fxsave64 [rdi]; fninit
        // fxrstor64 loaded the guest's MXCSR: back to what Rust expects.
        code.extend([0x68, 0x80, 0x1f, 0, 0, 0x0f, 0xae, 0x14, 0x24, 0x58]);
    }
    code.extend([0x5a, 0xc3]); // pop rdx; ret
    code
}

/// Loads or stores 256 bits: the halves are in two places.
fn wide_vector_move(code: &mut Vec<u8>, load: bool, register: u8) {
    let (rex, modrm) = (register >> 1 & 4, 0x87 | (register & 7) << 3);
    let mut part = |vex: Vex, opcode: u8, at: usize| {
        let (bytes, length) = vex.bytes(rex);
        code.extend(&bytes[..length]);
        code.extend([opcode, modrm]);
        code.extend((at as u32).to_le_bytes());
    };
    let low = Vex { map: 1, prefix: 0, wide: false, long: false, second: 0 };
    let high = Vex { map: 3, prefix: 1, wide: false, long: true, second: 0 };
    let (at, upper) = (XMM + 16 * usize::from(register), UPPER + 16 * usize::from(register));
    // vmovups; vinsertf128 or vextractf128 with the upper half
    part(low, if load { 0x10 } else { 0x11 }, at);
    if load {
        part(Vex { second: register, ..high }, 0x18, upper);
    } else {
        part(high, 0x19, upper);
    }
    code.push(1);
}
