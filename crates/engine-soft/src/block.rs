//! Decoded blocks, found again by where their code is, and compared with it before they are trusted.

use std::collections::HashMap;

use iced_x86::{
    DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
};

use crate::cpu::{Access, Cpu, FLAT, FLAT_STACK, Fault, GP, Mode, RBP, RSP, SS_FAULT, Step, Stop};
use crate::decode::decode;
use crate::host::{HostAddress, PAGE, Regs};
use crate::op::Op;
use crate::segments::check_limit;
use crate::stubs::Stubs;
use crate::translate::{Counts, Translation, Translator};

/// Instructions of the longest block.
const LONGEST: usize = 64;
/// Bytes looked at for one block.
const WINDOW: usize = 512;
/// Instructions in the cache before it is emptied.
const CAPACITY: usize = 1 << 20;
/// The processor is one of AMD's, as its CPUID says.
pub const OPTIONS: u32 = DecoderOptions::AMD;
const QUICK: usize = 4096;
const NONE: u32 = u32::MAX;

/// Code that is executed from its first instruction to its last.
pub struct Block {
    pub ops: Box<[Op]>,
    /// How many of them are the first instruction.
    first: usize,
    /// Instruction pointer behind the last.
    pub end: u64,
    /// The bytes it was made from, for comparison.
    bytes: Box<[u8]>,
    links: [Link; 2],
    /// Which link is replaced next.
    turn: usize,
    /// Where its first byte is, if that is memory.
    host: Option<HostAddress>,
    /// How often it was interpreted.
    heat: u32,
    /// Its translation.
    code: u32,
}

/// A block that is known to follow.
#[derive(Clone, Copy)]
struct Link {
    rip: u64,
    generation: u64,
    key: u8,
    block: u32,
}

const NO_LINK: Link = Link { rip: 0, generation: u64::MAX, key: 0, block: NONE };

/// See the module. Each processor has its own.
pub struct Cache {
    blocks: Vec<Block>,
    by_place: HashMap<(u64, u64, u8), u32, std::hash::BuildHasherDefault<PlaceHasher>>,
    quick: Box<[Link; QUICK]>,
    stubs: Stubs,
    instructions: usize,
    translator: Option<Translator>,
    /// The last block was a translated one, of which the links know nothing.
    left: bool,
}

/// Mixes two addresses; nobody attacks a cache of its own.
#[derive(Default)]
pub struct PlaceHasher(u64);

impl std::hash::Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

fn key(c: &Cpu) -> u8 {
    c.mode as u8 | (c.user as u8) << 2
}

impl Cache {
    /// Empty; translates hot blocks if it may and the host allows it.
    pub fn new(translation: Translation) -> Self {
        Self {
            blocks: Vec::new(),
            by_place: HashMap::default(),
            quick: Box::new([NO_LINK; QUICK]),
            stubs: Stubs::new(),
            instructions: 0,
            translator: match translation {
                Translation::Off => None,
                _ => {
                    let translator = Translator::new(translation);
                    if translator.is_none() {
                        tracing::warn!(
                            "This host executes no memory that was written: guests are slow"
                        );
                    }
                    translator
                }
            },
            left: false,
        }
    }

    /// What the translator did.
    pub fn counts(&self) -> Option<Counts> {
        self.translator.as_ref().map(|translator| translator.counts)
    }

    /// The first disagreement of translator and interpreter.
    #[inline(always)]
    pub fn difference(&mut self) -> Option<String> {
        self.translator.as_mut()?.difference.take()
    }

    /// Executes the translated block at the instruction pointer, if it is known to be up to date.
    #[inline(always)]
    pub fn run_known(&mut self, c: &mut Cpu) -> Option<Step> {
        let translator = self.translator.as_mut()?;
        let block = translator.known(c)?;
        Some(translator.run(c, block, &mut self.stubs))
    }

    /// Executes a block, or only its first instruction.
    #[inline(always)]
    pub fn run(&mut self, number: u32, one: bool, c: &mut Cpu) -> Step {
        if self.translator.is_some() {
            return self.run_translated(number, one, c);
        }
        c.execute(&self.blocks[number as usize], one)
    }

    fn run_translated(&mut self, number: u32, mut one: bool, c: &mut Cpu) -> Step {
        let Some(translator) = &mut self.translator else { return Ok(()) };
        let block = &mut self.blocks[number as usize];
        one |= translator.take_interpret();
        let apart = translator.take_apart(c);
        self.left = false;
        if let Some(host) = block.host.filter(|_| !one && Translator::suits(c)) {
            if apart {
                if let Some(code) = translator.apart(c, host.page(), &mut self.stubs) {
                    self.left = true;
                    return translator.run(c, code, &mut self.stubs);
                }
            } else if translator.lives(block.code) {
                self.left = true;
                return translator.run(c, block.code, &mut self.stubs);
            }
            block.heat += 1;
            if block.heat.is_multiple_of(translator.hot) && !apart {
                if !translator.has_room() {
                    self.clear_code(c);
                } else if let Some(code) =
                    translator.translate(c, host.page(), &mut self.stubs, true)
                {
                    self.left = true;
                    block.code = code;
                    return translator.run(c, code, &mut self.stubs);
                }
            }
        }
        if let Some(translator) = &mut self.translator {
            translator.forget_pending();
        }
        c.execute(&self.blocks[number as usize], one | apart)
    }

