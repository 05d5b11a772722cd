//! The engine, and what it offers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::cpuid::{CpuidLeaf, CpuidTable};
use engine::{Capabilities, Engine, Error, Result, Vm, VmConfig};

use crate::features::features;
use crate::mmu::PHYSICAL_BITS;
use crate::state::MSRS;
use crate::translate::Translation;
use crate::vm::SoftVm;
use crate::xsave::{XSAVE, area_size, components};

/// Most processors of one virtual machine.
const MAX_VCPUS: u32 = 512;

/// An x86-64 processor in software.
pub struct SoftEngine {
    capabilities: Capabilities,
    translation: Translation,
}

impl SoftEngine {
    /// Works on every x86-64 computer.
    pub fn new() -> Self {
        Self::with(Translation::default())
    }

    /// With or without the translator.
    pub fn with(translation: Translation) -> Self {
        let tsc_khz = measure_tsc();
        Self {
            capabilities: Capabilities {
                cpuid: cpuid(),
                msrs: MSRS.to_vec(),
                // Others would change memory between the interpreter's turn and the translator's.
                max_vcpus: if translation == Translation::Verified { 1 } else { MAX_VCPUS },
                physical_address_bits: PHYSICAL_BITS as u8,
                tsc_khz: Some(tsc_khz),
            },
            translation,
        }
    }
}

impl Default for SoftEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        let most = self.capabilities.max_vcpus;
        if config.vcpus == 0 || config.vcpus > most {
            return Err(Error::Invalid(format!(
                "A virtual machine has 1 to {most} processors here, not {}",
                config.vcpus
            )));
        }
        let khz = self.capabilities.tsc_khz.unwrap_or(1_000_000);
        Ok(Arc::new(SoftVm::new(
            config.vcpus,
            khz,
            self.capabilities.msrs.clone(),
            self.translation,
        )?))
    }
}

/// Ticks of the host's counter in a millisecond: what the host was told, or else measured for 20 ms.
fn measure_tsc() -> u32 {
    const LONG_ENOUGH: Duration = Duration::from_millis(20);
    let (start, first) = (Instant::now(), crate::host::host_tsc());
    std::thread::sleep(LONG_ENOUGH);
    let (ticks, passed) = (crate::host::host_tsc().wrapping_sub(first), start.elapsed());
    let khz = u128::from(ticks) * 1_000_000 / passed.as_nanos().max(1);
    u32::try_from(khz).unwrap_or(u32::MAX).max(1)
}

/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, PAT, CLFSH, MMX, FXSR, SSE, SSE2.
const FEATURES_EDX: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 9
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;

/// The whole answer sheet.
fn cpuid() -> CpuidTable {
    let host = features();
    let when = |present: bool, bits: u32| if present { bits } else { 0 };
    let leaf =
        |function, eax, ebx, ecx, edx| CpuidLeaf { function, index: None, eax, ebx, ecx, edx };
    let text = |bytes: &[u8; 12]| {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        [word(0), word(4), word(8)]
    };
    let vendor = text(b"AuthenticAMD");
    let hypervisor = text(b"KVMKVMKVM\0\0\0");
    // CX16, x2APIC, MOVBE, POPCNT, TSC deadline, XSAVE, hypervisor.
    let ecx = 1 << 13 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 26 | 1 << 31
        | when(host.sse3, 1)
        | when(host.pclmulqdq, 1 << 1)
        | when(host.ssse3, 1 << 9)
        | when(host.sse4_1, 1 << 19)
        | when(host.sse4_2, 1 << 20)
        | when(host.aes, 1 << 25)
        | when(host.rdrand, 1 << 30)
        // FMA, AVX, F16C.
        | when(host.v3, 1 << 12 | 1 << 28 | 1 << 29);
    // FSGSBASE, SMEP, fast REP MOVSB and STOSB; BMI1, AVX2, BMI2.
    let seven = 1
        | 1 << 7
        | 1 << 9
        | when(host.v3, 1 << 3 | 1 << 5 | 1 << 8)
        | when(host.adx, 1 << 19)
        | when(host.sha, 1 << 29);
    // RDPID.
    let seven_ecx = 1 << 22 | when(host.vaes, 1 << 9) | when(host.vpclmulqdq, 1 << 10);
    let largest = area_size(components()) as u32;
    // Family 15, model 107, stepping 1: a K8, for which no kernel has workarounds that cost time.
    let signature = 0x0006_0fb1;
    // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    let extended = FEATURES_EDX & 0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
    let name = b"Omnivisor software processor\0";
    let mut leaves = vec![
        leaf(0, 0xd, vendor[0], vendor[2], vendor[1]),
        leaf(1, signature, 0x0001_0800, ecx, FEATURES_EDX),
        // Fast REP MOVSB of few bytes.
        CpuidLeaf { index: Some(0), ..leaf(7, 0, seven, seven_ecx, 1 << 4) },
        // XSAVE: the second size is that after a reset.
        CpuidLeaf { index: Some(0), ..leaf(0xd, components() as u32, XSAVE as u32, largest, 0) },
        // XSAVEOPT, XSAVEC, XGETBV of what is in use.
        CpuidLeaf { index: Some(1), ..leaf(0xd, 7, XSAVE as u32, 0, 0) },
        // KVM's signature: kvm-clock (the new registers), and its counters agree.
        leaf(0x4000_0000, 0x4000_0001, hypervisor[0], hypervisor[1], hypervisor[2]),
        leaf(0x4000_0001, 1 << 3 | 1 << 24, 0, 0, 0),
        leaf(0x8000_0000, 0x8000_0008, vendor[0], vendor[2], vendor[1]),
        // LAHF in 64-bit mode, LZCNT.
        leaf(0x8000_0001, signature, 0, 1 | when(host.v3, 1 << 5), extended),
        // The time-stamp counter is invariant.
        leaf(0x8000_0007, 0, 0, 0, 1 << 8),
        leaf(0x8000_0008, PHYSICAL_BITS | 48 << 8, 0, 0, 0),
    ];
    if host.v3 {
        // Upper halves of the vector registers: their size and place.
        let bytes = largest - XSAVE as u32;
        leaves.push(CpuidLeaf { index: Some(2), ..leaf(0xd, bytes, XSAVE as u32, 0, 0) });
    }
    for part in 0..3_u32 {
        let word = |index: usize| {
            let at = part as usize * 16 + index * 4;
            let byte = |n: usize| name.get(at + n).copied().unwrap_or(0);
            u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
        };
        leaves.push(leaf(0x8000_0002 + part, word(0), word(1), word(2), word(3)));
    }
    CpuidTable(leaves)
}
