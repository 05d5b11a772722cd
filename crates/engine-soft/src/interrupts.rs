//! Delivery of interrupts and exceptions, and their returns (Intel SDM volume 3, chapter 6).

use engine::state::Segment;

use crate::cpu::{
    CR0_PE, CS, Cpu, DS, ES, FLAG_IF, FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM, FS, GP, GS,
    Mode, NP, RSP, SS, Step, Stop, TS,
};
use crate::gates::no_stack;
use crate::segments::{BIG, CODE, CONFORMING, NOT_SYSTEM, PRESENT, dpl};

impl Cpu {
    /// IRET with an operand size of `bytes`.
    pub fn iret(&mut self, bytes: u8) -> Step {
        let before = self.r.r(RSP);
        let result = self.iret_parts(bytes);
        if result == Err(Stop::Fault) {
            self.r.set(RSP, before);
        } else {
            self.nmi_masked = false;
            self.check_interrupts = true;
        }
        result
    }

    fn iret_parts(&mut self, bytes: u8) -> Step {
        if self.protected() && self.rflags & FLAG_NT != 0 {
            return Err(self.gp());
        }
        if self.rflags & FLAG_VM != 0 && self.iopl() < 3 {
            return Err(self.gp());
        }
        let offset = self.pop_sized(bytes)?;
        let selector = self.pop_sized(bytes)? as u16;
        let flags = self.pop_sized(bytes)?;
        if !self.protected() {
            self.change_rflags(flags, bytes, true);
            self.enter_code(self.real_code(selector), offset);
            return Err(Stop::Branch);
        }
        if flags & FLAG_VM != 0 && self.cpl == 0 && bytes == 4 && !self.long() {
            return self.enter_virtual_8086(offset, selector, flags);
        }
        let wide = self.mode == Mode::Bits64;
        let segment = self.code_segment(selector, true)?;
        let outer = (selector & 3) as u8 > self.cpl;
        let old_cpl = self.cpl;
        if outer || wide {
            let rsp = self.pop_sized(bytes)?;
            let ss = self.pop_sized(bytes)? as u16;
            if outer {
                self.outer_return(segment, offset, ss, rsp)?;
            } else {
                self.load_segment(SS, ss)?;
                self.enter_code(segment, offset);
                self.r.set(RSP, if self.mode == Mode::Bits64 { rsp } else { rsp & 0xffff_ffff });
            }
        } else {
            self.enter_code(segment, offset);
        }
        let cpl = std::mem::replace(&mut self.cpl, old_cpl);
        self.change_rflags(flags, bytes, true);
        self.cpl = cpl;
        Err(Stop::Branch)
    }

