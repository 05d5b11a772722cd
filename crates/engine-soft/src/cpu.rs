//! One processor's registers, and how it reads and writes memory.

use std::sync::Arc;

use engine::Statistics;
use engine::cpuid::CpuidTable;
use engine::state::{Activity, DebugRegisters, DescriptorTable, Segment};

use crate::flags::Flags;
use crate::host::{BusHandle, HostAddress, PAGE, Ram, Regs, Tlb, Word};
use crate::native::FpuState;
use crate::translate::verify::Journal;
use crate::vm::{CpuShared, VmShared};

/// Why the execution of a block ends before its last instruction, or with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `Cpu::rip` says where to go on.
    Branch,
    /// `Cpu::fault` holds an exception of the current instruction.
    Fault,
    /// The current instruction is executed again (a REP that yields to an interrupt).
    Again,
}

/// Result of an instruction or of an access to memory.
pub type Step<T = ()> = Result<T, Stop>;

/// An exception with its error code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub code: Option<u32>,
}

/// Vectors.
pub const DE: u8 = 0;
pub const DB: u8 = 1;
pub const BR: u8 = 5;
pub const UD: u8 = 6;
pub const NM: u8 = 7;
pub const DF: u8 = 8;
pub const TS: u8 = 10;
pub const NP: u8 = 11;
pub const SS_FAULT: u8 = 12;
pub const GP: u8 = 13;
pub const PF: u8 = 14;
pub const MF: u8 = 16;
pub const XM: u8 = 19;

/// Segment registers in the order of their encoding; `FLAT` has base 0 for ever, and so has `FLAT_STACK`, which
/// stands for SS in 64-bit mode.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;
pub const FLAT: usize = 6;
pub const FLAT_STACK: usize = 7;

/// General registers.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

pub const CR0_PE: u64 = 1;
pub const CR0_EM: u64 = 1 << 2;
pub const CR0_TS: u64 = 1 << 3;
pub const CR0_ET: u64 = 1 << 4;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_PG: u64 = 1 << 31;
pub const CR4_TSD: u64 = 1 << 2;
pub const CR4_DE: u64 = 1 << 3;
pub const CR4_PSE: u64 = 1 << 4;
pub const CR4_PAE: u64 = 1 << 5;
pub const CR4_PGE: u64 = 1 << 7;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub const CR4_FSGSBASE: u64 = 1 << 16;
pub const CR4_OSXSAVE: u64 = 1 << 18;
pub const CR4_SMEP: u64 = 1 << 20;
pub const EFER_SCE: u64 = 1;
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_LMA: u64 = 1 << 10;
pub const EFER_NXE: u64 = 1 << 11;

pub const FLAG_TF: u64 = 1 << 8;
pub const FLAG_IF: u64 = 1 << 9;
pub const FLAG_DF: u64 = 1 << 10;
pub const FLAG_IOPL: u64 = 3 << 12;
pub const FLAG_NT: u64 = 1 << 14;
pub const FLAG_RF: u64 = 1 << 16;
pub const FLAG_VM: u64 = 1 << 17;

/// Width of code, as instructions are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    #[default]
    Bits16,
    Bits32,
    Bits64,
}

/// Model-specific registers that only hold a value.
#[derive(Clone, Debug, Default)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter: [u64; 3],
    pub pat: u64,
    pub tsc_aux: u64,
    pub mtrr_def_type: u64,
    pub misc_enable: u64,
    pub wall_clock: u64,
    pub system_time: u64,
}

