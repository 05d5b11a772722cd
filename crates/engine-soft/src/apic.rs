//! The local APIC (Intel SDM volume 3, chapter 11).

use engine::state::LocalApicState;
use engine::{Error, Result};

pub const REGISTERS: usize = 64;
const ID: usize = 2;
const VERSION: usize = 3;
const TPR: usize = 8;
const PPR: usize = 0xa;
const EOI: usize = 0xb;
const LDR: usize = 0xd;
const DFR: usize = 0xe;
const SVR: usize = 0xf;
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;
const ESR: usize = 0x28;
const ICR_LOW: usize = 0x30;
const ICR_HIGH: usize = 0x31;
const LVT_TIMER: usize = 0x32;
const LVT_LINT0: usize = 0x35;
const LVT_ERROR: usize = 0x37;
const INITIAL: usize = 0x38;
const CURRENT: usize = 0x39;
const DIVIDE: usize = 0x3e;
const SELF_IPI: usize = 0x3f;

const MASKED: u32 = 1 << 16;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BOOTSTRAP: u64 = 1 << 8;
const DEFAULT_BASE: u64 = 0xfee0_0000;

/// What a write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// An interprocessor interrupt was sent.
    Send {
        low: u32,
        destination: u32,
    },
    /// The interrupt of this vector, a level, has ended.
    EndOfLevel(u8),
    /// The timer was set anew.
    Timer,
}

/// One local APIC.
pub struct Lapic {
    registers: [u32; REGISTERS],
    base: u64,
    id: u32,
    /// When the timer fires, on the virtual machine's clock.
    pub timer_at: Option<u64>,
    deadline: u64,
}

impl Lapic {
    /// After a reset.
    pub fn new(id: u32) -> Self {
        let bootstrap = if id == 0 { BOOTSTRAP } else { 0 };
        let mut apic = Self {
            registers: [0; REGISTERS],
            base: DEFAULT_BASE | ENABLED | bootstrap,
            id,
            timer_at: None,
            deadline: 0,
        };
        apic.reset();
        apic
    }

    /// INIT: everything but identity and base.
    pub fn reset(&mut self) {
        self.registers = [0; REGISTERS];
        self.registers[VERSION] = 0x5_0014;
        self.registers[DFR] = u32::MAX;
        self.registers[SVR] = 0xff;
        self.registers[LVT_TIMER..=LVT_ERROR].fill(MASKED);
        if self.base & BOOTSTRAP != 0 {
            // Virtual wire: the 8259A reach the first processor until somebody says otherwise.
            self.registers[LVT_LINT0] = 0x700;
        }
        self.timer_at = None;
        self.deadline = 0;
        self.set_identity();
    }

    fn set_identity(&mut self) {
        self.registers[ID] = if self.x2apic() { self.id } else { self.id << 24 };
        if self.x2apic() {
            self.registers[LDR] = (self.id >> 4) << 16 | 1 << (self.id & 15);
        }
    }

    pub fn base(&self) -> u64 {
        self.base
    }
    pub fn x2apic(&self) -> bool {
        self.base & (X2APIC | ENABLED) == X2APIC | ENABLED
    }
    /// Whether `physical` lies in the register page, which x2APIC mode does not have.
    pub fn maps(&self, physical: u64) -> bool {
        self.base & (X2APIC | ENABLED) == ENABLED && physical & !0xfff == self.base & !0xfff
    }

    /// IA32_APIC_BASE; `false` for what the architecture forbids.
    pub fn set_base(&mut self, value: u64) -> bool {
        let reserved =
            !(((1 << crate::mmu::PHYSICAL_BITS) - 0x1000) | ENABLED | X2APIC | BOOTSTRAP);
        let was = self.base & (ENABLED | X2APIC);
        let new = value & (ENABLED | X2APIC);
        if value & reserved != 0 || new == X2APIC || was == ENABLED | X2APIC && new == ENABLED {
            return false;
        }
        self.base = value;
        if new != was {
            self.set_identity();
        }
        true
    }

    /// As a saved state says.
    pub fn force_base(&mut self, value: u64) {
        self.base = value;
    }

    fn software_enabled(&self) -> bool {
        self.registers[SVR] & 1 << 8 != 0 && self.base & ENABLED != 0
    }

    pub fn task_priority(&self) -> u32 {
        self.registers[TPR]
    }
    pub fn set_task_priority(&mut self, value: u32) {
        self.registers[TPR] = value & 0xff;
    }
    pub fn deadline(&self) -> u64 {
        if self.timer_at.is_some() { self.deadline } else { 0 }
    }

