//! The one place where guest memory is touched through raw pointers.
//!
//! Invariant of the module: a [`HostAddress`] comes from a [`Ram`] and is used only as long as that `Ram`
//! (which keeps every region mapped) is held; a processor drops its TLB before it drops its `Ram`.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};

use engine::{Bus, GuestRegion, MemoryRegion, WriteWatch};
use vm_memory::{Address, GuestMemoryRegion};

use crate::vm::VmShared;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// An unsigned number of one of the four operand sizes.
pub trait Word: Copy + 'static {
    /// Bytes.
    const BYTES: u64;
    /// Bits.
    const BITS: u32;
    /// The low bits of `value`.
    fn cut(value: u64) -> Self;
    /// Zero-extended.
    fn wide(self) -> u64;
}

macro_rules! word {
    ($type:ty) => {
        impl Word for $type {
            const BYTES: u64 = size_of::<$type>() as u64;
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn wide(self) -> u64 {
                self as u64
            }
        }
    };
}
word!(u8);
word!(u16);
word!(u32);
word!(u64);

/// The general registers by byte offset: register `n` at `8 * n`, AH to BH at `8 * n + 1`, and always zero
/// at [`Regs::NONE`].
#[repr(C, align(64))]
pub struct Regs([u64; 40]);

impl Default for Regs {
    fn default() -> Self {
        Self([0; 40])
    }
}

impl Regs {
    /// Offset of a register that is always zero.
    pub const NONE: u8 = 16 * 8;

    /// The operand at `offset`.
    #[inline(always)]
    pub fn get<W: Word>(&self, offset: u8) -> W {
        // SAFETY: the largest offset is 255, the file has 320 bytes, and any bits are a number.
        unsafe { self.0.as_ptr().byte_add(offset.into()).cast::<W>().read_unaligned() }
    }

    /// Writes the operand at `offset`; 32 bits clear the upper half.
    #[inline(always)]
    pub fn put<W: Word>(&mut self, offset: u8, value: u64) {
        let place = self.0.as_mut_ptr();
        // SAFETY: the largest offset is 255 and the file has 320 bytes.
        unsafe {
            let place = place.byte_add(offset.into());
            if W::BITS == 32 {
                place.write_unaligned(value & 0xffff_ffff);
            } else {
                place.cast::<W>().write_unaligned(W::cut(value));
            }
        }
    }

    /// Register `number`, whole.
    #[inline(always)]
    pub fn r(&self, number: usize) -> u64 {
        self.0[number]
    }

    /// Sets register `number`.
    #[inline(always)]
    pub fn set(&mut self, number: usize, value: u64) {
        self.0[number] = value;
    }

    /// For instructions that are executed by the host.
    pub fn as_mut_ptr(&mut self) -> *mut u64 {
        self.0.as_mut_ptr()
    }
}

/// An address in this process where guest memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostAddress(usize);

impl HostAddress {
    /// For translated code.
    pub fn number(self) -> u64 {
        self.0 as u64
    }

    /// The start of its page; guest memory begins and ends with pages.
    pub fn page(self) -> Self {
        Self(self.0 & !(PAGE as usize - 1))
    }

    /// Loads a number; one instruction of the host, so that it is atomic where the architecture says so.
    #[inline(always)]
    pub fn load<W: Word>(self) -> W {
        // SAFETY: see the module; the caller checked that the number lies within one page. Other threads
        // may write at the same time, as other processors may on hardware; every bit pattern is valid.
        unsafe { (self.0 as *const W).read_unaligned() }
    }

    /// Stores a number.
    #[inline(always)]
    pub fn store<W: Word>(self, value: u64) {
        // SAFETY: as for `load`.
        unsafe { (self.0 as *mut W).write_unaligned(W::cut(value)) }
    }

