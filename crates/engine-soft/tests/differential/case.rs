//! What is executed, what comes of it, and who can execute it.

use std::fmt::{self, Write as _};
use std::ops::Range;

use engine::state::Registers;

/// Where instructions are: two pages that can be executed but not written, then nothing.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of code.
pub const CODE_SIZE: usize = 0x2000;
/// Where data is: two pages that can be written, one that can be read, then nothing.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of data that can be written.
pub const WRITABLE: usize = 0x2000;
/// Bytes of data.
pub const DATA_SIZE: usize = 0x3000;
/// Fills code around the instructions.
pub const INT3: u8 = 0xcc;

/// Bytes of an XSAVE area with x87, SSE and the upper halves of AVX's registers.
pub const AREA: usize = 832;
/// Places in it.
pub const FCW: usize = 0;
pub const FSW: usize = 2;
pub const FTW: usize = 4;
pub const MXCSR: usize = 24;
pub const ST: usize = 32;
pub const XMM: usize = 160;
pub const XSTATE_BV: usize = 512;
pub const UPPER: usize = 576;

/// Code with all that it starts from, in ring 3.
#[derive(Clone)]
pub struct Case {
    /// In 32-bit compatibility mode instead of 64-bit mode.
    pub narrow: bool,
    /// Instructions, placed at `registers.rip`.
    pub code: Vec<u8>,
    pub registers: Registers,
    pub fs_base: u64,
    pub gs_base: u64,
    /// x87, SSE and AVX state.
    pub fpu: [u8; AREA],
    /// All of the data.
    pub data: Vec<u8>,
    /// Bits of RFLAGS that the architecture leaves undefined from these addresses on.
    pub undefined_flags: Vec<(u64, u64)>,
    /// General registers that are undefined at the end when ZF is set.
    pub undefined_if_zero: bool,
    /// A page fault may be anywhere in the operand: the processor accesses it in parts and an order of its choice.
    pub coarse: bool,
    /// Addresses of instructions of which a fault may leave a part done.
    pub partial: Vec<u64>,
    /// It may end before all of its operand's memory was looked at.
    pub early: bool,
    /// Offsets into the data that are not compared: pointers that Linux or the processor makes up.
    pub ignored: Vec<Range<usize>>,
    /// The instructions, for people.
    pub text: String,
}

/// How the execution ended, as Linux tells a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    DivideError,
    /// TF or ICEBP.
    Debug,
    /// INT3: the usual end.
    Breakpoint,
    /// #GP, #OF or #BR, which Linux tells by the same signal.
    Protection,
    InvalidOpcode,
    /// #SS or #NP.
    Stack,
    PageFault(u64),
    FloatingPoint,
    Alignment,
    /// It loops.
    Endless,
    /// Something that no case should cause.
    Other(i64),
}

impl End {
    /// From an exception's vector, and CR2.
    pub fn of_vector(vector: u8, cr2: u64) -> Self {
        match vector {
            0 => Self::DivideError,
            1 => Self::Debug,
            3 => Self::Breakpoint,
            4 | 5 | 13 => Self::Protection,
            6 => Self::InvalidOpcode,
            11 | 12 => Self::Stack,
            14 => Self::PageFault(cr2),
            16 | 19 => Self::FloatingPoint,
            17 => Self::Alignment,
            other => Self::Other(other.into()),
        }
    }
}

/// Everything that can be seen after the execution.
#[derive(Clone)]
pub struct Outcome {
    pub end: End,
    pub registers: Registers,
    pub fpu: [u8; AREA],
    pub data: Vec<u8>,
}

/// A processor that cases can be executed on.
pub trait Executor {
    /// Executes the case from its first instruction to its end.
    fn execute(&mut self, case: &Case) -> Outcome;
}

/// RFLAGS that are compared: the arithmetic flags, DF and AC. A tracer cannot set the others, and RF is
/// pushed as each fault likes.
const FLAGS: u64 = 0x0004_0cd5;

/// The largest operand that is as long as that goes on beyond 4 GiB from an address above this one.
const BEYOND: u64 = 0xffff_ffff - 32;