    /// Whether the timer compares with the time-stamp counter.
    pub fn deadline_mode(&self) -> bool {
        self.registers[LVT_TIMER] >> 17 & 3 == 2
    }

    /// Arms the timer in deadline mode; 0 disarms.
    pub fn set_deadline(&mut self, value: u64, at: u64) {
        if !self.deadline_mode() {
            return;
        }
        self.deadline = value;
        self.timer_at = (value != 0).then_some(at);
    }

    fn highest(&self, bank: usize) -> Option<u8> {
        (0..8).rev().find_map(|word| {
            let bits = self.registers[bank + word];
            (bits != 0).then(|| (32 * word as u32 + 31 - bits.leading_zeros()) as u8)
        })
    }

    fn set(&mut self, bank: usize, vector: u8, on: bool) {
        let word = &mut self.registers[bank + usize::from(vector) / 32];
        let bit = 1 << (vector % 32);
        *word = if on { *word | bit } else { *word & !bit };
    }

    /// A fixed interrupt arrives.
    pub fn accept(&mut self, vector: u8, level: bool) {
        if self.software_enabled() && vector >= 16 {
            self.set(IRR, vector, true);
            self.set(TMR, vector, level);
        }
    }

    fn processor_priority(&self) -> u32 {
        let service = self.highest(ISR).map_or(0, u32::from);
        let task = self.registers[TPR];
        if task & 0xf0 >= service & 0xf0 { task } else { service & 0xf0 }
    }

    /// The vector that may interrupt now.
    pub fn pending(&self) -> Option<u8> {
        if !self.software_enabled() {
            return None;
        }
        self.highest(IRR)
            .filter(|&vector| u32::from(vector & 0xf0) > self.processor_priority() & 0xf0)
    }

    /// The processor takes `vector`.
    pub fn acknowledge(&mut self, vector: u8) {
        self.set(IRR, vector, false);
        self.set(ISR, vector, true);
    }

    /// Whether the 8259A reach this processor.
    pub fn takes_legacy(&self) -> bool {
        let line = self.registers[LVT_LINT0];
        self.base & ENABLED == 0 || line & MASKED == 0 && line >> 8 & 7 == 7
    }

    /// Fires the timer if its time has come; tells whether it did.
    pub fn expire(&mut self, now: u64) -> bool {
        let Some(at) = self.timer_at.filter(|&at| at <= now) else { return false };
        let line = self.registers[LVT_TIMER];
        self.timer_at = None;
        if line >> 17 & 3 == 1 {
            let period = self.period().max(1000);
            // Ticks that nobody could see are left out.
            self.timer_at = Some(at + period * ((now - at) / period + 1));
        }
        if line & MASKED == 0 {
            self.accept(line as u8, false);
        }
        true
    }

    fn divisor(&self) -> u64 {
        let value = self.registers[DIVIDE];
        match value & 3 | value >> 1 & 4 {
            7 => 1,
            power => 2 << power,
        }
    }

    fn period(&self) -> u64 {
        u64::from(self.registers[INITIAL]) * self.divisor()
    }

    /// Register `index` of the page.
    pub fn read(&self, index: usize, now: u64) -> u32 {
        match index {
            PPR => self.processor_priority(),
            CURRENT => {
                let left = self.timer_at.map_or(0, |at| at.saturating_sub(now));
                if self.deadline_mode() { 0 } else { (left / self.divisor()) as u32 }
            }
            EOI | SELF_IPI => 0,
            _ => self.registers.get(index).copied().unwrap_or(0),
        }
    }

