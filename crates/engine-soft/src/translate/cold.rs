//! What a block seldom executes, emitted apart from it: lookups that missed, and ways out.

use super::block::{Builder, Exit, Flags};
use super::context::{self, LINK};
use super::emit::{Hole, Mem, NOT_EQUAL, RSP, Rm};
use super::memory::{Lead, Probe};
use super::registers::{A, B, STACK};
use crate::host::PAGE;

/// Code that is emitted behind the block.
pub enum Cold {
    /// Finds what is not in the TLB.
    Find {
        hole: Hole,
        back: u64,
        rip: u64,
        request: u32,
        place: Place,
        lead: Option<Lead>,
        /// How to look once more, where the entry was the base's.
        again: Option<Probe>,
    },
    /// Finds what is not in the page that is known of the stack; A is to be the distance to the host.
    Stack {
        holes: (Hole, Option<Hole>),
        back: u64,
        rip: u64,
        request: u32,
        displacement: i32,
        lead: Option<Lead>,
    },
    /// Leaves the instruction to the interpreter.
    Interpret { hole: Hole, rip: u64 },
    /// Loads the vector registers, `wide` ones whole.
    Vectors { hole: Hole, back: u64, rip: u64, wide: bool },
    /// An exit's own way out.
    Exit { hole: Hole, rip: u64, number: usize, flags: Flags },
}

/// What is known of an address that was not in the TLB. A is to be the distance to the host, or the host's
/// address.
pub enum Place {
    /// A holds what remains when the page of the entry at B in this table is subtracted.
    Entry { table: i32, distance: bool },
    /// The address; of the host, its page is wanted.
    Constant { linear: u64, distance: bool },
}

impl Builder<'_> {
    /// Emits what is seldom executed; tells where the block leaves at its first instruction.
    pub fn finish(&mut self) -> u64 {
        // From here on `a` is the other code.
        std::mem::swap(&mut self.a, &mut self.seldom);
        let (mut miss, mut find, mut stack) = (0, 0, 0);
        for cold in std::mem::take(&mut self.cold) {
            let hole = match cold {
                Cold::Find { hole, .. } => {
                    if find == 0 {
                        find = self.lookup(self.stubs.find);
                    }
                    hole
                }
                Cold::Stack { holes: (hole, second), .. } => {
                    if stack == 0 {
                        stack = self.lookup(self.stubs.stacks[self.user as usize & 1]);
                    }
                    if let Some(second) = second {
                        self.seldom.bind_to(second, self.a.here());
                    }
                    hole
                }
                Cold::Interpret { hole, .. }
                | Cold::Vectors { hole, .. }
                | Cold::Exit { hole, .. } => hole,
            };
            self.seldom.bind_to(hole, self.a.here());
            match cold {
                Cold::Interpret { rip: u64::MAX, .. } if miss == 0 => {
                    miss = self.a.here();
                    self.set_rip(self.start);
                    self.leave_with(context::NOTHING, false);
                }
                Cold::Interpret { rip: u64::MAX, .. } => self.a.jump_to(miss),
                Cold::Interpret { rip, .. } => {
                    self.set_rip(rip);
                    self.leave_with(context::INTERPRET, false);
                }
                Cold::Vectors { back, rip, wide, .. } => {
                    self.set_rip(rip);
                    self.a.call(if wide { self.stubs.wide_vectors } else { self.stubs.vectors });
                    self.a.jump_to(back);
                }
                Cold::Exit { rip, number, flags, .. } => {
                    self.exits[number - self.first_exit].unlinked = self.a.here();
                    // MOV changes no flags.
                    self.set_rip(rip);
                    self.leave_with(LINK + number as u32, flags == Flags::Register);
                }
                Cold::Stack { back, rip, request, displacement, lead, .. } => {
                    let before = lead.map_or(0, |lead| lead.before);
                    self.a.lea(A, Mem::at(STACK, displacement - before));
                    let over = lead.map(|lead| self.over(lead, rip));
                    self.a.constant(B, (rip % PAGE) << 16 | u64::from(request));
                    self.a.call(stack);
                    self.a.jump_to(back);
                    self.bind_over(over, rip);
                }
                Cold::Find { back, rip, request, place, lead, again, .. } => {
                    match place {
                        Place::Entry { table, .. } => {
                            let page =
                                Mem { base: Some(RSP), index: Some((B, 0)), displacement: table };
                            self.a.wide(0x03, A, Rm::Mem(page));
                        }
                        Place::Constant { linear, .. } => self.a.constant(A, linear),
                    }
                    let over = lead.map(|lead| self.over(lead, rip));
                    if let Some(probe) = again {
                        let hole = self.probe(probe, A);
                        self.a.wide(0x8b, A, probe.entry(8));
                        self.a.jump_to(back);
                        self.a.bind(hole);
                        self.a.wide(0x03, A, probe.entry(0)); // add
                    }
                    self.a.constant(B, (rip % PAGE) << 16 | u64::from(request));
                    self.a.call(find);
                    match place {
                        Place::Entry { distance: false, .. } => {
                            self.a.wide(0x03, A, Rm::Mem(Mem::at(RSP, context::linear())));
                        }
                        Place::Constant { linear, distance: false } => {
                            self.a.constant(B, linear & !(PAGE - 1));
                            self.a.wide(0x03, A, Rm::Reg(B));
                        }
                        _ => {}
                    }
                    self.a.jump_to(back);
                    self.bind_over(over, rip);
                }
            }
        }
        std::mem::swap(&mut self.a, &mut self.seldom);
        miss
    }

    /// Where a run that begins at A goes over the end of a page, the instruction at `rip` and what follows it are a
    /// block's without runs. From its beginning A goes on to its first operand.
    fn over(&mut self, lead: Lead, rip: u64) -> (Hole, usize) {
        self.a.lea(B, Mem::at(A, lead.span - 1));
        self.a.wide(0x33, B, Rm::Reg(A)); // xor
        self.a.wide(0xf7, 0, Rm::Reg(B)); // test
        self.a.bytes(&(!(PAGE as u32 - 1)).to_le_bytes());
        let hole = self.a.jump(Some(NOT_EQUAL));
        if lead.before != 0 {
            self.a.lea(A, Mem::at(A, lead.before));
        }
        let jump = self.a.address(hole);
        self.exits.push(Exit { jump, unlinked: 0, rip, entry: lead.entry, apart: true });
        (hole, self.exits.len() - 1)
    }

    /// Leaves for such a block.
    fn bind_over(&mut self, over: Option<(Hole, usize)>, rip: u64) {
        let Some((hole, exit)) = over else { return };
        self.a.bind(hole);
        self.exits[exit].unlinked = self.a.here();
        self.set_rip(rip);
        self.leave_with(LINK + (self.first_exit + exit) as u32, false);
    }

    /// All of the block's lookups come by here, since RIPs of one page differ little.
    fn lookup(&mut self, stub: u64) -> u64 {
        let here = self.a.here();
        self.a.bytes(&[0x41, 0x50 | A & 7]); // push A
        self.a.constant(A, self.start & !(PAGE - 1));
        self.a.store(Mem::at(RSP, 16 + context::rip()), A);
        self.a.bytes(&[0x41, 0x58 | A & 7]); // pop A
        self.a.jump_to(stub);
        here
    }
}
