//! Call gates (Intel SDM volume 3, section 5.8.3).

use engine::state::Segment;

use crate::cpu::{CS, Cpu, GP, Mode, NP, RSP, SS, Step, Stop, TS};
use crate::segments::READABLE_OR_WRITABLE;
use crate::segments::{BIG, CODE, CONFORMING, LONG, NOT_SYSTEM, PRESENT, dpl};

/// Where a call gate leads.
pub struct Gate {
    segment: Segment,
    offset: u64,
    /// Operand size.
    bytes: u8,
    /// Operands that go to the inner stack.
    parameters: u8,
}

impl Cpu {
    /// The call gate that `selector` names, if it names one, and if it may be used.
    pub fn call_gate(&mut self, selector: u16) -> Step<Option<Gate>> {
        let code = u32::from(selector & !3);
        if code == 0 {
            return Err(self.gp());
        }
        let place = self.descriptor_place(selector)?;
        let low = self.read_system::<u64>(place)?;
        let access = (low >> 40) as u16;
        let bytes = match access & 0x1f {
            0xc if self.long() => 8,
            0xc => 4,
            4 if !self.long() => 2,
            _ => return Ok(None),
        };
        if dpl(access) < self.cpl.max((selector & 3) as u8) {
            return Err(self.raise_code(GP, code));
        }
        if access & PRESENT == 0 {
            return Err(self.raise_code(NP, code));
        }
        let mut offset = low & 0xffff | low >> 32 & 0xffff_0000;
        if bytes == 2 {
            offset &= 0xffff;
        }
        if bytes == 8 {
            // The second half has no type.
            let high = self.read_system::<u64>(place.wrapping_add(8))?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.raise_code(GP, code));
            }
            offset |= high << 32;
        }
        let target = (low >> 16) as u16;
        let code = u32::from(target & !3);
        if code == 0 {
            return Err(self.gp());
        }
        let mut segment = self.descriptor(target)?;
        let access = segment.access;
        if access & (NOT_SYSTEM | CODE) != NOT_SYSTEM | CODE
            || dpl(access) > self.cpl
            || bytes == 8 && access & (LONG | BIG) != LONG
        {
            return Err(self.raise_code(GP, code));
        }
        if access & PRESENT == 0 {
            return Err(self.raise_code(NP, code));
        }
        self.mark_accessed(&mut segment)?;
        Ok(Some(Gate { segment, offset, bytes, parameters: (low >> 32 & 31) as u8 }))
    }

    /// JMP through a gate, which never changes the ring.
    pub fn jump_through(&mut self, gate: Gate) -> Step {
        let Gate { mut segment, offset, .. } = gate;
        if segment.access & CONFORMING == 0 && dpl(segment.access) != self.cpl {
            return Err(self.raise_code(GP, u32::from(segment.selector & !3)));
        }
        segment.selector = segment.selector & !3 | u16::from(self.cpl);
        self.enter_code(segment, offset);
        Err(Stop::Branch)
    }

    /// CALL through a gate, to an inner ring as well; `next` is where to return.
    pub fn call_through(&mut self, gate: Gate, next: u64) -> Step {
        let before = (self.r.r(RSP), self.segments[SS], self.cpl);
        let result = self.call_through_parts(gate, next);
        if result == Err(Stop::Fault) {
            self.r.set(RSP, before.0);
            (self.segments[SS], self.cpl) = (before.1, before.2);
            self.refresh();
        }
        result
    }

    fn call_through_parts(&mut self, gate: Gate, next: u64) -> Step {
        let Gate { mut segment, offset, bytes, parameters } = gate;
        let cpl = if segment.access & CONFORMING == 0 { dpl(segment.access) } else { self.cpl };
        let (old_cs, old_ss) = (self.segments[CS].selector, self.segments[SS].selector);
        let old_rsp = self.r.r(RSP);
        let inner = cpl < self.cpl;
        let mut values = vec![];
        if inner {
            if bytes != 8 {
                for number in (0..u64::from(parameters)).rev() {
                    values.push(self.stack_value(bytes, number)?);
                }
            }
            let (ss, rsp) = self.inner_stack(cpl, 0)?;
            (self.segments[SS], self.cpl) = (ss, cpl);
            self.r.set(RSP, rsp);
            values.splice(0..0, [old_ss.into(), old_rsp]);
        }
        // The stack is that of the code which is entered.
        self.refresh();
        if bytes == 8 {
            (self.mode, self.linear_mask, self.stack_mask) = (Mode::Bits64, u64::MAX, u64::MAX);
        }
        values.extend([old_cs.into(), next]);
        for value in values {
            self.push_sized(bytes, value)?;
        }
        segment.selector = segment.selector & !3 | u16::from(cpl);
        self.enter_code(segment, offset);
        Err(Stop::Branch)
    }

    /// The `number`th operand on the stack.
    fn stack_value(&mut self, bytes: u8, number: u64) -> Step<u64> {
        let offset = self.r.r(RSP).wrapping_add(number * u64::from(bytes)) & self.stack_mask;
        self.check_segment(SS as u8, offset, bytes.into(), false)?;
        let linear = self.base[SS].wrapping_add(offset) & self.linear_mask;
        if bytes == 2 { self.read::<u16>(linear) } else { self.read::<u32>(linear) }
    }

    /// The stack of an inner ring, as the task says; `external` is a bit of error codes.
    pub fn inner_stack(&mut self, cpl: u8, external: u32) -> Step<(Segment, u64)> {
        let ring = u32::from(cpl);
        if self.long() {
            let rsp = self.task_field::<u64>(4 + 8 * ring)?;
            return Ok((no_stack(cpl), rsp));
        }
        let (rsp, ss) = if self.tr.access & 0xf == 0xb {
            (self.task_field::<u32>(4 + 8 * ring)?, self.task_field::<u16>(8 + 8 * ring)?)
        } else {
            (self.task_field::<u16>(2 + 4 * ring)?, self.task_field::<u16>(4 + 4 * ring)?)
        };
        let segment = self.descriptor(ss as u16)?;
        let rights = NOT_SYSTEM | CODE | READABLE_OR_WRITABLE;
        if segment.access & rights != NOT_SYSTEM | READABLE_OR_WRITABLE
            || dpl(segment.access) != cpl
        {
            return Err(self.raise_code(TS, ss as u32 & !3 | external));
        }
        Ok((segment, rsp))
    }
}

/// SS in an inner ring of 64-bit code.
pub fn no_stack(cpl: u8) -> Segment {
    let (selector, access) = (cpl.into(), u16::from(cpl) << 5);
    Segment { selector, access, unusable: true, ..Segment::default() }
}
