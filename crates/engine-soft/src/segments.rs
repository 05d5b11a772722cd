//! Segments and far transfers (Intel SDM volume 3, chapters 3 and 5).

use engine::state::Segment;

use crate::cpu::{
    CR0_PE, CS, Cpu, DS, EFER_SCE, ES, FLAG_RF, FLAG_VM, FS, GP, GS, Mode, NP, RCX, RSP, SS,
    SS_FAULT, Step, Stop, UD,
};
use crate::op::Op;

pub const CODE: u16 = 1 << 3;
pub const CONFORMING: u16 = 1 << 2;
pub const READABLE_OR_WRITABLE: u16 = 1 << 1;
const ACCESSED: u16 = 1;
pub const NOT_SYSTEM: u16 = 1 << 4;
pub const PRESENT: u16 = 1 << 7;
pub const LONG: u16 = 1 << 13;
pub const BIG: u16 = 1 << 14;

/// DPL of access rights.
pub fn dpl(access: u16) -> u8 {
    (access >> 5 & 3) as u8
}

/// What a descriptor of 8 bytes says.
fn unpack(selector: u16, descriptor: u64) -> Segment {
    let access = (descriptor >> 40 & 0xf0ff) as u16;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    Segment {
        selector,
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: if access & 1 << 15 != 0 { limit << 12 | 0xfff } else { limit },
        access,
        unusable: false,
    }
}

impl Cpu {
    /// Recomputes what follows from segments and control registers.
    pub fn refresh(&mut self) {
        for index in [ES, CS, SS, DS, FS, GS] {
            self.base[index] = self.segments[index].base;
        }
        let cs = &self.segments[CS];
        self.mode = if self.long() && cs.access & LONG != 0 {
            Mode::Bits64
        } else if self.cr0 & CR0_PE != 0 && self.rflags & FLAG_VM == 0 && cs.access & BIG != 0 {
            Mode::Bits32
        } else {
            Mode::Bits16
        };
        if self.cr0 & CR0_PE == 0 {
            self.cpl = 0;
        }
        self.user = u64::from(self.cpl == 3);
        let wide = self.mode == Mode::Bits64;
        self.linear_mask = if wide { u64::MAX } else { 0xffff_ffff };
        self.stack_mask = if wide {
            u64::MAX
        } else if self.segments[SS].access & BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
    }

    /// The place of a selector's descriptor; `#GP(selector)` where there is none.
    pub(crate) fn descriptor_place(&mut self, selector: u16) -> Step<u64> {
        let (base, limit) = if selector & 4 != 0 {
            (self.ldt.base, if self.ldt.unusable { 0 } else { self.ldt.limit })
        } else {
            (self.gdt.base, self.gdt.limit.into())
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Err(self.raise_code(GP, u32::from(selector & !3)));
        }
        Ok(base.wrapping_add(offset.into()))
    }

    /// The descriptor of a selector.
    pub fn descriptor(&mut self, selector: u16) -> Step<Segment> {
        let place = self.descriptor_place(selector)?;
        let raw = self.read_system::<u64>(place)?;
        Ok(unpack(selector, raw))
    }

    pub(crate) fn mark_accessed(&mut self, segment: &mut Segment) -> Step {
        if segment.access & ACCESSED == 0 {
            let place = self.descriptor_place(segment.selector)?;
            let byte = self.read_system::<u8>(place.wrapping_add(5))?;
            self.write_system::<u8>(place.wrapping_add(5), byte | 1)?;
            segment.access |= ACCESSED;
        }
        Ok(())
    }

    /// #GP, or #SS, where these bytes are not in the segment or it does not allow the access; in 64-bit mode
    /// all is allowed.
    pub fn check_segment(&mut self, segment: u8, offset: u64, bytes: u64, write: bool) -> Step {
        let Some(descriptor) = self.segments.get(usize::from(segment)) else { return Ok(()) };
        if self.mode == Mode::Bits64 {
            return Ok(());
        }
        let (offset, access) = (offset & 0xffff_ffff, descriptor.access);
        let (last, limit) = (offset + bytes - 1, u64::from(descriptor.limit));
        let within = if access & (CODE | CONFORMING) == CONFORMING {
            // Such data grow down: what is below the limit is outside.
            offset > limit && last <= if access & BIG != 0 { 0xffff_ffff } else { 0xffff }
        } else {
            last <= limit
        };
        let right = access & READABLE_OR_WRITABLE != 0;
        let allowed = !self.protected()
            || if write { access & CODE == 0 && right } else { access & CODE == 0 || right };
        if within && allowed && !descriptor.unusable {
            return Ok(());
        }
        Err(self.raise_code(if usize::from(segment) == SS { SS_FAULT } else { GP }, 0))
    }

