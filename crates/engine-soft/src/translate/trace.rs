//! What a block consists of: instructions that follow one another in memory, over conditional branches,
//! within one page.

use iced_x86::{Code, Decoder, DecoderError, FlowControl, Instruction};

use super::classify::{Kind, classify, uses_vectors};
use super::liveness::{ALL, Effect, before, effect};
use super::parts::Parts;
use crate::block::OPTIONS;
use crate::cpu::Mode;
use crate::host::PAGE;
use crate::op::Op;
use crate::stubs::Stubs;

/// Instructions of the longest block.
const LONGEST: usize = 96;
/// Bytes of a page.
const SIZE: usize = PAGE as usize;
/// Instructions that are looked at behind a block.
const AHEAD: usize = 8;

/// One instruction of a block.
pub struct Item<'a> {
    pub i: Instruction,
    pub bytes: &'a [u8],
    pub parts: Option<Parts<'a>>,
    pub kind: Kind,
    pub effect: Effect,
    pub before: u32,
    pub after: u32,
    /// Flags that are live at the target of a branch.
    pub target: u32,
    /// Where it is among the decoded instructions, if it is executed by its function.
    pub op: usize,
}

/// See the module.
pub struct Trace<'a> {
    pub items: Vec<Item<'a>>,
    pub ops: Vec<Op>,
    /// Bytes from the page's start on that the translation depends on.
    pub ranges: Vec<(usize, usize)>,
    /// Flags that are live behind the last instruction, if it does not branch.
    pub behind: u32,
    /// The last instruction ends the block by itself.
    pub ends: bool,
}

impl<'a> Trace<'a> {
    /// The block at `rip`; `page` is the page that it is in, and as much of the next as is known: an instruction
    /// that goes on there is a block of its own. `blind` forbids to look beyond the block, which
    /// ends where another is `known`.
    pub fn of(
        page: &'a [u8],
        rip: u64,
        user: u64,
        blind: bool,
        known: &dyn Fn(u64) -> bool,
        stubs: &mut Stubs,
    ) -> Option<Self> {
        let offset = (rip & 0xfff) as usize;
        let mut decoder = Decoder::with_ip(64, &page[offset..], rip, OPTIONS);
        let mut trace = Self {
            items: Vec::with_capacity(LONGEST / 2),
            ops: Vec::new(),
            ranges: Vec::new(),
            behind: ALL,
            ends: false,
        };
        let mut end = offset;
        let mut more = true;
        while more && trace.items.len() < LONGEST && decoder.can_decode() && !trace.ends {
            if !trace.items.is_empty() && known(decoder.ip()) {
                break;
            }
            let i = decoder.decode();
            if decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            if blind && stops(&i) {
                break;
            }
            let crosses = offset + decoder.position() > SIZE;
            if crosses && !trace.items.is_empty() {
                break;
            }
            more = offset + decoder.position() < SIZE;
            let bytes = &page[end..offset + decoder.position()];
            end = offset + decoder.position();
            trace.add(i, bytes, user, stubs);
        }
        if trace.items.is_empty() {
            return None;
        }
        trace.ranges.push((offset, end));
        trace.find_live_flags(page, rip, blind);
        Some(trace)
    }

    /// Every flag is live everywhere.
    pub fn keep_flags(&mut self) {
        self.behind = ALL;
        for item in &mut self.items {
            (item.before, item.after, item.target) = (ALL, ALL, ALL);
        }
    }

    /// Whether flags are put aside before somebody needs them in their register.
    pub fn puts_flags_away(&self) -> bool {
        for item in &self.items {
            let Some(parts) = &item.parts else { return true };
            match item.kind {
                Kind::Nothing | Kind::Lea | Kind::MoveConstant | Kind::Exchange | Kind::Swap => {}
                Kind::Jump => return false,
                Kind::Form(form) if parts.address.is_some() || uses_vectors(&form) => return true,
                Kind::Form(_) | Kind::Raw | Kind::Branch
                    if item.effect.reads | item.effect.changes == 0 => {}
                Kind::Form(_) | Kind::Raw | Kind::Branch => return false,
                _ => return true,
            }
        }
        false
    }