    /// Copies out of guest memory.
    pub fn read(self, bytes: &mut [u8]) {
        // SAFETY: as for `load`; `bytes` is ours and does not overlap guest memory.
        unsafe { (self.0 as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies into guest memory.
    pub fn write(self, bytes: &[u8]) {
        // SAFETY: as for `read`.
        unsafe { (self.0 as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Sets bytes of one page.
    pub fn fill(self, value: u8, length: usize) {
        // SAFETY: as for `load`; the caller checked the range.
        unsafe { (self.0 as *mut u8).write_bytes(value, length) }
    }

    /// Copies between pages of guest memory, which may be the same.
    pub fn copy(self, from: Self, length: usize) {
        // SAFETY: as for `load`; the caller checked both ranges.
        unsafe { (self.0 as *mut u8).copy_from(from.0 as *const u8, length) }
    }

    /// Whether guest memory holds these bytes.
    pub fn holds(self, bytes: &[u8]) -> bool {
        let (words, rest) = bytes.as_chunks::<8>();
        let same = words
            .iter()
            .zip((0..).step_by(8))
            .all(|(word, offset)| self.plus(offset).load::<u64>() == u64::from_le_bytes(*word));
        let start = self.plus(8 * words.len() as u64);
        same && rest.iter().zip(0..).all(|(byte, offset)| start.plus(offset).load::<u8>() == *byte)
    }

    /// `lock cmpxchg`: what was there before.
    #[inline]
    pub fn compare_exchange<W: Word>(self, expected: u64, new: u64) -> u64 {
        let mut old = expected;
        // SAFETY: as for `load`. Assembly, because the guest may use addresses that are not aligned, which
        // the instruction allows and Rust's atomics do not.
        unsafe {
            match W::BYTES {
                1 => {
                    let mut byte = expected as u8;
                    asm!("lock cmpxchg [{p}], {n}", p = in(reg) self.0, n = in(reg_byte) new as u8,
                        inout("al") byte);
                    old = byte.into();
                }
                2 => asm!("lock cmpxchg [{p}], {n:x}", p = in(reg) self.0, n = in(reg) new,
                    inout("rax") old),
                4 => asm!("lock cmpxchg [{p}], {n:e}", p = in(reg) self.0, n = in(reg) new,
                    inout("rax") old),
                _ => asm!("lock cmpxchg [{p}], {n}", p = in(reg) self.0, n = in(reg) new,
                    inout("rax") old),
            }
        }
        W::cut(old).wide()
    }

    /// `lock cmpxchg16b`: what was there before, low half first. The address must be aligned to 16.
    pub fn compare_exchange_16(self, expected: [u64; 2], new: [u64; 2]) -> [u64; 2] {
        let [mut low, mut high] = expected;
        // SAFETY: as for `load`. RBX is saved around, since it cannot be named.
        unsafe {
            asm!("xchg {b}, rbx", "lock cmpxchg16b [{p}]", "mov rbx, {b}",
                p = in(reg) self.0, b = inout(reg) new[0] => _, in("rcx") new[1],
                inout("rax") low, inout("rdx") high);
        }
        [low, high]
    }

    /// Bytes from `other` to here, modulo 2^64.
    pub fn distance(self, other: Self) -> u64 {
        self.0.wrapping_sub(other.0) as u64
    }

    /// So many bytes further; still within the page.
    #[inline(always)]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes as usize))
    }
}

/// A region of guest memory with what the engine notes for each of its pages.
pub struct RamRegion {
    start: u64,
    end: u64,
    host: usize,
    region: MemoryRegion,
    /// Pages from which instructions were decoded.
    code: Box<[AtomicU8]>,
    dirty: Box<[AtomicU64]>,
    recorded: AtomicBool,
    vm: Weak<VmShared>,
}

impl RamRegion {
    /// For a region of `vm` whose bounds were checked.
    pub fn new(region: MemoryRegion, vm: Weak<VmShared>) -> Arc<Self> {
        let guest: &GuestRegion = &region.region;
        let start = guest.start_addr().raw_value();
        let pages = guest.len().div_ceil(PAGE) as usize;
        let own = Arc::new(Self {
            start,
            end: start + guest.len(),
            host: guest.get_mmap().as_ptr() as usize,
            region,
            code: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            dirty: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            recorded: AtomicBool::new(false),
            vm,
        });
        let watch: Weak<Self> = Arc::downgrade(&own);
        own.region.region.get_mmap().bitmap().tell(watch);
        own
    }

    /// Guest-physical addresses.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.start..self.end
    }

    /// The caller's number.
    pub fn slot(&self) -> u32 {
        self.region.slot
    }

    /// Starts, all clean, or stops recording.
    pub fn record(&self, on: bool) {
        self.dirty.iter().for_each(|word| word.store(0, Ordering::SeqCst));
        self.recorded.store(on, Ordering::SeqCst);
    }

    /// The pages written, all clean afterwards; `None` when they are not recorded.
    pub fn take_dirty(&self) -> Option<Vec<u64>> {
        self.recorded
            .load(Ordering::SeqCst)
            .then(|| self.dirty.iter().map(|word| word.swap(0, Ordering::SeqCst)).collect())
    }
}

impl WriteWatch for RamRegion {
    fn written(&self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        // What was written comes before the look at who has decoded it; who decodes notes that first.
        fence(Ordering::SeqCst);
        let (first, last) =
            (offset / PAGE as usize, offset.saturating_add(length - 1) / PAGE as usize);
        let pages = self.code.iter().skip(first).take(last - first + 1);
        let mut changed = false;
        for code in pages.filter(|code| code.load(Ordering::Relaxed) != 0) {
            changed |= code.swap(0, Ordering::SeqCst) != 0;
        }
        if changed && let Some(vm) = self.vm.upgrade() {
            vm.bump_code_version();
        }
    }
}

/// All memory of a guest at one moment.
#[derive(Clone, Default)]
pub struct Ram(Vec<Arc<RamRegion>>);

/// A page of guest memory.
#[derive(Clone, Copy)]
pub struct RamPage<'a> {
    region: &'a RamRegion,
    index: usize,
}

impl Ram {
    /// With one more region.
    pub fn with(&self, region: Arc<RamRegion>) -> Self {
        let mut regions = self.0.clone();
        regions.push(region);
        Self(regions)
    }

    /// Without the region of `slot`.
    pub fn without(&self, slot: u32) -> Self {
        Self(self.0.iter().filter(|region| region.slot() != slot).cloned().collect())
    }

    /// All regions.
    pub fn regions(&self) -> &[Arc<RamRegion>] {
        &self.0
    }

    /// The page at a guest-physical address.
    #[inline]
    pub fn page(&self, physical: u64) -> Option<RamPage<'_>> {
        let region = self.0.iter().find(|region| (region.start..region.end).contains(&physical))?;
        Some(RamPage { region, index: ((physical - region.start) / PAGE) as usize })
    }

    /// An entry of a page table, and whether it may be changed.
    pub fn entry(&self, physical: u64) -> Option<(HostAddress, bool)> {
        let page = self.page(physical)?;
        Some((page.host().plus(physical % PAGE), !page.read_only()))
    }
}

impl RamPage<'_> {
    /// Its first byte.
    pub fn host(&self) -> HostAddress {
        HostAddress(self.region.host + self.index * PAGE as usize)
    }

    /// Whether guest writes go elsewhere.
    pub fn read_only(&self) -> bool {
        self.region.region.read_only
    }

    /// Whether instructions were decoded from it.
    pub fn has_code(&self) -> bool {
        self.region.code[self.index].load(Ordering::SeqCst) != 0
    }

    /// Notes that instructions were decoded from it (or no longer); tells what was noted before.
    pub fn set_code(&self, code: bool) -> bool {
        self.region.code[self.index].swap(code.into(), Ordering::SeqCst) != 0
    }

    /// Notes that it was written.
    pub fn set_dirty(&self) {
        if self.region.recorded.load(Ordering::Relaxed) {
            self.region.dirty[self.index / 64].fetch_or(1 << (self.index % 64), Ordering::SeqCst);
        }
    }
}

/// Entries of each ring's TLB.
const ENTRIES: usize = 4096;

/// Local entries that are remembered one by one.
const LOCAL: usize = 2048;

/// Which linear pages are where in this process, for one kind of access: for rings 0 to 2 and for ring 3.
#[repr(C)]
pub struct Tlb {
    entries: [[TlbEntry; ENTRIES]; 2],
    /// The page of each ring's stack, for translated code.
    stacks: [StackEntry; 2],
    /// Ring and index of the entries that do not survive a change of CR3, as far as they find room.
    local: [u16; LOCAL],
    locals: usize,
}

/// Translated code reads it as well.
#[repr(C)]
#[derive(Clone, Copy)]
struct TlbEntry {
    /// Linear address of the page; in an entry that knows none, a page that belongs to another entry.
    page: u64,
    /// What is to be added to a linear address.
    distance: u64,
}

/// A copy of an entry at a constant place.
#[repr(C)]
#[derive(Clone, Copy)]
struct StackEntry {
    entry: TlbEntry,
    /// Offsets below are those of 8 bytes in the page; 0 where no page is known.
    room: u64,
}

const NO_STACK: StackEntry = StackEntry { entry: TlbEntry { page: 0, distance: 0 }, room: 0 };

static EMPTY: [TlbEntry; ENTRIES] = {
    let mut entries = [TlbEntry { page: 0, distance: 0 }; ENTRIES];
    let mut index = 0;
    while index < ENTRIES {
        entries[index].page = no_page(index);
        index += 1;
    }
    entries
};

const fn no_page(index: usize) -> u64 {
    ((index ^ (ENTRIES / 2)) as u64) << 12
}

impl Default for Tlb {
    fn default() -> Self {
        Self { entries: [EMPTY; 2], stacks: [NO_STACK; 2], local: [0; LOCAL], locals: 0 }
    }
}

impl Tlb {
    /// Entries of each ring.
    pub const ENTRIES: usize = ENTRIES;