    #[cold]
    fn clear_code(&mut self, c: &mut Cpu) {
        if let Some(translator) = &mut self.translator {
            translator.clear(c);
        }
        self.blocks.iter_mut().for_each(|block| block.code = NONE);
    }

    /// The block at the instruction pointer.
    #[inline(always)]
    pub fn find(&mut self, c: &mut Cpu) -> Step<u32> {
        let quick = &self.quick[(c.rip ^ c.rip >> 12) as usize % QUICK];
        if quick.rip == c.rip && quick.generation == c.generation && quick.key == key(c) {
            return Ok(quick.block);
        }
        self.find_slow(c)
    }

    /// The block that follows `from`; remembers it there.
    #[inline(always)]
    pub fn follow(&mut self, from: u32, c: &mut Cpu) -> Step<u32> {
        if self.left {
            return self.find(c);
        }
        let key = key(c);
        for link in &self.blocks[from as usize].links {
            if link.rip == c.rip && link.generation == c.generation && link.key == key {
                return Ok(link.block);
            }
        }
        let blocks = self.blocks.len();
        let found = self.find(c)?;
        if self.blocks.len() >= blocks {
            let link = Link { rip: c.rip, generation: c.generation, key, block: found };
            let block = &mut self.blocks[from as usize];
            block.links[block.turn] = link;
            block.turn ^= 1;
        }
        Ok(found)
    }

    #[inline(never)]
    fn find_slow(&mut self, c: &mut Cpu) -> Step<u32> {
        let linear = c.rip.wrapping_add(c.base_of_code()) & c.linear_mask;
        let physical = match c.fetches.number(linear, c.user) {
            Some(physical) => physical,
            None => c.translate(linear, Access::Fetch, c.user)?,
        };
        let key = key(c);
        let place = (physical, c.rip, key);
        if let Some(&number) = self.by_place.get(&place) {
            if self.verify(number, linear, physical, c)? {
                self.remember(number, key, c);
                return Ok(number);
            }
            self.by_place.remove(&place);
        }
        if self.instructions > CAPACITY || self.stubs.crowded() {
            self.clear(c);
        }
        let mut block = self.build(linear, physical, c)?;
        block.host = watched(c, physical);
        self.instructions += block.ops.len();
        let number = self.blocks.len() as u32;
        self.blocks.push(block);
        self.by_place.insert(place, number);
        self.remember(number, key, c);
        Ok(number)
    }

    fn remember(&mut self, block: u32, key: u8, c: &Cpu) {
        self.quick[(c.rip ^ c.rip >> 12) as usize % QUICK] =
            Link { rip: c.rip, generation: c.generation, key, block };
    }

    fn clear(&mut self, c: &mut Cpu) {
        self.clear_code(c);
        self.blocks.clear();
        self.by_place.clear();
        self.quick.fill(NO_LINK);
        self.stubs.clear();
        self.instructions = 0;
    }

    /// Whether memory still holds what the block was made from.
    fn verify(&mut self, number: u32, linear: u64, physical: u64, c: &mut Cpu) -> Step<bool> {
        let block = &mut self.blocks[number as usize];
        let first = ((PAGE - physical % PAGE) as usize).min(block.bytes.len());
        let (low, high) = block.bytes.split_at(first);
        if !high.is_empty() {
            let next = linear.wrapping_add(first as u64) & c.linear_mask;
            let second = c.translate(next, Access::Fetch, c.user)?;
            if !watched(c, second).is_some_and(|host| host.holds(high)) {
                return Ok(false);
            }
        }
        block.host = watched(c, physical);
        Ok(block.host.is_some_and(|host| host.holds(low)))
    }

    fn build(&mut self, linear: u64, physical: u64, c: &mut Cpu) -> Step<Block> {
        // What is not memory is read as all ones, which is no instruction.
        let mut code = vec![0xff; 15];
        if let Some(host) = watched(c, physical) {
            code = vec![0; WINDOW.min((PAGE - physical % PAGE) as usize)];
            host.read(&mut code);
        }
        if let Some(block) = self.decode(&code, c) {
            return Ok(block);
        }
        // The first instruction goes on in the next page.
        let next = linear.wrapping_add(code.len() as u64) & c.linear_mask;
        let second = c.translate(next, Access::Fetch, c.user)?;
        let mut rest = [0xff; 15];
        if let Some(host) = watched(c, second) {
            host.read(&mut rest);
        }
        code.extend(rest);
        self.decode(&code, c).ok_or_else(|| c.raise(GP)).map_err(|_| c.gp())
    }

