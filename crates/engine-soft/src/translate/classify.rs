//! Which instructions are translated, and how.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use super::memory::Use;
use super::parts::{Map, Parts};
use crate::features::{features, offered, v3};

/// The registers and the memory of an instruction that is written again with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// ModRM's `reg` is a general register (else a vector register or a digit).
    pub reg: Field,
    pub rm: Field,
    /// What is done with memory, where `rm` is that.
    pub memory: Use,
    /// F3 does not belong to the opcode.
    pub strip: bool,
}

/// What a field of ModRM names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    General,
    Vector,
    Digit,
}

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the interpreter's function.
    Function,
    /// As it is.
    Raw,
    Nothing,
    Form(Form),
    /// The same with a VEX prefix: of vector registers, and of general registers alone.
    Vector(Form),
    Bits(Use),
    /// VZEROUPPER.
    ZeroUppers,
    Lea,
    Push,
    PushConstant,
    Pop,
    Leave,
    MoveConstant,
    Exchange,
    Swap,
    Divide,
    Branch,
    Jump,
    Call,
    Return,
    JumpIndirect,
    CallIndirect,
    /// CLI in ring 0, and PUSHF.
    ClearInterrupts,
    PushFlags,
    /// LDMXCSR.
    LoadControl,
}

/// See the module; `parts` is the instruction's encoding, `user` 1 in ring 3 and 0 in ring 0.
pub fn classify(i: &Instruction, parts: &Parts<'_>, user: u64) -> Kind {
    let kind = match parts.map {
        _ if parts.vex.is_some() => with_vex(i, parts),
        Map::One if parts.opcode == 0xfa && user == 0 => Some(Kind::ClearInterrupts),
        Map::One => one(parts),
        Map::Two => two(i, parts),
        Map::ThreeByte38 | Map::ThreeByte3A => vector(i, parts),
    };
    let Some(kind) = kind else { return Kind::Function };
    // Operands of 16 bits at the stack, and addresses of 32 bits relative to EIP, are not worth it.
    let odd = parts.address_32 && parts.address.is_some_and(|address| address.relative);
    if odd || parts.lock && !matches!(kind, Kind::Form(_)) {
        return Kind::Function;
    }
    if let Kind::Form(form) = kind {
        return high_bytes(parts, form);
    }
    kind
}

/// AH to BH cannot be named beside a REX prefix.
fn high_bytes(parts: &Parts<'_>, form: Form) -> Kind {
    let (reg_8, rm_8) = byte_fields(parts);
    if parts.rex.is_some() {
        return Kind::Form(form);
    }
    let high = |number: u8| (4..8).contains(&number);
    let reg_high = reg_8 && form.reg == Field::General && high(parts.reg());
    let rm_high = rm_8 && parts.rm().is_some_and(high);
    if !reg_high && !rm_high {
        return Kind::Form(form);
    }
    let stack = form.reg == Field::General && !reg_8 && parts.reg() == 4;
    if parts.address.is_some() || stack || form.strip {
        return Kind::Function;
    }
    Kind::Raw
}

/// Whether `reg` and `rm` are bytes.
fn byte_fields(parts: &Parts<'_>) -> (bool, bool) {
    let opcode = parts.opcode;
    match parts.map {
        Map::One => {
            let byte = opcode & 1 == 0
                && !matches!(opcode, 0x8e | 0x8c)
                && opcode != 0x62
                && !matches!(opcode, 0x69 | 0x6b | 0x63);
            (byte, byte)
        }
        Map::Two => match opcode {
            0x90..=0x9f => (false, true),
            0xb0 | 0xc0 => (true, true),
            0xb6 | 0xbe => (false, true),
            _ => (false, false),
        },
        // CRC32; MOVBE has memory there.
        Map::ThreeByte38 if opcode == 0xf0 => (false, true),
        _ => (false, false),
    }
}

fn form(reg: Field, size: u8, write: bool) -> Option<Kind> {
    Some(Kind::Form(Form {
        reg,
        rm: Field::General,
        memory: Use { size, write, aligned: false },
        strip: false,
    }))
}

