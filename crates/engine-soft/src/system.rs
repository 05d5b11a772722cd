//! System instructions: control registers, model-specific registers, ports, CPUID.

use engine::cpuid::CpuidLeaf;

use crate::cpu::{
    CR0_ET, CR0_PE, CR0_PG, CR4_DE, CR4_FSGSBASE, CR4_OSXSAVE, CR4_PAE, CR4_SMEP, CR4_TSD, Cpu, DB,
    EFER_LMA, EFER_LME, FLAG_IF, FLAG_RF, FLAG_VM, GS, Mode, RAX, RBX, RCX, RDX, SS, Step, Stop,
    UD,
};
use crate::flags::{CF, Flags};
use crate::host::Word;
use crate::op::Op;

/// CR4 bits that may be set: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE,
/// SMEP.
const CR4_ALLOWED: u64 = 0x7ff | CR4_FSGSBASE | CR4_OSXSAVE | CR4_SMEP;
/// CPUID's leaf 1, ECX: the operating system uses XSAVE.
const OSXSAVE: u32 = 1 << 27;

/// Ends the block: what the instruction changed may change how the next is decoded or whether an
/// interrupt comes first.
fn done(c: &mut Cpu, o: &Op) -> Step {
    c.rip = o.next;
    Err(Stop::Branch)
}

fn ring_0(c: &mut Cpu) -> Step {
    if c.cpl == 0 { Ok(()) } else { Err(c.gp()) }
}

/// The processor does not have it.
pub fn undefined(c: &mut Cpu, _: &Op) -> Step {
    Err(c.raise(UD))
}

/// An instruction of the architecture that is not implemented: as if the processor did not have it.
pub fn unimplemented(c: &mut Cpu, o: &Op) -> Step {
    let rip = o.next.wrapping_sub(o.length.into());
    let mut bytes = [0; 15];
    let bytes = &mut bytes[..usize::from(o.length)];
    if c.read_bytes(rip, bytes, c.user).is_ok() && c.vm.is_first(o.imm as u32) {
        tracing::warn!("the guest's instruction {bytes:02x?} at {rip:#x} is not implemented");
    }
    Err(c.raise(UD))
}

/// CLI, STI.
pub fn interrupts<const ON: bool>(c: &mut Cpu, o: &Op) -> Step {
    if c.protected() && c.cpl > c.iopl() || c.rflags & FLAG_VM != 0 && c.iopl() < 3 {
        return Err(c.gp());
    }
    if !ON {
        c.rflags &= !FLAG_IF;
        return Ok(());
    }
    if c.rflags & FLAG_IF == 0 {
        c.shadow = 1;
    }
    c.rflags |= FLAG_IF;
    c.check_interrupts = true;
    done(c, o)
}

/// HLT.
pub fn hlt(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    c.activity = engine::state::Activity::Halted;
    done(c, o)
}

/// PAUSE: somebody else should run.
pub fn pause(c: &mut Cpu, o: &Op) -> Step {
    std::hint::spin_loop();
    if c.vm.crowded() {
        std::thread::yield_now();
    }
    done(c, o)
}

/// CPUID.
pub fn cpuid(c: &mut Cpu, _: &Op) -> Step {
    let (function, index) = (c.r.r(RAX) as u32, c.r.r(RCX) as u32);
    let mut leaf = c.cpuid.get(function, index).copied();
    if leaf.is_none() && !(0x4000_0000..0x5000_0000).contains(&function) {
        // Beyond the last: as an Intel processor answers, with the highest basic leaf; AMD with zeros.
        leaf = Some(CpuidLeaf::default());
    }
    let mut leaf = leaf.unwrap_or_default();
    match (function, index) {
        (1, _) if c.cr4 & CR4_OSXSAVE != 0 => leaf.ecx |= OSXSAVE,
        // Bytes of an XSAVE area with what is enabled.
        (0xd, 0 | 1) => leaf.ebx = crate::xsave::area_size(c.xcr0) as u32,
        _ => {}
    }
    for (register, value) in [(RAX, leaf.eax), (RBX, leaf.ebx), (RCX, leaf.ecx), (RDX, leaf.edx)] {
        c.r.set(register, value.into());
    }
    // It serializes: what devices wrote before is executed behind.
    c.note_device();
    Ok(())
}

