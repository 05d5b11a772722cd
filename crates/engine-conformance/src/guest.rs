//! A small virtual machine to run guests of a few instructions in: 4 MiB of memory from 0, the first
//! 4 GiB mapped one to one for rings 0 and 3, a GDT, an IDT and a TSS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use engine::cpuid::CpuidTable;
use engine::state::{DescriptorTable, Segment, VcpuState};
use engine::{Engine, Exit, GuestRegion, Kicker, MemoryRegion, Vcpu, VcpuConfig, Vm, VmConfig};
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress, MmapRegion};

use crate::asm::Asm;
use crate::board::Board;
use crate::{Failure, Outcome};

/// Where things are in guest memory.
pub mod place {
    /// Bytes of memory.
    pub const MEMORY: u64 = 4 << 20;
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    /// Top of the stack that the guest starts on.
    pub const STACK: u64 = 0xa000;
    /// Top of the stack for interrupts from ring 3.
    pub const RING0_STACK: u64 = 0xc000;
    /// Page tables.
    pub const PML4: u64 = 0x1_0000;
    pub const PDPT: u64 = 0x1_1000;
    pub const DIRECTORIES: u64 = 0x1_2000;
    /// A page table that no directory names yet.
    pub const SPARE_TABLE: u64 = 0x1_6000;
    /// First instruction.
    pub const CODE: u64 = 0x2_0000;
    /// Interrupt handlers, to be put here by tests.
    pub const HANDLER: u64 = 0x2_8000;
    pub const HANDLER_2: u64 = 0x2_9000;
    /// Where application processors start.
    pub const STARTUP: u64 = 0x3_0000;
    /// Ring 3's code and the top of its stack.
    pub const USER_CODE: u64 = 0x4_0000;
    pub const USER_STACK: u64 = 0x5_0000;
    /// Where guests leave results, 8 bytes each.
    pub const RESULTS: u64 = 0x20_0000;
}

/// Selectors of the GDT. The order from USER_CODE_32 is what SYSRET asks for.
pub mod selector {
    pub const CODE: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE_32: u16 = 0x18;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const USER_CODE: u16 = 0x28 | 3;
    pub const TSS: u16 = 0x30;
    /// A call gate, to be put here by tests.
    pub const GATE: u16 = 0x40 | 3;
}

pub const CR0_PE: u64 = 1;
pub const CR0_NE: u64 = 1 << 5;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_PG: u64 = 1 << 31;
pub const CR4_PAE: u64 = 1 << 5;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const EFER_SCE: u64 = 1;
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_LMA: u64 = 1 << 10;
pub const EFER_NXE: u64 = 1 << 11;

/// Page-table entry: present, writable, for ring 3 as well; and of a directory: a 2 MiB page.
pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 2;
pub const USER: u64 = 4;
pub const LARGE: u64 = 1 << 7;
pub const NO_EXECUTE: u64 = 1 << 63;

/// Long enough for the slowest computer; only a hang waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub board: Arc<Board>,
    pub memory: Arc<GuestRegion>,
    pub cpuid: CpuidTable,
}

impl Guest {
    /// A guest with one processor.
    pub fn new(engine: &dyn Engine) -> Result<Self, Failure> {
        Self::with_vcpus(engine, 1)
    }

    /// A guest with up to `vcpus` processors.
    pub fn with_vcpus(engine: &dyn Engine, vcpus: u32) -> Result<Self, Failure> {
        let vm = engine.create_vm(&VmConfig { vcpus })?;
        let memory = region(0, place::MEMORY)?;
        vm.map(MemoryRegion { slot: 0, region: Arc::clone(&memory), read_only: false })?;
        let guest =
            Self { vm, board: Arc::default(), memory, cpuid: engine.capabilities().cpuid.clone() };
        guest.write_tables()?;
        Ok(guest)
    }

    /// A processor in its reset state.
    pub fn cpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Failure> {
        self.cpu_with_id(index, index)
    }