fn one(parts: &Parts<'_>) -> Option<Kind> {
    use Field::{Digit, General};
    let opcode = parts.opcode;
    let size = if opcode & 1 == 0 { 1 } else { parts.size() };
    let digit = parts.digit();
    match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => {
                let write = opcode & 2 == 0 && opcode >> 3 != 7;
                form(General, size, write)
            }
            4 | 5 => Some(Kind::Raw),
            _ => None,
        },
        0x50..=0x57 if !parts.word => Some(Kind::Push),
        0x58..=0x5f if !parts.word => Some(Kind::Pop),
        // The host reads 4 bytes, whatever the prefixes say.
        0x63 => form(General, 4, false),
        0x68 | 0x6a if !parts.word => Some(Kind::PushConstant),
        0x69 | 0x6b => form(General, parts.size(), false),
        0x70..=0x7f if !parts.word => Some(Kind::Branch),
        0x80 | 0x81 | 0x83 => form(Digit, size, digit != 7),
        0x84 | 0x85 => form(General, size, false),
        0x86 | 0x87 => form(General, size, true),
        0x88 | 0x89 => form(General, size, true),
        0x8a | 0x8b => form(General, size, false),
        0x8d if !parts.word && parts.address.is_some() => Some(Kind::Lea),
        0x90 if parts.repeat.is_none() && parts.low() == 0 => Some(Kind::Nothing),
        0x90..=0x97 if !parts.word && parts.repeat.is_none() => Some(Kind::Exchange),
        0x98 | 0x99 => Some(Kind::Raw),
        0x9c if !parts.word => Some(Kind::PushFlags),
        0x9e | 0x9f => Some(Kind::Raw),
        0xa8 | 0xa9 => Some(Kind::Raw),
        0xb0..=0xb7 => Some(Kind::MoveConstant),
        0xb8..=0xbf if !parts.word => Some(Kind::MoveConstant),
        0xc0 | 0xc1 | 0xd0..=0xd3 => form(Digit, size, true),
        0xc2 | 0xc3 if !parts.word => Some(Kind::Return),
        0xc6 | 0xc7 if digit == 0 => form(Digit, size, true),
        0xc9 if !parts.word => Some(Kind::Leave),
        0xe8 if !parts.word => Some(Kind::Call),
        0xe9 | 0xeb if !parts.word => Some(Kind::Jump),
        0xf5 | 0xf8 | 0xf9 => Some(Kind::Raw),
        0xf6 | 0xf7 => match digit {
            0 | 1 | 4 | 5 => form(Digit, size, false),
            2 | 3 => form(Digit, size, true),
            _ if size >= 4 => Some(Kind::Divide),
            _ => None,
        },
        0xfe if digit < 2 => form(Digit, 1, true),
        0xff if digit < 2 => form(Digit, size, true),
        0xff if digit == 2 && !parts.word && parts.rm() != Some(4) => Some(Kind::CallIndirect),
        0xff if digit == 4 && !parts.word => Some(Kind::JumpIndirect),
        _ => None,
    }
}

fn two(i: &Instruction, parts: &Parts<'_>) -> Option<Kind> {
    use Field::{Digit, General};
    let (opcode, size) = (parts.opcode, parts.size());
    let register = parts.rm().is_some();
    match opcode {
        0x0d | 0x18 if !register => Some(Kind::Nothing),
        0x1f => Some(Kind::Nothing),
        0x1e if parts.repeat == Some(0xf3) && register => Some(Kind::Nothing),
        0x40..=0x4f => form(General, size, false),
        0x80..=0x8f if !parts.word => Some(Kind::Branch),
        0x90..=0x9f => form(Digit, 1, true),
        0xa3 | 0xab | 0xb3 | 0xbb if register => form(General, size, false),
        0xba if parts.digit() >= 4 => form(Digit, size, parts.digit() > 4),
        0xa4 | 0xa5 | 0xac | 0xad => form(General, size, true),
        0xae if register && parts.repeat.is_none() => match parts.digit() {
            5 => Some(Kind::Nothing),
            6 | 7 => Some(Kind::Raw),
            _ => None,
        },
        // STMXCSR: what it stores is in the host's while the vector registers are.
        0xae if !register && parts.repeat.is_none() && !parts.word => match parts.digit() {
            2 => Some(Kind::LoadControl),
            3 => Some(Kind::Form(Form {
                reg: Digit,
                rm: Field::Vector,
                memory: Use { size: 4, write: true, aligned: false },
                strip: false,
            })),
            _ => None,
        },
        0xaf => form(General, size, false),
        0xb0 | 0xc0 => form(General, 1, true),
        0xb1 | 0xc1 => form(General, size, true),
        0xb6 | 0xbe => form(General, 1, false),
        0xb7 | 0xbf => form(General, 2, false),
        0xb8 if parts.repeat == Some(0xf3) && std::arch::is_x86_feature_detected!("popcnt") => {
            form(General, size, false)
        }
        0xbc | 0xbd if parts.repeat == Some(0xf3) && v3() => form(General, size, false),
        // Without BMI1 and ABM their prefix means nothing.
        0xbc | 0xbd => Some(Kind::Form(Form {
            reg: General,
            rm: General,
            memory: Use { size, write: false, aligned: false },
            strip: true,
        })),
        0xc3 if parts.repeat.is_none() && !parts.word => form(General, size, true),
        0xc7 if parts.digit() == 1 && !register => {
            let bytes = if parts.wide() { 16 } else { 8 };
            Some(Kind::Form(Form {
                reg: Digit,
                rm: General,
                memory: Use { size: bytes, write: true, aligned: bytes == 16 },
                strip: false,
            }))
        }
        0xc8..=0xcf if !parts.word => Some(Kind::Swap),
        0x10..=0x17 | 0x28..=0x2f | 0x50..=0x7f | 0xc2 | 0xc4..=0xc6 | 0xd0..=0xfe => {
            vector(i, parts)
        }
        _ => None,
    }
}