/// RDTSC, and RDTSCP as `P`.
pub fn rdtsc<const P: bool>(c: &mut Cpu, _: &Op) -> Step {
    if c.cr4 & CR4_TSD != 0 && c.cpl != 0 {
        return Err(c.gp());
    }
    let now = c.tsc();
    c.r.set(RAX, now & 0xffff_ffff);
    c.r.set(RDX, now >> 32);
    if P {
        c.r.set(RCX, c.msrs.tsc_aux & 0xffff_ffff);
    }
    Ok(())
}

/// RDPID.
pub fn rdpid(c: &mut Cpu, o: &Op) -> Step {
    c.r.put::<u64>(o.dst, c.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDRAND and RDSEED (`SEED`): CF tells whether there was a number.
pub fn random<W: Word, const SEED: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = crate::host::random::<SEED>();
    c.flags = Flags::from_bits(if value.is_some() { CF } else { 0 });
    c.r.put::<W>(o.dst, value.unwrap_or(0));
    Ok(())
}

/// RDPMC: there are no counters.
pub fn rdpmc(c: &mut Cpu, _: &Op) -> Step {
    Err(c.gp())
}

/// RDMSR.
pub fn rdmsr(c: &mut Cpu, _: &Op) -> Step {
    ring_0(c)?;
    let index = c.r.r(RCX) as u32;
    let Some(value) = c.read_msr(index) else {
        tracing::debug!("the guest reads the unknown model-specific register {index:#x}");
        return Err(c.gp());
    };
    c.r.set(RAX, value & 0xffff_ffff);
    c.r.set(RDX, value >> 32);
    Ok(())
}

/// WRMSR.
pub fn wrmsr(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let index = c.r.r(RCX) as u32;
    let value = c.r.r(RAX) & 0xffff_ffff | c.r.r(RDX) << 32;
    if !c.write_msr(index, value) {
        tracing::debug!(
            "the guest writes {value:#x} to the unknown model-specific register {index:#x}"
        );
        return Err(c.gp());
    }
    c.check_interrupts = true;
    done(c, o)
}

/// MOV from CR`extra`.
pub fn read_control(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let value = match o.extra {
        0 => c.cr0,
        2 => c.cr2,
        3 => c.cr3,
        4 => c.cr4,
        8 => u64::from(c.shared.lock().task_priority() >> 4),
        _ => return Err(c.raise(UD)),
    };
    put_register(c, o.dst, value);
    Ok(())
}

fn put_register(c: &mut Cpu, register: u8, value: u64) {
    if c.mode == Mode::Bits64 {
        c.r.put::<u64>(register, value);
    } else {
        c.r.put::<u32>(register, value);
    }
}

/// MOV to CR`extra`.
pub fn write_control(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let mut value = c.r.get::<u64>(o.src);
    if c.mode != Mode::Bits64 {
        value &= 0xffff_ffff;
    }
    match o.extra {
        0 => c.set_cr0(value)?,
        2 => c.cr2 = value,
        3 => {
            c.cr3 = value & !(1 << 63);
            c.flush_local();
        }
        4 => {
            if value & !CR4_ALLOWED != 0 || c.long() && value & CR4_PAE == 0 {
                return Err(c.gp());
            }
            c.cr4 = value;
            c.flush_tlb();
        }
        8 => {
            if value > 15 {
                return Err(c.gp());
            }
            c.shared.lock().set_task_priority((value as u32) << 4);
            c.check_interrupts = true;
        }
        _ => return Err(c.raise(UD)),
    }
    done(c, o)
}

/// DR4 and DR5 are other names of DR6 and DR7 unless debugging extensions are on.
fn debug_register(c: &mut Cpu, o: &Op) -> Step<u32> {
    ring_0(c)?;
    match o.extra {
        4 | 5 if c.cr4 & CR4_DE != 0 => Err(c.raise(UD)),
        number @ (4 | 5) => Ok(number + 2),
        number => Ok(number),
    }
}

/// MOV from DR`extra`.
pub fn read_debug(c: &mut Cpu, o: &Op) -> Step {
    let value = match debug_register(c, o)? {
        number @ 0..=3 => c.debug.dr[number as usize],
        6 => c.debug.dr6,
        _ => c.debug.dr7,
    };
    put_register(c, o.dst, value);
    Ok(())
}

/// MOV to DR`extra`.
pub fn write_debug(c: &mut Cpu, o: &Op) -> Step {
    let value = c.r.get::<u64>(o.src);
    match debug_register(c, o)? {
        number @ 0..=3 => c.debug.dr[number as usize] = value,
        6 => c.debug.dr6 = value & 0xe00f | 0xffff_0ff0,
        _ => c.debug.dr7 = value & 0xffff_03ff | 0x400,
    }
    // Pages with watched data are not in the TLB; and the flag is that of the instruction before.
    c.flush_tlb();
    c.rflags &= !FLAG_RF;
    done(c, o)
}

/// CLTS.
pub fn clts(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    c.cr0 &= !crate::cpu::CR0_TS;
    done(c, o)
}

/// INVLPG.
pub fn invlpg(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let linear = c.linear(o);
    c.flush_page(linear);
    done(c, o)
}

/// WBINVD, INVD: memory is coherent.
pub fn write_back(c: &mut Cpu, _: &Op) -> Step {
    ring_0(c)
}

/// SWAPGS.
pub fn swapgs(c: &mut Cpu, _: &Op) -> Step {
    if c.mode != Mode::Bits64 {
        return Err(c.raise(UD));
    }
    ring_0(c)?;
    let base = c.segments[GS].base;
    c.segments[GS].base = c.msrs.kernel_gs_base;
    c.base[GS] = c.msrs.kernel_gs_base;
    c.msrs.kernel_gs_base = base;
    Ok(())
}

/// RDFSBASE, RDGSBASE, and their opposites (`WRITE`).
pub fn segment_base<W: Word, const WRITE: bool, const SEGMENT: usize>(c: &mut Cpu, o: &Op) -> Step {
    if c.cr4 & CR4_FSGSBASE == 0 || c.mode != Mode::Bits64 {
        return Err(c.raise(UD));
    }
    if !WRITE {
        let value = c.base[SEGMENT];
        c.r.put::<W>(o.dst, value);
        return Ok(());
    }
    let value = c.r.get::<W>(o.src).wide();
    if (value << 16) as i64 >> 16 != value as i64 {
        return Err(c.gp());
    }
    c.segments[SEGMENT].base = value;
    c.base[SEGMENT] = value;
    Ok(())
}

/// LGDT and LIDT (`IDT`).
pub fn load_table<const IDT: bool>(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let linear = c.linear(o);
    let limit = c.read::<u16>(linear)? as u16;
    let at = linear.wrapping_add(2) & c.linear_mask;
    let base = if c.mode == Mode::Bits64 {
        c.read::<u64>(at)?
    } else {
        let base = c.read::<u32>(at)?;
        if o.extra == 2 { base & 0xff_ffff } else { base }
    };
    let table = engine::state::DescriptorTable { base, limit };
    if IDT {
        c.idt = table;
    } else {
        c.gdt = table;
    }
    Ok(())
}

/// SGDT and SIDT (`IDT`).
pub fn store_table<const IDT: bool>(c: &mut Cpu, o: &Op) -> Step {
    let table = if IDT { c.idt } else { c.gdt };
    let linear = c.linear(o);
    c.write::<u16>(linear, table.limit.into())?;
    let at = linear.wrapping_add(2) & c.linear_mask;
    if c.mode == Mode::Bits64 {
        c.write::<u64>(at, table.base)
    } else {
        c.write::<u32>(at, table.base)
    }
}

/// A selector from a register or (`M`) memory.
fn selector<const M: bool>(c: &mut Cpu, o: &Op) -> Step<u16> {
    let value = if M { c.read::<u16>(c.linear(o))? } else { c.r.get::<u16>(o.src).into() };
    Ok(value as u16)
}

/// LTR, LLDT (`LDT`).
pub fn load_system<const LDT: bool, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    if !c.protected() {
        return Err(c.raise(UD));
    }
    ring_0(c)?;
    let selector = selector::<M>(c, o)?;
    if LDT { c.load_local_table(selector) } else { c.load_task(selector) }
}

