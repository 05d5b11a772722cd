//! From the instructions at RIP to a block.

use super::block::{Builder, Flags, Guest};
use super::classify::Kind;
use super::emit::Assembler;
use super::merge::{self, Checks};
use super::residents::Residents;
use super::trace::Trace;
use super::{Block, LONGEST_INSTRUCTION, SIZE, Second, Translator};
use crate::cpu::Cpu;
use crate::host::{HostAddress, PAGE};
use crate::op::Op;

impl Translator {
    /// The block at RIP without runs, translated if need be; `page` as for [`Translator::translate`].
    pub fn apart(
        &mut self,
        cpu: &mut Cpu,
        page: HostAddress,
        natives: &mut crate::stubs::Stubs,
    ) -> Option<u32> {
        let key = (cpu.rip, self.page_number(cpu.rip, page, cpu.user));
        if let Some(&known) = self.aparts.get(&key)
            && self.lives(known)
        {
            return Some(known);
        }
        let id = self.has_room().then(|| self.translate(cpu, page, natives, false))??;
        self.aparts.insert(key, id);
        Some(id)
    }

    /// Translates the block at RIP, with runs of operands that are checked together if it is `merged`; `page` is
    /// where its page is, already watched.
    pub fn translate(
        &mut self,
        cpu: &mut Cpu,
        page: HostAddress,
        natives: &mut crate::stubs::Stubs,
        merged: bool,
    ) -> Option<u32> {
        let mut code = [0; SIZE + LONGEST_INSTRUCTION];
        page.read(&mut code[..SIZE]);
        let rip = cpu.rip;
        let linear = (rip & !(PAGE - 1)).wrapping_add(PAGE);
        // Where an instruction goes on, the interpreter has just been.
        let behind = Some(cpu.fetches.number(linear, cpu.user))
            .filter(|_| rip % PAGE + LONGEST_INSTRUCTION as u64 > PAGE)
            .flatten()
            .and_then(|physical| Some(cpu.ram.page(physical)?.host()));
        let known_bytes = behind.map_or(SIZE, |behind| {
            behind.read(&mut code[SIZE..]);
            code.len()
        });
        let number = self.page_number(rip, page, cpu.user);
        let residents = &self.residents[number as usize];
        let known = |rip| !self.alone && residents.begins(rip);
        let mut trace =
            Trace::of(&code[..known_bytes], rip, cpu.user, self.alone, &known, natives)?;
        if self.exact {
            trace.keep_flags();
        }
        let mut second = None;
        if let (Some(range), Some(host)) = (trace.ranges.first_mut(), behind)
            && range.1 > SIZE
        {
            let bytes: Box<[u8]> = code[SIZE..range.1].into();
            range.1 = SIZE;
            second = Some(Second {
                page: self.page_number(linear, host, cpu.user),
                linear,
                host,
                bytes,
            });
        }
        if !self.residents[number as usize].agree(&code, &trace.ranges) {
            self.compare(cpu, number, page);
            if !self.residents[number as usize].agree(&code, &trace.ranges) {
                return None;
            }
        }
        let mut next = [0; SIZE];
        if let Some(second) = &second {
            second.host.read(&mut next);
            let range = (0, second.bytes.len());
            if !next.starts_with(&second.bytes)
                || !self.residents[second.page as usize].agree(&next, &[range])
            {
                self.compare(cpu, second.page, second.host);
                return None;
            }
        }
        let base = self.arena.next();
        let ops: Box<[Op]> = trace.ops.clone().into();
        let [often, seldom] = std::mem::take(&mut self.buffers);
        let mut builder = Builder {
            a: Assembler::reusing(often, base),
            seldom: Assembler::reusing(seldom, self.arena.next_seldom()),
            stubs: &self.stubs,
            user: cpu.user,
            flags: Flags::Register,
            vectors: 0,
            held: None,
            cold: Vec::new(),
            exits: Vec::new(),
            first_exit: self.exits.len(),
            start: rip,
            may_chain: !self.alone,
        };
        let live = trace.items[0].before != 0;
        let mut entries = builder.head(
            live,
            trace.puts_flags_away(),
            number,
            second.as_ref().map(|second| second.page),
        );
        let checks = if merged {
            merge::checks(&trace.items)
        } else {
            vec![Checks::default(); trace.items.len()]
        };
        build(&mut builder, &trace, &checks, &ops);
        entries.miss = builder.finish();
        let (often, seldom, exits) = (builder.a.code, builder.seldom.code, builder.exits);
        let fits = self.arena.append_seldom(&seldom) && self.arena.append(&often);
        self.buffers = [often, seldom];
        if !fits {
            return None;
        }
        self.exits.extend(exits);
        self.counts.blocks += 1;
        self.counts.instructions += trace.items.len() as u64;
        self.counts.functions += trace.ops.len() as u64;
        let ranges = trace.ranges.iter().map(|&(start, end)| (start as u16, end as u16)).collect();
        let mut bytes =
            Vec::with_capacity(trace.ranges.iter().map(|(start, end)| end - start).sum());
        trace.ranges.iter().for_each(|&(start, end)| bytes.extend_from_slice(&code[start..end]));
        let id = self.blocks.len() as u32;
        let user = cpu.user;
        if let Some(second) = &second {
            let range = (0, second.bytes.len());
            self.residents[second.page as usize].add(id, None, &next, &[range]);
        }
        self.blocks.push(Block {
            entries,
            rip,
            user,
            host: page,
            page: number,
            ranges,
            bytes: bytes.into(),
            second,
            dead: false,
            apart: !merged,
            runs: 0,
            incoming: Vec::new(),
            _ops: ops,
        });
        let head = merged.then_some(rip);
        self.residents[number as usize].add(id, head, &code, &trace.ranges);
        Some(id)
    }

    fn page_number(&mut self, linear: u64, page: HostAddress, user: u64) -> u32 {
        let fresh = self.residents.len() as u32;
        let number = *self.pages.entry((linear >> 12, page, user)).or_insert(fresh);
        if number == fresh {
            self.residents.push(Residents::default());
        }
        number
    }
}

fn build(builder: &mut Builder<'_>, trace: &Trace<'_>, checks: &[Checks], ops: &[Op]) {
    let mut ended = false;
    for (item, &checks) in trace.items.iter().zip(checks) {
        let op = ops.get(item.op).map_or(std::ptr::null(), |op| op as *const Op);
        let guest = Guest {
            i: item.i,
            effect: item.effect,
            before: item.before,
            after: item.after,
            op,
            bytes: item.bytes,
            checks,
        };
        match (&item.parts, item.kind) {
            (_, Kind::Function) | (None, _) => builder.by_function(&guest),
            (Some(parts), Kind::Branch) => {
                builder.control(&guest, parts, item.kind, item.target != 0);
            }
            (
                Some(parts),
                Kind::Jump | Kind::Call | Kind::Return | Kind::JumpIndirect | Kind::CallIndirect,
            ) => {
                builder.control(&guest, parts, item.kind, item.target != 0);
                ended = true;
            }
            (Some(parts), kind) => builder.lower(&guest, parts, kind),
        }
    }
    if !ended {
        let next = trace.items.last().map_or(builder.start, |item| item.i.next_ip());
        builder.exit(None, next, trace.behind != 0);
    }
}