/// SSE to SSE4.2, AES, CRC32, MOVBE, ADX.
fn vector(i: &Instruction, parts: &Parts<'_>) -> Option<Kind> {
    match i.mnemonic() {
        Mnemonic::Movbe if v3() => {
            return form(Field::General, parts.size(), i.op0_kind() == OpKind::Memory);
        }
        Mnemonic::Adcx | Mnemonic::Adox if features().adx => {
            return form(Field::General, if parts.wide() { 8 } else { 4 }, false);
        }
        _ => {}
    }
    if !i.cpuid_features().iter().all(|feature| offered(*feature)) {
        return None;
    }
    if i.mnemonic() == Mnemonic::Crc32 {
        let size = if parts.opcode == 0xf0 { 1 } else { parts.size() };
        return form(Field::General, size, false);
    }
    let operands = (0..i.op_count()).map(|n| (i.op_kind(n), i.op_register(n)));
    let foreign = operands.clone().any(|(kind, register)| match kind {
        OpKind::Register => !register.is_xmm() && !register.is_gpr(),
        OpKind::Memory | OpKind::Immediate8 => false,
        _ => true,
    });
    // The host may want SHA's operand aligned.
    let sha = i.cpuid_features().contains(&CpuidFeature::SHA) && parts.address.is_some();
    if foreign || sha || i.mnemonic() == Mnemonic::Maskmovdqu {
        return None;
    }
    fields(i, parts).map(Kind::Form)
}

/// What the fields of a vector instruction are.
fn fields(i: &Instruction, parts: &Parts<'_>) -> Option<Form> {
    let (mut reg, mut rm) = (Field::Vector, Field::Vector);
    let mut operands = (0..i.op_count()).map(|n| (i.op_kind(n), i.op_register(n)));
    if operands.any(|(kind, register)| kind == OpKind::Register && register.is_gpr()) {
        let map = match parts.map {
            Map::One => 0,
            Map::Two => 1,
            Map::ThreeByte38 => 2,
            Map::ThreeByte3A => 3,
        };
        if crate::decode_native::general_in_rm(map, parts.opcode)? {
            rm = Field::General;
        } else {
            reg = Field::General;
        }
    }
    // A shift by a constant has a digit in `reg`; it is written as it is.
    if (parts.map, parts.opcode & 0xfc) == (Map::Two, 0x70) && parts.opcode != 0x70 {
        reg = Field::Digit;
    }
    let size = if parts.address.is_some() { i.memory_size().size() } else { 0 };
    if parts.address.is_some() && !(1..=32).contains(&size) {
        return None;
    }
    let write = i.op0_kind() == OpKind::Memory;
    let aligned = crate::decode_native::aligned(i, size);
    Some(Form { reg, rm, memory: Use { size: size as u8, write, aligned }, strip: false })
}

/// BMI1, BMI2, AVX, AVX2, FMA, F16C.
fn with_vex(i: &Instruction, parts: &Parts<'_>) -> Option<Kind> {
    let of = |features: &[CpuidFeature]| {
        i.cpuid_features().iter().all(|feature| features.contains(feature))
    };
    if v3() && of(&[CpuidFeature::BMI1, CpuidFeature::BMI2]) {
        let size = if parts.wide() { 8 } else { 4 };
        return Some(Kind::Bits(Use { size, write: false, aligned: false }));
    }
    if !i.cpuid_features().iter().all(|feature| offered(*feature)) {
        return None;
    }
    match i.mnemonic() {
        Mnemonic::Vzeroupper => return Some(Kind::ZeroUppers),
        // The C library's sine sets how is rounded, and back.
        Mnemonic::Vldmxcsr => return Some(Kind::LoadControl),
        Mnemonic::Vstmxcsr => {
            return Some(Kind::Vector(Form {
                reg: Field::Digit,
                rm: Field::Vector,
                memory: Use { size: 4, write: true, aligned: false },
                strip: false,
            }));
        }
        // Their memory is the interpreter's matter, or they are rare.
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq
        | Mnemonic::Vmaskmovdqu
        | Mnemonic::Vzeroall => return None,
        _ if i.memory_index().is_vector_register() => return None,
        _ => {}
    }
    let known = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_vector_register() || i.op_register(n).is_gpr(),
        kind => matches!(kind, OpKind::Memory | OpKind::Immediate8),
    });
    fields(i, parts).filter(|_| known).map(Kind::Vector)
}

/// Whether the instruction needs the vector registers.
pub fn uses_vectors(form: &Form) -> bool {
    form.reg == Field::Vector || form.rm == Field::Vector
}