/// A 16-bit system value to a register of `W` or to memory: SLDT 0, STR 1, SMSW 2, MOV from a segment
/// register 3 (number in `extra`).
pub fn store_system<W: Word, const KIND: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let value = match KIND {
        0 => c.ldt.selector.into(),
        1 => c.tr.selector.into(),
        2 => c.cr0,
        _ => c.segments[o.extra as usize % 6].selector.into(),
    };
    if M {
        return c.write::<u16>(c.linear(o), value);
    }
    c.r.put::<W>(o.dst, value);
    Ok(())
}

/// LMSW.
pub fn lmsw<const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    ring_0(c)?;
    let value = u64::from(selector::<M>(c, o)?) & 15;
    // It can set PE, never clear it.
    let new = c.cr0 & !14 | value;
    c.set_cr0(new)?;
    done(c, o)
}

/// MOV to segment register `extra`.
pub fn load_segment<const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    let selector = selector::<M>(c, o)?;
    c.load_segment(o.extra as usize % 6, selector)?;
    if o.extra as usize == SS {
        c.shadow = 2;
    }
    done(c, o)
}

/// PUSH of segment register `extra`, `dst` bytes.
pub fn push_segment(c: &mut Cpu, o: &Op) -> Step {
    let value = c.segments[o.extra as usize % 6].selector.into();
    c.push_sized(o.dst, value)
}