    /// Offset of a ring's entries.
    pub const fn ring(user: u64) -> usize {
        user as usize * size_of::<[TlbEntry; ENTRIES]>()
    }

    /// Offset of the entry for a ring's stack: page, distance, and offsets that are in it, 8 bytes each.
    pub const fn stack(user: u64) -> usize {
        std::mem::offset_of!(Tlb, stacks) + user as usize * size_of::<StackEntry>()
    }

    /// The entry of a page.
    #[inline(always)]
    pub const fn index(linear: u64) -> usize {
        (linear >> 12) as usize % ENTRIES
    }

    /// Where a number at `linear` is, if it lies in one known page.
    #[inline(always)]
    pub fn find<W: Word>(&self, linear: u64, user: u64) -> Option<HostAddress> {
        let entry = &self.entries[user as usize & 1][Self::index(linear)];
        let offset = linear.wrapping_sub(entry.page);
        (offset <= PAGE - W::BYTES)
            .then(|| HostAddress(linear.wrapping_add(entry.distance) as usize))
    }

    /// Remembers a page; a global one survives a change of CR3.
    pub fn insert(&mut self, linear: u64, user: u64, host: HostAddress, global: bool) {
        self.note(linear, user, host.0, global);
    }

    /// The number that was noted for the page of `linear`, with the offset in the page.
    #[inline(always)]
    pub fn number(&self, linear: u64, user: u64) -> Option<u64> {
        self.find::<u8>(linear, user).map(HostAddress::number)
    }

