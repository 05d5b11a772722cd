//! Saving and restoring the interrupt controllers, the timer and the clock.

use std::time::Duration;

use engine::state::{IoApicState, PicState, PitChannel, PitState, VmState};
use engine::{Error, Result};
use kvm_bindings::*;
use kvm_ioctls::VmFd;

use crate::sys;
use crate::vm::LINES;

pub fn save(vm: &VmFd) -> Result<VmState> {
    let pit = vm.get_pit2().map_err(Error::backend("read the 8254 timer"))?;
    let clock = vm.get_clock().map_err(Error::backend("read the clock"))?;
    Ok(VmState {
        pics: [
            pic_from_kvm(&read_pic(vm, KVM_IRQCHIP_PIC_MASTER)?),
            pic_from_kvm(&read_pic(vm, KVM_IRQCHIP_PIC_SLAVE)?),
        ],
        ioapic: ioapic_from_kvm(&read_ioapic(vm)?),
        pit: pit_from_kvm(&pit, sys::monotonic_clock()),
        clock_nanoseconds: clock.clock,
    })
}

pub fn restore(vm: &VmFd, state: &VmState) -> Result<()> {
    let ioapic = ioapic_to_kvm(&state.ioapic)?;
    let pit = pit_to_kvm(&state.pit, sys::monotonic_clock())?;
    // First, so that time does not pass on it before the timers start.
    vm.set_clock(&kvm_clock_data { clock: state.clock_nanoseconds, ..Default::default() })
        .map_err(Error::backend("set the clock"))?;
    for (chip_id, pic) in
        [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].into_iter().zip(&state.pics)
    {
        let chip = kvm_irqchip__bindgen_ty_1 { pic: pic_to_kvm(pic) };
        vm.set_irqchip(&kvm_irqchip { chip_id, pad: 0, chip })
            .map_err(Error::backend("set an 8259A"))?;
    }
    let chip = kvm_irqchip__bindgen_ty_1 { ioapic };
    vm.set_irqchip(&kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, pad: 0, chip })
        .map_err(Error::backend("set the I/O APIC"))?;
    vm.set_pit2(&pit).map_err(Error::backend("set the 8254 timer"))
}

fn read_chip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip__bindgen_ty_1> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(Error::backend("read an interrupt controller"))?;
    Ok(chip.chip)
}

fn read_pic(vm: &VmFd, chip_id: u32) -> Result<kvm_pic_state> {
    // SAFETY: this chip's member of the union; every bit pattern is valid for it.
    Ok(unsafe { read_chip(vm, chip_id)?.pic })
}

fn read_ioapic(vm: &VmFd) -> Result<kvm_ioapic_state> {
    // SAFETY: this chip's member of the union; every bit pattern is valid for it.
    Ok(unsafe { read_chip(vm, KVM_IRQCHIP_IOAPIC)?.ioapic })
}

fn pic_from_kvm(from: &kvm_pic_state) -> PicState {
    PicState {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: from.priority_add,
        irq_base: from.irq_base,
        read_reg_select: from.read_reg_select != 0,
        poll: from.poll != 0,
        special_mask: from.special_mask != 0,
        init_state: from.init_state,
        auto_eoi: from.auto_eoi != 0,
        rotate_on_auto_eoi: from.rotate_on_auto_eoi != 0,
        special_fully_nested_mode: from.special_fully_nested_mode != 0,
        init4: from.init4 != 0,
        elcr: from.elcr,
        elcr_mask: from.elcr_mask,
    }
}

fn pic_to_kvm(from: &PicState) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        // The kernel counts inputs from here, modulo 8.
        priority_add: from.priority_add & 7,
        irq_base: from.irq_base & !7,
        read_reg_select: from.read_reg_select.into(),
        poll: from.poll.into(),
        special_mask: from.special_mask.into(),
        init_state: from.init_state,
        auto_eoi: from.auto_eoi.into(),
        rotate_on_auto_eoi: from.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: from.special_fully_nested_mode.into(),
        init4: from.init4.into(),
        elcr: from.elcr & from.elcr_mask,
        elcr_mask: from.elcr_mask,
    }
}

fn ioapic_from_kvm(from: &kvm_ioapic_state) -> IoApicState {
    IoApicState {
        base_address: from.base_address,
        select: from.ioregsel,
        id: from.id,
        irr: from.irr,
        // SAFETY: the union is a 64-bit value and a view of its bits; every pattern is valid.
        redirection: from.redirtbl.iter().map(|entry| unsafe { entry.bits }).collect(),
    }
}

