//! A virtual machine: memory, interrupt controllers and the way between them and the processors.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use engine::state::VmState;
use engine::{
    DirtyTracking, Doorbell, Doorbells, Error, FastInterrupts, Kick, MemoryRegion, MsiMessage,
    PAGE_SIZE, Result, Vcpu, VcpuConfig, Vm,
};
use vm_memory::{Address, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::apic::Lapic;
use crate::chips::{Chips, Delivery, LINES};
use crate::host::{Ram, RamRegion};
use crate::translate::Translation;
use crate::vcpu::SoftVcpu;

/// Reasons for a processor to look up from its work.
pub const KICK: u32 = 1;
pub const INTERRUPT: u32 = 2;
pub const MEMORY: u32 = 4;
pub const CODE: u32 = 8;
pub const NEW_CODE_PAGE: u32 = 16;
pub const NMI: u32 = 32;
pub const INIT: u32 = 64;
pub const STARTUP: u32 = 128;
pub const FORGET_WRITES: u32 = 256;

/// Nanoseconds of 146 years: what is added to it still fits.
const LONGEST_RUN: u64 = 1 << 62;

/// Memory slots.
const SLOTS: u32 = 512;

/// What others may do to a processor while it runs.
pub struct CpuShared {
    pub index: u32,
    attention: AtomicU32,
    apic: Mutex<Lapic>,
    startup: AtomicU32,
    sleeping: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl CpuShared {
    fn new(index: u32, apic_id: u32) -> Self {
        Self {
            index,
            attention: AtomicU32::new(0),
            apic: Mutex::new(Lapic::new(apic_id)),
            startup: AtomicU32::new(0),
            sleeping: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// The local APIC.
    pub fn lock(&self) -> MutexGuard<'_, Lapic> {
        self.apic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it should look up.
    #[inline(always)]
    pub fn attention(&self) -> u32 {
        self.attention.load(Ordering::Acquire)
    }

    /// Where that number is, for translated code.
    pub fn attention_address(&self) -> u64 {
        self.attention.as_ptr() as u64
    }

    /// Takes these reasons away; tells which there were.
    pub fn take(&self, reasons: u32) -> u32 {
        self.attention.fetch_and(!reasons, Ordering::SeqCst) & reasons
    }

    /// Gives it reasons to look up.
    pub fn attract(&self, reasons: u32) {
        self.attention.fetch_or(reasons, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Waits for a reason.
    pub fn wait(&self) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.store(true, Ordering::SeqCst);
        while self.attention.load(Ordering::SeqCst) == 0 {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Vector of the last start-up IPI.
    pub fn startup(&self) -> u8 {
        self.startup.load(Ordering::SeqCst) as u8
    }
}

impl Kick for CpuShared {
    fn kick(&self) {
        self.attract(KICK);
    }
}

/// What processors, timers and devices share.
pub struct VmShared {
    cpus: RwLock<Vec<Arc<CpuShared>>>,
    ram: Mutex<Arc<Ram>>,
    chips: Mutex<Chips>,
    doorbells: RwLock<Vec<(Doorbell, EventFd)>>,
    split_lock: Mutex<()>,
    /// Encodings that were told not to be implemented.
    told: Mutex<HashSet<u32>>,
    start: Instant,
    /// What the clock showed at `start`.
    offset: Mutex<u64>,
    /// What the processors' time-stamp counters are ahead of the host's: one number, or Linux finds them unstable.
    tsc_offset: Mutex<u64>,
    tsc_khz: u32,
    vcpus: u32,
    timer: Arc<Alarm>,
    translation: Translation,
}

/// Wakes the thread of the timers.
#[derive(Default)]
struct Alarm {
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Alarm {
    fn ring(&self) {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

impl Drop for VmShared {
    fn drop(&mut self) {
        self.timer.ring();
    }
}

impl VmShared {
    /// Nanoseconds on the virtual machine's clock.
    pub fn now(&self) -> u64 {
        let offset = *self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        offset.wrapping_add(self.start.elapsed().as_nanos() as u64)
    }

    /// Frequency of the time-stamp counters.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// What time-stamp counters are ahead of the host's.
    pub fn tsc_offset(&self) -> u64 {
        *self.tsc_offset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for a processor whose counter is restored to `value` now. Those of a machine are restored one
    /// after the other, and must agree afterwards: what is a second or less apart was the same.
    pub fn restore_tsc(&self, processor: u32, value: u64) -> u64 {
        let wanted = value.wrapping_sub(crate::host::host_tsc());
        let mut common = self.tsc_offset.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = (wanted.wrapping_sub(*common) as i64).unsigned_abs();
        if processor == 0 || apart > u64::from(self.tsc_khz) * 1000 {
            *common = wanted;
        }
        *common
    }

    /// Whether hot blocks are translated.
    pub fn translation(&self) -> Translation {
        self.translation
    }

    /// Whether there are more processors than one.
    pub fn crowded(&self) -> bool {
        self.vcpus > 1
    }

    /// The memory as it is now.
    pub fn ram(&self) -> Arc<Ram> {
        Arc::clone(&self.ram.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The shared interrupt controllers.
    pub fn chips(&self) -> MutexGuard<'_, Chips> {
        self.chips.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this encoding is told not to be implemented for the first time.
    pub fn is_first(&self, encoding: u32) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(encoding)
    }

    /// Alone among processors that lock what hardware cannot lock at once.
    pub fn lock_split(&self) -> MutexGuard<'_, ()> {
        self.split_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<CpuShared>> {
        self.cpus.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Code may have changed.
    pub fn bump_code_version(&self) {
        let cpus = self.cpus.read().unwrap_or_else(PoisonError::into_inner);
        cpus.iter().for_each(|cpu| cpu.attract(CODE));
    }

    /// `finder` decoded code from a page that had none: the others must not write it unseen.
    pub fn code_page_found(&self, finder: &CpuShared) {
        if self.crowded() {
            let cpus = self.cpus.read().unwrap_or_else(PoisonError::into_inner);
            cpus.iter()
                .filter(|cpu| cpu.index != finder.index)
                .for_each(|cpu| cpu.attract(NEW_CODE_PAGE));
        }
    }

    /// A processor's APIC base changed.
    pub fn base_changed(&self, _: &CpuShared) {
        self.timer_changed();
    }

    /// A timer was set.
    pub fn timer_changed(&self) {
        self.timer.ring();
    }

    /// IN from the interrupt controllers and the 8254.
    pub fn chip_port_read(&self, port: u16) -> Option<u8> {
        if !matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x40..=0x43 | 0x61 | 0x4d0 | 0x4d1) {
            return None;
        }
        let now = self.now();
        self.chips().port_read(port, now)
    }

    /// OUT to them.
    pub fn chip_port_write(&self, port: u16, value: u8) -> bool {
        if !matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x40..=0x43 | 0x61 | 0x4d0 | 0x4d1) {
            return false;
        }
        let now = self.now();
        let known = self.chips().port_write(port, value, now);
        if (0x40..=0x43).contains(&port) {
            self.timer_changed();
        } else {
            self.legacy_changed();
        }
        known
    }

    /// The 8259A may ask for a processor now.
    fn legacy_changed(&self) {
        if self.chips().pic_pending() {
            for cpu in self.all() {
                if cpu.lock().takes_legacy() {
                    cpu.attract(INTERRUPT);
                }
            }
        }
    }

    /// Rings the doorbell that this store is for.
    pub fn ring(&self, address: u64, bytes: &[u8]) -> bool {
        let doorbells = self.doorbells.read().unwrap_or_else(PoisonError::into_inner);
        let value = crate::cpu::number(bytes);
        let hit = doorbells.iter().find(|(bell, _)| {
            bell.address == address
                && bell.width.is_none_or(|width| usize::from(width) == bytes.len())
                && bell.value.is_none_or(|wanted| wanted == value)
        });
        if let Some((_, event)) = hit {
            // A full counter has rung already.
            let _ = event.write(1);
        }
        hit.is_some()
    }

    /// Drives an interrupt line.
    pub fn drive(&self, line: u32, level: bool) {
        let delivery = self.chips().set_line(line, level);
        self.deliver_all(delivery);
        if line < 16 {
            self.legacy_changed();
        }
    }

    /// Sends redirection entries to the processors.
    pub fn deliver_all(&self, deliveries: impl IntoIterator<Item = Delivery>) {
        for entry in deliveries {
            let logical = entry & 1 << 11 != 0;
            let level = entry & 1 << 15 != 0;
            self.deliver((entry >> 56) as u32, logical, (entry >> 8 & 7) as u8, entry as u8, level);
        }
    }

    /// Delivers an interrupt to whom it names.
    fn deliver(&self, destination: u32, logical: bool, mode: u8, vector: u8, level: bool) {
        for cpu in self.all() {
            let addressed = cpu.lock().is_addressed(destination, logical);
            if addressed {
                signal(&cpu, mode, vector, level);
                // The lowest priority is any of them.
                if mode == 1 {
                    return;
                }
            }
        }
    }

    /// An interprocessor interrupt (SDM volume 3, section 11.6.1).
    pub fn send(&self, sender: &CpuShared, low: u32, destination: u32) {
        let (mode, vector) = ((low >> 8 & 7) as u8, low as u8);
        let level_deassert = mode == 5 && low & 1 << 15 != 0 && low & 1 << 14 == 0;
        if level_deassert {
            return;
        }
        match low >> 18 & 3 {
            0 => self.deliver(destination, low & 1 << 11 != 0, mode, vector, false),
            shorthand => {
                for cpu in self.all() {
                    let own = cpu.index == sender.index;
                    if shorthand == 2 || own == (shorthand == 1) {
                        signal(&cpu, mode, vector, false);
                    }
                }
            }
        }
    }

    /// Fires what is due; tells when the next is.
    fn expire(&self) -> Option<u64> {
        let now = self.now();
        let fired = self.chips().pit_expire(now);
        if fired {
            self.drive(0, true);
            self.drive(0, false);
        }
        let mut next = self.chips().pit_at;
        for cpu in self.all() {
            let (fired, at) = {
                let mut apic = cpu.lock();
                (apic.expire(now), apic.timer_at)
            };
            if fired {
                cpu.attract(INTERRUPT);
            }
            next = [next, at].into_iter().flatten().min();
        }
        next
    }
}

fn signal(cpu: &CpuShared, mode: u8, vector: u8, level: bool) {
    match mode {
        0 | 1 => {
            cpu.lock().accept(vector, level);
            cpu.attract(INTERRUPT);
        }
        4 => cpu.attract(NMI),
        5 => cpu.attract(INIT),
        6 => {
            cpu.startup.store(vector.into(), Ordering::SeqCst);
            cpu.attract(STARTUP);
        }
        _ => {}
    }
}

/// Lives as long as the virtual machine.
fn serve_timers(vm: &Weak<VmShared>, alarm: &Alarm) {
    loop {
        let seen = *alarm.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = {
            let Some(vm) = vm.upgrade() else { return };
            vm.expire().map(|at| Duration::from_nanos(at.saturating_sub(vm.now())))
        };
        let changes = alarm.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if *changes != seen {
            continue;
        }
        // Long enough to cost nothing; the end of the machine rings as well.
        let wait = wait.unwrap_or(Duration::from_secs(3600)).max(Duration::from_micros(1));
        drop(alarm.changed.wait_timeout(changes, wait));
    }
}

/// See the module.
pub struct SoftVm {
    shared: Arc<VmShared>,
    msrs: Vec<u32>,
}

impl SoftVm {
    /// Without memory and processors.
    pub fn new(vcpus: u32, tsc_khz: u32, msrs: Vec<u32>, translation: Translation) -> Result<Self> {
        let alarm = Arc::new(Alarm::default());
        let shared = Arc::new(VmShared {
            cpus: RwLock::default(),
            ram: Mutex::default(),
            chips: Mutex::new(Chips::new()),
            doorbells: RwLock::default(),
            split_lock: Mutex::default(),
            told: Mutex::default(),
            start: Instant::now(),
            offset: Mutex::new(0),
            tsc_offset: Mutex::new(crate::host::host_tsc().wrapping_neg()),
            tsc_khz,
            vcpus,
            timer: Arc::clone(&alarm),
            translation,
        });
        let vm = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("soft-timer".into())
            .stack_size(128 << 10)
            .spawn(move || serve_timers(&vm, &alarm))
            .map_err(Error::backend("start the thread of the timers"))?;
        Ok(Self { shared, msrs })
    }

    fn change_memory(&self, change: impl FnOnce(&Ram) -> Result<Ram>) -> Result<()> {
        let mut ram = self.shared.ram.lock().unwrap_or_else(PoisonError::into_inner);
        *ram = Arc::new(change(&ram)?);
        drop(ram);
        self.shared.all().iter().for_each(|cpu| cpu.attract(MEMORY));
        Ok(())
    }

    fn slot<T>(&self, slot: u32, ask: impl FnOnce(&RamRegion) -> Option<T>) -> Result<T> {
        let ram = self.shared.ram();
        let region = ram.regions().iter().find(|region| region.slot() == slot);
        let region = region.ok_or_else(|| empty(slot))?;
        ask(region).ok_or_else(|| Error::Invalid(format!("Memory slot {slot} is not recorded")))
    }
}

fn empty(slot: u32) -> Error {
    Error::Invalid(format!("Memory slot {slot} is empty"))
}

impl Vm for SoftVm {
    fn map(&self, region: MemoryRegion) -> Result<()> {
        let (start, length) = (region.region.start_addr().raw_value(), region.region.len());
        if region.slot >= SLOTS {
            return Err(Error::Invalid(format!("Memory slot {} of {SLOTS}", region.slot)));
        }
        let end = start.checked_add(length).filter(|&end| end <= 1 << crate::mmu::PHYSICAL_BITS);
        let whole = start % PAGE_SIZE == 0 && length % PAGE_SIZE == 0;
        let Some(end) = end.filter(|_| whole && length > 0) else {
            return Err(Error::Invalid(format!("The memory at {start:#x} is not whole pages")));
        };
        self.change_memory(|ram| {
            for other in ram.regions() {
                if other.slot() == region.slot {
                    return Err(Error::Invalid(format!("Memory slot {} is taken", region.slot)));
                }
                if other.range().start < end && start < other.range().end {
                    return Err(Error::Invalid(format!(
                        "The memory at {start:#x} overlaps what is already mapped"
                    )));
                }
            }
            Ok(ram.with(RamRegion::new(region, Arc::downgrade(&self.shared))))
        })
    }

    fn unmap(&self, slot: u32) -> Result<()> {
        self.change_memory(|ram| {
            if !ram.regions().iter().any(|region| region.slot() == slot) {
                return Err(empty(slot));
            }
            Ok(ram.without(slot))
        })
    }

    fn create_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn Vcpu>> {
        if config.index >= self.shared.vcpus {
            return Err(Error::Invalid(format!(
                "Processor {} of a virtual machine with {}",
                config.index, self.shared.vcpus
            )));
        }
        let cpu = Arc::new(CpuShared::new(config.index, config.apic_id));
        {
            let mut cpus = self.shared.cpus.write().unwrap_or_else(PoisonError::into_inner);
            if cpus.iter().any(|other| other.index == config.index) {
                return Err(Error::Invalid(format!("Processor {} exists already", config.index)));
            }
            cpus.push(Arc::clone(&cpu));
        }
        let vcpu = SoftVcpu::new(Arc::clone(&self.shared), cpu, config, self.msrs.clone())?;
        Ok(Box::new(vcpu))
    }

    fn set_line(&self, gsi: u32, level: bool) -> Result<()> {
        if gsi >= LINES {
            return Err(Error::Invalid(format!(
                "There is no interrupt line {gsi}: they are 0 to {}",
                LINES - 1
            )));
        }
        self.shared.drive(gsi, level);
        Ok(())
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<()> {
        let destination =
            (message.address >> 12 & 0xff) as u32 | (message.address >> 32) as u32 & 0xffff_ff00;
        let logical = message.address & 1 << 2 != 0;
        let (mode, vector) = ((message.data >> 8 & 7) as u8, message.data as u8);
        self.shared.deliver(destination, logical, mode, vector, message.data & 1 << 15 != 0);
        Ok(())
    }

    fn fast_interrupts(&self) -> Option<&dyn FastInterrupts> {
        None
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(self)
    }

    fn dirty_tracking(&self) -> Option<&dyn DirtyTracking> {
        Some(self)
    }

    fn state(&self) -> Result<VmState> {
        let now = self.shared.now();
        Ok(self.shared.chips().state(now))
    }

    fn set_state(&self, state: &VmState) -> Result<()> {
        let mut chips = self.shared.chips();
        let before = self.shared.now();
        let clock = state.clock_nanoseconds;
        if clock > LONGEST_RUN {
            return Err(Error::Invalid(format!("A guest cannot have run for {clock} ns")));
        }
        chips.set_state(state, clock)?;
        let moved = clock.wrapping_sub(before);
        let mut offset = self.shared.offset.lock().unwrap_or_else(PoisonError::into_inner);
        *offset = offset.wrapping_add(moved);
        drop((offset, chips));
        for cpu in self.shared.all() {
            // Timers keep what was left of them.
            let mut apic = cpu.lock();
            apic.timer_at = apic.timer_at.map(|at| at.wrapping_add(moved));
        }
        self.shared.timer_changed();
        self.shared.legacy_changed();
        Ok(())
    }
}

impl Doorbells for SoftVm {
    fn attach(&self, doorbell: Doorbell, event: &EventFd) -> Result<()> {
        if doorbell.width.is_some_and(|width| !matches!(width, 1 | 2 | 4 | 8)) {
            return Err(Error::Invalid("A doorbell is 1, 2, 4 or 8 bytes wide".into()));
        }
        let mut doorbells = self.shared.doorbells.write().unwrap_or_else(PoisonError::into_inner);
        if doorbells.iter().any(|(other, _)| *other == doorbell) {
            return Err(Error::Invalid(format!(
                "There is a doorbell at {:#x} already",
                doorbell.address
            )));
        }
        let event = event.try_clone().map_err(Error::backend("duplicate an eventfd"))?;
        doorbells.push((doorbell, event));
        Ok(())
    }

    fn detach(&self, doorbell: Doorbell, _: &EventFd) -> Result<()> {
        let mut doorbells = self.shared.doorbells.write().unwrap_or_else(PoisonError::into_inner);
        let before = doorbells.len();
        doorbells.retain(|(other, _)| *other != doorbell);
        if doorbells.len() == before {
            return Err(Error::Invalid(format!("There is no doorbell at {:#x}", doorbell.address)));
        }
        Ok(())
    }
}

impl DirtyTracking for SoftVm {
    fn record(&self, slot: u32, on: bool) -> Result<()> {
        self.slot(slot, |region| {
            region.record(on);
            Some(())
        })?;
        self.shared.all().iter().for_each(|cpu| cpu.attract(FORGET_WRITES));
        Ok(())
    }

    fn take(&self, slot: u32) -> Result<Vec<u64>> {
        let pages = self.slot(slot, RamRegion::take_dirty)?;
        self.shared.all().iter().for_each(|cpu| cpu.attract(FORGET_WRITES));
        Ok(pages)
    }
}