    fn enter_virtual_8086(&mut self, offset: u64, selector: u16, flags: u64) -> Step {
        let mut values = [0; 6];
        for value in &mut values {
            *value = self.pop::<u32>()?;
        }
        self.set_rflags(flags);
        self.cpl = 3;
        let registers =
            [(SS, values[1]), (ES, values[2]), (DS, values[3]), (FS, values[4]), (GS, values[5])];
        for (register, value) in registers {
            self.segments[register].limit = 0xffff;
            self.load_segment(register, value as u16)?;
        }
        self.segments[CS] = Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            access: 0xf3,
            unusable: false,
        };
        self.r.set(RSP, values[0]);
        self.refresh();
        self.rip = offset & 0xffff;
        Err(Stop::Branch)
    }

    /// What POPF and IRET may change at this privilege.
    pub fn change_rflags(&mut self, value: u64, bytes: u8, iret: bool) {
        let mut allowed = 0x24_4dd5 | FLAG_TF;
        if iret {
            allowed |= FLAG_RF;
        }
        if self.cpl <= self.iopl() || !self.protected() && self.cr0 & CR0_PE == 0 {
            allowed |= FLAG_IF;
        }
        if self.cpl == 0 {
            allowed |= FLAG_IOPL;
        }
        if bytes == 2 {
            allowed &= 0xffff;
        }
        let old = self.get_rflags();
        let new = old & !allowed | value & allowed;
        let virtual_mode = old & FLAG_VM;
        self.set_rflags(new & !FLAG_VM | virtual_mode);
        self.check_interrupts = true;
    }

    /// Enters the handler of an interrupt or exception. `rip` is what is pushed.
    pub fn deliver(&mut self, vector: u8, code: Option<u32>, software: bool, rip: u64) -> Step {
        let before = (self.r.r(RSP), self.user, self.segments[SS], self.cpl);
        let result = if self.cr0 & CR0_PE == 0 {
            self.deliver_real(vector, rip)
        } else {
            self.deliver_gate(vector, code, software, rip)
        };
        if result.is_err() {
            self.r.set(RSP, before.0);
            (self.segments[SS], self.cpl) = (before.2, before.3);
            self.refresh();
            self.user = before.1;
        }
        result
    }

    fn deliver_real(&mut self, vector: u8, rip: u64) -> Step {
        let place = 4 * u64::from(vector);
        if place + 3 > u64::from(self.idt.limit) {
            return Err(self.gp());
        }
        let entry = self.read_system::<u32>(self.idt.base.wrapping_add(place))?;
        let (flags, cs) = (self.get_rflags(), self.segments[CS].selector);
        self.push::<u16>(flags)?;
        self.push::<u16>(cs.into())?;
        self.push::<u16>(rip)?;
        self.rflags &= !(FLAG_IF | FLAG_TF);
        self.enter_code(self.real_code((entry >> 16) as u16), entry & 0xffff);
        Ok(())
    }

    fn deliver_gate(&mut self, vector: u8, code: Option<u32>, software: bool, rip: u64) -> Step {
        let long = self.long();
        let size = if long { 16 } else { 8 };
        let number = u32::from(vector) * size;
        let external = u32::from(!software);
        let error = u32::from(vector) << 3 | 2 | external;
        if number + size - 1 > u32::from(self.idt.limit) {
            return Err(self.raise_code(GP, error));
        }
        let place = self.idt.base.wrapping_add(number.into());
        let low = self.read_system::<u64>(place)?;
        let high = if long { self.read_system::<u64>(place.wrapping_add(8))? } else { 0 };
        let access = (low >> 40) as u16;
        let kind = access & 0x1f;
        let bytes = match kind {
            0xe | 0xf if long => 8,
            0xe | 0xf => 4,
            6 | 7 if !long => 2,
            _ => return Err(self.raise_code(GP, error)),
        };
        if software && dpl(access) < self.cpl {
            return Err(self.raise_code(GP, error));
        }
        if access & PRESENT == 0 {
            return Err(self.raise_code(NP, error));
        }
        let mut offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if bytes == 2 {
            offset &= 0xffff;
        }
        let selector = (low >> 16) as u16;
        let code_error = u32::from(selector & !3) | external;
        if selector & !3 == 0 {
            return Err(self.raise_code(GP, external));
        }
        let mut segment = self.descriptor(selector)?;
        let conforming = segment.access & CONFORMING != 0;
        if segment.access & (NOT_SYSTEM | CODE) != NOT_SYSTEM | CODE
            || dpl(segment.access) > self.cpl
        {
            return Err(self.raise_code(GP, code_error));
        }
        if segment.access & PRESENT == 0 {
            return Err(self.raise_code(NP, code_error));
        }
        self.mark_accessed(&mut segment)?;
        let cpl = if conforming { self.cpl } else { dpl(segment.access) };
        let (old_ss, old_rsp) = (self.segments[SS].selector, self.r.r(RSP));
        let (old_cs, flags) = (self.segments[CS].selector, self.get_rflags());
        let virtual_mode = flags & FLAG_VM != 0;
        let inner = cpl < self.cpl;
        let stack_table = if long { (low >> 32 & 7) as u32 } else { 0 };
        let mut new_ss = self.segments[SS];
        if long {
            let mut rsp = old_rsp;
            if stack_table != 0 {
                rsp = self.task_field::<u64>(0x1c + 8 * stack_table)?;
                new_ss = if inner { no_stack(cpl) } else { new_ss };
            } else if inner {
                (new_ss, rsp) = self.inner_stack(cpl, external)?;
            }
            self.r.set(RSP, rsp & !15);
            self.stack_mask = u64::MAX;
        } else if inner {
            let (ss, rsp) = self.inner_stack(cpl, external)?;
            new_ss = ss;
            self.r.set(RSP, rsp);
        }
        self.segments[SS] = new_ss;
        let mode =
            std::mem::replace(&mut self.mode, if long { Mode::Bits64 } else { Mode::Bits32 });
        if inner && !long {
            self.base[SS] = new_ss.base;
            self.stack_mask = if new_ss.access & BIG != 0 { 0xffff_ffff } else { 0xffff };
        }
        let linear_mask =
            std::mem::replace(&mut self.linear_mask, if long { u64::MAX } else { 0xffff_ffff });
        self.user = u64::from(cpl == 3);
        let pushed = self.push_frame(
            bytes,
            &[
                if virtual_mode { Some(self.segments[GS].selector.into()) } else { None },
                if virtual_mode { Some(self.segments[FS].selector.into()) } else { None },
                if virtual_mode { Some(self.segments[DS].selector.into()) } else { None },
                if virtual_mode { Some(self.segments[ES].selector.into()) } else { None },
                (inner || long).then_some(old_ss.into()),
                (inner || long).then_some(old_rsp),
                Some(flags),
                Some(old_cs.into()),
                Some(rip),
                code.map(u64::from),
            ],
        );
        if let Err(stop) = pushed {
            (self.mode, self.linear_mask) = (mode, linear_mask);
            return Err(stop);
        }
        if virtual_mode {
            for register in [GS, FS, DS, ES] {
                self.segments[register] = Segment { unusable: true, ..Segment::default() };
            }
        }
        self.rflags &= !(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
        if kind & 1 == 0 {
            self.rflags &= !FLAG_IF;
        }
        self.cpl = cpl;
        segment.selector = selector & !3 | u16::from(cpl);
        self.enter_code(segment, offset);
        Ok(())
    }

    fn push_frame(&mut self, bytes: u8, values: &[Option<u64>]) -> Step {
        for value in values.iter().flatten() {
            self.push_sized(bytes, *value)?;
        }
        Ok(())
    }

    pub(crate) fn task_field<W: crate::host::Word>(&mut self, offset: u32) -> Step<u64> {
        if offset.saturating_add(W::BYTES as u32 - 1) > self.tr.limit {
            let code = u32::from(self.tr.selector & !3);
            return Err(self.raise_code(TS, code));
        }
        self.read_system::<W>(self.tr.base.wrapping_add(offset.into()))
    }
}