    /// Loads a data-segment register or SS.
    pub fn load_segment(&mut self, register: usize, selector: u16) -> Step {
        if !self.protected() {
            let access = if self.rflags & FLAG_VM != 0 { 0xf3 } else { 0x93 };
            let old = &mut self.segments[register];
            *old = Segment {
                selector,
                base: u64::from(selector) << 4,
                access,
                unusable: false,
                // Real mode keeps the limit that protected mode left.
                limit: old.limit.max(0xffff),
            };
            self.refresh();
            return Ok(());
        }
        let code = u32::from(selector & !3);
        if selector & !3 == 0 {
            let allowed = register != SS
                || self.mode == Mode::Bits64 && self.cpl < 3 && (selector & 3) as u8 == self.cpl;
            if !allowed {
                return Err(self.gp());
            }
            let access = if register == SS { u16::from(self.cpl) << 5 } else { 0 };
            self.segments[register] =
                Segment { selector, access, unusable: true, ..Segment::default() };
            self.refresh();
            return Ok(());
        }
        let mut segment = self.descriptor(selector)?;
        let rpl = (selector & 3) as u8;
        let access = segment.access;
        let good = if register == SS {
            access & (NOT_SYSTEM | CODE | READABLE_OR_WRITABLE) == NOT_SYSTEM | READABLE_OR_WRITABLE
                && rpl == self.cpl
                && dpl(access) == self.cpl
        } else {
            access & NOT_SYSTEM != 0
                && (access & CODE == 0 || access & READABLE_OR_WRITABLE != 0)
                && (access & (CODE | CONFORMING) == CODE | CONFORMING
                    || dpl(access) >= rpl.max(self.cpl))
        };
        if !good {
            return Err(self.raise_code(GP, code));
        }
        if access & PRESENT == 0 {
            return Err(self.raise_code(if register == SS { SS_FAULT } else { NP }, code));
        }
        self.mark_accessed(&mut segment)?;
        self.segments[register] = segment;
        self.refresh();
        Ok(())
    }

    /// Checks a code segment for a far jump or call and returns it with its final selector.
    pub(crate) fn code_segment(&mut self, selector: u16, returning: bool) -> Step<Segment> {
        let code = u32::from(selector & !3);
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let mut segment = self.descriptor(selector)?;
        let (access, rpl) = (segment.access, (selector & 3) as u8);
        let conforming = access & CONFORMING != 0;
        let rights = if returning {
            rpl >= self.cpl && (if conforming { dpl(access) <= rpl } else { dpl(access) == rpl })
        } else if conforming {
            dpl(access) <= self.cpl
        } else {
            rpl <= self.cpl && dpl(access) == self.cpl
        };
        let both = self.long() && access & (LONG | BIG) == LONG | BIG;
        if access & (NOT_SYSTEM | CODE) != NOT_SYSTEM | CODE || !rights || both {
            return Err(self.raise_code(GP, code));
        }
        if access & PRESENT == 0 {
            return Err(self.raise_code(NP, code));
        }
        self.mark_accessed(&mut segment)?;
        if !returning {
            segment.selector = selector & !3 | u16::from(self.cpl);
        }
        Ok(segment)
    }

    pub(crate) fn real_code(&self, selector: u16) -> Segment {
        Segment { selector, base: u64::from(selector) << 4, ..self.segments[CS] }
    }

    /// JMP to another segment.
    pub fn far_jump(&mut self, selector: u16, offset: u64) -> Step {
        let segment = if self.protected() {
            if let Some(gate) = self.call_gate(selector)? {
                return self.jump_through(gate);
            }
            self.code_segment(selector, false)?
        } else {
            self.real_code(selector)
        };
        self.enter_code(segment, offset);
        Err(Stop::Branch)
    }

    /// CALL of another segment; `bytes` is the operand size.
    pub fn far_call(&mut self, selector: u16, offset: u64, next: u64, bytes: u8) -> Step {
        let segment = if self.protected() {
            if let Some(gate) = self.call_gate(selector)? {
                return self.call_through(gate, next);
            }
            self.code_segment(selector, false)?
        } else {
            self.real_code(selector)
        };
        let before = self.r.r(RSP);
        let old = self.segments[CS].selector.into();
        self.push_sized(bytes, old)?;
        if let Err(stop) = self.push_sized(bytes, next) {
            self.r.set(RSP, before);
            return Err(stop);
        }
        self.enter_code(segment, offset);
        Err(Stop::Branch)
    }

    pub(crate) fn enter_code(&mut self, segment: Segment, offset: u64) {
        self.segments[CS] = segment;
        self.refresh();
        self.rip = if self.mode == Mode::Bits64 { offset } else { offset & 0xffff_ffff };
    }

