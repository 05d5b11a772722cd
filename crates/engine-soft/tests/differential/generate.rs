//! Random instructions of every encoding, with registers and memory that let most of them succeed.

use std::collections::BTreeMap;

use engine::state::Registers;
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess,
    OpKind, Register,
};

use crate::case::{
    AREA, CODE, CODE_SIZE, Case, DATA, DATA_SIZE, FCW, MXCSR, UPPER, WRITABLE, XMM, XSTATE_BV,
};
use crate::compared::{
    has_memory, host_is_amd, is_near_branch, is_x87_store, leaves_traces, usable,
};
use crate::undefined;
use crate::values::{Random, float, fpu, general, number, wide};

/// One way to write an instruction.
#[derive(Clone, Debug)]
struct Template {
    /// Prefixes and opcode.
    head: Vec<u8>,
    modrm: u8,
}

/// Instructions that are told apart: iced's code, and whether an operand is memory.
type Key = (Code, bool, bool);

/// All encodings of one mode.
pub struct Encodings {
    narrow: bool,
    list: Vec<(Key, Vec<Template>)>,
}

impl Encodings {
    /// Every instruction that decodes to something that guests may use.
    pub fn new(narrow: bool) -> Self {
        let mut heads: Vec<(Vec<u8>, bool)> = Vec::new();
        let mut prefixes: Vec<Vec<u8>> =
            [&[][..], &[0x66], &[0xf3], &[0xf2], &[0xf0]].map(<[u8]>::to_vec).into();
        prefixes.extend([vec![0x67], vec![0xf0, 0x66], vec![0x66, 0xf2]]);
        if !narrow {
            let wide: Vec<Vec<u8>> =
                prefixes.iter().map(|p| p.iter().copied().chain([0x48]).collect()).collect();
            prefixes.extend(wide);
        }
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        for opcode in 0..=255_u8 {
            for (prefix, map) in prefixes.iter().flat_map(|p| maps.map(|map| (p, map))) {
                let all = map.is_empty() && (0xd8..=0xdf).contains(&opcode)
                    || map == [0x0f] && matches!(opcode, 0x01 | 0xae | 0xc7);
                heads.push(([prefix, map, &[opcode]].concat(), all));
            }
            // VEX: three maps; W, a second register or none, L and the prefix.
            for map in 1..=3_u8 {
                for last in (0..8).flat_map(|low| [0x78, 0x68, 0xf8, 0xe8].map(|high| high | low)) {
                    heads.push((vec![0xc4, 0xe0 | map, last, opcode], false));
                }
            }
        }
        let mut found: BTreeMap<(String, bool, bool), (Key, Vec<Template>)> = BTreeMap::new();
        for (head, all) in heads {
            for modrm in 0..=255_u8 {
                let (form, rm) = (modrm >> 6, modrm & 7);
                // The fifth has an index, which may have to be a vector.
                let wanted = form == 0 && (rm == 3 || rm == 4 && head[0] == 0xc4)
                    || form == 3 && (all || rm == 1);
                if !wanted {
                    continue;
                }
                let template = Template { head: head.clone(), modrm };
                let bytes = [&head[..], &[modrm], &[0; 12]].concat();
                let i = decode(&bytes, narrow);
                if !usable(&i, narrow) || i.len() < head.len() {
                    continue;
                }
                let key = (i.code(), has_memory(&i), i.has_lock_prefix());
                let name = (format!("{:?}", key.0), key.1, key.2);
                let templates = &mut found.entry(name).or_insert((key, Vec::new())).1;
                if templates.len() < 16 {
                    templates.push(template);
                }
            }
        }
        Self { narrow, list: found.into_values().collect() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The name of the `index`th.
    pub fn name(&self, index: usize) -> String {
        let (code, memory, lock) = self.list[index].0;
        format!(
            "{code:?}{}{}",
            if memory { ", memory" } else { "" },
            if lock { ", lock" } else { "" }
        )
    }

    /// A case of the `index`th encoding alone.
    pub fn single(&self, index: usize, random: &mut Random) -> Case {
        let mut case = self.blank(random);
        let bytes = self.instruction(index, random);
        let start = self.place(bytes.len(), random);
        case.registers.rip = start;
        let mut decoder = Decoder::with_ip(self.bits(), &bytes, start, DecoderOptions::AMD);
        let i = decoder.decode();
        // Not into itself.
        if is_near_branch(&i) && (start..i.next_ip()).contains(&i.near_branch_target()) {
            return self.single(index, random);
        }
        case.code = bytes;
        case.partial.extend(leaves_traces(&i).then_some(start));
        self.suit(&mut case, &i, random);
        if is_xsave(&i) && case.registers.rax > if wide() { 7 } else { 3 } {
            // Components that the host has and the guest has not.
            return self.single(index, random);
        }
        let count = undefined::count(&i, Some(case.registers.rcx));
        if undefined::result(&i, count) {
            case.registers.rcx &= !0xff;
            if undefined::result(&i, undefined::count(&i, Some(0))) {
                // The count is in the instruction: another one.
                return self.single(index, random);
            }
        }
        let count = undefined::count(&i, Some(case.registers.rcx));
        case.undefined_flags = vec![(i.next_ip(), undefined::flags(&i, count))];
        case.undefined_if_zero = matches!(i.mnemonic(), M::Bsf | M::Bsr);
        case.text = self.name(index);
        case
    }

    /// A case of several instructions that rarely fault.
    pub fn sequence(&self, length: u64, random: &mut Random) -> Case {
        let mut case = self.blank(random);
        let start = CODE + random.below(CODE_SIZE as u64 / 2);
        case.registers.rip = start;
        // These four keep pointing into the data.
        for register in [3, 5, 6, 7] {
            let place = DATA + 0x400 + random.below(0x1800);
            *general(&mut case.registers, register) = place;
        }
        // Unmasked exceptions are for single instructions: they compete with faults of segments.
        case.fpu[FCW] |= if self.narrow { 0x3f } else { 0 };
        case.fpu[MXCSR] |= 0x80;
        case.fpu[MXCSR + 1] |= 0x1f;
        let mut undefined = 0;
        let mut count = 0;
        let mut factory = InstructionInfoFactory::new();
        let mut tries = 0;
        while count < length && tries < 400 {
            tries += 1;
            let index = random.below(self.list.len() as u64) as usize;
            let bytes = self.instruction(index, random);
            let ip = start + case.code.len() as u64;
            let mut decoder = Decoder::with_ip(self.bits(), &bytes, ip, DecoderOptions::AMD);
            let i = decoder.decode();
            let reads = u64::from(flags_of(i.rflags_read()));
            if reads & undefined != 0
                || !tame(&i)
                || undefined::result(&i, undefined::count(&i, None))
            {
                continue;
            }
            let info = factory.info(&i);
            let spoils = info.used_registers().iter().any(|used| {
                let write = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                let full = used.register().full_register();
                let kept = [
                    Register::RBX,
                    Register::RBP,
                    Register::RSI,
                    Register::RDI,
                    Register::RSP,
                    Register::EBX,
                    Register::EBP,
                    Register::ESI,
                    Register::EDI,
                    Register::ESP,
                ];
                write && kept.contains(&full)
            });
            let strays = has_memory(&i)
                && (matches!(i.memory_segment(), Register::FS | Register::GS)
                    || !near(i.memory_base())
                    || i.memory_index() != Register::None
                    || !(-0x400..0x400).contains(&(i.memory_displacement64() as i64)));
            if spoils || strays || i.mnemonic() == M::Bsf || i.mnemonic() == M::Bsr {
                continue;
            }
            let new = undefined::flags(&i, undefined::count(&i, None));
            let written =
                u64::from(flags_of(i.rflags_written() | i.rflags_cleared() | i.rflags_set()));
            // A shift by nothing writes nothing.
            let certain =
                if undefined::count(&i, None).is_none() && new != 0 { 0 } else { written };
            undefined = undefined & !certain | new;
            case.code.extend(&bytes);
            case.partial.extend(leaves_traces(&i).then_some(ip));
            case.undefined_flags.push((i.next_ip(), undefined));
            case.text += &format!("{:?}, ", i.code());
            count += 1;
        }
        case
    }

    fn bits(&self) -> u32 {
        if self.narrow { 32 } else { 64 }
    }

    /// Random operands for the `index`th encoding.
    pub fn instruction(&self, index: usize, random: &mut Random) -> Vec<u8> {
        let (key, templates) = &self.list[index];
        for attempt in 0..40 {
            let template = &templates[random.below(templates.len() as u64) as usize];
            let mut bytes = template.head.clone();
            let opcode = opcode_place(&bytes, self.narrow);
            let mut modrm = template.modrm;
            if attempt < 30 {
                modrm = if modrm >= 0xc0 { 0xc0 } else { random.pick(&[0, 0x40, 0x80]) }
                    | modrm & 0x38
                    | random.below(8) as u8;
                if random.one_in(2) {
                    modrm = modrm & !0x38 | (random.below(8) as u8) << 3;
                }
                // x87's last three bits are a register or part of the opcode: both are tried.
                if random.one_in(4) {
                    modrm = template.modrm;
                }
                if is_vex(&bytes, opcode) {
                    // The other register, and the upper halves of all.
                    if random.below(4) > 0 {
                        bytes[opcode + 2] ^= (random.below(16) as u8) << 3;
                    }
                    if !self.narrow {
                        bytes[opcode + 1] ^= (random.below(8) as u8) << 5;
                    }
                } else if !self.narrow {
                    let rex = random.below(8) as u8;
                    if bytes.get(opcode.wrapping_sub(1)).is_some_and(|b| b & 0xf0 == 0x40)
                        && opcode > 0
                    {
                        bytes[opcode - 1] |= rex;
                    } else if rex != 0 && random.one_in(2) && key.0 != Code::Pause {
                        bytes.insert(opcode, 0x40 | rex);
                    }
                }
                if random.one_in(12) {
                    bytes.insert(0, random.pick(&[0x64, 0x65, 0x2e, 0x3e, 0x26, 0x36]));
                }
            }
            bytes.push(modrm);
            bytes.extend((0..12).map(|_| random.next() as u8));
            if modrm < 0xc0 && random.one_in(2) {
                // A displacement that stays near.
                let at = bytes.len() - 12 + usize::from(modrm & 7 == 4);
                bytes[at + 1..at + 4].fill(0);
            }
            let i = decode(&bytes, self.narrow);
            let same = (i.code(), has_memory(&i), i.has_lock_prefix()) == *key;
            if same && usable(&i, self.narrow) {
                bytes.truncate(i.len());
                return bytes;
            }
        }
        let template = &templates[0];
        let mut bytes = [&template.head[..], &[template.modrm], &[0; 12]].concat();
        let i = decode(&bytes, self.narrow);
        bytes.truncate(i.len());
        bytes
    }

    /// Where code of this length starts: often at the end of a page, now and then at the end of all.
    fn place(&self, length: usize, random: &mut Random) -> u64 {
        let length = length as u64;
        match random.below(16) {
            0 => CODE + 0x1000 - 1 - random.below(length.max(2) - 1),
            1 => CODE + CODE_SIZE as u64 - length - random.below(2),
            _ => CODE + 0x400 + random.below(0x800),
        }
    }

    /// Registers and memory before anything is known of the instruction.
    pub fn blank(&self, random: &mut Random) -> Case {
        let mut registers = Registers::default();
        for register in 0..16 {
            *general(&mut registers, register) = number(random);
        }
        registers.rsp = DATA + 0x1000 + 8 * random.below(64);
        if self.narrow {
            for register in 0..16 {
                let value = general(&mut registers, register);
                *value &= if register < 8 { 0xffff_ffff } else { 0 };
            }
        }
        let arithmetic = undefined::CF
            | undefined::PF
            | undefined::AF
            | undefined::ZF
            | undefined::SF
            | undefined::OF;
        registers.rflags = 0x202 | random.next() & arithmetic;
        if random.one_in(4) {
            registers.rflags |= 1 << 10;
        }
        let mut data = vec![0; DATA_SIZE];
        for place in data.chunks_exact_mut(8) {
            let value = match random.below(8) {
                0 => number(random),
                1 => DATA + random.below(WRITABLE as u64),
                2 => CODE + random.below(CODE_SIZE as u64),
                3 => float(random).to_bits(),
                _ => random.next(),
            };
            place.copy_from_slice(&value.to_le_bytes());
        }
        Case {
            narrow: self.narrow,
            code: Vec::new(),
            registers,
            fs_base: if self.narrow { 0 } else { 8 * random.below(64) },
            gs_base: if self.narrow { 0 } else { 8 * random.below(64) },
            fpu: fpu(random, self.narrow),
            data,
            undefined_flags: Vec::new(),
            undefined_if_zero: false,
            coarse: false,
            partial: Vec::new(),
            early: false,
            ignored: Vec::new(),
            text: String::new(),
        }
    }

    /// Makes the instruction's operands mostly reach the data and its inputs mostly sensible.
    fn suit(&self, case: &mut Case, i: &Instruction, random: &mut Random) {
        let r = &mut case.registers;
        let size = i.memory_size().size().max(1) as u64;
        let mut target = match random.below(16) {
            // The end of what can be written, of what can be read, and nowhere.
            0 => DATA + WRITABLE as u64 - random.below(size + 1),
            1 => DATA + DATA_SIZE as u64 - random.below(size + 1),
            2 => number(random),
            3 => DATA + 0x1000 - random.below(size + 1),
            4 | 5 => DATA + random.below(WRITABLE as u64 - 64),
            _ => DATA + 16 * random.below(WRITABLE as u64 / 16 - 8),
        };
        if is_xsave(i) {
            (r.rax, r.rdx) = (random.below(if wide() { 8 } else { 4 }), 0);
            target &= if random.one_in(8) { !0xf } else { !0x3f };
        }
        // Limits of the stack segment are not checked.
        if random.one_in(32) && !self.narrow {
            r.rsp = match random.below(4) {
                0 => DATA + random.below(32),
                1 => DATA + WRITABLE as u64 + random.below(16),
                2 => DATA + DATA_SIZE as u64 - random.below(16),
                _ => number(random),
            };
        }
        if has_memory(i) {
            aim(r, i, case.fs_base, case.gs_base, target);
        }
        if let Some(at) =
            target.checked_sub(DATA).filter(|at| *at + AREA as u64 <= DATA_SIZE as u64)
        {
            suit_operand(i, &mut case.data, at as usize, &mut case.ignored, random);
        }
        let mmx =
            (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
        if mmx || matches!(i.mnemonic(), M::Dpps | M::Dppd | M::Vdpps | M::Vdppd) {
            // Whether the x87 state has changed at an exception differs between processors; and which of a
            // product's steps left flags behind is not imitated.
            case.fpu[MXCSR] |= 0x80;
            case.fpu[MXCSR + 1] |= 0x1f;
        }
        if i.memory_index().is_vector_register() {
            // Most indices are small.
            let number = i.memory_index().number();
            for place in [XMM + 16 * number, UPPER + 16 * number] {
                for index in case.fpu[place..place + 16].chunks_exact_mut(8) {
                    let near = |random: &mut Random| random.below(64) as u32 as u64;
                    let value = match random.below(4) {
                        0 => number_of_index(random),
                        1 => near(random),
                        _ => near(random) | near(random) << 32,
                    };
                    index.copy_from_slice(&value.to_le_bytes());
                }
            }
            if case.fpu[XSTATE_BV] & 4 == 0 {
                case.fpu[UPPER..].fill(0);
            }
        }
        case.early =
            !host_is_amd() && (is_x87_store(i) || matches!(i.mnemonic(), M::Bound | M::Vcvtps2ph));
        case.coarse = is_xsave(i)
            || matches!(
                i.mnemonic(),
                M::Fnsave
                    | M::Frstor
                    | M::Fldenv
                    | M::Fnstenv
                    | M::Fxsave
                    | M::Fxsave64
                    | M::Fxrstor
                    | M::Fxrstor64
                    | M::Maskmovq
                    | M::Maskmovdqu
                    | M::Vmaskmovdqu
                    | M::Vmaskmovps
                    | M::Vmaskmovpd
                    | M::Vpmaskmovd
                    | M::Vpmaskmovq
            );
        let place = DATA + random.below(WRITABLE as u64);
        match i.mnemonic() {
            M::Leave | M::Enter => r.rbp = place,
            M::Popf | M::Popfd | M::Popfq => {
                // Only bits that can be compared, and those that must not change.
                r.rsp = DATA + random.below(WRITABLE as u64 - 8);
                let at = (r.rsp - DATA) as usize;
                let value = random.next() & 0x4_0cd5 | 0x2;
                case.data[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            M::Xlatb => r.rbx = place,
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => r.rdi = place,
            M::Div | M::Idiv => {
                if random.one_in(2) {
                    r.rdx = 0;
                }
                if random.one_in(2) {
                    r.rax &= 0xff;
                }
            }
            _ => {}
        }
        if is_string(i) {
            r.rsi = DATA + random.below(DATA_SIZE as u64);
            r.rdi = DATA + random.below(WRITABLE as u64);
            r.rcx = match random.below(8) {
                0 => 0,
                1 => number(random),
                _ => random.below(40),
            };
            if random.one_in(8) {
                r.rsi = r.rdi.wrapping_add(random.below(8)).wrapping_sub(4);
            }
        }
        let indirect = i.is_jmp_near_indirect() || i.is_call_near_indirect();
        if indirect && i.op0_kind() == OpKind::Register && random.below(4) > 0 {
            let number = i.op0_register().full_register().number();
            if number != 4 {
                *general(r, number) = CODE + random.below(CODE_SIZE as u64);
            }
        }
        if self.narrow {
            for register in 0..16 {
                let value = general(r, register);
                *value &= if register < 8 { 0xffff_ffff } else { 0 };
            }
        }
    }
}

fn decode(bytes: &[u8], narrow: bool) -> Instruction {
    let bits = if narrow { 32 } else { 64 };
    Decoder::with_ip(bits, bytes, CODE, DecoderOptions::AMD).decode()
}

fn is_xsave(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xrstor
            | M::Xrstor64
    )
}

/// Whether the opcode at this place is in truth a VEX prefix, which templates have in its long form.
fn is_vex(head: &[u8], opcode: usize) -> bool {
    head[opcode] == 0xc4 && head.len() == opcode + 4
}

fn is_string(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    })
}

/// Instructions after which the next one is executed, whatever the registers hold.
pub fn tame(i: &Instruction) -> bool {
    matches!(i.flow_control(), iced_x86::FlowControl::Next)
        && !is_string(i)
        && !is_xsave(i)
        && !matches!(
            i.mnemonic(),
            M::Div
                | M::Idiv
                | M::Leave
                | M::Enter
                | M::Xlatb
                | M::Maskmovq
                | M::Maskmovdqu
                | M::Aam
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::Cli
                | M::Sti
                | M::In
                | M::Out
                | M::Hlt
                | M::Bound
                | M::Fxrstor
                | M::Fxrstor64
                | M::Vmaskmovdqu
                | M::Vldmxcsr
                | M::Fxsave
                | M::Fxsave64
                | M::Ldmxcsr
                | M::Fldenv
                | M::Fnstenv
                | M::Fnsave
                | M::Frstor
                | M::Fldcw
        )
        && !i.is_privileged()
}

fn near(register: Register) -> bool {
    matches!(
        register.full_register(),
        Register::RBX
            | Register::RBP
            | Register::RSI
            | Register::RDI
            | Register::EBX
            | Register::EBP
            | Register::ESI
            | Register::EDI
    ) && register.size() > 2
}

/// iced's flags as bits of RFLAGS.
fn flags_of(bits: u32) -> u32 {
    use iced_x86::RflagsBits as B;
    [
        (B::OF, undefined::OF),
        (B::SF, undefined::SF),
        (B::ZF, undefined::ZF),
        (B::AF, undefined::AF),
        (B::CF, undefined::CF),
        (B::PF, undefined::PF),
    ]
    .into_iter()
    .filter(|(iced, _)| bits & iced != 0)
    .fold(0, |all, (_, bit)| all | bit as u32)
}

/// Where the opcode starts.
fn opcode_place(head: &[u8], narrow: bool) -> usize {
    head.iter()
        .position(|byte| {
            let prefix = matches!(byte, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3);
            let rex = !narrow && byte & 0xf0 == 0x40;
            !prefix && !rex
        })
        .unwrap_or(head.len() - 1)
}

/// Sets the base or else the index register so that the memory operand is at `target`.
fn aim(r: &mut Registers, i: &Instruction, fs: u64, gs: u64, target: u64) {
    let segment = match i.memory_segment() {
        Register::FS => fs,
        Register::GS => gs,
        _ => 0,
    };
    let value = |r: &mut Registers, register: Register| match register {
        Register::None => 0,
        _ if register.is_ip() => 0,
        _ => {
            let value = *general(r, register.full_register().number());
            match register.size() {
                2 => value & 0xffff,
                4 => value & 0xffff_ffff,
                _ => value,
            }
        }
    };
    let (base, mut index) = (i.memory_base(), i.memory_index());
    if index.is_vector_register() {
        index = Register::None;
    }
    let scaled = value(r, index).wrapping_mul(i.memory_index_scale().into());
    let wanted = target.wrapping_sub(segment).wrapping_sub(i.memory_displacement64());
    if base != Register::None && !base.is_ip() {
        let number = base.full_register().number();
        if index == Register::None || number != index.full_register().number() {
            let value = wanted.wrapping_sub(scaled);
            *general(r, number) = if base.size() == 8 { value } else { value & 0xffff_ffff };
        }
    } else if index != Register::None {
        let number = index.full_register().number();
        *general(r, number) = wanted / u64::from(i.memory_index_scale());
    }
}

/// Two indices of 32 bits or one of 64, which may lead anywhere.
fn number_of_index(random: &mut Random) -> u64 {
    if random.one_in(4) { number(random) } else { (random.next() as i16 / 64) as i64 as u64 }
}

/// Values that an instruction accepts where most would be refused, and what of its output is made up.
fn suit_operand(
    i: &Instruction,
    data: &mut [u8],
    at: usize,
    ignored: &mut Vec<std::ops::Range<usize>>,
    random: &mut Random,
) {
    // MXCSR has bits that only some processors have.
    let mxcsr = random.next() as u32 & if random.one_in(8) { 0xffff_0000 | 0xffff } else { 0xffff };
    let mxcsr = mxcsr & !(1 << 17);
    match i.mnemonic() {
        M::Ldmxcsr | M::Vldmxcsr => data[at..at + 4].copy_from_slice(&mxcsr.to_le_bytes()),
        M::Fxrstor | M::Fxrstor64 => {
            data[at + MXCSR..at + MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
        }
        M::Xrstor | M::Xrstor64 => {
            data[at + MXCSR..at + MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
            data[at + 512..at + 576].fill(0);
            data[at + 512] = random.below(if wide() { 8 } else { 4 }) as u8;
            if random.one_in(2) {
                // Compacted.
                data[at + 520] = if random.one_in(4) { random.below(8) as u8 } else { 7 };
                data[at + 527] = 0x80;
                // Whether MXCSR is reset with SSE's registers differs, even from one time to the next.
                data[at + 512] |= 2;
            }
        }
        // The last instruction and operand, and components that are as after a reset.
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => {
            ignored.extend([at + 6..at + 24, at + 512..at + 513]);
        }
        // The last instruction and operand.
        M::Fxsave | M::Fxsave64 => ignored.push(at + 6..at + 24),
        M::Fnstenv | M::Fnsave if i.memory_size().size() >= 28 => ignored.push(at + 12..at + 28),
        M::Fnstenv | M::Fnsave => ignored.push(at + 6..at + 14),
        _ => {}
    }
    if is_xsave(i) || matches!(i.mnemonic(), M::Fxsave | M::Fxsave64) {
        // MXCSR_MASK.
        ignored.push(at + 28..at + 32);
    }
}
