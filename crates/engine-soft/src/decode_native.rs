//! Which instructions the host's processor executes, and how they are encoded for a stub.

use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    RflagsBits,
};

use crate::cpu::Mode;
use crate::native::{ALIGNED, FLOATS, READS, READS_FLAGS, SETS_FLAGS, WRITES, X87, execute};
use crate::op::{Op, Run};
use crate::stubs::{Encoding, Stubs};

/// The six arithmetic flags.
const ARITHMETIC: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// `None` for what is not offered to guests, or not in a form that is known here.
pub fn native(
    i: &Instruction,
    mode: Mode,
    bytes: &[u8],
    stubs: &mut Stubs,
    op: &mut Op,
) -> Option<Run> {
    if i.encoding() != EncodingKind::Legacy || !i.cpuid_features().iter().all(|f| offered(*f)) {
        return None;
    }
    let info = InstructionInfoFactory::new().info(i).clone();
    let x87 = i.cpuid_features().iter().any(|f| {
        use CpuidFeature as F;
        matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX)
    }) || uses_mmx(i);
    let mut encoding = parse(i, mode, bytes)?;
    encoding.x87 = x87;
    encoding.flags = i.rflags_modified() & ARITHMETIC != 0;
    encoding.reads_flags = i.rflags_read() & ARITHMETIC != 0;
    encoding.floats = !x87 && !integer_only(i);
    encoding.strings = matches!(
        i.mnemonic(),
        Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    );
    for used in info.used_registers() {
        let register = used.register();
        if register.is_xmm() && !encoding.vectors.contains(&(register.number() as u8)) {
            encoding.vectors.push(register.number() as u8);
        }
    }
    encoding.vectors.sort_unstable();
    let mut extra = 0;
    if let [memory] = info.used_memory() {
        let size = memory.memory_size().size() as u32;
        if size == 0 || size > 64 || !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            return None;
        }
        extra |= size;
        if !matches!(memory.access(), OpAccess::Write | OpAccess::CondWrite) {
            extra |= READS;
        }
        if !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead) {
            extra |= WRITES;
        }
        if size == 16 && !unaligned(i) {
            extra |= ALIGNED;
        }
    } else if !info.used_memory().is_empty() {
        return None;
    }
    if x87 {
        extra |= X87;
    }
    // CVTPI2PS and its like work with both units.
    if encoding.floats || uses_mmx(i) && computes(i) {
        extra |= FLOATS;
    }
    if encoding.reads_flags {
        extra |= READS_FLAGS;
    }
    if encoding.flags {
        extra |= SETS_FLAGS;
    }
    op.extra = extra;
    op.imm = stubs.make(&encoding)? as u64;
    Some(execute)
}

/// Parts of the architecture that guests may use, where the host has them.
fn offered(feature: CpuidFeature) -> bool {
    use std::arch::is_x86_feature_detected as host;
    match feature {
        CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::MMX
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::X64 => true,
        CpuidFeature::SSE3 => host!("sse3"),
        CpuidFeature::SSSE3 => host!("ssse3"),
        CpuidFeature::SSE4_1 => host!("sse4.1"),
        CpuidFeature::SSE4_2 => host!("sse4.2"),
        _ => false,
    }
}

fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

fn computes(i: &Instruction) -> bool {
    i.cpuid_features().iter().any(|f| matches!(f, CpuidFeature::SSE | CpuidFeature::SSE2))
        && !integer_only(i)
}

/// MXCSR matters only to instructions that compute with floating-point numbers.
fn integer_only(i: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    let name = format!("{:?}", i.mnemonic());
    name.starts_with('P')
        || name.starts_with("Mov")
        || name.starts_with("Unpck")
        || name.starts_with("Shuf")
        || matches!(
            i.mnemonic(),
            M::Andps
                | M::Andpd
                | M::Andnps
                | M::Andnpd
                | M::Orps
                | M::Orpd
                | M::Xorps
                | M::Xorpd
                | M::Lddqu
        )
}

/// Instructions whose 16-byte operand may be anywhere.
pub fn unaligned(i: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

/// Takes the instruction apart and puts RAX and `[rsi]` in the place of its general register and memory.
fn parse(i: &Instruction, mode: Mode, bytes: &[u8]) -> Option<Encoding> {
    let (mut at, mut rex) = (0, 0);
    let mut prefixes = Vec::new();
    while let Some(&byte) = bytes.get(at) {
        // Only a REX that stands right before the opcode counts.
        match byte {
            0x40..=0x4f if mode == Mode::Bits64 => rex = byte & 0xf,
            0x66 | 0xf2 | 0xf3 => {
                prefixes.push(byte);
                rex = 0;
            }
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => rex = 0,
            _ => break,
        }
        at += 1;
    }
    let start = at;
    if bytes.get(at) == Some(&0x0f) {
        at += 1;
        if matches!(bytes.get(at), Some(0x38 | 0x3a)) {
            at += 1;
        }
    }
    let last = *bytes.get(at)?;
    let opcode = bytes[start..=at].to_vec();
    at += 1;
    let modrm = *bytes.get(at)?;
    let immediates = (0..i.op_count()).filter(|&n| i.op_kind(n) == OpKind::Immediate8).count();
    let immediate = bytes[bytes.len() - immediates..].to_vec();
    let memory = modrm < 0xc0;
    let (mut reg, mut rm) = (modrm >> 3 & 7 | rex << 1 & 8, modrm & 7 | rex << 3 & 8);
    let mut general = None;
    let registers =
        (0..i.op_count()).filter(|&n| i.op_kind(n) == OpKind::Register).map(|n| i.op_register(n));
    for register in registers.clone() {
        if register.is_gpr() {
            if general.is_some() || register.is_gpr8() {
                return None;
            }
            general = Some(register.full_register().number() as u8);
        }
    }
    if registers.clone().any(|r| r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_k()) {
        return None;
    }
    if let Some(number) = general {
        // Which field it is in: `rm` for these opcodes, `reg` for the others.
        let in_rm = match opcode[..] {
            [0x0f, 0x6e | 0x7e | 0x2a | 0xc4] => true,
            [0x0f, 0x3a, 0x14..=0x17 | 0x20 | 0x22] => true,
            [0x0f, 0x2c | 0x2d | 0x50 | 0xd7 | 0xc5] => false,
            _ => return None,
        };
        let field = if in_rm { &mut rm } else { &mut reg };
        if *field != number {
            return None;
        }
        *field = 0;
    }
    let x87 = (0xd8..=0xdf).contains(&last) && opcode.len() == 1;
    if !x87 && opcode.len() == 1 {
        return None;
    }
    let mut new_rex = rex & 8;
    if reg >= 8 {
        new_rex |= 4;
    }
    if !memory && rm >= 8 {
        new_rex |= 1;
    }
    Some(Encoding {
        prefixes,
        rex: new_rex,
        opcode,
        reg,
        rm: (!memory).then_some(rm),
        has_modrm: true,
        immediate,
        general,
        vectors: Vec::new(),
        x87,
        floats: false,
        flags: false,
        reads_flags: false,
        strings: false,
    })
}
