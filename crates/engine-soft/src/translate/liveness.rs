//! Which arithmetic flags somebody still reads, and which an instruction changes.

use iced_x86::Instruction;

use super::parts::{Map, Parts};

/// OF, SF, ZF, AF, CF and PF as iced numbers them.
pub const ALL: u32 = 0x3f;

/// What one instruction does with the arithmetic flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    pub reads: u32,
    /// Changes, perhaps.
    pub changes: u32,
    /// Changes in any case.
    pub kills: u32,
    /// Leaves undefined.
    pub undefined: u32,
}

/// Of an instruction that is not executed by a function.
pub fn effect(i: &Instruction, parts: &Parts<'_>) -> Effect {
    let changes = i.rflags_modified() & ALL;
    let mut kills = changes;
    if parts.map == Map::One {
        let count = match parts.opcode {
            0xc0 | 0xc1 => parts.immediate.first().copied().unwrap_or(0),
            0xd2 | 0xd3 => 0,
            _ => 1,
        };
        if count & if parts.wide() { 63 } else { 31 } == 0 {
            kills = 0;
        }
    } else if parts.map == Map::Two && matches!(parts.opcode, 0xa4 | 0xa5 | 0xac | 0xad) {
        // The count may be 0.
        kills = 0;
    }
    Effect { reads: i.rflags_read() & ALL, changes, kills, undefined: i.rflags_undefined() & ALL }
}

/// What is live before an instruction.
pub fn before(after: u32, effect: Effect) -> u32 {
    after & !effect.kills | effect.reads
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, RflagsBits};

    fn of(bytes: &[u8]) -> Effect {
        let i = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        effect(&i, &Parts::of(bytes).unwrap())
    }

    #[test]
    fn additions_kill_all_and_shifts_by_a_register_none() {
        assert_eq!(of(&[0x01, 0xd8]).kills, ALL);
        assert_eq!(of(&[0xd3, 0xe0]).kills, 0);
        assert_eq!(of(&[0xd3, 0xe0]).changes, ALL);
        assert_eq!(of(&[0xc1, 0xe0, 0x20]).kills, 0);
        assert_eq!(of(&[0xc1, 0xe0, 0x03]).kills, ALL);
        // adc reads the carry, inc keeps it, mov does nothing
        assert_eq!(of(&[0x11, 0xd8]).reads, RflagsBits::CF);
        assert_eq!(of(&[0x48, 0xff, 0xc0]).kills, ALL & !RflagsBits::CF);
        assert_eq!(of(&[0x89, 0xd8]), Effect::default());
    }
}
