//! kvm-clock (Linux, Documentation/virt/kvm/x86/msr.rst): what the guest needs to turn its time-stamp
//! counter into nanoseconds without measuring it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cpu::Cpu;

/// MSR_KVM_WALL_CLOCK_NEW.
pub const WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW.
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;

const ENABLED: u64 = 1;
/// The counters of all processors agree.
const TSC_STABLE: u32 = 1;

/// Tells when the guest's clock was zero.
pub fn write_wall_clock(cpu: &mut Cpu, address: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = now.saturating_sub(std::time::Duration::from_nanos(cpu.vm.now()));
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&2_u32.to_le_bytes());
    bytes[4..8].copy_from_slice(&(start.as_secs() as u32).to_le_bytes());
    bytes[8..].copy_from_slice(&start.subsec_nanos().to_le_bytes());
    cpu.write_physical(address & !3, &bytes);
}

/// Tells how this processor's counter and the guest's clock are related.
pub fn write_system_time(cpu: &mut Cpu) {
    let address = cpu.msrs.system_time;
    if address & ENABLED == 0 {
        return;
    }
    let (multiplier, shift) = scale(cpu.vm.tsc_khz());
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&2_u32.to_le_bytes());
    let (tsc, now) = (cpu.tsc(), cpu.vm.now());
    bytes[8..16].copy_from_slice(&tsc.to_le_bytes());
    bytes[16..24].copy_from_slice(&now.to_le_bytes());
    bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
    bytes[28] = shift as u8;
    bytes[29] = TSC_STABLE as u8;
    cpu.write_physical(address & !ENABLED, &bytes);
}

/// Nanoseconds are `(ticks << shift) * multiplier >> 32`.
fn scale(khz: u32) -> (u32, i8) {
    let mut shift = 0_i8;
    let mut ticks = u64::from(khz.max(1)) * 1000;
    while ticks > 2_000_000_000 {
        ticks >>= 1;
        shift -= 1;
    }
    while ticks <= 1_000_000_000 {
        ticks <<= 1;
        shift += 1;
    }
    (((1_000_000_000_u128 << 32) / u128::from(ticks)) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for khz in [800_000, 1_000_000, 2_600_000, 5_000_000] {
            let (multiplier, shift) = scale(khz);
            let ticks = u128::from(khz) * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let nanoseconds = (shifted * u128::from(multiplier)) >> 32;
            assert!(nanoseconds.abs_diff(1_000_000_000) < 10, "{khz}: {nanoseconds}");
        }
    }
}