    /// The same, with this APIC ID.
    pub fn cpu_with_id(&self, index: u32, apic_id: u32) -> Result<Box<dyn Vcpu>, Failure> {
        let config = VcpuConfig { index, apic_id, cpuid: cpuid_of(&self.cpuid, apic_id) };
        let cpu = self.vm.create_vcpu(&config)?;
        self.board.stop_when_done(cpu.kicker());
        Ok(cpu)
    }

    /// Processor 0, about to execute `code` in 64-bit mode.
    pub fn start(&self, code: &Asm) -> Result<Box<dyn Vcpu>, Failure> {
        let mut cpu = self.cpu(0)?;
        self.prepare(&mut *cpu, code)?;
        Ok(cpu)
    }

    /// Puts `code` into memory and makes it what `cpu` executes next, in 64-bit mode.
    pub fn prepare(&self, cpu: &mut dyn Vcpu, code: &Asm) -> Outcome {
        let start = code.here() - code.bytes().len() as u64;
        self.load(code)?;
        let mut state = cpu.state()?;
        enter_long_mode(&mut state, start);
        cpu.set_state(&state)?;
        Ok(())
    }

    /// Puts `code` where it is to run.
    pub fn load(&self, code: &Asm) -> Outcome {
        self.write(code.here() - code.bytes().len() as u64, code.bytes())
    }

    /// Puts `code` where it is to run and into the IDT.
    pub fn handle(&self, vector: u8, code: &Asm) -> Outcome {
        self.load(code)?;
        self.set_gate(vector, code.here() - code.bytes().len() as u64)
    }

    /// Makes `vector` enter `handler` in ring 0; ring 3 may call it.
    pub fn set_gate(&self, vector: u8, handler: u64) -> Outcome {
        const INTERRUPT_GATE_FOR_RING_3: u64 = 0xee00;
        let low = handler & 0xffff
            | u64::from(selector::CODE) << 16
            | INTERRUPT_GATE_FOR_RING_3 << 32
            | (handler >> 16 & 0xffff) << 48;
        let gate = place::IDT + 16 * u64::from(vector);
        self.write_u64(gate, low)?;
        self.write_u64(gate + 8, handler >> 32)
    }

    /// Runs `cpu` until it stops by itself, or says where it hangs.
    pub fn run(&self, cpu: &mut dyn Vcpu) -> Result<Exit, Failure> {
        let (exit, timed_out) = watched(cpu.kicker(), || cpu.run(&*self.board));
        if timed_out {
            let state = cpu.state()?;
            return Err(Failure::new(format!(
                "the processor did not stop within {DEADLINE:?}: {:?}, {:x?}",
                state.activity, state.registers
            )));
        }
        Ok(exit?)
    }

    /// Runs `cpu` until the guest says that it is done.
    pub fn finish(&self, cpu: &mut dyn Vcpu) -> Outcome {
        let exit = self.run(cpu)?;
        let done = self.board.take_done();
        if exit == Exit::Kicked && done {
            return Ok(());
        }
        let state = cpu.state()?;
        Err(Failure::new(format!(
            "the guest stopped with {exit:?} before its work was done, with {:x?}",
            state.registers
        )))
    }

    /// The `index`th result that the guest left.
    pub fn result(&self, index: u64) -> Result<u64, Failure> {
        self.read_u64(place::RESULTS + 8 * index)
    }

    /// Reads guest memory.
    pub fn read_u64(&self, address: u64) -> Result<u64, Failure> {
        self.memory.read_obj(MemoryRegionAddress(address)).map_err(memory_failure)
    }

    /// Writes guest memory.
    pub fn write_u64(&self, address: u64, value: u64) -> Outcome {
        self.memory.write_obj(value, MemoryRegionAddress(address)).map_err(memory_failure)
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Outcome {
        self.memory.write_slice(bytes, MemoryRegionAddress(address)).map_err(memory_failure)
    }

    /// All of guest memory.
    pub fn memory_copy(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; place::MEMORY as usize];
        self.memory.read_slice(&mut bytes, MemoryRegionAddress(0)).map_err(memory_failure)?;
        Ok(bytes)
    }