/// See the module. The registers come first, within the reach of short displacements.
#[repr(C)]
pub struct Cpu {
    pub r: Regs,
    pub rip: u64,
    pub flags: Flags,
    /// RFLAGS but for the six arithmetic flags.
    pub rflags: u64,
    /// 1 in ring 3, else 0.
    pub user: u64,
    pub cpl: u8,
    pub mode: Mode,
    /// Linear addresses have 32 bits outside of 64-bit mode.
    pub linear_mask: u64,
    /// Bits of the stack pointer.
    pub stack_mask: u64,
    pub base: [u64; 8],
    pub reads: Tlb,
    pub writes: Tlb,
    /// Guest-physical pages of what was executed.
    pub fetches: Box<Tlb>,
    pub translated: crate::translate::context::Context,
    /// Size of the largest pages seen in the lower and the upper half of the addresses, as a shift; 0 for
    /// small ones.
    pub large: [u32; 2],
    /// Whether the page of the last fetch is in every address space.
    pub fetched_global: bool,
    /// The current instruction wrote to a page with code: what follows it may be another instruction now.
    pub code_changed: bool,
    /// Grows when a linear page may be elsewhere or code may have changed: chains of blocks end.
    pub generation: u64,
    pub fault: Fault,
    /// The address that cannot be (it is not canonical) at which `fault` happened.
    pub impossible: Option<u64>,
    pub segments: [Segment; 6],
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// Which components XSAVE manages.
    pub xcr0: u64,
    pub debug: DebugRegisters,
    /// Bits of DR6 for the breakpoints that the current instruction's data met.
    pub breakpoints_met: u64,
    pub msrs: Msrs,
    pub fpu: Box<FpuState>,
    pub tsc_offset: u64,
    pub cpuid: CpuidTable,
    pub activity: Activity,
    /// Interrupts are held off for one instruction: bit 0 STI, bit 1 MOV SS.
    pub shadow: u8,
    pub nmi_masked: bool,
    /// An interrupt may be deliverable: ask the local APIC when interrupts are on.
    pub check_interrupts: bool,
    pub ram: Arc<Ram>,
    pub bus: Option<BusHandle>,
    pub vm: Arc<VmShared>,
    pub shared: Arc<CpuShared>,
    pub statistics: Statistics,
    /// While the interpreter goes ahead of the translator.
    pub journal: Option<Box<Journal>>,
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

impl Cpu {
    /// Raises an exception without an error code.
    #[cold]
    pub fn raise(&mut self, vector: u8) -> Stop {
        self.fault = Fault { vector, code: None };
        Stop::Fault
    }

    /// Raises an exception with an error code.
    #[cold]
    pub fn raise_code(&mut self, vector: u8, code: u32) -> Stop {
        self.fault = Fault { vector, code: Some(code) };
        Stop::Fault
    }

    /// #GP(0).
    #[cold]
    pub fn gp(&mut self) -> Stop {
        self.raise_code(GP, 0)
    }

    /// Loads a number from a linear address.
    #[inline(always)]
    pub fn read<W: Word>(&mut self, linear: u64) -> Step<u64> {
        match self.reads.find::<W>(linear, self.user) {
            Some(host) => Ok(host.load::<W>().wide()),
            None => self.read_slow(linear, W::BYTES, self.user),
        }
    }

    /// Stores a number to a linear address.
    #[inline(always)]
    pub fn write<W: Word>(&mut self, linear: u64, value: u64) -> Step {
        match self.writes.find::<W>(linear, self.user) {
            Some(host) => {
                host.store::<W>(value);
                Ok(())
            }
            None => self.write_slow(linear, W::BYTES, value, self.user),
        }
    }

    /// Replaces a number at a linear address by what `change` makes of it.
    #[inline(always)]
    pub fn update<W: Word>(
        &mut self,
        linear: u64,
        change: impl FnOnce(&mut Self, u64) -> u64,
    ) -> Step {
        if let Some(host) = self.writes.find::<W>(linear, self.user) {
            let old = host.load::<W>().wide();
            let new = change(self, old);
            host.store::<W>(new);
            return Ok(());
        }
        self.probe_write(linear, W::BYTES)?;
        let old = self.read::<W>(linear)?;
        let new = change(self, old);
        self.write::<W>(linear, new)
    }