    /// `None` when not even one instruction is complete.
    fn decode(&mut self, code: &[u8], c: &mut Cpu) -> Option<Block> {
        let bits = match c.mode {
            Mode::Bits16 => 16,
            Mode::Bits32 => 32,
            Mode::Bits64 => 64,
        };
        let mut decoder = iced_x86::Decoder::with_ip(bits, code, c.rip, OPTIONS);
        let mut ops: Vec<Op> = Vec::new();
        let (mut length, mut first) = (0, 0);
        while ops.len() < LONGEST && decoder.can_decode() {
            let start = decoder.position();
            let instruction = decoder.decode();
            if decoder.last_error() == DecoderError::NoMoreBytes {
                if ops.is_empty() && code.len() < 15 {
                    return None;
                }
                if !ops.is_empty() {
                    break;
                }
            }
            let bytes = &code[start..decoder.position()];
            let (mut op, ends) = decode(&instruction, c.mode, bytes, &mut self.stubs);
            op.length = bytes.len() as u8;
            op.next = c.rip.wrapping_add(decoder.position() as u64);
            if c.mode != Mode::Bits64 {
                op.next &= if c.mode == Mode::Bits16 { 0xffff } else { 0xffff_ffff };
            }
            ops.extend(check_of_segment(&instruction, c.mode, &op));
            ops.push(op);
            if first == 0 {
                first = ops.len();
            }
            length = decoder.position();
            if ends {
                break;
            }
        }
        let end = ops.last()?.next;
        Some(Block {
            ops: ops.into(),
            first,
            end,
            bytes: code[..length].into(),
            links: [NO_LINK; 2],
            turn: 0,
            host: None,
            heat: 0,
            code: NONE,
        })
    }
}

/// What is to be executed before an instruction with an operand in memory where segments have limits.
fn check_of_segment(i: &Instruction, mode: Mode, op: &Op) -> Option<Op> {
    let memory = (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory);
    let elsewhere = match i.mnemonic() {
        // Hints and addresses.
        Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Invlpg => true,
        Mnemonic::Ud0 | Mnemonic::Ud1 => true,
        Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 => true,
        Mnemonic::Prefetcht2 | Mnemonic::Prefetch | Mnemonic::Prefetchw => true,
        Mnemonic::Prefetchwt1 => true,
        // With a register for the bit's number.
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            i.op1_kind() == OpKind::Register
        }
        // Element by element.
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd => true,
        Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq => true,
        _ => i.memory_index().is_vector_register(),
    };
    if mode == Mode::Bits64 || !memory || elsewhere || usize::from(op.segment) == FLAT {
        return None;
    }
    let access = InstructionInfoFactory::new().info(i).op0_access();
    let reads = matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
    // ARPL writes only what it has to change.
    let writes = i.op0_kind() == OpKind::Memory && !reads && i.mnemonic() != Mnemonic::Arpl;
    let run = if writes { check_limit::<true> } else { check_limit::<false> };
    let mut bytes = i.memory_size().size().max(1);
    if i.mnemonic() == Mnemonic::Bound {
        // The first of two numbers.
        bytes /= 2;
    }
    Some(Op { run, extra: bytes as u32, ..*op })
}

/// Where code is in this process; from now on the page's changes are noticed.
fn watched(c: &mut Cpu, physical: u64) -> Option<HostAddress> {
    let page = c.ram.page(physical)?;
    if !page.set_code(true) {
        c.writes.forget_host(page.host());
        c.vm.code_page_found(&c.shared);
    }
    Some(page.host().plus(physical % PAGE))
}

impl Cpu {
    /// Linear address of offset 0 in the code segment.
    pub fn base_of_code(&self) -> u64 {
        if self.mode == Mode::Bits64 { 0 } else { self.base[crate::cpu::CS] }
    }

    /// An address that cannot be is #SS instead of #GP where it is one of the stack.
    #[cold]
    pub fn refine_fault(&mut self, op: &Op) {
        let Some(linear) = self.impossible.take() else { return };
        let near =
            |register: usize| linear.wrapping_sub(self.r.r(register)).wrapping_add(256) < 512;
        let operand = op.base != Regs::NONE || op.index != Regs::NONE || op.displacement != 0;
        let stack = usize::from(op.segment) == FLAT_STACK
            || !(operand && self.linear(op) == linear) && (near(RSP) || near(RBP));
        if stack && self.fault == (Fault { vector: GP, code: Some(0) }) {
            self.fault.vector = SS_FAULT;
        }
    }

    /// Executes a block, or only its first instruction.
    #[inline(always)]
    pub fn execute(&mut self, block: &Block, one: bool) -> Step {
        let ops = if one { &block.ops[..block.first] } else { &block.ops[..] };
        for op in ops {
            if let Err(stop) = (op.run)(self, op) {
                if stop != Stop::Branch {
                    self.refine_fault(op);
                    self.rip = op.next.wrapping_sub(op.length.into());
                    if self.mode != Mode::Bits64 {
                        self.rip &= self.linear_mask;
                    }
                }
                return Err(stop);
            }
            if self.code_changed {
                self.code_changed = false;
                self.rip = op.next;
                return Err(Stop::Branch);
            }
        }
        self.rip = if one { ops[0].next } else { block.end };
        Ok(())
    }
}
