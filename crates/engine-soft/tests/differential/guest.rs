//! A processor behind the engine traits: cases run in a guest's ring 3, and every exception ends them.

use std::sync::Arc;

use engine::state::{DescriptorTable, Registers, Segment, VcpuState};
use engine::{Bus, Engine, Exit, GuestRegion, Kicker, MemoryRegion, Vcpu, VcpuConfig, VmConfig};
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress, MmapRegion};

use crate::case::{
    AREA, CODE, CODE_SIZE, Case, DATA, DATA_SIZE, End, Executor, INT3, Outcome, WRITABLE,
};

/// Guest-physical addresses.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const RING0_STACK: u64 = 0x5000;
const HANDLERS: u64 = 0x6000;
const TABLES: u64 = 0x1_0000;
const CODE_PLACE: u64 = 0x2_0000;
const DATA_PLACE: u64 = 0x3_0000;
const SIZE: u64 = 0x4_0000;
/// Where ring 0 sees all of it.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// Handler `n` writes to port `PORTS + n`.
const PORTS: u16 = 0xc0;

/// Linux's selectors.
const RING0_CODE: u16 = 0x10;
const CODE_32: u16 = 0x23;
const DATA_SELECTOR: u16 = 0x2b;
const CODE_64: u16 = 0x33;
const TASK: u16 = 0x40;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const NO_EXECUTE: u64 = 1 << 63;

/// See the module.
pub struct Guest {
    cpu: Box<dyn Vcpu>,
    memory: Arc<GuestRegion>,
    board: Board,
    start: VcpuState,
    code: (u64, usize),
}

/// Notes which handler was entered.
struct Board {
    kicker: Kicker,
    port: std::sync::atomic::AtomicU16,
}

impl Bus for Board {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, port: u16, _: &[u8]) {
        self.port.store(port, std::sync::atomic::Ordering::SeqCst);
        self.kicker.kick();
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

impl Guest {
    /// A virtual machine of `engine`.
    pub fn new(engine: &dyn Engine) -> Self {
        let vm = engine.create_vm(&VmConfig { vcpus: 1 }).expect("a virtual machine");
        let mapping = MmapRegion::new(SIZE as usize).expect("memory");
        let memory = Arc::new(GuestRegion::new(mapping, GuestAddress(0)).expect("a region"));
        vm.map(MemoryRegion { slot: 0, region: Arc::clone(&memory), read_only: false })
            .expect("mapped memory");
        let cpuid = engine.capabilities().cpuid.clone();
        let mut cpu =
            vm.create_vcpu(&VcpuConfig { index: 0, apic_id: 0, cpuid }).expect("a processor");
        let board = Board { kicker: cpu.kicker(), port: 0.into() };
        let mut start = cpu.state().expect("a state");
        prepare(&mut start);
        let guest = Self { cpu, memory, board, start, code: (CODE_PLACE, CODE_SIZE) };
        guest.write_tables();
        guest
    }

    fn put(&self, place: u64, value: u64) {
        self.write(place, &value.to_le_bytes());
    }

    fn write(&self, place: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, MemoryRegionAddress(place)).expect("within memory");
    }

    fn get(&self, place: u64) -> u64 {
        self.memory.read_obj(MemoryRegionAddress(place)).expect("within memory")
    }