    /// RETF, and `release` more bytes.
    pub fn far_return(&mut self, bytes: u8, release: u64) -> Step {
        let before = self.r.r(RSP);
        let result = self.far_return_parts(bytes, release);
        if result == Err(Stop::Fault) {
            self.r.set(RSP, before);
        }
        result
    }

    fn far_return_parts(&mut self, bytes: u8, release: u64) -> Step {
        let offset = self.pop_sized(bytes)?;
        let selector = self.pop_sized(bytes)? as u16;
        if !self.protected() {
            let pointer = self.r.r(RSP).wrapping_add(release);
            self.set_sp(pointer);
            self.enter_code(self.real_code(selector), offset);
            return Err(Stop::Branch);
        }
        let segment = self.code_segment(selector, true)?;
        let pointer = self.r.r(RSP).wrapping_add(release);
        self.set_sp(pointer);
        if (selector & 3) as u8 > self.cpl {
            let rsp = self.pop_sized(bytes)?;
            let ss = self.pop_sized(bytes)? as u16;
            self.outer_return(segment, offset, ss, rsp)?;
            let pointer = self.r.r(RSP).wrapping_add(release);
            self.set_sp(pointer);
        } else {
            self.enter_code(segment, offset);
        }
        Err(Stop::Branch)
    }

    /// Goes to a less privileged ring.
    pub(crate) fn outer_return(
        &mut self,
        segment: Segment,
        offset: u64,
        ss: u16,
        rsp: u64,
    ) -> Step {
        let (cpl, target) = (self.cpl, (segment.selector & 3) as u8);
        self.cpl = target;
        let was = (self.segments[CS], self.mode);
        // SS is judged by the rules of the mode that is returned to.
        self.mode =
            if self.long() && segment.access & LONG != 0 { Mode::Bits64 } else { Mode::Bits32 };
        self.segments[CS] = segment;
        if let Err(stop) = self.load_segment(SS, ss) {
            self.cpl = cpl;
            (self.segments[CS], self.mode) = was;
            self.refresh();
            return Err(stop);
        }
        self.enter_code(segment, offset);
        let old = self.r.r(RSP);
        let wide = self.stack_mask;
        self.r.set(RSP, if wide > 0xffff { rsp & wide } else { old & !wide | rsp & wide });
        for register in [ES, DS, FS, GS] {
            let data = &mut self.segments[register];
            let conforming = data.access & (CODE | CONFORMING) == CODE | CONFORMING;
            if !data.unusable && !conforming && dpl(data.access) < target {
                *data = Segment { unusable: true, ..Segment::default() };
            }
        }
        self.refresh();
        Ok(())
    }

    /// LTR.
    pub fn load_task(&mut self, selector: u16) -> Step {
        let code = u32::from(selector & !3);
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let mut segment = self.system_descriptor(selector)?;
        let kind = segment.access & 0x1f;
        if kind != 9 && (kind != 1 || self.long()) {
            return Err(self.raise_code(GP, code));
        }
        if segment.access & PRESENT == 0 {
            return Err(self.raise_code(NP, code));
        }
        let place = self.descriptor_place(selector)?;
        let byte = self.read_system::<u8>(place.wrapping_add(5))?;
        self.write_system::<u8>(place.wrapping_add(5), byte | 2)?;
        segment.access |= 2;
        self.tr = segment;
        Ok(())
    }

    /// LLDT.
    pub fn load_local_table(&mut self, selector: u16) -> Step {
        if selector & !3 == 0 {
            self.ldt = Segment { selector, unusable: true, ..Segment::default() };
            return Ok(());
        }
        let code = u32::from(selector & !3);
        let segment = self.system_descriptor(selector)?;
        if segment.access & 0x1f != 2 || selector & 4 != 0 {
            return Err(self.raise_code(GP, code));
        }
        if segment.access & PRESENT == 0 {
            return Err(self.raise_code(NP, code));
        }
        self.ldt = segment;
        Ok(())
    }

    /// System descriptors have 16 bytes in long mode.
    fn system_descriptor(&mut self, selector: u16) -> Step<Segment> {
        let mut segment = self.descriptor(selector)?;
        if self.long() {
            let place = self.descriptor_place(selector)?;
            segment.base |= self.read_system::<u64>(place.wrapping_add(8))? << 32;
        }
        Ok(segment)
    }

    /// SYSCALL.
    pub fn syscall(&mut self, next: u64) -> Step {
        if self.efer & EFER_SCE == 0 || !self.long() {
            return Err(self.raise(UD));
        }
        let wide = self.mode == Mode::Bits64;
        let flags = self.get_rflags();
        self.r.set(RCX, next);
        self.r.set(11, flags & !FLAG_RF);
        self.rip = if wide { self.msrs.lstar } else { self.msrs.cstar };
        self.set_rflags(flags & !(self.msrs.fmask | FLAG_RF));
        let selector = (self.msrs.star >> 32) as u16;
        self.segments[CS] = flat(selector & !3, 0xa09b);
        self.segments[SS] = flat((selector & !3).wrapping_add(8), 0xc093);
        self.cpl = 0;
        self.refresh();
        Err(Stop::Branch)
    }

