//! What the processors share: two 8259A, an I/O APIC, an 8254.

use engine::state::{IoApicState, PicState, PitChannel, PitState, VmState};
use engine::{Error, Result};

/// Where the I/O APIC's registers are.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Inputs of the I/O APIC.
pub const LINES: u32 = 24;
/// Ticks a second of the 8254.
const PIT_HERTZ: u128 = 1_193_182;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

/// A redirection entry that is to be sent to the processors.
pub type Delivery = u64;

/// See the module.
pub struct Chips {
    pics: [PicState; 2],
    ioapic: IoApicState,
    pit: PitState,
    /// When each channel was loaded, on the virtual machine's clock.
    loaded: [u64; 3],
    /// When channel 0 interrupts next.
    pub pit_at: Option<u64>,
    port_61: u8,
}

impl Chips {
    /// After a reset.
    pub fn new() -> Self {
        let pic = |elcr_mask| PicState { elcr_mask, ..PicState::default() };
        let channel = PitChannel { count: 65536, mode: 255, gate: true, ..PitChannel::default() };
        Self {
            pics: [pic(0xf8), pic(0xde)],
            ioapic: IoApicState {
                base_address: IO_APIC,
                redirection: vec![MASKED; LINES as usize],
                ..IoApicState::default()
            },
            pit: PitState {
                channels: [channel, channel, PitChannel { gate: false, ..channel }],
                speaker_dummy: true,
            },
            loaded: [0; 3],
            pit_at: None,
            port_61: 0,
        }
    }

    /// Drives an input of the I/O APIC, and of the 8259A below 16.
    pub fn set_line(&mut self, line: u32, level: bool) -> Option<Delivery> {
        if line < 16 {
            self.set_pic_line(line as u8, level);
        }
        let bit = 1 << line;
        let was = self.ioapic.irr & bit != 0;
        let entry = self.ioapic.redirection[line as usize];
        if !level {
            self.ioapic.irr &= !bit;
            return None;
        }
        self.ioapic.irr |= bit;
        if entry & LEVEL == 0 && was { None } else { self.service(line as usize) }
    }

    fn service(&mut self, pin: usize) -> Option<Delivery> {
        let entry = self.ioapic.redirection[pin];
        if entry & MASKED != 0 || entry & LEVEL != 0 && entry & REMOTE_IRR != 0 {
            return None;
        }
        if entry & LEVEL != 0 {
            self.ioapic.redirection[pin] |= REMOTE_IRR;
        }
        Some(entry)
    }

