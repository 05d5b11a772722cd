//! Where the guest's general registers are while translated code runs.

use super::emit::{Mem, RSP};

/// Scratch registers of the host.
pub const A: u8 = 10;
pub const B: u8 = 11;
/// The guest's RSP.
pub const STACK: u8 = 15;

/// Guest registers that live in host registers: most in their own, so that instructions with implicit
/// operands need no care. R10, R11 and R15, which compilers choose last, are in memory.
pub const PINNED: [(u8, u8); 13] = [
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (4, STACK),
    (5, 5),
    (6, 6),
    (7, 7),
    (8, 8),
    (9, 9),
    (12, 12),
    (13, 13),
    (14, 14),
];

/// The host register of a guest register, if it has one.
pub fn host(guest: u8) -> Option<u8> {
    match guest {
        4 => Some(STACK),
        10 | 11 | 15 => None,
        _ => Some(guest),
    }
}

/// The guest register's place in memory.
pub fn slot(guest: u8) -> Mem {
    Mem::at(RSP, super::context::register(guest))
}