    /// Like [`Tlb::insert`], for what is no address of this process: see [`Tlb::number`].
    pub fn insert_number(&mut self, linear: u64, user: u64, page: u64, global: bool) {
        self.note(linear, user, page as usize, global);
    }

    fn note(&mut self, linear: u64, user: u64, host: usize, global: bool) {
        let (ring, index) = (user as usize & 1, Self::index(linear));
        let page = linear & !(PAGE - 1);
        let distance = (host as u64).wrapping_sub(page);
        self.entries[ring][index] = TlbEntry { page, distance };
        if !global {
            if let Some(local) = self.local.get_mut(self.locals) {
                *local = (ring * ENTRIES + index) as u16;
            }
            self.locals += 1;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries = [EMPTY; 2];
        self.stacks = [NO_STACK; 2];
        self.locals = 0;
    }

    /// Forgets all but global pages.
    pub fn clear_local(&mut self) {
        let Some(local) = self.local.get(..self.locals) else { return self.clear() };
        for &place in local {
            let (ring, index) = (usize::from(place) / ENTRIES, usize::from(place) % ENTRIES);
            self.entries[ring % 2][index] = EMPTY[index];
        }
        self.stacks = [NO_STACK; 2];
        self.locals = 0;
    }

    /// Forgets one page.
    pub fn forget(&mut self, linear: u64) {
        let index = Self::index(linear);
        self.entries.iter_mut().for_each(|ring| ring[index].page = no_page(index));
        self.stacks = [NO_STACK; 2];
    }

    /// Forgets the pages whose addresses agree from bit `shift` up.
    pub fn forget_large(&mut self, linear: u64, shift: u32) {
        for (index, entry) in self.entries.iter_mut().flatten().enumerate() {
            if (entry.page ^ linear) >> shift == 0 {
                entry.page = no_page(index % ENTRIES);
            }
        }
        self.stacks = [NO_STACK; 2];
    }

    /// Forgets every page that is at `host`.
    pub fn forget_host(&mut self, host: HostAddress) {
        for ring in &mut self.entries {
            for (index, entry) in ring.iter_mut().enumerate() {
                if entry.page.wrapping_add(entry.distance) == host.0 as u64 {
                    *entry = EMPTY[index];
                }
            }
        }
        self.stacks = [NO_STACK; 2];
    }
}

/// The machine's bus while a processor runs.
#[derive(Clone, Copy)]
pub struct BusHandle(*const dyn Bus);

// SAFETY: it is used only by the thread that runs the processor; a `Bus` is `Sync`.
unsafe impl Send for BusHandle {}

impl BusHandle {
    /// Valid until the run ends.
    pub fn new(bus: &dyn Bus) -> Self {
        // SAFETY: only the lifetime changes; `Vcpu::run` clears the handle before it returns.
        Self(unsafe {
            std::mem::transmute::<*const (dyn Bus + '_), *const (dyn Bus + 'static)>(bus)
        })
    }

    /// The bus.
    pub fn get(&self) -> &dyn Bus {
        // SAFETY: see `new`.
        unsafe { &*self.0 }
    }
}

/// A random number of the host's processor, from its generator or (`SEED`) what feeds that; `None` where there is
/// none at the moment. Only for processors that have the instruction.
#[inline]
pub fn random<const SEED: bool>() -> Option<u64> {
    let (value, ready): (u64, u8);
    // SAFETY: an instruction that writes a register and flags.
    unsafe {
        if SEED {
            asm!("rdseed {v}", "setc {r}", v = out(reg) value, r = out(reg_byte) ready);
        } else {
            asm!("rdrand {v}", "setc {r}", v = out(reg) value, r = out(reg_byte) ready);
        }
    }
    (ready != 0).then_some(value)
}

/// The host's time-stamp counter.
#[inline]
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
