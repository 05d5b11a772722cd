//! Loads and stores near to one another, by registers that now and then move a little: what a translator may check
//! together, often where a page ends.

use iced_x86::{Decoder, DecoderOptions};

use crate::case::{CODE, CODE_SIZE, Case, DATA, DATA_SIZE, MXCSR, WRITABLE};
use crate::compared::leaves_traces;
use crate::generate::{Encodings, tame};
use crate::undefined;
use crate::values::{Random, general};

/// Registers that addresses are made of, R10 and R15 among them, which have no register of the host; R14 is an
/// index.
const BASES: [u8; 7] = [3, 5, 6, 7, 13, 10, 15];
const INDEX: u8 = 14;
/// Registers that values are in.
const VALUES: [u8; 6] = [0, 1, 2, 8, 9, 11];
const RSP: u8 = 4;

/// A register plus an index or none plus a displacement.
struct Place {
    base: u8,
    indexed: bool,
    displacement: i32,
}

/// A case of so many instructions.
pub fn case(encodings: &Encodings, length: u64, random: &mut Random) -> Case {
    let mut case = encodings.blank(random);
    case.fpu[MXCSR] |= 0x80;
    case.fpu[MXCSR + 1] |= 0x1f;
    case.registers.rip = CODE + random.below(0x800);
    for base in BASES.into_iter().chain([RSP]) {
        *general(&mut case.registers, base.into()) = start(random);
    }
    *general(&mut case.registers, INDEX.into()) = random.below(16);
    // A few of the bases, so that runs are long.
    let bases = [random.pick(&BASES), random.pick(&BASES), RSP];
    // push rax; pop rax; jmp: the stack's page is known.
    if random.one_in(2) {
        case.code.extend([0x50, 0x58, 0xeb, 0]);
    }
    for _ in 0..length {
        let code = instruction(&bases, random);
        case.code.extend(code);
    }
    // push; cmp rax, rcx; ret: flags that others left outlive a return.
    if random.one_in(2) {
        let target = (CODE + CODE_SIZE as u64 - 16) as u32;
        case.code.extend([&[0x68][..], &target.to_le_bytes(), &[0x48, 0x39, 0xc8, 0xc3]].concat());
    }
    case.text = format!("{:02x?}", case.code);
    case
}

/// A case of the `index`th encoding, before and after which every register is an address: one that it changes must
/// not be taken for what it was. `None` where it does more than that.
pub fn around(encodings: &Encodings, index: usize, random: &mut Random) -> Option<Case> {
    let mut case = encodings.blank(random);
    case.fpu[MXCSR] |= 0x80;
    case.fpu[MXCSR + 1] |= 0x1f;
    let start = CODE + random.below(0x400);
    case.registers.rip = start;
    for register in 0..16 {
        *general(&mut case.registers, register) = DATA + 0x400 + 16 * random.below(0x100);
    }
    // cmp byte [register + displacement], 0
    let look = |case: &mut Case, displacement| {
        for base in (0..16).filter(|base| *base != RSP) {
            let place = Place { base, indexed: false, displacement };
            case.code.extend(access(&[], false, &[0x80], 7, &place));
            case.code.push(0);
        }
    };
    look(&mut case, 8);
    let bytes = encodings.instruction(index, random);
    let ip = start + case.code.len() as u64;
    let i = Decoder::with_ip(64, &bytes, ip, DecoderOptions::AMD).decode();
    if !tame(&i) || leaves_traces(&i) || undefined::result(&i, undefined::count(&i, None)) {
        return None;
    }
    case.code.extend(bytes);
    case.undefined_flags =
        vec![(i.next_ip(), undefined::flags(&i, undefined::count(&i, None))), (i.next_ip() + 1, 0)];
    look(&mut case, 16);
    case.text = encodings.name(index);
    Some(case)
}

/// Near the end of a page: of one that another follows, of what can be written, of all; or anywhere.
fn start(random: &mut Random) -> u64 {
    let end = random.pick(&[0x1000, WRITABLE as u64, DATA_SIZE as u64, 0x1800, 0x1800, 0x1800]);
    (DATA + end).wrapping_sub(random.below(0x100)) & if random.one_in(2) { !15 } else { !0 }
}

fn instruction(bases: &[u8; 3], random: &mut Random) -> Vec<u8> {
    let base = random.pick(bases);
    let value = random.pick(&VALUES);
    let place = Place {
        base,
        indexed: random.one_in(6),
        displacement: random.below(0x60) as i32 - if random.one_in(3) { 0x30 } else { 0 },
    };
    let wide = |opcode: &'static [u8], reg| access(&[], true, opcode, reg, &place);
    let aligned = Place { displacement: place.displacement & !15, ..place };
    match random.below(20) {
        // jmp to the next instruction: what follows finds pages that are known
        18 | 19 => vec![0xeb, 0],
        0..=2 => wide(&[0x8b], value),
        3 | 4 => wide(&[0x89], value),
        5 => wide(&[0x01], value),
        // adc: reads a flag that others left
        6 => wide(&[0x13], value),
        // cmp
        7 => wide(&[0x3b], value),
        8 => access(&[], false, &[0x0f, 0xb6], value, &place),
        9 => access(&[], false, &[0x88], value & 3, &place),
        10 => access(&[random.pick(&[0x64, 0x65])], true, &[0x8b], value, &place),
        // movups, movaps
        11 => access(&[], false, &[0x0f, random.pick(&[0x10, 0x11])], value, &place),
        12 => access(&[], false, &[0x0f, random.pick(&[0x28, 0x29])], value, &aligned),
        // push, pop
        13 => [&rex(value)[..], &[0x50 | value & 7]].concat(),
        14 => [&rex(value)[..], &[0x58 | value & 7]].concat(),
        // lea, add, sub, inc of the base itself
        15 => access(&[], true, &[0x8d], base, &Place { indexed: false, ..place }),
        16 => {
            let digit = random.pick(&[0xc0, 0xe8]);
            let amount = 8 * random.below(4) as u8;
            vec![0x48 | base >> 3, 0x83, digit | base & 7, amount]
        }
        _ => vec![0x48 | base >> 3, 0xff, 0xc0 | base & 7],
    }
}

fn rex(register: u8) -> Vec<u8> {
    if register >= 8 { vec![0x41] } else { Vec::new() }
}

/// An instruction with a register and memory.
fn access(prefix: &[u8], wide: bool, opcode: &[u8], reg: u8, place: &Place) -> Vec<u8> {
    let index = if place.indexed { INDEX } else { 4 };
    let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | place.base >> 3;
    let mut code = [prefix, &[rex], opcode].concat();
    // SIB with a displacement of 32 bits.
    code.extend([0x80 | (reg & 7) << 3 | 4, (index & 7) << 3 | place.base & 7]);
    code.extend(place.displacement.to_le_bytes());
    code
}