    /// A level interrupt's end reaches the I/O APIC: what is still high comes again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Delivery> {
        let mut again = Vec::new();
        for pin in 0..LINES as usize {
            let entry = self.ioapic.redirection[pin];
            if entry as u8 == vector && entry & LEVEL != 0 && entry & REMOTE_IRR != 0 {
                self.ioapic.redirection[pin] &= !REMOTE_IRR;
                if self.ioapic.irr & 1 << pin != 0 {
                    again.extend(self.service(pin));
                }
            }
        }
        again
    }

    /// A load from the I/O APIC.
    pub fn ioapic_read(&self, offset: u64) -> u32 {
        let select = self.ioapic.select & 0xff;
        match (offset & 0xff, select) {
            (0, _) => select,
            (0x10, 0 | 2) => self.ioapic.id << 24,
            (0x10, 1) => (LINES - 1) << 16 | 0x11,
            (0x10, 0x10..=0x3f) => {
                let entry = self.ioapic.redirection[(select as usize - 0x10) / 2];
                (entry >> (32 * (select & 1))) as u32
            }
            _ => 0,
        }
    }

    /// A store to the I/O APIC.
    pub fn ioapic_write(&mut self, offset: u64, value: u32) -> Option<Delivery> {
        match (offset & 0xff, self.ioapic.select & 0xff) {
            (0, _) => self.ioapic.select = value & 0xff,
            (0x10, 0) => self.ioapic.id = value >> 24 & 15,
            (0x10, select @ 0x10..=0x3f) => {
                let pin = (select as usize - 0x10) / 2;
                let entry = &mut self.ioapic.redirection[pin];
                let value = u64::from(value);
                *entry = if select & 1 != 0 {
                    *entry & 0xffff_ffff | value << 32
                } else {
                    let read_only = REMOTE_IRR | 1 << 12;
                    *entry & (0xffff_ffff_0000_0000 | read_only) | value & !read_only
                };
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                if *entry & LEVEL != 0 && self.ioapic.irr & 1 << pin != 0 {
                    return self.service(pin);
                }
            }
            _ => {}
        }
        None
    }

    /// IN from a port of these chips; `None` for others.
    pub fn port_read(&mut self, port: u16, now: u64) -> Option<u8> {
        Some(match port {
            0x20 | 0xa0 => {
                let pic = &mut self.pics[usize::from(port == 0xa0)];
                if pic.read_reg_select { pic.isr } else { pic.irr }
            }
            0x21 => self.pics[0].imr,
            0xa1 => self.pics[1].imr,
            0x4d0 => self.pics[0].elcr,
            0x4d1 => self.pics[1].elcr,
            0x40..=0x42 => self.pit_read(usize::from(port - 0x40), now),
            0x43 => 0,
            0x61 => {
                let refresh = (now / 15_000 % 2) as u8;
                let out = u8::from(self.pit_output(2, now));
                self.port_61 & 3 | refresh << 4 | out << 5
            }
            _ => return None,
        })
    }

    /// OUT to a port of these chips; `false` for others.
    pub fn port_write(&mut self, port: u16, value: u8, now: u64) -> bool {
        match port {
            0x20 | 0xa0 => pic_command(&mut self.pics[usize::from(port == 0xa0)], value),
            0x21 | 0xa1 => pic_data(&mut self.pics[usize::from(port == 0xa1)], value),
            0x4d0 | 0x4d1 => {
                let pic = &mut self.pics[usize::from(port & 1)];
                pic.elcr = value & pic.elcr_mask;
            }
            0x40..=0x42 => self.pit_write(usize::from(port - 0x40), value, now),
            0x43 => self.pit_command(value, now),
            0x61 => {
                let gate = value & 1 != 0;
                if gate && !self.pit.channels[2].gate {
                    self.loaded[2] = now;
                }
                self.pit.channels[2].gate = gate;
                self.port_61 = value;
            }
            _ => return false,
        }
        true
    }

    fn set_pic_line(&mut self, line: u8, level: bool) {
        let pic = &mut self.pics[usize::from(line / 8)];
        let bit = 1 << (line % 8);
        if pic.elcr & bit != 0 {
            pic.irr = if level { pic.irr | bit } else { pic.irr & !bit };
        } else if level && pic.last_irr & bit == 0 {
            pic.irr |= bit;
        }
        pic.last_irr = if level { pic.last_irr | bit } else { pic.last_irr & !bit };
    }

    /// Whether the first 8259A asks for the processor.
    pub fn pic_pending(&self) -> bool {
        self.pic_input(0).is_some()
    }

    /// The input that a controller wants to have served; the second hangs on input 2 of the first.
    fn pic_input(&self, number: usize) -> Option<u8> {
        let pic = &self.pics[number];
        let mut requests = pic.irr & !pic.imr;
        if number == 0 && self.pic_input(1).is_some() && pic.imr & 4 == 0 {
            requests |= 4;
        }
        let rank = |bits: u8| {
            (0..8_u8)
                .map(|index| (index + pic.priority_add) & 7)
                .position(|input| bits & 1 << input != 0)
        };
        let wanted = rank(requests)?;
        let mut served = pic.isr;
        if pic.special_mask {
            served &= !pic.imr;
        }
        if number == 0 && pic.special_fully_nested_mode {
            served &= !4;
        }
        if rank(served).is_some_and(|served| served <= wanted) {
            return None;
        }
        Some((wanted as u8 + pic.priority_add) & 7)
    }

    /// The processor takes the interrupt: its vector.
    pub fn pic_acknowledge(&mut self) -> u8 {
        let Some(input) = self.pic_input(0) else { return self.pics[0].irq_base.wrapping_add(7) };
        if input != 2 {
            acknowledge(&mut self.pics[0], input);
            return self.pics[0].irq_base.wrapping_add(input);
        }
        let second = self.pic_input(1);
        acknowledge(&mut self.pics[0], 2);
        match second {
            Some(input) => {
                acknowledge(&mut self.pics[1], input);
                self.pics[1].irq_base.wrapping_add(input)
            }
            None => self.pics[1].irq_base.wrapping_add(7),
        }
    }

    fn ticks(&self, channel: usize, now: u64) -> u64 {
        (u128::from(now.saturating_sub(self.loaded[channel])) * PIT_HERTZ / 1_000_000_000) as u64
    }

    fn pit_count(&self, channel: usize, now: u64) -> u16 {
        let state = &self.pit.channels[channel];
        let count = u64::from(state.count.max(1));
        let ticks = self.ticks(channel, now);
        (match state.mode {
            2 => count - ticks % count,
            3 => count - 2 * ticks % count,
            _ => count.wrapping_sub(ticks),
        }) as u16
    }

    fn pit_output(&self, channel: usize, now: u64) -> bool {
        let state = &self.pit.channels[channel];
        let count = u64::from(state.count.max(1));
        let ticks = self.ticks(channel, now);
        match state.mode {
            0 | 1 | 4 | 5 => ticks >= count,
            2 => ticks % count != count - 1,
            _ => ticks % count < count.div_ceil(2),
        }
    }

    fn load(&mut self, channel: usize, value: u16, now: u64) {
        let state = &mut self.pit.channels[channel];
        state.count = if value == 0 { 65536 } else { value.into() };
        self.loaded[channel] = now;
        if channel == 0 {
            self.pit_at = Some(now + self.pit_period());
        }
    }

    fn pit_period(&self) -> u64 {
        (u128::from(self.pit.channels[0].count.max(1)) * 1_000_000_000 / PIT_HERTZ) as u64
    }

    /// Channel 0's time has come: `true` if it did, with the next one set.
    pub fn pit_expire(&mut self, now: u64) -> bool {
        let Some(at) = self.pit_at.filter(|&at| at <= now) else { return false };
        self.pit_at = None;
        if matches!(self.pit.channels[0].mode, 2 | 3) {
            // A guest cannot ask for more than 10,000 interrupts a second.
            let period = self.pit_period().max(100_000);
            self.pit_at = Some(at + period * ((now - at) / period + 1));
        }
        true
    }

    fn pit_command(&mut self, value: u8, now: u64) {
        let channel = usize::from(value >> 6);
        if channel == 3 {
            for channel in 0..3 {
                if value & 2 << channel != 0 {
                    if value & 0x20 == 0 {
                        self.latch(channel, now);
                    }
                    if value & 0x10 == 0 {
                        self.latch_status(channel, now);
                    }
                }
            }
            return;
        }
        let access = value >> 4 & 3;
        if access == 0 {
            self.latch(channel, now);
            return;
        }
        let state = &mut self.pit.channels[channel];
        state.rw_mode = access;
        state.read_state = access;
        state.write_state = access;
        state.mode = match value >> 1 & 7 {
            mode @ 6.. => mode - 4,
            mode => mode,
        };
        state.bcd = value & 1 != 0;
        if channel == 0 {
            self.pit_at = None;
        }
    }

    fn latch(&mut self, channel: usize, now: u64) {
        let count = self.pit_count(channel, now);
        let state = &mut self.pit.channels[channel];
        if state.count_latched == 0 {
            state.latched_count = count;
            state.count_latched = state.rw_mode;
        }
    }

    fn latch_status(&mut self, channel: usize, now: u64) {
        let output = self.pit_output(channel, now);
        let state = &mut self.pit.channels[channel];
        if !state.status_latched {
            state.status = u8::from(output) << 7
                | state.rw_mode << 4
                | (state.mode & 7) << 1
                | u8::from(state.bcd);
            state.status_latched = true;
        }
    }

    fn pit_read(&mut self, channel: usize, now: u64) -> u8 {
        let count = self.pit_count(channel, now);
        let state = &mut self.pit.channels[channel];
        if state.status_latched {
            state.status_latched = false;
            return state.status;
        }
        match state.count_latched {
            1 => {
                state.count_latched = 0;
                state.latched_count as u8
            }
            2 => {
                state.count_latched = 0;
                (state.latched_count >> 8) as u8
            }
            3 => {
                state.count_latched = 2;
                state.latched_count as u8
            }
            _ => match state.read_state {
                2 => (count >> 8) as u8,
                3 => {
                    state.read_state = 4;
                    count as u8
                }
                4 => {
                    state.read_state = 3;
                    (count >> 8) as u8
                }
                _ => count as u8,
            },
        }
    }

    fn pit_write(&mut self, channel: usize, value: u8, now: u64) {
        let state = &mut self.pit.channels[channel];
        match state.write_state {
            2 => self.load(channel, u16::from(value) << 8, now),
            3 => {
                state.write_latch = value;
                state.write_state = 4;
            }
            4 => {
                state.write_state = 3;
                let count = u16::from(state.write_latch) | u16::from(value) << 8;
                self.load(channel, count, now);
            }
            _ => self.load(channel, value.into(), now),
        }
    }

    /// For a saved state.
    pub fn state(&self, now: u64) -> VmState {
        let mut pit = self.pit;
        for (channel, loaded) in pit.channels.iter_mut().zip(self.loaded) {
            channel.loaded_nanoseconds_ago = now.saturating_sub(loaded);
        }
        VmState { pics: self.pics, ioapic: self.ioapic.clone(), pit, clock_nanoseconds: now }
    }

    /// As a saved state says.
    pub fn set_state(&mut self, state: &VmState, now: u64) -> Result<()> {
        if state.ioapic.redirection.len() != LINES as usize {
            return Err(Error::Invalid(format!(
                "An I/O APIC has {LINES} inputs, not {}",
                state.ioapic.redirection.len()
            )));
        }
        self.pics = state.pics;
        for pic in &mut self.pics {
            pic.priority_add &= 7;
        }
        self.ioapic = state.ioapic.clone();
        self.pit = state.pit;
        self.port_61 = u8::from(state.pit.channels[2].gate);
        for (loaded, channel) in self.loaded.iter_mut().zip(&mut self.pit.channels) {
            *loaded = now.saturating_sub(channel.loaded_nanoseconds_ago);
            channel.count = channel.count.min(65536);
        }
        self.pit_at = None;
        let running = matches!(self.pit.channels[0].mode, 2 | 3);
        if running {
            self.pit_at = Some(now + self.pit_period());
        }
        Ok(())
    }
}