fn ioapic_to_kvm(from: &IoApicState) -> Result<kvm_ioapic_state> {
    let entries: [u64; LINES as usize] = from.redirection.as_slice().try_into().map_err(|_| {
        Error::Invalid(format!(
            "An I/O APIC has {LINES} redirection entries, not {}",
            from.redirection.len()
        ))
    })?;
    Ok(kvm_ioapic_state {
        base_address: from.base_address,
        ioregsel: from.select,
        id: from.id,
        irr: from.irr,
        pad: 0,
        redirtbl: entries.map(|bits| kvm_ioapic_state__bindgen_ty_1 { bits }),
    })
}

fn pit_from_kvm(from: &kvm_pit_state2, now: Duration) -> PitState {
    PitState {
        channels: from.channels.map(|channel| channel_from_kvm(&channel, now)),
        speaker_dummy: from.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0,
    }
}

fn pit_to_kvm(from: &PitState, now: Duration) -> Result<kvm_pit_state2> {
    let mut channels = [kvm_pit_channel_state::default(); 3];
    for (to, channel) in channels.iter_mut().zip(&from.channels) {
        *to = channel_to_kvm(channel, now)?;
    }
    let flags = if from.speaker_dummy { KVM_PIT_FLAGS_SPEAKER_DATA_ON } else { 0 };
    Ok(kvm_pit_state2 { channels, flags, reserved: [0; 9] })
}

fn channel_from_kvm(from: &kvm_pit_channel_state, now: Duration) -> PitChannel {
    let loaded = Duration::from_nanos(u64::try_from(from.count_load_time).unwrap_or(0));
    PitChannel {
        count: from.count,
        latched_count: from.latched_count,
        count_latched: from.count_latched,
        status_latched: from.status_latched != 0,
        status: from.status,
        read_state: from.read_state,
        write_state: from.write_state,
        write_latch: from.write_latch,
        rw_mode: from.rw_mode,
        mode: from.mode,
        bcd: from.bcd != 0,
        gate: from.gate != 0,
        loaded_nanoseconds_ago: nanoseconds(now.saturating_sub(loaded)),
    }
}

fn channel_to_kvm(from: &PitChannel, now: Duration) -> Result<kvm_pit_channel_state> {
    if from.count > LARGEST_COUNT || (from.mode > 7 && from.mode != NOT_PROGRAMMED) {
        return Err(Error::Invalid(format!(
            "An 8254 has no mode {} with a count of {}",
            from.mode, from.count
        )));
    }
    let loaded = now.saturating_sub(Duration::from_nanos(from.loaded_nanoseconds_ago));
    Ok(kvm_pit_channel_state {
        // The kernel divides by it.
        count: if from.count == 0 { LARGEST_COUNT } else { from.count },
        latched_count: from.latched_count,
        count_latched: from.count_latched,
        status_latched: from.status_latched.into(),
        status: from.status,
        read_state: from.read_state,
        write_state: from.write_state,
        write_latch: from.write_latch,
        rw_mode: from.rw_mode,
        mode: from.mode,
        bcd: from.bcd.into(),
        gate: from.gate.into(),
        count_load_time: i64::try_from(nanoseconds(loaded)).unwrap_or(i64::MAX),
    })
}

/// What a programmed 0 means.
const LARGEST_COUNT: u32 = 0x1_0000;

/// Mode of a channel after a reset.
const NOT_PROGRAMMED: u8 = 0xff;

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_channel_keeps_its_age_on_another_clock() {
        let channel = PitChannel {
            count: 0x1_0000,
            mode: 2,
            gate: true,
            loaded_nanoseconds_ago: 5_000,
            ..PitChannel::default()
        };
        let kvm = channel_to_kvm(&channel, Duration::from_secs(9)).unwrap();
        assert_eq!(kvm.count_load_time, 9_000_000_000 - 5_000);
        assert_eq!(channel_from_kvm(&kvm, Duration::from_secs(9)), channel);
    }

    #[test]
    fn controllers_survive_the_way_there_and_back() {
        let pic = PicState {
            irr: 1,
            imr: 0xfe,
            priority_add: 7,
            irq_base: 0x20,
            init4: true,
            elcr: 0x20,
            elcr_mask: 0xf8,
            ..PicState::default()
        };
        assert_eq!(pic_from_kvm(&pic_to_kvm(&pic)), pic);
        let ioapic =
            IoApicState { id: 3, redirection: (0..24).collect(), ..IoApicState::default() };
        assert_eq!(ioapic_from_kvm(&ioapic_to_kvm(&ioapic).unwrap()), ioapic);
    }

    #[test]
    fn impossible_controllers_are_refused() {
        let short = IoApicState { redirection: vec![0; 23], ..IoApicState::default() };
        assert!(ioapic_to_kvm(&short).is_err());
        let channel = PitChannel { count: 0x1_0001, ..PitChannel::default() };
        assert!(channel_to_kvm(&channel, Duration::ZERO).is_err());
    }
}
