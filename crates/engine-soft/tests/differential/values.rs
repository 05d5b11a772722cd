//! Random numbers, and states to start from.

use engine::state::Registers;

use crate::case::{AREA, DATA, DATA_SIZE, FCW, FSW, FTW, MXCSR, ST, UPPER, XMM, XSTATE_BV};

/// SplitMix64: the same numbers for the same seed, everywhere.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    /// Yes, rarely.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    /// One of these.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// Numbers at which things change, and any other.
pub fn number(random: &mut Random) -> u64 {
    match random.below(10) {
        0 => random.below(4),
        1 => random.pick(&[
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
            u64::MAX - 1,
        ]),
        2 => random.below(70),
        3 => random.next() as u32 as u64,
        4 => random.next() as i32 as u64,
        5 | 6 => DATA + random.below(DATA_SIZE as u64),
        7 => random.next() as i16 as u64,
        _ => random.next(),
    }
}

pub fn float(random: &mut Random) -> f64 {
    match random.below(8) {
        0 => random.pick(&[
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            f64::MIN_POSITIVE,
            f64::MAX,
            5e-324,
            2_147_483_647.5,
            -2_147_483_648.5,
            9.3e18,
            0.5,
            1.5,
            2.5,
        ]),
        1 => f64::from_bits(random.next()),
        2 => f64::from(random.next() as i32),
        3 => f64::from(random.next() as i16) / 8.0,
        _ => (random.next() as i64) as f64 / f64::from(1 << random.below(31)),
    }
}

/// A state that XRSTOR accepts.
pub fn fpu(random: &mut Random, narrow: bool) -> [u8; AREA] {
    let mut area = [0; AREA];
    let mut control = 0x37f_u16;
    if random.one_in(2) {
        control =
            control & 0xf0ff | (random.next() as u16 & 0xc00) | random.pick(&[0, 0x200, 0x300]);
    }
    if random.one_in(16) {
        control &= !(random.next() as u16 & 0x3f);
    }
    area[FCW..FCW + 2].copy_from_slice(&control.to_le_bytes());
    let top = random.below(8) as u16;
    let status = (random.next() as u16 & 0x4700) | top << 11;
    area[FSW..FSW + 2].copy_from_slice(&status.to_le_bytes());
    area[FTW] = if random.one_in(4) { random.next() as u8 } else { 0xff };
    let mut mxcsr = 0x1f80_u32;
    if random.one_in(2) {
        mxcsr |= random.next() as u32 & 0xe07f;
    }
    if random.one_in(16) {
        // What a flag for inexact results is after an unmasked overflow or underflow is not imitated.
        mxcsr &= !(random.next() as u32 & 0x1380);
    }
    area[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    area[MXCSR + 4..MXCSR + 8].copy_from_slice(&0xffff_u32.to_le_bytes());
    for register in 0..8 {
        let at = ST + 16 * register;
        area[at..at + 10].copy_from_slice(&extended(random));
    }
    let registers = if narrow { 8 } else { 16 };
    let lows = (0..registers).map(|register| XMM + 16 * register);
    let uppers = (0..registers).map(|register| UPPER + 16 * register);
    for at in lows.chain(uppers) {
        let halves: [u64; 2] = match random.below(5) {
            0 => [float(random).to_bits(), float(random).to_bits()],
            1 => std::array::from_fn(|_| {
                let single = |random: &mut Random| u64::from((float(random) as f32).to_bits());
                single(random) | single(random) << 32
            }),
            2 => [number(random), number(random)],
            _ => [random.next(), random.next()],
        };
        area[at..at + 8].copy_from_slice(&halves[0].to_le_bytes());
        area[at + 8..at + 16].copy_from_slice(&halves[1].to_le_bytes());
    }
    area[XSTATE_BV] = 3;
    if wide() && !random.one_in(4) {
        area[XSTATE_BV] = 7;
    } else {
        area[UPPER..].fill(0);
    }
    area
}

/// Whether there are upper halves.
pub fn wide() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

/// A number of 80 bits.
fn extended(random: &mut Random) -> [u8; 10] {
    let (exponent, significand): (u16, u64) = match random.below(8) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, 0xc000_0000_0000_0000),
        3 => (random.next() as u16, random.next()),
        4 => (0, random.next()),
        // MMX registers look like this.
        5 => (0xffff, random.next()),
        _ => (16383 - 40 + random.below(80) as u16, random.next() | 1 << 63),
    };
    let sign = (random.next() as u16 & 1) << 15;
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

/// General register `number` in the order of encodings.
pub fn general(r: &mut Registers, number: usize) -> &mut u64 {
    match number {
        0 => &mut r.rax,
        1 => &mut r.rcx,
        2 => &mut r.rdx,
        3 => &mut r.rbx,
        4 => &mut r.rsp,
        5 => &mut r.rbp,
        6 => &mut r.rsi,
        7 => &mut r.rdi,
        8 => &mut r.r8,
        9 => &mut r.r9,
        10 => &mut r.r10,
        11 => &mut r.r11,
        12 => &mut r.r12,
        13 => &mut r.r13,
        14 => &mut r.r14,
        _ => &mut r.r15,
    }
}
