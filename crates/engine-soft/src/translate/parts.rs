//! An instruction's encoding, taken apart so that it can be written again with other registers.

use crate::vex::Vex;

/// Which opcode table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    One,
    Two,
    ThreeByte38,
    ThreeByte3A,
}

/// An address as the guest wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Guest register.
    pub base: Option<u8>,
    /// Guest register and shift.
    pub index: Option<(u8, u8)>,
    pub displacement: i32,
    /// Relative to the next instruction.
    pub relative: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    pub lock: bool,
    /// 66.
    pub word: bool,
    /// F2 or F3, the last one.
    pub repeat: Option<u8>,
    /// 67.
    pub address_32: bool,
    /// 64 or 65.
    pub segment: Option<u8>,
    pub rex: Option<u8>,
    /// What REX does not say; the map is in `map` as well.
    pub vex: Option<Vex>,
    pub map: Map,
    pub opcode: u8,
    pub modrm: Option<u8>,
    pub address: Option<Address>,
    pub immediate: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Of a whole, valid instruction of 64-bit mode; `None` for EVEX and the like.
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut parts = Self {
            lock: false,
            word: false,
            repeat: None,
            address_32: false,
            segment: None,
            rex: None,
            vex: None,
            map: Map::One,
            opcode: 0,
            modrm: None,
            address: None,
            immediate: &[],
        };
        let mut rest = bytes;
        loop {
            let (&byte, next) = rest.split_first()?;
            match byte {
                0xf0 => parts.lock = true,
                0x66 => parts.word = true,
                0xf2 | 0xf3 => parts.repeat = Some(byte),
                0x67 => parts.address_32 = true,
                0x64 | 0x65 => parts.segment = Some(byte),
                0x26 | 0x2e | 0x36 | 0x3e => {}
                _ => break,
            }
            rest = next;
        }
        if let Some((vex, rex, length)) = Vex::parse(rest) {
            parts.vex = Some(vex);
            parts.rex = Some(rex);
            parts.map = match vex.map {
                1 => Map::Two,
                2 => Map::ThreeByte38,
                3 => Map::ThreeByte3A,
                _ => return None,
            };
            rest = &rest[length..];
        }
        let mut take = || -> Option<u8> {
            let (&byte, next) = rest.split_first()?;
            rest = next;
            Some(byte)
        };
        let mut byte = take()?;
        if parts.vex.is_none() && byte & 0xf0 == 0x40 {
            parts.rex = Some(byte & 0xf);
            byte = take()?;
        }
        if parts.vex.is_some() {
            // The map is known.
        } else if byte == 0x62 {
            return None;
        } else if byte == 0x0f {
            byte = take()?;
            parts.map = Map::Two;
            if byte == 0x38 || byte == 0x3a {
                parts.map = if byte == 0x38 { Map::ThreeByte38 } else { Map::ThreeByte3A };
                byte = take()?;
            }
        }
        parts.opcode = byte;
        if has_modrm(parts.map, byte) {
            let modrm = take()?;
            parts.modrm = Some(modrm);
            if modrm < 0xc0 {
                let sib = if modrm & 7 == 4 { Some(take()?) } else { None };
                let (base, mode) = (sib.unwrap_or(modrm) & 7, modrm >> 6);
                let rex = parts.rex.unwrap_or(0);
                let none = mode == 0 && base == 5;
                let index = sib.and_then(|sib| {
                    let number = sib >> 3 & 7 | rex << 2 & 8;
                    (number != 4).then_some((number, sib >> 6))
                });
                let mut displacement = 0;
                if mode == 1 {
                    displacement = i32::from(take()? as i8);
                } else if mode == 2 || none {
                    displacement = i32::from_le_bytes([take()?, take()?, take()?, take()?]);
                }
                parts.address = Some(Address {
                    base: (!none).then_some(base | rex << 3 & 8),
                    index,
                    displacement,
                    relative: none && sib.is_none(),
                });
            }
        }
        parts.immediate = rest;
        Some(parts)
    }

    fn rex_bit(&self, shift: u8) -> u8 {
        (self.rex.unwrap_or(0) >> shift & 1) << 3
    }

    /// ModRM's `reg` with its extension.
    pub fn reg(&self) -> u8 {
        self.modrm.unwrap_or(0) >> 3 & 7 | self.rex_bit(2)
    }

    /// ModRM's `rm` as a register.
    pub fn rm(&self) -> Option<u8> {
        self.modrm.filter(|&modrm| modrm >= 0xc0).map(|modrm| modrm & 7 | self.rex_bit(0))
    }

    /// The register in the opcode's low bits.
    pub fn low(&self) -> u8 {
        self.opcode & 7 | self.rex_bit(0)
    }

    /// The digit of a group.
    pub fn digit(&self) -> u8 {
        self.modrm.unwrap_or(0) >> 3 & 7
    }

    /// REX.W.
    pub fn wide(&self) -> bool {
        self.rex_bit(3) != 0
    }

    /// Bytes of an operand that is not a byte.
    pub fn size(&self) -> u8 {
        if self.wide() {
            8
        } else if self.word {
            2
        } else {
            4
        }
    }

    /// The immediate, sign-extended.
    pub fn signed(&self) -> i64 {
        match *self.immediate {
            [byte] => (byte as i8).into(),
            [a, b] => i16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => i32::from_le_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        }
    }

    /// Opcode with its escape bytes.
    pub fn opcode_bytes(&self) -> ([u8; 3], usize) {
        match self.map {
            Map::One => ([self.opcode, 0, 0], 1),
            Map::Two => ([0x0f, self.opcode, 0], 2),
            Map::ThreeByte38 => ([0x0f, 0x38, self.opcode], 3),
            Map::ThreeByte3A => ([0x0f, 0x3a, self.opcode], 3),
        }
    }
}

