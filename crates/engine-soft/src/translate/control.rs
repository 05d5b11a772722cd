//! The ends of blocks: jumps, calls and returns.

use super::block::{Builder, Guest};
use super::classify::Kind;
use super::context;
use super::emit::{Mem, RSP};
use super::memory::Use;
use super::parts::Parts;
use super::registers::{A, B, STACK};

impl Builder<'_> {
    /// Emits a jump; `live` tells whether its known target reads flags. Conditional ones go on behind.
    pub fn control(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, kind: Kind, live: bool) {
        let target = guest.i.near_branch_target();
        match kind {
            Kind::Branch => {
                self.settle(guest);
                self.exit(Some(parts.opcode & 15), target, live);
            }
            Kind::Jump => self.exit(None, target, live),
            Kind::Call => {
                self.push_return(guest);
                self.exit(None, target, live);
            }
            Kind::Return => {
                self.clobber(guest);
                let place = self.pushed(guest, 0, false);
                self.a.load(A, place);
                self.indirect(guest, 8 + i32::from(parts.signed() as u16));
            }
            Kind::JumpIndirect => {
                self.target(guest, parts);
                self.indirect(guest, 0);
            }
            _ => {
                let scratch = Mem::at(RSP, context::scratch());
                self.target(guest, parts);
                self.canonical(guest);
                self.a.store(scratch, A);
                self.push_return(guest);
                self.a.load(A, scratch);
                self.indirect(guest, 0);
            }
        }
    }

    /// The target of an indirect branch to A.
    fn target(&mut self, guest: &Guest<'_>, parts: &Parts<'_>) {
        self.clobber(guest);
        if let Some(number) = parts.rm() {
            let register = self.resident(number, A);
            return self.a.copy(A, register);
        }
        let place = self.operand(guest, parts, Use { size: 8, write: false, aligned: false });
        self.a.load(A, place);
    }

    fn push_return(&mut self, guest: &Guest<'_>) {
        let place = self.pushed(guest, -8, true);
        self.a.store_constant(place, guest.i.next_ip(), B);
        self.a.lea(STACK, Mem::at(STACK, -8));
    }
}