    fn write_tables(&self) {
        for (selector, descriptor) in [
            (RING0_CODE, 0x00af_9b00_0000_ffff_u64),
            (0x18, 0x00cf_9300_0000_ffff),
            (CODE_32, 0x00cf_fb00_0000_ffff),
            (DATA_SELECTOR, 0x00cf_f300_0000_ffff),
            (CODE_64, 0x00af_fb00_0000_ffff),
        ] {
            self.put(GDT + u64::from(selector & !7), descriptor);
        }
        self.put(TSS + 4, KERNEL + RING0_STACK);
        // No I/O permission bitmap: ring 3 may use no port.
        self.write(TSS + 0x66, &0x68_u16.to_le_bytes());
        for vector in 0..32_u64 {
            // Ring 3 may only call INT3 and INTO.
            let rights: u64 = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
            let handler = KERNEL + HANDLERS + 16 * vector;
            let gate = IDT + 16 * vector;
            let low = handler & 0xffff
                | u64::from(RING0_CODE) << 16
                | rights << 40
                | (handler >> 16 & 0xffff) << 48;
            self.put(gate, low);
            self.put(gate + 8, handler >> 32);
            // out PORTS + vector, al; hlt
            self.write(HANDLERS + 16 * vector, &[0xe6, PORTS as u8 + vector as u8, 0xf4]);
        }
        // One table of each level for each of the three ranges.
        let mut next = TABLES + 0x1000;
        let mut table = |entry: u64, rights: u64| {
            if self.get(entry) == 0 {
                self.put(entry, next | PRESENT | WRITE | ACCESSED | rights);
                next += 0x1000;
            }
            self.get(entry) & 0x000f_ffff_ffff_f000
        };
        let mut map = |linear: u64, physical: u64, rights: u64| {
            let mut place = TABLES;
            for level in [3, 2, 1] {
                place = table(place + (linear >> (12 + 9 * level) & 511) * 8, rights & USER);
            }
            let entry = physical | PRESENT | ACCESSED | rights;
            self.put(place + (linear >> 12 & 511) * 8, entry);
        };
        for page in (0..SIZE).step_by(4096) {
            map(KERNEL + page, page, WRITE | DIRTY);
        }
        for page in (0..CODE_SIZE as u64).step_by(4096) {
            map(CODE + page, CODE_PLACE + page, USER);
        }
        for page in (0..DATA_SIZE as u64).step_by(4096) {
            let write = if page < WRITABLE as u64 { WRITE | DIRTY } else { 0 };
            map(DATA + page, DATA_PLACE + page, USER | NO_EXECUTE | write);
        }
    }

    fn load(&mut self, case: &Case) {
        self.write(self.code.0, &vec![INT3; self.code.1]);
        self.code = (case.registers.rip - CODE + CODE_PLACE, case.code.len());
        self.write(self.code.0, &case.code);
        self.write(DATA_PLACE, &case.data);
        let state = &mut self.start;
        state.registers = case.registers;
        let code = Segment { limit: 0xffff_ffff, ..Segment::default() };
        state.system.cs = if case.narrow {
            Segment { selector: CODE_32, access: 0xc0fb, ..code }
        } else {
            Segment { selector: CODE_64, access: 0xa0fb, ..code }
        };
        // Linux leaves them null for a process like this.
        let null = Segment { unusable: true, ..Segment::default() };
        state.system.fs = Segment { base: case.fs_base, ..null };
        state.system.gs = Segment { base: case.gs_base, ..null };
        let length = state.xsave.len();
        state.xsave.copy_from_slice(&case.fpu[..length]);
        self.cpu.set_state(state).expect("a possible state");
    }
}

/// Ring 3 of an operating system much like Linux.
fn prepare(state: &mut VcpuState) {
    let data = Segment {
        selector: DATA_SELECTOR,
        limit: 0xffff_ffff,
        access: 0xc0f3,
        ..Segment::default()
    };
    let system = &mut state.system;
    (system.ds, system.es, system.ss) = (data, data, data);
    system.tr =
        Segment { selector: TASK, base: KERNEL + TSS, limit: 0x67, access: 0x8b, unusable: false };
    system.gdt = DescriptorTable { base: KERNEL + GDT, limit: 0x7f };
    system.idt = DescriptorTable { base: KERNEL + IDT, limit: 32 * 16 - 1 };
    // PE, MP, NE, WP, PG
    system.cr0 = 0x8001_0023;
    system.cr3 = TABLES;
    // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
    system.cr4 = 0x5_0620;
    // x87, SSE, AVX
    state.xcr0 = Some(if crate::values::wide() { 7 } else { 3 });
    // SCE, LME, LMA, NXE
    system.efer = 0xd01;
}

impl Executor for Guest {
    fn execute(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let exit = self.cpu.run(&self.board).expect("a run");
        let state = self.cpu.state().expect("a state");
        let port = self.board.port.swap(0, std::sync::atomic::Ordering::SeqCst);
        let mut fpu = [0; AREA];
        fpu[..state.xsave.len()].copy_from_slice(&state.xsave);
        let mut data = vec![0; DATA_SIZE];
        self.memory.read_slice(&mut data, MemoryRegionAddress(DATA_PLACE)).expect("within memory");
        let mut outcome = Outcome { end: End::Other(-1), registers: state.registers, fpu, data };
        if exit != Exit::Kicked || !(PORTS..PORTS + 32).contains(&port) {
            return outcome;
        }
        let vector = (port - PORTS) as u8;
        outcome.end = End::of_vector(vector, state.system.cr2);
        let frame = RING0_STACK - 40;
        outcome.registers = Registers {
            rip: self.get(frame),
            rflags: self.get(frame + 16),
            rsp: self.get(frame + 24),
            ..state.registers
        };
        outcome
    }
}