fn has_modrm(map: Map, opcode: u8) -> bool {
    match map {
        Map::One => {
            opcode < 0x40 && opcode & 7 < 4
                || matches!(opcode, 0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7
                    | 0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff)
        }
        Map::Two => !matches!(opcode, 0x05..=0x0b | 0x30..=0x37 | 0x77 | 0x80..=0x8f
            | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_comes_apart_where_it_should() {
        // lock xadd [r13 + r9*4 + 0x10], eax
        let parts = Parts::of(&[0xf0, 0x43, 0x0f, 0xc1, 0x44, 0x8d, 0x10]).unwrap();
        assert!(parts.lock && parts.map == Map::Two && parts.opcode == 0xc1);
        let address = parts.address.unwrap();
        assert_eq!((address.base, address.index), (Some(13), Some((9, 2))));
        assert_eq!((address.displacement, address.relative), (0x10, false));
        // mov dword [rip - 4], 0x11223344
        let parts = Parts::of(&[0xc7, 5, 0xfc, 0xff, 0xff, 0xff, 0x44, 0x33, 0x22, 0x11]).unwrap();
        assert!(parts.address.unwrap().relative);
        assert_eq!((parts.address.unwrap().displacement, parts.signed()), (-4, 0x1122_3344));
        // movzx r10d, dil
        let parts = Parts::of(&[0x44, 0x0f, 0xb6, 0xd7]).unwrap();
        assert_eq!((parts.reg(), parts.rm()), (10, Some(7)));
        // vpinsrw xmm9, xmm10, [r8 + rcx*2 + 4], 5
        let parts = Parts::of(&[0xc4, 0x41, 0x29, 0xc4, 0x4c, 0x48, 4, 5]).unwrap();
        assert_eq!((parts.map, parts.reg(), parts.vex.unwrap().second), (Map::Two, 9, 10));
        assert_eq!(parts.address.unwrap().index, Some((1, 1)));
        assert_eq!(parts.immediate, [5]);
        // an AVX-512 instruction
        assert!(Parts::of(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1]).is_none());
    }
}