    /// Writes register `index` of the page.
    pub fn write(&mut self, index: usize, value: u32, now: u64) -> Effect {
        match index {
            TPR => self.registers[TPR] = value & 0xff,
            EOI => {
                if let Some(vector) = self.highest(ISR) {
                    self.set(ISR, vector, false);
                    let word = self.registers[TMR + usize::from(vector) / 32];
                    if word & 1 << (vector % 32) != 0 {
                        return Effect::EndOfLevel(vector);
                    }
                }
            }
            LDR if !self.x2apic() => self.registers[LDR] = value & 0xff00_0000,
            DFR => self.registers[DFR] = value | 0x0fff_ffff,
            SVR => {
                self.registers[SVR] = value & 0x1ff;
                if value & 1 << 8 == 0 {
                    for line in &mut self.registers[LVT_TIMER..=LVT_ERROR] {
                        *line |= MASKED;
                    }
                }
            }
            ESR => self.registers[ESR] = 0,
            ICR_LOW => {
                self.registers[ICR_LOW] = value & !(1 << 12);
                let destination = self.registers[ICR_HIGH];
                let destination = if self.x2apic() { destination } else { destination >> 24 };
                return Effect::Send { low: value, destination };
            }
            ICR_HIGH => self.registers[ICR_HIGH] = value,
            LVT_TIMER => {
                let before = self.registers[LVT_TIMER] >> 17 & 3;
                self.registers[LVT_TIMER] = value & 0x7_10ff | self.forced_mask();
                if value >> 17 & 3 != before {
                    self.timer_at = None;
                    self.deadline = 0;
                    return Effect::Timer;
                }
            }
            0x33..=LVT_ERROR => self.registers[index] = value & 0x1_f7ff | self.forced_mask(),
            INITIAL if !self.deadline_mode() => {
                self.registers[INITIAL] = value;
                self.timer_at = (value != 0).then(|| now + self.period());
                return Effect::Timer;
            }
            DIVIDE => self.registers[DIVIDE] = value & 0xb,
            SELF_IPI if self.x2apic() => {
                return Effect::Send { low: value & 0xff | 1 << 18, destination: 0 };
            }
            _ => {}
        }
        Effect::None
    }

    fn forced_mask(&self) -> u32 {
        if self.registers[SVR] & 1 << 8 == 0 { MASKED } else { 0 }
    }

    /// RDMSR of an x2APIC register.
    pub fn read_msr(&self, index: u32, now: u64) -> Option<u64> {
        let register = (index - 0x800) as usize;
        match register {
            ICR_LOW => {
                Some(u64::from(self.registers[ICR_LOW]) | u64::from(self.registers[ICR_HIGH]) << 32)
            }
            ID
            | VERSION
            | TPR
            | PPR
            | LDR
            | SVR
            | ESR
            | ISR..=0x27
            | 0x2f
            | LVT_TIMER..=CURRENT
            | DIVIDE => Some(self.read(register, now).into()),
            _ => None,
        }
    }

    /// WRMSR of an x2APIC register; `None` where there is none.
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Option<Effect> {
        let register = (index - 0x800) as usize;
        match register {
            ICR_LOW => {
                self.registers[ICR_HIGH] = (value >> 32) as u32;
                Some(self.write(ICR_LOW, value as u32, now))
            }
            TPR | EOI | SVR | ESR | 0x2f | LVT_TIMER..=INITIAL | DIVIDE | SELF_IPI => {
                (value >> 32 == 0).then(|| self.write(register, value as u32, now))
            }
            _ => None,
        }
    }

    /// Whether a message to `destination` is for this APIC.
    pub fn is_addressed(&self, destination: u32, logical: bool) -> bool {
        if !logical {
            let broadcast = if self.x2apic() { u32::MAX } else { 0xff };
            return destination == self.id || destination == broadcast || destination == u32::MAX;
        }
        if self.x2apic() {
            let own = self.registers[LDR];
            return destination >> 16 == own >> 16 && destination & own & 0xffff != 0;
        }
        let own = self.registers[LDR] >> 24;
        if self.registers[DFR] >> 28 == 0xf {
            destination & own != 0
        } else {
            destination >> 4 & 15 == own >> 4 && destination & own & 15 != 0
        }
    }

    /// For a saved state.
    pub fn state(&self, now: u64) -> LocalApicState {
        let mut registers = self.registers.to_vec();
        registers[CURRENT] = self.read(CURRENT, now);
        registers[PPR] = self.processor_priority();
        LocalApicState { registers }
    }

    /// As a saved state says; the timer goes on with what was left.
    pub fn set_state(&mut self, state: &LocalApicState, now: u64) -> Result<()> {
        let registers: [u32; REGISTERS] = state.registers.as_slice().try_into().map_err(|_| {
            Error::Invalid(format!(
                "A local APIC has {REGISTERS} registers, not {}",
                state.registers.len()
            ))
        })?;
        self.registers = registers;
        self.registers[VERSION] = 0x5_0014;
        if !self.x2apic() {
            self.registers[ID] = self.id << 24;
        }
        self.timer_at = None;
        if !self.deadline_mode() && registers[INITIAL] != 0 && registers[CURRENT] != 0 {
            self.timer_at = Some(now + u64::from(registers[CURRENT]) * self.divisor());
        }
        Ok(())
    }
}
