//! Which instructions can be compared with the host's, and how far: makers of processors differ.

use iced_x86::{Code, CpuidFeature as F, EncodingKind, Instruction, Mnemonic as M, OpKind};

use crate::values::wide;

/// Features of the processor that is offered to guests.
const OFFERED: &[F] = &[
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::X64,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::MOVBE,
    F::XSAVE,
    F::FSGSBASE,
    F::CLFSH,
    F::CET_IBT,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::PREFETCHW,
    F::D3NOW,
    F::XSAVEOPT,
    F::XSAVEC,
    F::CLFLUSHOPT,
    F::CLWB,
];

/// Features of the processor that are offered to guests where the host has them.
fn offered_with_host(feature: F) -> bool {
    use std::arch::is_x86_feature_detected as host;
    match feature {
        F::AVX | F::AVX2 | F::BMI1 | F::BMI2 | F::F16C | F::FMA | F::LZCNT => wide(),
        F::AES => host!("aes"),
        F::PCLMULQDQ => host!("pclmulqdq"),
        F::SHA => host!("sha"),
        F::ADX => host!("adx"),
        F::VAES => host!("vaes"),
        F::VPCLMULQDQ => host!("vpclmulqdq"),
        _ => false,
    }
}

/// What must not or cannot be compared with a process of Linux.
fn excluded(i: &Instruction, narrow: bool) -> bool {
    // System calls, and what asks the processor who it is or what time it is.
    matches!(
        i.mnemonic(),
        M::Syscall | M::Sysenter | M::Int | M::Cpuid | M::Xgetbv | M::Rdtsc | M::Rdtscp
    )
    // Linux emulates these where the processor refuses them in ring 3.
    || matches!(i.mnemonic(), M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw)
    // They depend on the tables of descriptors, which are Linux's own.
    || matches!(
        i.mnemonic(),
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs
            | M::Retf | M::Iret | M::Iretd | M::Iretq | M::Sysret | M::Sysretq
    )
    || i.is_jmp_far() || i.is_jmp_far_indirect() || i.is_call_far() || i.is_call_far_indirect()
    || (0..i.op_count()).any(|n| {
        i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register()
    })
    || matches!(i.code(), Code::Pushw_ES | Code::Pushw_CS | Code::Pushw_SS | Code::Pushw_DS)
    // Where Linux says that a process is after it differs between virtual and other processors.
    || i.mnemonic() == M::Int1
    // Only AMD's processors take its operand from anywhere.
    || i.cpuid_features().contains(&F::SHA) && has_memory(i) && !host_is_amd()
    // AMD's processors refuse it with VEX.W, Intel's ignore that.
    || narrow && matches!(i.code(), Code::VEX_Vpextrd_rm32_xmm_imm8 | Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8)
    // AMD's and ours read four bytes, Intel's two.
    || i.code() == Code::Movsxd_r16_rm16 && has_memory(i) && !host_is_amd()
    // Intel's fetch a ModRM byte, behind which others end.
    || i.mnemonic() == M::Ud0 && !host_is_amd()
    // Undefined altogether.
    || i.code() == Code::Bswap_r16
    // 3DNow! but for its prefetches.
    || i.cpuid_features().contains(&F::D3NOW)
        && !matches!(i.mnemonic(), M::Prefetch | M::Prefetchw)
    // AMD takes a branch with an operand-size prefix for one of 16 bits, Intel ignores the prefix.
    || !narrow && is_near_branch(i) && has_16_bits(i) && !host_is_amd()
    // What a prefix without meaning does to them differs between processors.
    || i.is_loopcc() && (i.has_rep_prefix() || i.has_repne_prefix())
    // In this form AMD's processors refuse it; to Intel's it is a NOP.
    || matches!(
        i.code(),
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    )
}

pub fn host_is_amd() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD"))
    })
}

pub fn is_near_branch(i: &Instruction) -> bool {
    i.is_jcc_short_or_near()
        || i.is_jmp_short_or_near()
        || i.is_call_near()
        || i.is_loop()
        || i.is_loopcc()
        || i.is_jcx_short()
        || i.is_jmp_near_indirect()
        || i.is_call_near_indirect()
        || i.mnemonic() == M::Ret
        || i.mnemonic() == M::Xbegin
}

fn has_16_bits(i: &Instruction) -> bool {
    let name = format!("{:?}", i.code());
    name.contains("rel16")
        || name.contains("_16")
        || name.contains("rm16")
        || name.starts_with("Retnw")
}

pub fn usable(i: &Instruction, narrow: bool) -> bool {
    i.code() != Code::INVALID
        && matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && i.cpuid_features()
            .iter()
            .all(|feature| OFFERED.contains(feature) || offered_with_host(*feature))
        && !excluded(i, narrow)
}

pub fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// Whether Intel's processors have done a part of it when it faults: a gather's elements, a call's push, the change of
/// an MMX store to MMX's registers, the flags of a conversion, ten bytes in two pages, vectors before a wrong MXCSR.
pub fn leaves_traces(i: &Instruction) -> bool {
    let stores = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
    let from_mmx = i.op_count() > 1 && i.op_kind(1) == OpKind::Register && i.op_register(1).is_mm();
    let wide = matches!(i.code(), Code::Fstp_m80fp | Code::Fbstp_m80bcd);
    let traces = i.memory_index().is_vector_register()
        || i.is_call_near_indirect()
        || matches!(i.mnemonic(), M::Xrstor | M::Xrstor64)
        || stores && (from_mmx || wide || i.mnemonic() == M::Vcvtps2ph);
    traces && !host_is_amd()
}

pub fn is_x87_store(i: &Instruction) -> bool {
    let stores =
        matches!(i.mnemonic(), M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp);
    stores && i.op0_kind() == OpKind::Memory
}
