//! What of the architecture guests get because the host has it.

use std::arch::is_x86_feature_detected as host;
use std::sync::LazyLock;

use iced_x86::CpuidFeature;

/// Parts of the architecture that stand or fall with the host.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The rest of x86-64-v3: AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT.
    pub v3: bool,
    pub sse3: bool,
    pub ssse3: bool,
    pub sse4_1: bool,
    pub sse4_2: bool,
    pub aes: bool,
    pub pclmulqdq: bool,
    pub sha: bool,
    pub adx: bool,
    pub rdrand: bool,
    pub rdseed: bool,
    /// With vectors of 256 bits.
    pub vaes: bool,
    pub vpclmulqdq: bool,
}

static FEATURES: LazyLock<Features> = LazyLock::new(|| {
    // MOVBE is implemented for every host, and written again by the translator where the host has it.
    let v3 = host!("avx")
        && host!("avx2")
        && host!("bmi1")
        && host!("bmi2")
        && host!("f16c")
        && host!("fma")
        && host!("lzcnt")
        && host!("movbe");
    Features {
        v3,
        sse3: host!("sse3"),
        ssse3: host!("ssse3"),
        sse4_1: host!("sse4.1"),
        sse4_2: host!("sse4.2"),
        aes: host!("aes"),
        pclmulqdq: host!("pclmulqdq"),
        sha: host!("sha"),
        adx: host!("adx"),
        rdrand: host!("rdrand"),
        rdseed: host!("rdseed"),
        vaes: v3 && host!("vaes"),
        vpclmulqdq: v3 && host!("vpclmulqdq"),
    }
});

/// See [`Features`].
pub fn features() -> Features {
    *FEATURES
}

/// x86-64-v3.
pub fn v3() -> bool {
    FEATURES.v3
}

/// Vector instructions that are executed by the host's own processor, x87 and MMX aside.
pub fn offered(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    let features = features();
    match feature {
        F::SSE | F::SSE2 => true,
        F::SSE3 => features.sse3,
        F::SSSE3 => features.ssse3,
        F::SSE4_1 => features.sse4_1,
        F::SSE4_2 => features.sse4_2,
        F::AES => features.aes,
        F::PCLMULQDQ => features.pclmulqdq,
        F::SHA => features.sha,
        F::AVX | F::AVX2 | F::FMA | F::F16C => features.v3,
        F::VAES => features.vaes,
        F::VPCLMULQDQ => features.vpclmulqdq,
        _ => false,
    }
}