fn acknowledge(pic: &mut PicState, input: u8) {
    let bit = 1 << input;
    if pic.auto_eoi {
        if pic.rotate_on_auto_eoi {
            pic.priority_add = (input + 1) & 7;
        }
    } else {
        pic.isr |= bit;
    }
    if pic.elcr & bit == 0 {
        pic.irr &= !bit;
    }
}

fn pic_command(pic: &mut PicState, value: u8) {
    if value & 0x10 != 0 {
        let kept = PicState {
            elcr: pic.elcr,
            elcr_mask: pic.elcr_mask,
            last_irr: pic.last_irr,
            ..PicState::default()
        };
        *pic = kept;
        pic.init_state = 1;
        pic.init4 = value & 1 != 0;
        return;
    }
    if value & 8 != 0 {
        pic.poll = value & 4 != 0;
        if value & 2 != 0 {
            pic.read_reg_select = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            pic.special_mask = value & 0x20 != 0;
        }
        return;
    }
    let command = value >> 5;
    let named = value & 7;
    let highest = (0..8_u8)
        .map(|index| (index + pic.priority_add) & 7)
        .find(|input| pic.isr & 1 << input != 0);
    match command {
        0 | 4 => pic.rotate_on_auto_eoi = command == 4,
        1 | 5 => {
            if let Some(input) = highest {
                pic.isr &= !(1 << input);
                if command == 5 {
                    pic.priority_add = (input + 1) & 7;
                }
            }
        }
        3 | 7 => {
            pic.isr &= !(1 << named);
            if command == 7 {
                pic.priority_add = (named + 1) & 7;
            }
        }
        6 => pic.priority_add = (named + 1) & 7,
        _ => {}
    }
}

fn pic_data(pic: &mut PicState, value: u8) {
    match pic.init_state {
        1 => {
            pic.irq_base = value & 0xf8;
            pic.init_state = 2;
        }
        2 => pic.init_state = if pic.init4 { 3 } else { 0 },
        3 => {
            pic.special_fully_nested_mode = value & 0x10 != 0;
            pic.auto_eoi = value & 2 != 0;
            pic.init_state = 0;
        }
        _ => pic.imr = value,
    }
}
