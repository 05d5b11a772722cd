//! Builds the code of one block: the state of the builder, the frame around the instructions.

use iced_x86::Instruction;

use super::cold::Cold;
use super::context::{self, LOWER, WHOLE};
use super::emit::{Assembler, EQUAL, Mem, NOT_EQUAL, RSP, Rm};
use super::liveness::Effect;
use super::merge::Checks;
use super::registers::{A, B, STACK};
use super::stubs::{Stubs, restore_flags, save_flags};
use crate::host::PAGE;
use crate::op::Op;

/// An instruction that is to be translated.
pub struct Guest<'a> {
    pub i: Instruction,
    pub effect: Effect,
    /// Flags that are live before it, and behind it.
    pub before: u32,
    pub after: u32,
    /// As the interpreter decoded it.
    pub op: *const Op,
    pub bytes: &'a [u8],
    pub checks: Checks,
}

/// How an exit is linked to the code of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Within the page, forward.
    Plain,
    /// Within the page, backward: asks for reasons to look up.
    Polled,
    /// Anywhere: compares the page as well.
    Checked,
    /// The same with the flags in memory.
    Memory,
}

/// An exit to a known instruction: the jump that can be patched.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Address behind the jump's displacement.
    pub jump: u64,
    /// Where it leads while it is not linked.
    pub unlinked: u64,
    pub rip: u64,
    pub entry: Entry,
    /// It leads to a block without runs.
    pub apart: bool,
}

/// Entries of a finished block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entries {
    pub checked: u64,
    /// With the flags in memory: from the dispatcher and from indirect branches.
    pub indirect: u64,
    pub polled: u64,
    pub plain: u64,
    /// Leaves at the block's first instruction.
    pub miss: u64,
}

/// Where the arithmetic flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Register,
    Memory,
}

/// See the module.
pub struct Builder<'a> {
    pub a: Assembler,
    /// What is seldom executed.
    pub seldom: Assembler,
    pub stubs: &'a Stubs,
    pub user: u64,
    pub flags: Flags,
    /// What the vector registers are known to hold: see [`context::Context::vectors`].
    pub vectors: u8,
    /// The run whose distance is in A, if that was not named since.
    pub held: Option<u8>,
    pub cold: Vec<Cold>,
    pub exits: Vec<Exit>,
    /// Number of the block's first exit.
    pub first_exit: usize,
    /// First instruction.
    pub start: u64,
    pub may_chain: bool,
}

