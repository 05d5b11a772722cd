//! The VEX prefix (Intel SDM volume 2, section 2.3.5).

/// What it says besides the extensions of register numbers, which are REX's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vex {
    /// Opcode map: 1 for 0F, 2 for 0F 38, 3 for 0F 3A.
    pub map: u8,
    /// The prefix that it stands for: none, 66, F3, F2.
    pub prefix: u8,
    /// VEX.W and VEX.L.
    pub wide: bool,
    pub long: bool,
    /// The register in VEX.vvvv; 0 where there is none.
    pub second: u8,
}

impl Vex {
    /// Takes the prefix at the start of `bytes` apart: with it, the bits of REX that it stands for and its
    /// length.
    pub fn parse(bytes: &[u8]) -> Option<(Self, u8, usize)> {
        let (rex, map, last, length) = match *bytes {
            [0xc5, last, ..] => (!last >> 5 & 4, 1, last & 0x7f, 2),
            [0xc4, first, last, ..] => (!first >> 5, first & 31, last, 3),
            _ => return None,
        };
        let wide = last & 0x80 != 0;
        let vex =
            Self { map, prefix: last & 3, wide, long: last & 4 != 0, second: !last >> 3 & 15 };
        Some((vex, rex | u8::from(wide) << 3, length))
    }

    /// The bytes of the prefix with these bits of REX, and how many they are.
    pub fn bytes(self, rex: u8) -> ([u8; 3], usize) {
        let last = (!self.second & 15) << 3 | u8::from(self.long) << 2 | self.prefix;
        if self.map == 1 && !self.wide && rex & 3 == 0 {
            return ([0xc5, (!rex & 4) << 5 | last, 0], 2);
        }
        let first = (!rex & 7) << 5 | self.map;
        ([0xc4, first, u8::from(self.wide) << 7 | last], 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_survives_being_taken_apart() {
        // vpaddd ymm9, ymm10, ymm11; vaddps xmm0, xmm1, xmm2; andn r8, rbx, [r9 + r10]
        for bytes in [&[0xc4, 0x41, 0x2d][..], &[0xc5, 0xf0], &[0xc4, 0x02, 0xe0]] {
            let (vex, rex, length) = Vex::parse(bytes).unwrap();
            assert_eq!(length, bytes.len());
            let (again, length) = vex.bytes(rex);
            assert_eq!(&again[..length], bytes);
        }
        let (vex, rex, _) = Vex::parse(&[0xc4, 0x41, 0x2d]).unwrap();
        assert_eq!((vex.second, vex.long, vex.prefix, vex.map, rex), (10, true, 1, 1, 5));
    }
}
