//! Hardware breakpoints (Intel SDM volume 3, section 18.2). While any is enabled the interpreter executes one
//! instruction at a time, and pages with watched data are not in the TLB.

use crate::cpu::{Cpu, FLAG_RF};
use crate::host::PAGE;

/// DR7: local and global enables of the four.
const ENABLES: u64 = 0xff;
/// Kinds of breakpoints; 2, of ports, are not there.
const EXECUTION: u64 = 0;
const WRITES: u64 = 1;
const ACCESSES: u64 = 3;

/// One that is enabled.
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    kind: u64,
    address: u64,
    length: u64,
}

impl Cpu {
    /// Whether any breakpoint is enabled.
    #[inline(always)]
    pub fn has_breakpoints(&self) -> bool {
        self.debug.dr7 & ENABLES != 0
    }

    /// Bits of DR6 for breakpoints at the next instruction.
    pub fn execution_breakpoints(&self) -> u64 {
        if self.rflags & FLAG_RF != 0 {
            return 0;
        }
        let linear = self.rip.wrapping_add(self.base_of_code()) & self.linear_mask;
        self.breakpoints()
            .filter(|point| point.kind == EXECUTION && point.address == linear)
            .fold(0, |bits, point| bits | point.bit)
    }

    /// Whether data in the page of `linear` are watched.
    pub fn is_watched(&self, linear: u64) -> bool {
        self.has_breakpoints()
            && self
                .breakpoints()
                .any(|point| point.kind != EXECUTION && point.address / PAGE == linear / PAGE)
    }

    /// Remembers the breakpoints that an access to data meets.
    pub fn note_access(&mut self, linear: u64, bytes: usize, write: bool) {
        let bytes = bytes as u64;
        let met = self
            .breakpoints()
            .filter(|point| point.kind == ACCESSES || point.kind == WRITES && write)
            .filter(|point| {
                linear.wrapping_sub(point.address) < point.length
                    || point.address.wrapping_sub(linear) < bytes
            })
            .fold(0, |bits, point| bits | point.bit);
        self.breakpoints_met |= met;
    }

    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let debug = self.debug;
        (0..4).zip(debug.dr).filter(move |(number, _)| debug.dr7 >> (2 * number) & 3 != 0).map(
            move |(number, address)| {
                let settings = debug.dr7 >> (16 + 4 * number);
                let length = [1, 2, 8, 4][(settings >> 2 & 3) as usize];
                let kind = settings & 3;
                let address = if kind == EXECUTION { address } else { address & !(length - 1) };
                Breakpoint { bit: 1 << number, kind, address, length }
            },
        )
    }
}
