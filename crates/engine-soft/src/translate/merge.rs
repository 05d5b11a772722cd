//! Which operands of a block can do without a check of their own: those near to an earlier one, by the same value of
//! a register, in all likelihood on the same page. The earlier one is checked with all that follow it; where a page
//! ends between them, a block without such runs goes on instead.

use iced_x86::{InstructionInfoFactory, InstructionInfoOptions, OpAccess};

use super::classify::Kind;
use super::memory::{Use, distant};
use super::parts::{Map, Parts};
use super::trace::Item;

/// Runs of a block.
pub const RUNS: usize = 16;
/// Bytes that the operands of a run may span: the more, the more often a page ends between them.
const SPAN: i64 = 256;
/// Displacements beyond these are of no structure's.
const FAR: i64 = 1 << 24;
const RSP: usize = 4;
const RBP: usize = 5;

/// How an operand is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// By itself.
    #[default]
    Alone,
    /// With those of its run, which begin `before` bytes before it and span `span`.
    Leads { run: u8, before: i32, span: i32 },
    /// Not at all.
    Follows { run: u8 },
}

impl Check {
    /// Bytes before the operand that its check begins.
    pub fn before(self) -> i32 {
        if let Self::Leads { before, .. } = self { before } else { 0 }
    }
}

/// Of an instruction: its memory operand, and what it pushes or pops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    pub operand: Check,
    pub stack: Check,
}

/// A register's value: that of a certain moment, and what was added since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    of: u32,
    plus: i64,
}

/// What the addresses of a run have in common: base, index with its shift, segment.
type Key = (Option<u32>, Option<(u32, u8)>, Option<u8>);

/// An operand's place.
struct Place {
    key: Key,
    offset: i64,
}

/// Whose check it is: an instruction's memory operand, or what it pushes or pops.
#[derive(Clone, Copy)]
enum Slot {
    Operand(usize),
    Stack(usize),
}

struct Run {
    key: Key,
    leader: Slot,
    led: Use,
    /// Offsets of the leader, of the first byte of all, and of what is behind the last.
    at: i64,
    start: i64,
    end: i64,
    followers: Vec<Slot>,
}

/// The registers' values, and the runs.
struct State {
    values: [Value; 16],
    /// Of the next value that nothing is known of.
    fresh: u32,
    runs: Vec<Run>,
    /// Those before this one are over.
    open: usize,
}

