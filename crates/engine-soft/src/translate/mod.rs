//! The translator: blocks that are executed often become host code.
//!
//! Guest and host have the same instruction set, so most instructions are written again with other
//! registers ([`lower`]); memory operands go through the interpreter's TLB ([`memory`]). What is not
//! translated is executed by the interpreter's function for it, called from the code. Code runs with RSP
//! pointing to the [`Cpu`](crate::cpu::Cpu) ([`context`], [`registers`]); [`stubs`] leads in and out.
//!
//! Every way into a page asks for the number that [`context::Context::pages`] has for its linear address.
//! It is there only after the page's blocks were compared with memory, and goes away with the TLB and
//! whenever code is written. Between blocks of one page nothing is asked.

mod block;
mod classify;
mod cold;
pub mod context;
mod control;
mod emit;
mod liveness;
mod lower;
mod make;
mod memory;
mod merge;
mod parts;
mod registers;
mod residents;
mod run;
#[allow(unsafe_code)]
mod stubs;
mod trace;
mod vectors;
pub mod verify;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use block::{Entries, Exit};
use emit::Assembler;
use residents::Residents;

use crate::arena::Arena;
use crate::block::PlaceHasher;
use crate::cpu::{Cpu, Mode};
use crate::host::{HostAddress, PAGE};
use crate::op::Op;

/// Bytes of code before everything is forgotten: of what is often executed, and of the rest.
const ROOM: usize = 40 << 20;
const ROOM_SELDOM: usize = 40 << 20;
/// Blocks that are found without a look at the interpreter's.
const QUICK: usize = 4096;
/// See [`Translator::hot`].
const HOT: u32 = 12;
/// Bytes of a page, and of the longest instruction.
const SIZE: usize = PAGE as usize;
const LONGEST_INSTRUCTION: usize = 15;
/// More than the longest block takes.
const BLOCK_ROOM: usize = 256 << 10;

/// Where blocks are compared with the interpreter, so many of their first executions are, and then one in
/// so many.
const FIRST: u32 = 16;
const SAMPLE: u32 = 256;

/// Whether hot blocks are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Translation {
    /// The interpreter executes everything.
    Off,
    /// Hot blocks are translated.
    #[default]
    On,
    /// Every block is translated at once, and exceptions find every flag as it should be; for tests.
    Eager,
    /// Each translated block is compared with the interpreter; for tests.
    Verified,
}

/// A translated block.
struct Block {
    entries: Entries,
    /// Number of its page.
    page: u32,
    rip: u64,
    user: u64,
    /// Where its page is.
    host: HostAddress,
    /// Parts of the page that it was made from, and what they held, one behind the other.
    ranges: Box<[(u16, u16)]>,
    bytes: Box<[u8]>,
    /// The page where its only instruction goes on.
    second: Option<Second>,
    dead: bool,
    /// Its operands are checked each by itself: see [`merge`].
    apart: bool,
    /// How often it was entered by the dispatcher.
    runs: u32,
    /// Exits that are linked to it.
    incoming: Vec<u32>,
    /// For the functions that its code calls.
    _ops: Box<[Op]>,
}

impl Block {
    /// Whether the page still holds what it was made from.
    fn agrees(&self, page: &[u8]) -> bool {
        let mut rest = &self.bytes[..];
        self.ranges.iter().all(|&(start, end)| {
            let (bytes, behind) = rest.split_at(usize::from(end - start));
            rest = behind;
            page[usize::from(start)..].starts_with(bytes)
        })
    }
}

/// See [`Block::second`].
struct Second {
    page: u32,
    linear: u64,
    host: HostAddress,
    /// What was found at its start.
    bytes: Box<[u8]>,
}

/// What the code that was just left waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Link(u32),
    Indirect,
}