impl Builder<'_> {
    /// The guard at the head; `number` is the page's, `second` that of the page where the only instruction goes on.
    /// `live`: who enters it has flags for it, which it wants in memory if `away`.
    pub fn head(&mut self, live: bool, away: bool, number: u32, second: Option<u32>) -> Entries {
        let mut entries = Entries { checked: self.a.here(), ..Entries::default() };
        if live {
            save_flags(&mut self.a);
        }
        entries.indirect = self.a.here();
        let page = context::page(self.start, self.user);
        self.a.alu_narrow(7, Rm::Mem(Mem::at(RSP, page)), number);
        let elsewhere = self.a.jump(Some(NOT_EQUAL));
        if let Some(second) = second {
            let page = context::page(self.start.wrapping_add(PAGE), self.user);
            self.a.alu_narrow(7, Rm::Mem(Mem::at(RSP, page)), second);
            let hole = self.a.jump(Some(NOT_EQUAL));
            self.cold.push(Cold::Interpret { hole, rip: u64::MAX });
        }
        entries.polled = self.a.here();
        self.a.load(A, Mem::at(RSP, context::attention()));
        self.a.alu_narrow(7, Rm::Mem(Mem::at(A, 0)), 0);
        let wanted = self.a.jump(Some(NOT_EQUAL));
        let away = live && away;
        if live && !away {
            restore_flags(&mut self.a);
        }
        entries.plain = self.a.here();
        if live {
            entries.polled = entries.checked;
        }
        if away {
            self.flags = Flags::Memory;
        }
        // Flags are put away there; and what was asked within the first page says nothing of a second.
        if away || second.is_some() {
            (entries.polled, entries.plain) = (entries.checked, entries.checked);
        }
        self.cold.push(Cold::Interpret { hole: elsewhere, rip: u64::MAX });
        self.cold.push(Cold::Interpret { hole: wanted, rip: u64::MAX });
        entries
    }

    /// From here on RFLAGS may be changed without harm to who reads flags from `guest` on.
    pub fn clobber(&mut self, guest: &Guest<'_>) {
        if guest.before != 0 && self.flags == Flags::Register {
            save_flags(&mut self.a);
            self.flags = Flags::Memory;
        }
    }

    /// RFLAGS must hold what the instruction reads or leaves as it is; to be called right before it.
    /// Changes B.
    pub fn settle(&mut self, guest: &Guest<'_>) {
        let effect = guest.effect;
        let kept = guest.after & !effect.kills;
        let needed = effect.reads != 0 || effect.changes != 0 && kept != 0;
        if self.flags == Flags::Memory && needed {
            restore_flags(&mut self.a);
            self.flags = Flags::Register;
        }
        if effect.changes != 0 {
            self.flags = Flags::Register;
        }
    }

    /// Flags to memory.
    pub fn flags_to_memory(&mut self) {
        if self.flags == Flags::Register {
            save_flags(&mut self.a);
            self.flags = Flags::Memory;
        }
    }

    /// Vector registers are loaded, `wide` ones with their upper halves; RFLAGS may change.
    pub fn need_vectors(&mut self, guest: &Guest<'_>, wide: bool) {
        let (state, missing) = if wide { (WHOLE, NOT_EQUAL) } else { (LOWER, EQUAL) };
        if self.vectors >= state {
            return;
        }
        self.clobber(guest);
        let place = Rm::Mem(Mem::at(RSP, context::vectors()));
        self.a.alu_narrow(7, place, if wide { WHOLE.into() } else { 0 });
        let hole = self.a.jump(Some(missing));
        let (back, rip) = (self.a.here(), guest.i.ip());
        self.cold.push(Cold::Vectors { hole, back, rip, wide });
        self.held = None;
        self.vectors = state;
    }

    /// The instruction is executed by its function.
    pub fn by_function(&mut self, guest: &Guest<'_>) {
        self.flags_to_memory();
        self.a.constant(A, guest.op as u64);
        self.a.call(self.stubs.execute);
    }

    /// Ends the block, or with a condition branches out of it, to a known instruction that reads flags if
    /// `live`.
    pub fn exit(&mut self, condition: Option<u8>, rip: u64, live: bool) {
        let hole = self.a.jump(condition);
        let number = self.first_exit + self.exits.len();
        let (jump, entry) = (self.a.address(hole), self.entry(rip, live));
        self.exits.push(Exit { jump, unlinked: 0, rip, entry, apart: false });
        self.cold.push(Cold::Exit { hole, rip, number, flags: self.flags });
    }

    /// How code at `rip` is entered from here, where it reads flags if `live`.
    pub fn entry(&self, rip: u64, live: bool) -> Entry {
        let same_page = rip >> 12 == self.start >> 12;
        match same_page {
            _ if self.flags == Flags::Memory && (live || !same_page) => Entry::Memory,
            true if rip > self.start => Entry::Plain,
            true => Entry::Polled,
            false => Entry::Checked,
        }
    }

    /// Goes on at the address in A, with the flags in memory, when RSP was moved by `moved`. Where the
    /// address is none, the instruction is the interpreter's.
    pub fn indirect(&mut self, guest: &Guest<'_>, moved: i32) {
        let table = context::targets(self.user);
        if self.may_chain {
            self.a.shifted(B, A, context::MIX);
            self.a.narrow(0x33, B, Rm::Reg(A)); // xor
            self.a.alu_narrow(4, Rm::Reg(B), context::EVEN);
            let entry = |offset| {
                Rm::Mem(Mem { base: Some(RSP), index: Some((B, 3)), displacement: table + offset })
            };
            self.a.wide(0x3b, A, entry(0));
            let hole = self.a.jump(Some(NOT_EQUAL));
            self.move_stack(moved);
            self.a.narrow(0xff, 4, entry(8));
            self.a.bind(hole);
        }
        self.canonical(guest);
        self.move_stack(moved);
        self.a.store(Mem::at(RSP, context::rip()), A);
        self.leave_with(context::INDIRECT, false);
    }

    /// The address in A is canonical, or the instruction is the interpreter's. Changes B.
    pub fn canonical(&mut self, guest: &Guest<'_>) {
        self.a.copy(B, A);
        for operation in [4, 7] {
            self.a.wide(0xc1, operation, Rm::Reg(B)); // shl, sar
            self.a.bytes(&[16]);
        }
        self.a.wide(0x3b, B, Rm::Reg(A));
        let hole = self.a.jump(Some(NOT_EQUAL));
        self.cold.push(Cold::Interpret { hole, rip: guest.i.ip() });
    }

    fn move_stack(&mut self, by: i32) {
        if by != 0 {
            self.a.lea(STACK, Mem::at(STACK, by));
        }
    }

    /// Leaves with a reason; RIP is stored. Changes B.
    pub fn leave_with(&mut self, reason: u32, flags: bool) {
        self.a.constant(B, reason.into());
        self.a.jump_to(if flags { self.stubs.leave_flags } else { self.stubs.leave });
    }

    pub fn set_rip(&mut self, rip: u64) {
        self.a.store_constant(Mem::at(RSP, context::rip()), rip, B);
    }
}