/// POP likewise.
pub fn pop_segment(c: &mut Cpu, o: &Op) -> Step {
    let before = c.r.r(crate::cpu::RSP);
    let value = c.pop_sized(o.dst)?;
    if let Err(stop) = c.load_segment(o.extra as usize % 6, value as u16) {
        c.r.set(crate::cpu::RSP, before);
        return Err(stop);
    }
    if o.extra as usize == SS {
        c.shadow = 2;
    }
    done(c, o)
}

/// PUSHF of `dst` bytes.
pub fn pushf(c: &mut Cpu, o: &Op) -> Step {
    if c.rflags & FLAG_VM != 0 && c.iopl() < 3 {
        return Err(c.gp());
    }
    let value = c.get_rflags() & !(FLAG_VM | FLAG_RF);
    c.push_sized(o.dst, value)
}

/// POPF of `dst` bytes.
pub fn popf(c: &mut Cpu, o: &Op) -> Step {
    if c.rflags & FLAG_VM != 0 && c.iopl() < 3 {
        return Err(c.gp());
    }
    let value = c.pop_sized(o.dst)?;
    c.change_rflags(value, o.dst, false);
    done(c, o)
}

/// INT `imm`, INT3.
pub fn int(c: &mut Cpu, o: &Op) -> Step {
    if c.rflags & FLAG_VM != 0 && c.iopl() < 3 {
        return Err(c.gp());
    }
    c.deliver(o.imm as u8, None, true, o.next)?;
    Err(Stop::Branch)
}

/// ICEBP, also called INT1: a debug exception that needs no right.
pub fn icebp(c: &mut Cpu, o: &Op) -> Step {
    c.deliver(DB, None, false, o.next)?;
    Err(Stop::Branch)
}