/// Each processor has its own.
pub struct Translator {
    arena: Arena,
    stubs: stubs::Stubs,
    blocks: Vec<Block>,
    exits: Vec<Exit>,
    /// Numbers of pages by linear page, host page and ring.
    pages: HashMap<(u64, HostAddress, u64), u32, BuildHasherDefault<PlaceHasher>>,
    residents: Vec<Residents>,
    /// Blocks that were entered last, by RIP.
    quick: Box<[u32; QUICK]>,
    pending: Pending,
    /// The next instruction is the interpreter's.
    interpret: bool,
    /// What comes next is a block without runs.
    apart: bool,
    /// Such blocks, by their first instruction and page.
    aparts: HashMap<(u64, u32), u32>,
    /// Blocks are not linked, and nothing is assumed of what follows them.
    pub alone: bool,
    /// Flags are kept although nobody but an exception could see them.
    exact: bool,
    /// A block that was interpreted so often is translated.
    pub hot: u32,
    /// Buffers for the code that is being made.
    buffers: [Vec<u8>; 2],
    /// The first disagreement with the interpreter.
    pub difference: Option<String>,
    pub counts: Counts,
}

/// For those who look for lost time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub blocks: u64,
    pub instructions: u64,
    pub functions: u64,
    pub entered: u64,
    pub interpreted: u64,
    pub indirect: u64,
    pub linked: u64,
    pub compared: u64,
    pub killed: u64,
}

impl Translator {
    /// `None` where the host forbids to execute what was written.
    pub fn new(translation: Translation) -> Option<Self> {
        let mut translator = Self {
            arena: Arena::divided(ROOM, ROOM_SELDOM)?,
            stubs: stubs::Stubs::default(),
            blocks: Vec::new(),
            exits: Vec::new(),
            pages: HashMap::default(),
            residents: vec![Residents::default()],
            quick: Box::new([u32::MAX; QUICK]),
            pending: Pending::Nothing,
            interpret: false,
            apart: false,
            aparts: HashMap::new(),
            alone: translation == Translation::Verified,
            exact: translation == Translation::Eager,
            hot: if translation == Translation::Eager { 1 } else { HOT },
            buffers: Default::default(),
            difference: None,
            counts: Counts::default(),
        };
        translator.start();
        Some(translator)
    }

    fn start(&mut self) {
        let mut assembler = Assembler::new(self.arena.next());
        self.stubs = stubs::emit(&mut assembler);
        self.arena.append(&assembler.code);
    }

    /// Forgets all code.
    pub fn clear(&mut self, cpu: &mut Cpu) {
        self.arena.clear();
        self.blocks.clear();
        self.quick.fill(u32::MAX);
        self.exits.clear();
        self.pages.clear();
        self.aparts.clear();
        self.residents.truncate(1);
        (self.pending, self.apart) = (Pending::Nothing, false);
        cpu.translated.pages.clear();
        cpu.translated.forget_targets();
        self.start();
    }

    /// Whether there is room for one more block.
    pub fn has_room(&self) -> bool {
        self.arena.left().min(self.arena.left_seldom()) > BLOCK_ROOM
    }

    /// Whether this processor's code can be translated as it is now.
    pub fn suits(cpu: &Cpu) -> bool {
        cpu.mode == Mode::Bits64 && matches!(cpu.cpl, 0 | 3)
    }

    /// Whether a block can be entered.
    pub fn lives(&self, block: u32) -> bool {
        self.blocks.get(block as usize).is_some_and(|block| !block.dead)
    }

    /// The next instruction is the interpreter's: asked once.
    pub fn take_interpret(&mut self) -> bool {
        std::mem::take(&mut self.interpret)
    }

    /// What comes next is a block without runs: asked once.
    pub fn take_apart(&mut self, cpu: &Cpu) -> bool {
        let Pending::Link(exit) = self.pending else { return false };
        std::mem::take(&mut self.apart) && self.exits[exit as usize].rip == cpu.rip
    }

    /// The block at RIP, if its page may be entered as it is.
    #[inline(always)]
    pub fn known(&self, cpu: &Cpu) -> Option<u32> {
        let id = self.quick[quick(cpu)];
        let block = self.blocks.get(id as usize)?;
        let same = block.rip == cpu.rip
            && block.user == cpu.user
            && !block.dead
            && !self.interpret
            && !self.apart
            && Self::suits(cpu)
            && cpu.translated.pages.get(block.rip, block.user) == block.page
            && block.second.as_ref().is_none_or(|second| {
                cpu.translated.pages.get(second.linear, block.user) == second.page
            });
        same.then_some(id)
    }
}

fn quick(cpu: &Cpu) -> usize {
    (cpu.rip ^ cpu.rip >> 12) as usize % QUICK
}
