//! Lock-step: the interpreter executes a block first, its writes are taken back, the translated block is
//! executed from the same state, and registers, flags and memory are compared.

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::RflagsBits;

use super::classify::Kind;
use super::context;
use super::trace::{Item, Trace};
use crate::cpu::{Cpu, Fault, Msrs, Step, Stop};
use crate::flags;
use crate::host::HostAddress;
use crate::native::{FXSAVE, UPPERS};
use engine::state::Segment;

/// A write.
struct Written {
    at: HostAddress,
    old: Box<[u8]>,
    new: Box<[u8]>,
}

/// What was written while the interpreter went first.
#[derive(Default)]
pub struct Journal {
    writes: Vec<Written>,
    /// Something happened that cannot be taken back.
    pub lasting: bool,
}

impl Journal {
    /// To be called before a write.
    pub fn record(&mut self, at: HostAddress, new: &[u8]) {
        let mut old = vec![0; new.len()];
        at.read(&mut old);
        self.writes.push(Written { at, old: old.into(), new: new.into() });
    }
}

/// What both ways must agree on.
struct State {
    registers: [u64; 16],
    rip: u64,
    flags: u64,
    rflags: u64,
    base: [u64; 8],
    gs: Segment,
    msrs: Msrs,
    fpu: Box<([u8; FXSAVE], [u8; UPPERS])>,
    fault: Fault,
    cr2: u64,
    /// Writes so far.
    writes: usize,
}

impl State {
    fn of(cpu: &Cpu) -> Self {
        Self {
            registers: std::array::from_fn(|number| cpu.r.r(number)),
            rip: cpu.rip,
            flags: cpu.flags.bits(),
            rflags: cpu.rflags,
            base: cpu.base,
            gs: cpu.segments[crate::cpu::GS],
            msrs: cpu.msrs.clone(),
            fpu: Box::new((cpu.fpu.area, cpu.fpu.uppers())),
            fault: cpu.fault,
            cr2: cpu.cr2,
            writes: cpu.journal.as_ref().map_or(0, |journal| journal.writes.len()),
        }
    }

    fn restore(&self, cpu: &mut Cpu) {
        for (number, value) in self.registers.iter().enumerate() {
            cpu.r.set(number, *value);
        }
        cpu.rip = self.rip;
        cpu.flags = flags::Flags::from_bits(self.flags);
        cpu.rflags = self.rflags;
        cpu.base = self.base;
        cpu.segments[crate::cpu::GS] = self.gs;
        cpu.msrs = self.msrs.clone();
        cpu.fpu.area = self.fpu.0;
        cpu.fpu.set_uppers(&self.fpu.1);
        cpu.fault = self.fault;
        cpu.cr2 = self.cr2;
    }
}

/// What the interpreter did.
pub struct Rehearsal {
    start: State,
    /// The state before each instruction, and at the end.
    steps: Vec<State>,
    journal: Journal,
    /// How it ended, if not by reaching the end.
    stop: Option<Stop>,
}

impl Rehearsal {
    /// Executes the block's instructions by the interpreter. `None`: that cannot be done twice, it has been
    /// done, with this result.
    pub fn run(
        cpu: &mut Cpu,
        trace: &Trace<'_>,
        natives: &mut crate::stubs::Stubs,
    ) -> Result<Self, Step> {
        cpu.writes.clear();
        cpu.journal = Some(Box::default());
        let start = State::of(cpu);
        let (mut steps, mut stop) = (Vec::new(), None);
        for item in &trace.items {
            if cpu.rip != item.i.ip() {
                break;
            }
            steps.push(State::of(cpu));
            let (mut op, _) =
                crate::decode::decode(&item.i, crate::cpu::Mode::Bits64, item.bytes, natives);
            op.length = item.bytes.len() as u8;
            op.next = item.i.next_ip();
            match (op.run)(cpu, &op) {
                Ok(()) => cpu.rip = op.next,
                Err(Stop::Branch) => {}
                Err(other) => {
                    stop = Some(other);
                    break;
                }
            }
            if cpu.journal.as_ref().is_some_and(|journal| journal.lasting) {
                break;
            }
        }
        steps.push(State::of(cpu));
        let journal = cpu.journal.take().map_or_else(Journal::default, |journal| *journal);
        if journal.lasting {
            return Err(stop.map_or(Ok(()), Err));
        }
        for write in journal.writes.iter().rev() {
            write.at.write(&write.old);
        }
        start.restore(cpu);
        Ok(Self { start, steps, journal, stop })
    }