    fn add(&mut self, i: Instruction, bytes: &'a [u8], user: u64, stubs: &mut Stubs) {
        let known = i.code() != Code::INVALID;
        let parts = if known { Parts::of(bytes) } else { None };
        let kind = parts.as_ref().map_or(Kind::Function, |parts| classify(&i, parts, user));
        let mut item = Item {
            i,
            bytes,
            kind,
            effect: Effect { reads: ALL, changes: ALL, kills: 0, undefined: 0 },
            before: 0,
            after: 0,
            target: ALL,
            op: 0,
            parts,
        };
        if kind == Kind::Function {
            let (mut op, ends) = crate::decode::decode(&i, Mode::Bits64, bytes, stubs);
            op.length = bytes.len() as u8;
            op.next = i.next_ip();
            item.op = self.ops.len();
            self.ops.push(op);
            self.ends = ends;
        } else {
            if let Some(parts) = &item.parts {
                item.effect = effect(&i, parts);
            }
            self.ends =
                !matches!(i.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        }
        self.items.push(item);
    }

    fn find_live_flags(&mut self, page: &[u8], rip: u64, blind: bool) {
        let mut ranges = Vec::new();
        let mut at = |target: u64| {
            if blind || target >> 12 != rip >> 12 {
                return ALL;
            }
            let (live, end) = look_ahead(&page[..SIZE], target);
            ranges.push(((target & 0xfff) as usize, end));
            live
        };
        for item in &mut self.items {
            if matches!(item.kind, Kind::Branch | Kind::Jump | Kind::Call) {
                item.target = at(item.i.near_branch_target());
            }
        }
        let last = self.items.last().map_or(rip, |item| item.i.next_ip());
        self.behind = if self.ends { ALL } else { at(last) };
        self.ranges.extend(ranges);
        let mut live = self.behind;
        for item in self.items.iter_mut().rev() {
            item.after = match item.kind {
                Kind::Branch => live | item.target,
                Kind::Jump | Kind::Call => item.target,
                _ => live,
            };
            item.before = before(item.after, item.effect);
            live = item.before;
        }
    }
}

/// Whether the instruction does more than change registers and memory, or never the same twice.
fn stops(i: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    let jump = matches!(
        i.flow_control(),
        FlowControl::Next
            | FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::Return
    );
    let control = i.op_count() > 0
        && (0..i.op_count()).any(|n| i.op_register(n).is_cr() || i.op_register(n).is_dr())
        || i.op_count() > 0 && i.op0_register().is_segment_register();
    let far = i.is_jmp_far_indirect() || i.is_call_far_indirect();
    !jump
        || control
        || far
        || matches!(
            i.mnemonic(),
            M::Sti
                | M::Hlt
                | M::Pause
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::Wrmsr
                | M::Rdmsr
                | M::Invlpg
                | M::Clts
                | M::Lmsw
                | M::In
                | M::Out
                | M::Rdtsc
                | M::Rdtscp
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Sysret
                | M::Sysretq
                | M::Retf
                | M::Syscall
                | M::Sysenter
                | M::Sysexit
                | M::Sysexitq
                | M::Lgdt
                | M::Lidt
                | M::Ltr
                | M::Lldt
                | M::Lfs
                | M::Lgs
                | M::Lss
                | M::Insb
                | M::Insw
                | M::Insd
                | M::Outsb
                | M::Outsw
                | M::Outsd
                | M::Cpuid
                | M::Xsetbv
                | M::Rdrand
                | M::Rdseed
        )
}

/// Flags that the code at `rip` reads before it changes them, and where it was looked at last.
fn look_ahead(page: &[u8], rip: u64) -> (u32, usize) {
    let offset = (rip & 0xfff) as usize;
    let mut decoder = Decoder::with_ip(64, &page[offset..], rip, OPTIONS);
    let (mut live, mut killed) = (0, 0);
    for _ in 0..AHEAD {
        let start = offset + decoder.position();
        if !decoder.can_decode() {
            break;
        }
        let i = decoder.decode();
        let end = offset + decoder.position();
        let parts = if i.code() == Code::INVALID { None } else { Parts::of(&page[start..end]) };
        let Some(parts) = parts.filter(|parts| classify(&i, parts, 1) != Kind::Function) else {
            break;
        };
        let effect = effect(&i, &parts);
        live |= effect.reads & !killed;
        killed |= effect.kills;
        if killed == ALL {
            return (live, end);
        }
        if i.flow_control() != FlowControl::Next {
            break;
        }
    }
    (live | ALL & !killed, (offset + decoder.position()).min(page.len()))
}