    /// SYSRET; `wide`: to 64-bit code.
    pub fn sysret(&mut self, wide: bool) -> Step {
        if self.efer & EFER_SCE == 0 || !self.long() {
            return Err(self.raise(UD));
        }
        if self.cpl != 0 {
            return Err(self.gp());
        }
        let selector = (self.msrs.star >> 48) as u16;
        let target = self.r.r(RCX);
        if wide {
            self.segments[CS] = flat(selector.wrapping_add(16) | 3, 0xa0fb);
            self.rip = target;
        } else {
            self.segments[CS] = flat(selector | 3, 0xc0fb);
            self.rip = target & 0xffff_ffff;
        }
        self.segments[SS] = flat(selector.wrapping_add(8) | 3, 0xc0f3);
        let flags = self.r.r(11);
        self.set_rflags(flags & !(FLAG_RF | FLAG_VM));
        self.cpl = 3;
        self.check_interrupts = true;
        self.refresh();
        Err(Stop::Branch)
    }

    /// LAR (0), LSL (1), VERR (2), VERW (3): `None` where the selector may not be looked at.
    pub fn look_at(&mut self, selector: u16, kind: u8) -> Step<Option<u64>> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Ok(segment) = self.descriptor(selector) else {
            // A selector beyond its table is an answer; a page fault is not.
            return if self.fault.vector == GP { Ok(None) } else { Err(Stop::Fault) };
        };
        let access = segment.access;
        let conforming =
            access & (NOT_SYSTEM | CODE | CONFORMING) == NOT_SYSTEM | CODE | CONFORMING;
        if !conforming && dpl(access) < self.cpl.max((selector & 3) as u8) {
            return Ok(None);
        }
        let system = access & NOT_SYSTEM == 0;
        Ok(match kind {
            0 if system && !matches!(access & 15, 1..=5 | 9 | 11 | 12) => None,
            0 => {
                let place = self.descriptor_place(selector)?;
                Some(self.read_system::<u32>(place.wrapping_add(4))? & 0x00ff_ff00)
            }
            1 if system && !matches!(access & 15, 1..=3 | 9 | 11) => None,
            1 => Some(segment.limit.into()),
            2 => {
                (!system && (access & CODE == 0 || access & READABLE_OR_WRITABLE != 0)).then_some(0)
            }
            _ => (!system && access & CODE == 0 && access & READABLE_OR_WRITABLE != 0).then_some(0),
        })
    }
}

fn flat(selector: u16, access: u16) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, access, unusable: false }
}

/// JMP to the far address `imm`, with the selector in `extra`.
pub fn jump_direct(c: &mut Cpu, o: &Op) -> Step {
    c.far_jump(o.extra as u16, o.imm)
}

/// CALL likewise; `dst` is the operand size.
pub fn call_direct(c: &mut Cpu, o: &Op) -> Step {
    c.far_call(o.extra as u16, o.imm, o.next, o.dst)
}

/// JMP (`CALL` false) or CALL through a far pointer in memory; `dst` is the operand size.
pub fn through_memory<const CALL: bool>(c: &mut Cpu, o: &Op) -> Step {
    let linear = c.linear(o);
    let offset = match o.dst {
        2 => c.read::<u16>(linear)?,
        4 => c.read::<u32>(linear)?,
        _ => c.read::<u64>(linear)?,
    };
    let selector = c.read::<u16>(linear.wrapping_add(o.dst.into()) & c.linear_mask)? as u16;
    if CALL { c.far_call(selector, offset, o.next, o.dst) } else { c.far_jump(selector, offset) }
}

/// The memory operand of the next instruction, `extra` bytes, must lie within its segment, which must allow it.
pub fn check_limit<const WRITE: bool>(c: &mut Cpu, o: &Op) -> Step {
    c.check_segment(o.segment, c.offset(o), o.extra.into(), WRITE)
}

/// LDS and its like: segment register `extra`.
pub fn load_far<W: crate::host::Word>(c: &mut Cpu, o: &Op) -> Step {
    let linear = c.linear(o);
    let offset = c.read::<W>(linear)?;
    let selector = c.read::<u16>(linear.wrapping_add(W::BYTES) & c.linear_mask)? as u16;
    c.load_segment(o.extra as usize % 6, selector)?;
    c.r.put::<W>(o.dst, offset);
    c.rip = o.next;
    Err(Stop::Branch)
}