    fn write_tables(&self) -> Outcome {
        let descriptors: [u64; 9] = [
            0,
            0x00af_9b00_0000_ffff, // 64-bit code, ring 0
            0x00cf_9300_0000_ffff, // data, ring 0
            0x00cf_fb00_0000_ffff, // 32-bit code, ring 3
            0x00cf_f300_0000_ffff, // data, ring 3
            0x00af_fb00_0000_ffff, // 64-bit code, ring 3
            0x0000_8b00_0000_0067 | place::TSS << 16,
            0,
            0,
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            self.write_u64(place::GDT + 8 * index, descriptor)?;
        }
        self.write(place::TSS + 4, &place::RING0_STACK.to_le_bytes())?;
        // No I/O permission bitmap: ring 3 may use no port.
        self.write(place::TSS + 0x66, &0x68_u16.to_le_bytes())?;
        let table = PRESENT | WRITABLE | USER;
        self.write_u64(place::PML4, place::PDPT | table)?;
        for gigabyte in 0..4 {
            let directory = place::DIRECTORIES + 0x1000 * gigabyte;
            self.write_u64(place::PDPT + 8 * gigabyte, directory | table)?;
            for page in 0..512 {
                let address = gigabyte << 30 | page << 21;
                self.write_u64(directory + 8 * page, address | table | LARGE)?;
            }
        }
        Ok(())
    }
}

/// Runs `job`, and kicks once the deadline is over, which the second value tells.
pub fn watched<T>(kicker: Kicker, job: impl FnOnce() -> T) -> (T, bool) {
    let timed_out = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let (finished, wait) = channel::<()>();
        let timed_out = &timed_out;
        scope.spawn(move || {
            if wait.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
                timed_out.store(true, Ordering::SeqCst);
                kicker.kick();
            }
        });
        let result = job();
        drop(finished);
        result
    });
    (result, timed_out.load(Ordering::SeqCst))
}

/// Anonymous memory at a guest-physical address.
pub fn region(address: u64, length: u64) -> Result<Arc<GuestRegion>, Failure> {
    let mapping = MmapRegion::new(length as usize)
        .map_err(|error| Failure::new(format!("cannot map memory: {error}")))?;
    GuestRegion::new(mapping, GuestAddress(address))
        .map(Arc::new)
        .ok_or_else(|| Failure::new("the memory region overflows"))
}

/// `table` for the processor with this number: its APIC ID stands in several leaves. The bits that show
/// what the guest has enabled are off, as after a reset.
pub fn cpuid_of(table: &CpuidTable, apic_id: u32) -> CpuidTable {
    const OSXSAVE: u32 = 1 << 27;
    let mut table = table.clone();
    for leaf in &mut table.0 {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24;
                leaf.ecx &= !OSXSAVE;
            }
            0xb | 0x1f => leaf.edx = apic_id,
            _ => {}
        }
    }
    table
}

/// Changes a reset state into one that executes 64-bit code at `rip`, interrupts off.
pub fn enter_long_mode(state: &mut VcpuState, rip: u64) {
    let data = Segment {
        selector: selector::DATA,
        limit: 0xffff_ffff,
        access: 0xc093,
        ..Segment::default()
    };
    let system = &mut state.system;
    system.cs = Segment { selector: selector::CODE, access: 0xa09b, ..data };
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = Segment {
        selector: selector::TSS,
        base: place::TSS,
        limit: 0x67,
        access: 0x008b,
        unusable: false,
    };
    system.gdt = DescriptorTable { base: place::GDT, limit: 10 * 8 - 1 };
    system.idt = DescriptorTable { base: place::IDT, limit: 0xfff };
    system.cr0 = CR0_PE | CR0_NE | CR0_WP | CR0_PG;
    system.cr3 = place::PML4;
    system.cr4 = CR4_PAE | CR4_OSFXSR;
    system.efer = EFER_LME | EFER_LMA | EFER_SCE;
    state.registers.rip = rip;
    state.registers.rsp = place::STACK;
    state.registers.rflags = 2;
}

fn memory_failure(error: vm_memory::GuestMemoryError) -> Failure {
    Failure::new(format!("guest memory: {error}"))
}