    /// Like [`Cpu::update`], in one step for all processors. `change` may run several times.
    #[inline(always)]
    pub fn update_locked<W: Word>(
        &mut self,
        linear: u64,
        mut change: impl FnMut(&mut Self, u64) -> u64,
    ) -> Step {
        if self.writes.find::<W>(linear, self.user).is_none() {
            self.probe_write(linear, W::BYTES)?;
        }
        let Some(host) = self.writes.find::<W>(linear, self.user) else {
            // A device, a page with code, or two pages: alone among the processors that lock.
            let vm = Arc::clone(&self.vm);
            let _alone = vm.lock_split();
            return self.update::<W>(linear, change);
        };
        let mut old = host.load::<W>().wide();
        loop {
            let new = change(self, old);
            let seen = host.compare_exchange::<W>(old, new);
            if seen == old {
                return Ok(());
            }
            old = seen;
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, linear: u64, bytes: u64, user: u64) -> Step<u64> {
        let mut buffer = [0; 8];
        self.read_bytes(linear, &mut buffer[..bytes as usize], user)?;
        Ok(u64::from_le_bytes(buffer))
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, linear: u64, bytes: u64, value: u64, user: u64) -> Step {
        self.write_bytes(linear, &value.to_le_bytes()[..bytes as usize], user)
    }

    /// Loads as the processor itself does from descriptor tables: ring 0's rights.
    pub fn read_system<W: Word>(&mut self, linear: u64) -> Step<u64> {
        self.read_slow(linear, W::BYTES, 0)
    }

    /// Stores with ring 0's rights.
    pub fn write_system<W: Word>(&mut self, linear: u64, value: u64) -> Step {
        self.write_slow(linear, W::BYTES, value, 0)
    }

    /// Faults if the range cannot be written.
    #[inline(never)]
    pub fn probe_write(&mut self, linear: u64, bytes: u64) -> Step {
        let user = self.user;
        self.translate(linear, Access::Write, user)?;
        let last = linear.wrapping_add(bytes - 1) & self.linear_mask;
        if last / PAGE != linear / PAGE {
            self.translate(last & !(PAGE - 1), Access::Write, user)?;
        }
        Ok(())
    }

    /// Loads any number of bytes.
    pub fn read_bytes(&mut self, linear: u64, bytes: &mut [u8], user: u64) -> Step {
        if self.has_breakpoints() {
            self.note_access(linear, bytes.len(), false);
        }
        let first = (PAGE - linear % PAGE).min(bytes.len() as u64) as usize;
        let (low, high) = bytes.split_at_mut(first);
        let physical = self.translate(linear, Access::Read, user)?;
        if high.is_empty() {
            self.physical_read(physical, low);
            return Ok(());
        }
        let next = linear.wrapping_add(first as u64) & self.linear_mask;
        let second = self.translate(next, Access::Read, user)?;
        self.physical_read(physical, low);
        if high.len() as u64 <= PAGE {
            self.physical_read(second, high);
            return Ok(());
        }
        self.read_bytes(next, high, user)
    }

    /// Stores any number of bytes, or none if the first two pages cannot be written.
    pub fn write_bytes(&mut self, linear: u64, bytes: &[u8], user: u64) -> Step {
        if self.has_breakpoints() {
            self.note_access(linear, bytes.len(), true);
        }
        let first = (PAGE - linear % PAGE).min(bytes.len() as u64) as usize;
        let (low, high) = bytes.split_at(first);
        let physical = self.translate(linear, Access::Write, user)?;
        if high.is_empty() {
            self.physical_write(physical, low);
            return Ok(());
        }
        let next = linear.wrapping_add(first as u64) & self.linear_mask;
        let second = self.translate(next, Access::Write, user)?;
        self.physical_write(physical, low);
        if high.len() as u64 <= PAGE {
            self.physical_write(second, high);
            return Ok(());
        }
        self.write_bytes(next, high, user)
    }

    /// Loads from within one physical page.
    fn physical_read(&mut self, physical: u64, bytes: &mut [u8]) {
        if let Some(page) = self.ram.page(physical) {
            page.host().plus(physical % PAGE).read(bytes);
            return;
        }
        self.device_read(physical, bytes);
    }

    /// Stores into one physical page.
    fn physical_write(&mut self, physical: u64, bytes: &[u8]) {
        let ram = Arc::clone(&self.ram);
        match ram.page(physical) {
            Some(page) if !page.read_only() => {
                let host = page.host().plus(physical % PAGE);
                if let Some(journal) = &mut self.journal {
                    journal.record(host, bytes);
                    journal.lasting |= page.has_code();
                }
                match *bytes {
                    // In one access, as hardware does.
                    [byte] => host.store::<u8>(byte.into()),
                    [_, _] => host.store::<u16>(number(bytes)),
                    [_, _, _, _] => host.store::<u32>(number(bytes)),
                    [_, _, _, _, _, _, _, _] => host.store::<u64>(number(bytes)),
                    _ => host.write(bytes),
                }
                page.set_dirty();
                if page.has_code() {
                    self.code_written(&page);
                }
            }
            _ => self.device_write(physical, bytes),
        }
    }

    /// Code in this page may have changed: every processor compares its blocks with memory again.
    #[cold]
    fn code_written(&mut self, page: &crate::host::RamPage<'_>) {
        page.set_code(false);
        self.code_changed = true;
        self.vm.bump_code_version();
    }

    /// Drops what is known about linear addresses.
    pub fn flush_tlb(&mut self) {
        self.reads.clear();
        self.writes.clear();
        self.fetches.clear();
        self.translated.pages.clear();
        self.large = [0; 2];
        self.generation += 1;
    }

    /// Drops what is known about linear addresses of this address space.
    pub fn flush_local(&mut self) {
        self.reads.clear_local();
        self.writes.clear_local();
        self.fetches.clear_local();
        self.translated.pages.clear_local();
        self.large[0] = 0;
        self.generation += 1;
    }

    /// Drops what is known about one linear page.
    pub fn flush_page(&mut self, linear: u64) {
        let large = self.large[(linear >> 63) as usize];
        if large == 0 {
            self.reads.forget(linear);
            self.writes.forget(linear);
            self.fetches.forget(linear);
            self.translated.pages.forget(linear);
        } else {
            self.reads.forget_large(linear, large);
            self.writes.forget_large(linear, large);
            self.fetches.forget_large(linear, large);
            self.translated.pages.clear();
        }
        self.generation += 1;
    }

    /// Where `bytes` from `linear` are in this process, if they are memory of one page that may be accessed
    /// so without further notice.
    pub fn host_range(&mut self, linear: u64, write: bool) -> Step<Option<HostAddress>> {
        let user = self.user;
        let tlb = if write { &self.writes } else { &self.reads };
        if let Some(host) = tlb.find::<u8>(linear, user) {
            return Ok(Some(host));
        }
        self.translate(linear, if write { Access::Write } else { Access::Read }, user)?;
        let tlb = if write { &self.writes } else { &self.reads };
        Ok(tlb.find::<u8>(linear, user))
    }

    /// The time-stamp counter.
    pub fn tsc(&self) -> u64 {
        crate::host::host_tsc().wrapping_add(self.tsc_offset)
    }

    /// RFLAGS, whole.
    pub fn get_rflags(&self) -> u64 {
        self.rflags | self.flags.bits() | 2
    }

    /// Sets RFLAGS, whole.
    pub fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_bits(value);
        self.rflags = value & 0x3f_7700 | 2;
    }

    /// Whether protected mode is on and virtual-8086 mode off.
    pub fn protected(&self) -> bool {
        self.cr0 & CR0_PE != 0 && self.rflags & FLAG_VM == 0
    }

    /// Whether long mode is active (64-bit or compatibility).
    pub fn long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// The bit of I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }
}

/// A little-endian number of up to 8 bytes.
pub fn number(bytes: &[u8]) -> u64 {
    let mut buffer = [0; 8];
    buffer[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(buffer)
}