/// How the operands of these instructions, which follow one another, are checked.
pub fn checks(items: &[Item<'_>]) -> Vec<Checks> {
    let mut checks = vec![Checks::default(); items.len()];
    if items.iter().filter(|item| operand(item).is_some() || pushed(item).is_some()).count() < 2 {
        return checks;
    }
    let mut state = State::default();
    let mut factory = InstructionInfoFactory::new();
    for (number, item) in items.iter().enumerate() {
        let Some(parts) = item.parts.as_ref().filter(|_| item.kind != Kind::Function) else {
            state.forget();
            continue;
        };
        if let Some(access) = operand(item)
            && let Some(place) = state.place(item.kind, parts)
        {
            state.add(Slot::Operand(number), &place, access);
        }
        if let Some((displacement, access)) = pushed(item) {
            let value = state.values[RSP];
            let place =
                Place { key: (Some(value.of), None, None), offset: value.plus + displacement };
            state.add(Slot::Stack(number), &place, access);
        }
        state.execute(item, parts, &mut factory);
    }
    let mut set = |slot, check| match slot {
        Slot::Operand(item) => checks[item].operand = check,
        Slot::Stack(item) => checks[item].stack = check,
    };
    let runs = state.runs.iter().filter(|run| !run.followers.is_empty());
    for (found, run) in runs.zip(0..RUNS as u8) {
        let (before, span) = ((found.at - found.start) as i32, (found.end - found.start) as i32);
        set(found.leader, Check::Leads { run, before, span });
        found.followers.iter().for_each(|&slot| set(slot, Check::Follows { run }));
    }
    checks
}

/// What is done with an instruction's memory operand.
fn operand(item: &Item<'_>) -> Option<Use> {
    let parts = item.parts.as_ref()?;
    let read = |size| Some(Use { size, write: false, aligned: false });
    match item.kind {
        Kind::Leave => read(8),
        _ if parts.address.is_none() => None,
        Kind::Form(form) | Kind::Vector(form) => Some(form.memory),
        Kind::Bits(access) => Some(access),
        Kind::LoadControl => read(4),
        Kind::Divide => read(parts.size()),
        Kind::JumpIndirect | Kind::CallIndirect => read(8),
        _ => None,
    }
}

/// Where an instruction pushes or pops, from RSP on.
fn pushed(item: &Item<'_>) -> Option<(i64, Use)> {
    let access = |write| Use { size: 8, write, aligned: false };
    match item.kind {
        Kind::Push | Kind::PushConstant | Kind::PushFlags | Kind::Call | Kind::CallIndirect => {
            Some((-8, access(true)))
        }
        Kind::Pop | Kind::Return => Some((0, access(false))),
        _ => None,
    }
}

impl Default for State {
    fn default() -> Self {
        let values = std::array::from_fn(|number| Value { of: number as u32, plus: 0 });
        Self { values, fresh: 16, runs: Vec::new(), open: 0 }
    }
}

impl State {
    /// Anything may have happened.
    fn forget(&mut self) {
        (0..16).for_each(|number| self.renew(number));
        self.open = self.runs.len();
    }

    fn renew(&mut self, register: usize) {
        self.values[register] = Value { of: self.fresh, plus: 0 };
        self.fresh += 1;
    }

    fn place(&self, kind: Kind, parts: &Parts<'_>) -> Option<Place> {
        if kind == Kind::Leave {
            let value = self.values[RBP];
            return Some(Place { key: (Some(value.of), None, None), offset: value.plus });
        }
        let address =
            parts.address.filter(|address| i64::from(address.displacement).abs() <= FAR)?;
        distant(parts)?;
        let base = address.base.map(|number| self.values[usize::from(number)]);
        let index = address.index.map(|(number, shift)| (self.values[usize::from(number)], shift));
        let key = (
            base.map(|base| base.of),
            index.map(|(index, shift)| (index.of, shift)),
            parts.segment,
        );
        let offset = base.map_or(0, |base| base.plus)
            + index.map_or(0, |(index, shift)| index.plus << shift)
            + i64::from(address.displacement);
        // An address that no register has part in is cheap to check.
        (base.is_some() || index.is_some() || parts.segment.is_some())
            .then_some(Place { key, offset })
    }

    fn add(&mut self, slot: Slot, place: &Place, access: Use) {
        if place.offset.abs() > FAR {
            return;
        }
        let (start, end) = (place.offset, place.offset + i64::from(access.size));
        for run in self.runs[self.open..].iter_mut().rev() {
            let (first, last) = (run.start.min(start), run.end.max(end));
            let aligned = !access.aligned
                || run.led.aligned
                    && run.led.size >= access.size
                    && (start - run.at) % i64::from(access.size) == 0;
            if run.key == place.key
                && aligned
                && (run.led.write || !access.write)
                && last - first <= SPAN
            {
                (run.start, run.end) = (first, last);
                return run.followers.push(slot);
            }
        }
        let (key, at) = (place.key, start);
        let followers = Vec::new();
        self.runs.push(Run { key, leader: slot, led: access, at, start, end, followers });
    }

    /// What the instruction does with registers.
    fn execute(
        &mut self,
        item: &Item<'_>,
        parts: &Parts<'_>,
        factory: &mut InstructionInfoFactory,
    ) {
        if let Some((displacement, access)) = pushed(item) {
            self.values[RSP].plus += if access.write { displacement } else { 8 };
        }
        let change = match (item.kind, parts.address) {
            (Kind::Push | Kind::PushConstant | Kind::PushFlags, _) => return,
            (Kind::Pop, _) => return self.renew(parts.low().into()),
            (Kind::Leave, _) => {
                self.values[RSP] = self.values[RBP].plus(8);
                return self.renew(RBP);
            }
            (Kind::Lea, Some(address))
                if address.index.is_none() && !address.relative && !parts.address_32 =>
            {
                address.base.map(|base| (parts.reg(), base, i64::from(address.displacement)))
            }
            (Kind::Form(_), None) if parts.map == Map::One => {
                parts.rm().and_then(|rm| match (parts.opcode, parts.digit()) {
                    (0x81 | 0x83, 0) => Some((rm, rm, parts.signed())),
                    (0x81 | 0x83, 5) => Some((rm, rm, -parts.signed())),
                    (0xff, 0) => Some((rm, rm, 1)),
                    (0xff, 1) => Some((rm, rm, -1)),
                    (0x89, _) => Some((rm, parts.reg(), 0)),
                    (0x8b, _) => Some((parts.reg(), rm, 0)),
                    _ => None,
                })
            }
            _ => None,
        };
        if let Some((to, from, plus)) = change.filter(|_| parts.wide()) {
            self.values[usize::from(to)] = self.values[usize::from(from)].plus(plus);
            return;
        }
        let info = factory.info_options(&item.i, InstructionInfoOptions::NO_MEMORY_USAGE);
        for used in info.used_registers() {
            let unchanged =
                matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            if used.register().is_gpr() && !unchanged {
                self.renew(used.register().full_register().number());
            }
        }
    }
}

impl Value {
    fn plus(self, more: i64) -> Self {
        Self { of: self.of, plus: self.plus + more }
    }
}