/// INTO.
pub fn into(c: &mut Cpu, o: &Op) -> Step {
    if !c.flags.of() {
        return Ok(());
    }
    c.deliver(4, None, true, o.next)?;
    Err(Stop::Branch)
}

/// IRET of `dst` bytes.
pub fn iret(c: &mut Cpu, o: &Op) -> Step {
    c.iret(o.dst)
}

/// RETF of `dst` bytes.
pub fn retf(c: &mut Cpu, o: &Op) -> Step {
    c.far_return(o.dst, o.imm)
}

/// SYSCALL.
pub fn syscall(c: &mut Cpu, o: &Op) -> Step {
    c.syscall(o.next)
}

/// SYSRET.
pub fn sysret<const WIDE: bool>(c: &mut Cpu, _: &Op) -> Step {
    c.sysret(WIDE)
}

/// LAR, LSL, VERR, VERW as 0 to 3.
pub fn look_at<W: Word, const KIND: u8, const M: bool>(c: &mut Cpu, o: &Op) -> Step {
    if !c.protected() {
        return Err(c.raise(UD));
    }
    let selector = selector::<M>(c, o)?;
    let found = c.look_at(selector, KIND)?;
    c.flags.set_zf(found.is_some());
    if let (0 | 1, Some(value)) = (KIND, found) {
        c.r.put::<W>(o.dst, value);
    }
    Ok(())
}

/// IN: port from `imm`, or DX where `extra` is 1.
pub fn input<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let port = if o.extra == 1 { c.r.r(RDX) as u16 } else { o.imm as u16 };
    c.check_port(port, W::BYTES)?;
    let value = c.port_in(port, W::BYTES);
    c.r.put::<W>(0, value);
    done(c, o)
}

/// OUT likewise.
pub fn output<W: Word>(c: &mut Cpu, o: &Op) -> Step {
    let port = if o.extra == 1 { c.r.r(RDX) as u16 } else { o.imm as u16 };
    c.check_port(port, W::BYTES)?;
    let value = W::cut(c.r.r(RAX)).wide();
    c.port_out(port, W::BYTES, value);
    done(c, o)
}

impl Cpu {
    /// #GP unless the I/O privilege or the task's permission bitmap allows the port.
    pub fn check_port(&mut self, port: u16, bytes: u64) -> Step {
        if self.cr0 & CR0_PE == 0 || self.rflags & FLAG_VM == 0 && self.cpl <= self.iopl() {
            return Ok(());
        }
        if self.tr.access & 0xd != 9 || self.tr.limit < 0x67 {
            return Err(self.gp());
        }
        let map = self.read_system::<u16>(self.tr.base.wrapping_add(0x66))?;
        let at = map + u64::from(port / 8);
        if at + 1 > self.tr.limit.into() {
            return Err(self.gp());
        }
        let word = self.read_system::<u16>(self.tr.base.wrapping_add(at))?;
        let mask = ((1_u64 << bytes) - 1) << (port % 8);
        if word & mask != 0 {
            return Err(self.gp());
        }
        Ok(())
    }

    fn set_cr0(&mut self, value: u64) -> Step {
        let value = value & 0xe005_003f | CR0_ET;
        let bad = value & CR0_PG != 0 && value & CR0_PE == 0
            || value & 1 << 29 != 0 && value & 1 << 30 == 0;
        if bad {
            return Err(self.gp());
        }
        let paging = (value ^ self.cr0) & CR0_PG != 0;
        if paging && value & CR0_PG != 0 && self.efer & EFER_LME != 0 {
            if self.cr4 & CR4_PAE == 0 || self.segments[crate::cpu::CS].access & 1 << 13 != 0 {
                return Err(self.gp());
            }
            self.efer |= EFER_LMA;
        } else if paging && value & CR0_PG == 0 {
            if self.mode == Mode::Bits64 {
                return Err(self.gp());
            }
            self.efer &= !EFER_LMA;
        }
        self.cr0 = value;
        self.flush_tlb();
        self.refresh();
        Ok(())
    }
}