/// What differs, in words; empty if nothing does.
pub fn differences(case: &Case, expected: &Outcome, found: &Outcome) -> String {
    let mut text = String::new();
    let is_of_memory = |end| matches!(end, End::PageFault(_) | End::Protection | End::Stack);
    if case.early
        && is_of_memory(found.end)
        && !matches!(expected.end, End::PageFault(_) | End::Stack)
    {
        return text;
    }
    let kind = |end: End| match end {
        // "When the effective limit is FFFFFFFFH (4 GBytes), these accesses may or may not cause the indicated
        // exceptions" (Intel SDM volume 3A, section 5.3): an operand that goes on beyond it.
        End::PageFault(address) if case.narrow && address > BEYOND => End::Protection,
        // Whether the limit of SS or the alignment is looked at first.
        End::Stack if case.narrow => End::Protection,
        end => end,
    };
    let near = match (expected.end, found.end) {
        // Addresses of 32 bits may begin again at 0.
        (End::PageFault(a), End::PageFault(b)) if case.coarse => {
            (a.wrapping_sub(b) as i32).unsigned_abs() < 0x1000
        }
        _ => kind(expected.end) == kind(found.end),
    };
    if !near {
        let _ = writeln!(text, "  end: {:x?}, but {:x?}", expected.end, found.end);
    } else if is_of_memory(expected.end) && case.partial.contains(&expected.registers.rip) {
        return text;
    }
    let mask = if case.narrow { 0xffff_ffff } else { u64::MAX };
    let zero = case.undefined_if_zero && expected.registers.rflags & 0x40 != 0;
    for ((name, before), ((_, a), (_, b))) in named(&case.registers)
        .into_iter()
        .zip(named(&expected.registers).into_iter().zip(named(&found.registers)))
    {
        let upper = case.narrow && name.starts_with('r') && name[1..].parse::<u8>().is_ok();
        if a & mask != b & mask && !upper && !zero {
            let _ = writeln!(text, "  {name}: {before:x} -> {a:x}, but {b:x}");
        }
    }
    let end = expected.registers.rip;
    let known = case.undefined_flags.iter().rev().find(|(from, _)| *from <= end);
    let undefined = known.map_or(0, |(_, flags)| *flags);
    let compared = FLAGS & !undefined;
    let (a, b) = (expected.registers.rflags & compared, found.registers.rflags & compared);
    if a != b {
        let before = case.registers.rflags;
        let _ = writeln!(text, "  rflags: {before:x} -> {a:x}, but {b:x} ({:x})", a ^ b);
    }
    for (name, place) in fpu_parts(case.narrow) {
        let (a, b) = (&expected.fpu[place.clone()], &found.fpu[place.clone()]);
        if a != b {
            let before = Hex(&case.fpu[place]);
            let _ = writeln!(text, "  {name}: {before} -> {}, but {}", Hex(a), Hex(b));
        }
    }
    let wrong = |at: &usize| {
        expected.data[*at] != found.data[*at] && !case.ignored.iter().any(|r| r.contains(at))
    };
    for at in (0..DATA_SIZE).filter(wrong).take(16) {
        let (a, b) = (expected.data[at], found.data[at]);
        let _ = writeln!(text, "  data {at:x}: {:02x} -> {a:02x}, but {b:02x}", case.data[at]);
    }
    if !text.is_empty() && near {
        let _ = writeln!(text, "  both end: {:x?}", expected.end);
    }
    text
}

/// What the case was, for people who look into a difference.
pub fn describe(case: &Case) -> String {
    let mut text = format!("{}\n  {}\n ", case.text, Hex(&case.code));
    for (name, value) in named(&case.registers) {
        let _ = write!(text, " {name}={value:x}");
    }
    let _ = write!(text, " rflags={:x}", case.registers.rflags);
    text
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn named(r: &Registers) -> [(&'static str, u64); 17] {
    [
        ("rax", r.rax),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rbx", r.rbx),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
    ]
}

/// All but the last instruction's and operand's address, which are not kept.
fn fpu_parts(narrow: bool) -> Vec<(String, Range<usize>)> {
    let mut parts = vec![
        ("fcw".to_owned(), FCW..FCW + 2),
        ("fsw".to_owned(), FSW..FSW + 2),
        ("ftw".to_owned(), FTW..FTW + 1),
        ("mxcsr".to_owned(), MXCSR..MXCSR + 4),
    ];
    parts.extend((0..8).map(|n| (format!("st{n}"), ST + 16 * n..ST + 16 * n + 10)));
    let vectors = if narrow { 8 } else { 16 };
    parts.extend((0..vectors).map(|n| (format!("xmm{n}"), XMM + 16 * n..XMM + 16 * n + 16)));
    parts.extend((0..vectors).map(|n| (format!("upper{n}"), UPPER + 16 * n..UPPER + 16 * n + 16)));
    parts
}
