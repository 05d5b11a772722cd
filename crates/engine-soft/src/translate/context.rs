//! What translated code keeps beside the processor's registers, and where it finds all of it: its RSP
//! points to the [`Cpu`], below which [`Frame`] leaves room for calls and signal frames.

use std::mem::offset_of;
use std::ops::{Deref, DerefMut};

use super::merge::RUNS;
use crate::cpu::Cpu;
use crate::flags::{Flags, OF};

/// Entries of each ring's table of branch targets.
pub const TARGETS: usize = 8192;
/// Distance of the bits that are mixed to find an entry, and those of them that are its number: an entry has 16 bytes,
/// twice what an address can multiply by, so that the lowest counts for nothing.
pub const MIX: u8 = 13;
pub const EVEN: u32 = 2 * TARGETS as u32 - 2;
/// Pages whose code was compared with memory, each ring's.
const PAGES: usize = 4096;

/// Bytes below the processor: more than the frame of a signal and its handler.
const BELOW: usize = 48 << 10;

/// A processor with room below it.
#[repr(C)]
pub struct Frame {
    below: [u64; BELOW / 8],
    cpu: Cpu,
}

impl Frame {
    /// At its final place, which a stack of its own fills: a processor's tables do not fit often into a
    /// thread's.
    pub fn new(cpu: impl FnOnce() -> Cpu + Send) -> std::io::Result<Box<Self>> {
        std::thread::scope(|scope| {
            let build = || Box::new(Self { below: [0; BELOW / 8], cpu: cpu() });
            let thread = std::thread::Builder::new().stack_size(16 * size_of::<Self>());
            let built = thread.spawn_scoped(scope, build)?;
            built.join().map_err(|_| std::io::Error::other("No processor could be built"))
        })
    }
}

impl Deref for Frame {
    type Target = Cpu;
    fn deref(&self) -> &Cpu {
        &self.cpu
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }
}

/// A branch target and its code.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Target {
    pub rip: u64,
    pub code: u64,
}

/// Why translated code was left; from [`LINK`] on, the number of an exit that may be linked.
pub const NOTHING: u32 = 0;
/// An instruction that is executed by its function stopped with this and the next two.
pub const BRANCH: u32 = 1;
pub const FAULT: u32 = 2;
pub const AGAIN: u32 = 3;
/// The instruction at RIP is to be executed by the interpreter.
pub const INTERPRET: u32 = 4;
/// RIP comes from a register or memory.
pub const INDIRECT: u32 = 5;
pub const LINK: u32 = 16;

/// See [`Context::vectors`].
pub const LOWER: u8 = 1;
pub const WHOLE: u8 = 2;
pub const CLEARED: u8 = 3;

/// See the module.
#[repr(C)]
pub struct Context {
    /// Arithmetic flags while they are not in RFLAGS: OF in bit 0, the others as LAHF has them in bits 8 up.
    pub flags: u64,
    pub host_stack: u64,
    /// Address of the reasons to look up.
    pub attention: u64,
    /// Address of the x87 and SSE state.
    pub fpu: u64,
    pub scratch: u64,
    /// The address that is looked up.
    pub linear: u64,
    pub exit: u32,
    /// [`LOWER`] while the lower halves of the guest's vector registers are in the host's, whose upper halves
    /// are zero; [`CLEARED`] for the same after VZEROUPPER; [`WHOLE`] while all of them are; else 0.
    pub vectors: u32,
    /// Distances to the host that a block's runs of operands found.
    pub distances: [u64; RUNS],
    /// Numbers of the pages that may be entered, by ring and linear page; 0 for none.
    pub pages: Pages,
    pub targets: [[Target; TARGETS]; 2],
}

/// See [`Context::pages`].
#[repr(C)]
pub struct Pages {
    numbers: [[u32; PAGES]; 2],
    /// Which of ring 0's survive a change of CR3.
    global: [u64; PAGES / 64],
}

impl Pages {
    /// No page may be entered unseen.
    pub fn clear(&mut self) {
        self.numbers = [[0; PAGES]; 2];
    }

