//! A guest whose memory holds anything; the fuzz target `soft_code` has it, too.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use engine::state::{DescriptorTable, Segment, VcpuState};
use engine::{Bus, Engine, GuestRegion, Kicker, MemoryRegion, Vcpu, VcpuConfig, VmConfig};
use engine_soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress, MmapRegion};

const MEMORY: usize = 1 << 20;
/// Page tables that map everything one to one, and where the input goes: descriptors, then code.
const TABLES: u64 = 0x1000;
const INPUT: u64 = 0x8000;
/// A guest runs so long at most.
const PATIENCE: Duration = Duration::from_millis(3);

/// Answers with what was written last.
struct Echo(Mutex<u8>);

impl Bus for Echo {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(*self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
    fn pio_write(&self, _: u16, data: &[u8]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = data[0];
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        self.pio_read(0, data);
    }
    fn mmio_write(&self, _: u64, data: &[u8]) {
        self.pio_write(0, data);
    }
}

/// Ends guests that would run for ever.
fn watch(kicker: Option<Kicker>) {
    static CURRENT: Mutex<Option<Kicker>> = Mutex::new(None);
    static STARTED: OnceLock<()> = OnceLock::new();
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = kicker;
    STARTED.get_or_init(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(PATIENCE);
                if let Some(kicker) = &*CURRENT.lock().unwrap_or_else(PoisonError::into_inner) {
                    kicker.kick();
                }
            }
        });
    });
}

fn start(engine: &SoftEngine, cpu: &mut dyn Vcpu, mode: u8) -> VcpuState {
    let mut state = cpu.state().expect("a state");
    let (data, code, cr0, cr4, efer) = match mode & 3 {
        // Real mode, protected mode, compatibility mode, 64-bit mode.
        0 => (0x0093, 0x009b, 0x10, 0, 0),
        1 => (0xc093, 0xc09b, 0x31, 0x610, 0),
        2 => (0xc093, 0xc09b, 0x8001_0031, 0x5_0620, 0xd01),
        _ => (0xc093, 0xa09b, 0x8001_0031, 0x5_0620, 0xd01),
    };
    let ring = if mode & 4 != 0 && mode & 3 != 0 { 0x60 } else { 0 };
    let limit = if mode & 3 == 0 { 0xffff } else { 0xffff_ffff };
    let segment = |access: u16| Segment { access: access | ring, limit, ..Segment::default() };
    let s = &mut state.system;
    (s.ds, s.es, s.fs, s.gs, s.ss) =
        (segment(data), segment(data), segment(data), segment(data), segment(data));
    s.cs = segment(code);
    s.tr = Segment { base: INPUT + 64, limit: 0x67, access: 0x8b, ..Segment::default() };
    (s.gdt, s.idt) = (
        DescriptorTable { base: INPUT, limit: 0xfff },
        DescriptorTable { base: INPUT, limit: 0xfff },
    );
    (s.cr0, s.cr3, s.cr4, s.efer) = (cr0, TABLES, cr4, efer);
    // All that the engine has.
    let components = engine.capabilities().cpuid.get(0xd, 0).map_or(1, |leaf| leaf.eax);
    state.xcr0 = Some(components.into());
    state.registers.rip = INPUT;
    state.registers.rsp = INPUT + 0x4000;
    state.registers.rflags = 2;
    state
}

/// Runs `code` in a mode: two bits of `mode` for the width, one for the ring.
pub fn run(engine: &SoftEngine, mode: u8, code: &[u8]) {
    let vm = engine.create_vm(&VmConfig { vcpus: 1 }).expect("a virtual machine");
    let mapping = MmapRegion::new(MEMORY).expect("memory");
    let memory = Arc::new(GuestRegion::new(mapping, GuestAddress(0)).expect("a region"));
    vm.map(MemoryRegion { slot: 0, region: Arc::clone(&memory), read_only: false })
        .expect("mapped memory");
    let put = |place: u64, value: u64| {
        memory.write_obj(value, MemoryRegionAddress(place)).expect("within memory");
    };
    // Present, writable, for ring 3; the last a page of 1 GiB.
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, 0x87);
    memory.write_slice(code, MemoryRegionAddress(INPUT)).expect("within memory");
    let cpuid = engine.capabilities().cpuid.clone();
    let mut cpu = vm.create_vcpu(&VcpuConfig { index: 0, apic_id: 0, cpuid }).expect("a processor");
    let state = start(engine, &mut *cpu, mode);
    cpu.set_state(&state).expect("a possible state");
    watch(Some(cpu.kicker()));
    cpu.run(&Echo(Mutex::default())).expect("an exit");
    watch(None);
    let state = cpu.state().expect("a state");
    cpu.set_state(&state).expect("its own state");
}
