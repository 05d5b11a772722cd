//! Entering blocks, linking them, and comparing a page's blocks with memory.

use super::block::Entry;
use super::context::{self, LINK};
use super::trace::Trace;
use super::verify::Rehearsal;
use super::{FIRST, Pending, SAMPLE, Translator, quick, stubs};
use crate::arena::Arena;
use crate::cpu::{Cpu, Step, Stop};
use crate::host::{HostAddress, PAGE};

impl Translator {
    /// Enters a block at RIP and executes until something else must be done.
    pub fn run(&mut self, cpu: &mut Cpu, id: u32, natives: &mut crate::stubs::Stubs) -> Step {
        let block = &self.blocks[id as usize];
        let (entries, number, page) = (block.entries, block.page, block.host);
        let rip = cpu.rip;
        if cpu.translated.pages.get(rip, cpu.user) != number {
            self.compare(cpu, number, page);
            if self.blocks[id as usize].dead {
                return Ok(());
            }
            // What remains to be asked is whether every address space has the page there.
            if cpu.translate(rip, crate::cpu::Access::Fetch, cpu.user).is_err() {
                return Err(Stop::Fault);
            }
            cpu.translated.pages.set(rip, cpu.user, number, cpu.fetched_global);
        }
        if self.blocks[id as usize].second.is_some() {
            match self.enter_second(cpu, id) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(stop) => return Err(stop),
            }
        }
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Link(exit) => self.link(exit, id, rip),
            Pending::Indirect if !self.alone => {
                cpu.translated.set_target(rip, cpu.user, entries.indirect);
            }
            _ => {}
        }
        let block = &mut self.blocks[id as usize];
        if !block.apart {
            self.quick[quick(cpu)] = id;
        }
        let runs = &mut block.runs;
        *runs = runs.wrapping_add(1);
        let mut rehearsal = None;
        if self.alone && (*runs < FIRST || runs.is_multiple_of(SAMPLE)) {
            match self.rehearse(cpu, id, natives) {
                Ok(done) => rehearsal = done,
                Err(done) => return done,
            }
        }
        self.counts.entered += 1;
        cpu.translated.attention = cpu.shared.attention_address();
        cpu.translated.fpu = &raw const *cpu.fpu as u64;
        let reason = stubs::enter(&self.stubs, cpu, entries.indirect);
        let exit = reason.checked_sub(LINK).map(|exit| self.exits[exit as usize]);
        self.apart = exit.is_some_and(|exit| exit.apart);
        if let Some(rehearsal) = rehearsal {
            // It was left before its end.
            let reason = if self.apart { context::NOTHING } else { reason };
            self.judge(cpu, id, natives, &rehearsal, reason);
        }
        match reason {
            context::NOTHING => Ok(()),
            context::BRANCH => Err(Stop::Branch),
            context::FAULT => Err(Stop::Fault),
            context::AGAIN => Err(Stop::Again),
            context::INTERPRET => {
                self.counts.interpreted += 1;
                self.interpret = true;
                Ok(())
            }
            context::INDIRECT => {
                self.counts.indirect += 1;
                self.pending = Pending::Indirect;
                Ok(())
            }
            link => {
                self.pending = Pending::Link(link - LINK);
                Ok(())
            }
        }
    }

    /// As for the first page, for the one where a block's only instruction goes on; whether it may be entered.
    fn enter_second(&mut self, cpu: &mut Cpu, id: u32) -> Step<bool> {
        let Some(second) = &self.blocks[id as usize].second else { return Ok(true) };
        let (linear, page, host) = (second.linear, second.page, second.host);
        if cpu.translated.pages.get(linear, cpu.user) == page {
            return Ok(true);
        }
        let physical = cpu.translate(linear, crate::cpu::Access::Fetch, cpu.user)?;
        if cpu.ram.page(physical).is_none_or(|page| page.host() != host) {
            self.kill(cpu, id);
            return Ok(false);
        }
        self.compare(cpu, page, host);
        if self.blocks[id as usize].dead {
            return Ok(false);
        }
        cpu.translated.pages.set(linear, cpu.user, page, cpu.fetched_global);
        Ok(true)
    }

    /// The page of a block, unless another processor has just changed what the block was made from: this one need not
    /// know that yet.
    fn code_of(&self, id: u32) -> Option<[u8; PAGE as usize]> {
        let block = &self.blocks[id as usize];
        let mut code = [0; PAGE as usize];
        block.host.read(&mut code);
        block.agrees(&code).then_some(code)
    }

    /// The interpreter goes first, where both are compared.
    fn rehearse(
        &self,
        cpu: &mut Cpu,
        id: u32,
        natives: &mut crate::stubs::Stubs,
    ) -> Result<Option<Rehearsal>, Step> {
        let Some(code) = self.code_of(id) else { return Ok(None) };
        let Some(trace) = Trace::of(&code, cpu.rip, cpu.user, true, &|_| false, natives) else {
            return Ok(None);
        };
        Rehearsal::run(cpu, &trace, natives).map(Some)
    }

    fn judge(
        &mut self,
        cpu: &mut Cpu,
        id: u32,
        natives: &mut crate::stubs::Stubs,
        rehearsal: &Rehearsal,
        reason: u32,
    ) {
        let Some(code) = self.code_of(id) else { return };
        let rip = self.blocks[id as usize].rip;
        let Some(trace) = Trace::of(&code, rip, cpu.user, true, &|_| false, natives) else {
            return;
        };
        if let Some(difference) = rehearsal.compare(cpu, &trace, reason) {
            self.difference.get_or_insert(difference);
        }
    }

    /// What was left does not go on at a block: nothing is to be linked.
    pub fn forget_pending(&mut self) {
        (self.pending, self.apart) = (Pending::Nothing, false);
    }

    fn link(&mut self, exit: u32, id: u32, rip: u64) {
        let (number, block) = (exit, &mut self.blocks[id as usize]);
        let exit = self.exits[exit as usize];
        if self.alone || exit.rip != rip {
            return;
        }
        block.incoming.push(number);
        let to = match exit.entry {
            Entry::Plain => block.entries.plain,
            Entry::Polled => block.entries.polled,
            Entry::Checked => block.entries.checked,
            Entry::Memory => block.entries.indirect,
        };
        self.counts.linked += 1;
        jump(&mut self.arena, exit.jump, to);
    }

    /// Compares a page's blocks with memory; those that differ die.
    pub(super) fn compare(&mut self, cpu: &mut Cpu, number: u32, page: HostAddress) {
        self.counts.compared += 1;
        if self.residents[number as usize].unchanged(page) {
            return;
        }
        // Others may write meanwhile: the copy is to be of what was compared.
        let mut code = [0; PAGE as usize];
        page.read(&mut code);
        let mut residents = std::mem::take(&mut self.residents[number as usize]);
        let mut dead = Vec::new();
        residents.blocks.retain(|&id| {
            let block = &self.blocks[id as usize];
            let same = match &block.second {
                Some(second) if second.page == number => code.starts_with(&second.bytes),
                _ => block.agrees(&code),
            };
            if same {
                return true;
            }
            if block.page == number {
                dead.push(block.rip);
            }
            self.kill(cpu, id);
            false
        });
        for head in dead {
            residents.forget_head(head);
        }
        residents.refresh(&code);
        self.residents[number as usize] = residents;
    }
}

impl Translator {
    /// Nobody enters the block any more.
    fn kill(&mut self, cpu: &mut Cpu, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.dead = true;
        self.counts.killed += 1;
        let entries = block.entries;
        for exit in std::mem::take(&mut block.incoming) {
            let exit = self.exits[exit as usize];
            jump(&mut self.arena, exit.jump, exit.unlinked);
        }
        for entry in [entries.checked, entries.indirect, entries.polled, entries.plain] {
            let code = [0xe9, 0, 0, 0, 0];
            self.arena.patch(entry, &code);
            jump(&mut self.arena, entry + 5, entries.miss);
        }
        cpu.translated.forget_targets();
    }
}

/// Sets the displacement that ends at `at`.
fn jump(arena: &mut Arena, at: u64, to: u64) {
    arena.patch(at - 4, &(to.wrapping_sub(at) as u32).to_le_bytes());
}
