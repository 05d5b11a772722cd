//! Which instructions the host's processor executes, and how they are encoded for a stub.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, RflagsBits,
};

use crate::cpu::Mode;
use crate::features;
use crate::native::{ALIGNED, FLOATS, READS, READS_FLAGS, SETS_FLAGS, VEX, WRITES, X87, execute};
use crate::op::{Op, Run};
use crate::stubs::{Encoding, Stubs};
use crate::vex::Vex;

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
    let vex = i.encoding() == EncodingKind::VEX;
    let known = vex || i.encoding() == EncodingKind::Legacy;
    if !known || !i.cpuid_features().iter().all(|f| offered(*f)) {
        return None;
    }
    let info = InstructionInfoFactory::new().info(i).clone();
    let x87 = i.cpuid_features().iter().any(|f| {
        use CpuidFeature as F;
        matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX)
    }) || uses_mmx(i);
    let mut encoding = if vex { parse_vex(i, mode, bytes)? } else { parse(i, mode, bytes)? };
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
            | Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestri64
            | Mnemonic::Vpcmpestrm
            | Mnemonic::Vpcmpestrm64
            | Mnemonic::Vpcmpistri
            | Mnemonic::Vpcmpistrm
    );
    for used in info.used_registers() {
        let register = used.register();
        if register.is_vector_register() && !encoding.vectors.contains(&(register.number() as u8)) {
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
        if aligned(i, size as usize) {
            extra |= ALIGNED;
        }
    } else if !info.used_memory().is_empty() {
        return None;
    }
    if x87 {
        extra |= X87;
    }
    if vex {
        extra |= VEX;
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

/// Parts of the architecture that guests may use.
fn offered(feature: CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::FPU
            | CpuidFeature::FPU287
            | CpuidFeature::FPU387
            | CpuidFeature::CMOV
            | CpuidFeature::MMX
            | CpuidFeature::X64
    ) || features::offered(feature)
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
    if i.encoding() == EncodingKind::VEX {
        return ["Vp", "Vmov", "Vunpck", "Vshuf", "Vbroadcast", "Vextract", "Vinsert", "Vaes"]
            .iter()
            .any(|start| name.starts_with(start));
    }
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

/// Whether an operand of `size` bytes in memory must be aligned to its size.
pub fn aligned(i: &Instruction, size: usize) -> bool {
    use iced_x86::Mnemonic as M;
    if i.encoding() == EncodingKind::VEX {
        return matches!(
            i.mnemonic(),
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        );
    }
    // AMD's processors take SHA's operand from anywhere.
    size == 16
        && !i.cpuid_features().contains(&CpuidFeature::SHA)
        && !matches!(
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

/// Which field of ModRM names the general register of a vector instruction: `rm` (`true`) or `reg`.
pub fn general_in_rm(map: u8, opcode: u8) -> Option<bool> {
    match (map, opcode) {
        (1, 0x6e | 0x7e | 0x2a | 0xc4) | (3, 0x14..=0x17 | 0x20 | 0x22) => Some(true),
        (1, 0x2c | 0x2d | 0x50 | 0xd7 | 0xc5) => Some(false),
        _ => None,
    }
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
    let map = match opcode[..] {
        [0x0f, 0x38, _] => 2,
        [0x0f, 0x3a, _] => 3,
        [0x0f, _] => 1,
        _ => 0,
    };
    let general = take_general(i, map, last, &mut reg, &mut rm)?;
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
        vex: None,
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

/// The number of the instruction's general register, if it has one: RAX stands in its place from now on.
/// `None` for instructions that cannot be executed so.
fn take_general(
    i: &Instruction,
    map: u8,
    opcode: u8,
    reg: &mut u8,
    rm: &mut u8,
) -> Option<Option<u8>> {
    let mut general = None;
    for operand in (0..i.op_count()).filter(|&n| i.op_kind(n) == OpKind::Register) {
        let register = i.op_register(operand);
        if register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_k()
        {
            return None;
        }
        if register.is_gpr() {
            if general.is_some() || register.is_gpr8() {
                return None;
            }
            general = Some(register.full_register().number() as u8);
        }
    }
    if let Some(number) = general {
        let field = if general_in_rm(map, opcode)? { rm } else { reg };
        if *field != number {
            return None;
        }
        *field = 0;
    }
    Some(general)
}

/// [`parse`] of an instruction with a VEX prefix.
fn parse_vex(i: &Instruction, mode: Mode, bytes: &[u8]) -> Option<Encoding> {
    let legacy = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let start = bytes.iter().position(|byte| !legacy(byte))?;
    let (mut vex, mut rex, length) = Vex::parse(&bytes[start..])?;
    let &[opcode, modrm, ..] = bytes.get(start + length..)? else { return None };
    if i.code() == Code::INVALID {
        return None;
    }
    if mode != Mode::Bits64 {
        // Half of the registers, and 32 bits.
        (vex.second, vex.wide, rex) = (vex.second & 7, vex.wide && !widens(vex.map, opcode), 0);
    }
    let memory = modrm < 0xc0;
    let (mut reg, mut rm) = (modrm >> 3 & 7 | rex << 1 & 8, modrm & 7 | rex << 3 & 8);
    let constants = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Immediate8);
    let mut immediate = bytes[bytes.len() - usize::from(constants || vex.map == 3)..].to_vec();
    if mode != Mode::Bits64 && !constants {
        // A register.
        immediate.iter_mut().for_each(|byte| *byte &= 0x7f);
    }
    let general = take_general(i, vex.map, opcode, &mut reg, &mut rm)?;
    Some(Encoding {
        prefixes: Vec::new(),
        rex: reg >> 1 & 4 | if memory { 0 } else { rm >> 3 & 1 },
        vex: Some(vex),
        opcode: vec![opcode],
        reg,
        rm: (!memory).then_some(rm),
        has_modrm: true,
        immediate,
        general,
        vectors: Vec::new(),
        x87: false,
        floats: false,
        flags: false,
        reads_flags: false,
        strings: false,
    })
}

/// VEX.W makes general registers ones of 64 bits, and nothing in 32-bit mode.
fn widens(map: u8, opcode: u8) -> bool {
    let moves = matches!((map, opcode), (1, 0x2a | 0x2c | 0x2d | 0x6e | 0x7e));
    moves || matches!((map, opcode), (3, 0x16 | 0x22 | 0x60 | 0x61))
}