    /// Only global pages may.
    pub fn clear_local(&mut self) {
        self.numbers[1] = [0; PAGES];
        for (numbers, global) in self.numbers[0].chunks_mut(64).zip(self.global) {
            if global == 0 {
                numbers.fill(0);
            } else if global != u64::MAX {
                for (bit, number) in numbers.iter_mut().enumerate() {
                    *number &= 0_u32.wrapping_sub((global >> bit & 1) as u32);
                }
            }
        }
    }

    /// Not this one.
    pub fn forget(&mut self, linear: u64) {
        self.numbers.iter_mut().for_each(|ring| ring[(linear >> 12) as usize % PAGES] = 0);
    }

    /// The number noted for a page.
    pub fn get(&self, linear: u64, user: u64) -> u32 {
        self.numbers[user as usize & 1][(linear >> 12) as usize % PAGES]
    }

    /// Notes a page's number.
    pub fn set(&mut self, linear: u64, user: u64, number: u32, global: bool) {
        let index = (linear >> 12) as usize % PAGES;
        self.numbers[user as usize & 1][index] = number;
        if user == 0 {
            let bit = 1 << (index % 64);
            let word = &mut self.global[index / 64];
            *word = if global { *word | bit } else { *word & !bit };
        }
    }
}

impl Default for Context {
    fn default() -> Self {
        let mut context = Self {
            flags: 0,
            host_stack: 0,
            attention: 0,
            fpu: 0,
            scratch: 0,
            linear: 0,
            exit: 0,
            vectors: 0,
            distances: [0; RUNS],
            pages: Pages { numbers: [[0; PAGES]; 2], global: [0; PAGES / 64] },
            targets: [[Target { rip: 0, code: 0 }; TARGETS]; 2],
        };
        context.forget_targets();
        context
    }
}

impl Context {
    /// Every lookup of a branch target misses.
    pub fn forget_targets(&mut self) {
        for ring in &mut self.targets {
            for (index, target) in ring.iter_mut().enumerate() {
                // An address that belongs to another entry.
                *target = Target { rip: 2 * (index ^ 1) as u64, code: 0 };
            }
        }
    }

    /// Notes where the code for `rip` is.
    pub fn set_target(&mut self, rip: u64, user: u64, code: u64) {
        let index = ((rip ^ rip >> MIX) as u32 & EVEN) as usize / 2;
        self.targets[user as usize & 1][index] = Target { rip, code };
    }

    /// The flags as the interpreter has them.
    pub fn get_flags(&self) -> Flags {
        let overflow = if self.flags & 1 != 0 { OF } else { 0 };
        Flags::from_bits(self.flags >> 8 & 0xd5 | overflow)
    }

    /// See [`Context::get_flags`].
    pub fn set_flags(&mut self, flags: &Flags) {
        let bits = flags.bits();
        self.flags = (bits & 0xd5 | 2) << 8 | u64::from(bits & OF != 0);
    }
}

/// Offsets from RSP.
pub fn register(number: u8) -> i32 {
    offset_of!(Cpu, r) as i32 + 8 * i32::from(number)
}
pub fn field(offset: usize) -> i32 {
    (offset_of!(Cpu, translated) + offset) as i32
}
macro_rules! fields {
    ($($name:ident = $field:ident;)*) => {
        $(pub fn $name() -> i32 { field(offset_of!(Context, $field)) })*
    };
}
fields! {
    flags = flags;
    host_stack = host_stack;
    attention = attention;
    fpu = fpu;
    scratch = scratch;
    linear = linear;
    exit = exit;
    vectors = vectors;
}
/// The distance that a run found.
pub fn distance(run: u8) -> i32 {
    field(offset_of!(Context, distances)) + 8 * i32::from(run)
}
pub fn rip() -> i32 {
    offset_of!(Cpu, rip) as i32
}
pub fn rflags() -> i32 {
    offset_of!(Cpu, rflags) as i32
}
pub fn segment_base(segment: usize) -> i32 {
    (offset_of!(Cpu, base) + 8 * segment) as i32
}
/// The entry of [`Context::pages`] for a page.
pub fn page(linear: u64, user: u64) -> i32 {
    let index = user as usize * PAGES + (linear >> 12) as usize % PAGES;
    field(offset_of!(Context, pages)) + 4 * index as i32
}
/// The first entry of a ring's [`Context::targets`].
pub fn targets(user: u64) -> i32 {
    field(offset_of!(Context, targets)) + (user as usize * TARGETS * size_of::<Target>()) as i32
}