    /// Compares with what the translated block did: it was left for `reason`. The differences, if any.
    pub fn compare(&self, cpu: &Cpu, trace: &Trace<'_>, reason: u32) -> Option<String> {
        // How many instructions were executed, and which flags count.
        let place = trace.items.iter().position(|item| item.i.ip() == cpu.rip);
        // A repeated instruction may end the block because somebody waits.
        let yielded = reason == context::BRANCH
            && place
                .is_some_and(|place| place > 0 && trace.items[place - 1].kind == Kind::Function);
        let early = yielded
            || matches!(
                reason,
                context::NOTHING | context::INTERPRET | context::FAULT | context::AGAIN
            );
        let executed =
            if early { place.unwrap_or(self.steps.len() - 1) } else { self.steps.len() - 1 };
        let mut text = String::new();
        // A gather has done a part of its work when it faults.
        let both = reason == context::FAULT && self.stop == Some(Stop::Fault);
        let partly = usize::from(both && executed + 2 == self.steps.len());
        let Some(wanted) = self.steps.get(executed + partly) else {
            let _ = writeln!(text, "the translated block went {executed} instructions far");
            return Some(text + &self.describe(cpu, trace));
        };
        let stopped = match reason {
            context::FAULT => Some(Stop::Fault),
            context::AGAIN => Some(Stop::Again),
            context::INTERPRET | context::NOTHING => None,
            _ => self.stop.filter(|stop| *stop == Stop::Branch),
        };
        let whole = !yielded && !matches!(reason, context::INTERPRET | context::NOTHING);
        if whole && self.stop != stopped {
            let _ = writeln!(text, "stopped by {:?}, not {stopped:?}", self.stop);
        }
        let mut flags = defined_flags(&trace.items[..executed.min(trace.items.len())]);
        if early {
            flags &= trace.items.get(executed).map_or(!0, |item| rflags(item.before));
        }
        let got = State::of(cpu);
        for (number, (wanted, got)) in wanted.registers.iter().zip(got.registers).enumerate() {
            if *wanted != got {
                let _ = writeln!(text, "register {number}: {wanted:#x}, not {got:#x}");
            }
        }
        let faulted = reason == context::FAULT;
        // Where an instruction faults is where it begins.
        let rip = if early && executed < trace.items.len() {
            trace.items[executed].i.ip()
        } else {
            wanted.rip
        };
        for (name, wanted, got) in [
            ("RIP", rip, got.rip),
            ("flags", wanted.flags & flags, got.flags & flags),
            ("RFLAGS", wanted.rflags, got.rflags),
            ("GS base", wanted.base[5], got.base[5]),
        ] {
            if wanted != got {
                let _ = writeln!(text, "{name}: {wanted:#x}, not {got:#x}");
            }
        }
        let last = self.steps.last().map_or(&self.start, |last| last);
        if faulted && (last.fault != got.fault || last.fault.vector == 14 && last.cr2 != got.cr2) {
            let _ = writeln!(text, "{:?} at {:#x}, not {:?}", last.fault, last.cr2, got.fault);
        }
        if wanted.fpu != got.fpu {
            let _ = writeln!(text, "FPU: {:02x?}, not {:02x?}", wanted.fpu, got.fpu);
        }
        let mut expected = BTreeMap::new();
        for write in &self.journal.writes[..wanted.writes.min(self.journal.writes.len())] {
            for (byte, offset) in write.new.iter().zip(0..) {
                let at = write.at.plus(offset);
                expected.insert(at.number(), (*byte, at));
            }
        }
        for (byte, at) in expected.values() {
            let found = at.load::<u8>();
            if found != *byte {
                let _ = writeln!(text, "memory at {:#x}: {byte:#x}, not {found:#x}", at.number());
            }
        }
        (!text.is_empty()).then(|| text + &self.describe(cpu, trace))
    }

    fn describe(&self, cpu: &Cpu, trace: &Trace<'_>) -> String {
        let mut text = format!(
            "before: {:x?} flags {:#x}, ring {}\n",
            self.start.registers, self.start.flags, cpu.cpl
        );
        for item in &trace.items {
            let _ = writeln!(
                text,
                "{:#x}: {:?} {:02x?} flags {:#x} -> {:#x}",
                item.i.ip(),
                item.i.code(),
                item.bytes,
                item.before,
                item.after
            );
        }
        text
    }
}

/// From iced's bits to those of RFLAGS.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}

/// Flags that the architecture defines behind these instructions.
fn defined_flags(items: &[Item<'_>]) -> u64 {
    let undefined = items.iter().fold(0, |undefined, item| {
        let effect = item.effect;
        undefined & !(effect.kills & !effect.undefined) | effect.undefined
    });
    !rflags(undefined)
}
