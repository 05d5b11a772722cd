//! What running a tiny guest showed. The running is the engine's business; here is its result in
//! neutral words, and the judgement.

use serde::{Deserialize, Serialize};

/// The result of running the same counting loop in ring 0 and in ring 3 of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofResult {
    /// KVM's answer to `KVM_GET_API_VERSION`, if it could be asked.
    pub api_version: Option<i32>,
    /// The loop where a guest's kernel runs.
    pub ring0: LoopResult,
    /// The loop where a guest's programs run.
    pub ring3: LoopResult,
}

/// How one loop ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum LoopResult {
    /// By the processor itself.
    Native {
        /// Million instructions per second.
        mips: f64,
    },
    /// By a program that interprets one instruction after the other.
    Emulated {
        /// Million instructions per second.
        mips: f64,
    },
    /// Not at all.
    Fails {
        /// What happened, in one sentence or less.
        reason: String,
        /// The system's error number, if there was one.
        errno: Option<i32>,
    },
}

/// Guest instructions and the wall-clock time that they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// Guest instructions executed.
    pub instructions: u64,
    /// Nanoseconds that they took.
    pub nanoseconds: u64,
}

/// Why a loop was not measured: a sentence, and the error number if there is one.
pub type LoopFailure = (String, Option<i32>);

impl ProofResult {
    /// Judges two measurements.
    pub fn judge(
        api_version: Option<i32>,
        ring0: Result<Measurement, LoopFailure>,
        ring3: Result<Measurement, LoopFailure>,
    ) -> Self {
        let speed = |ring: &Result<Measurement, LoopFailure>| {
            ring.as_ref().map(Measurement::mips).unwrap_or(0.0)
        };
        let fastest = speed(&ring0).max(speed(&ring3));
        let judged = |ring: Result<Measurement, LoopFailure>| match ring {
            Ok(measured) => classify(measured.mips(), fastest),
            Err((reason, errno)) => LoopResult::Fails { reason, errno },
        };
        Self { api_version, ring0: judged(ring0), ring3: judged(ring3) }
    }

    /// The guest could not even be built.
    pub fn failed(reason: impl Into<String>, errno: Option<i32>) -> Self {
        let fails = LoopResult::Fails { reason: reason.into(), errno };
        Self { api_version: None, ring0: fails.clone(), ring3: fails }
    }
}

impl Measurement {
    /// Million instructions per second.
    pub fn mips(&self) -> f64 {
        self.instructions as f64 * 1e3 / self.nanoseconds.max(1) as f64
    }
}

/// An interpreter is hundreds of times slower than what it interprets on. A ring that is this much
/// slower than the other is interpreted. Rounds disturbed by other programs differ by a factor of
/// three at most, because the fastest round counts.
const INTERPRETED_RATIO: f64 = 16.0;
/// Below this speed both rings are interpreted. KVM's interpreter does 1 to 4 million instructions
/// a second on processors of 2026; a KVM that runs inside a processor made of software does 100
/// million and more.
const INTERPRETED_MIPS: f64 = 8.0;

fn classify(mips: f64, fastest: f64) -> LoopResult {
    if mips < INTERPRETED_MIPS || mips * INTERPRETED_RATIO < fastest {
        LoopResult::Emulated { mips }
    } else {
        LoopResult::Native { mips }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mips: u64) -> Result<Measurement, LoopFailure> {
        Ok(Measurement { instructions: mips * 1_000, nanoseconds: 1_000_000 })
    }

    fn judged(ring0: u64, ring3: u64) -> (bool, bool) {
        let native = |result: &LoopResult| matches!(result, LoopResult::Native { .. });
        let result = ProofResult::judge(Some(12), of(ring0), of(ring3));
        (native(&result.ring0), native(&result.ring3))
    }

    #[test]
    fn a_processor_runs_both_rings_natively() {
        assert_eq!(judged(7_000, 7_200), (true, true));
        assert_eq!(judged(2_000, 6_500), (true, true), "one of them disturbed");
    }

    #[test]
    fn a_processor_made_of_software_runs_both_rings_of_its_kvm_natively() {
        assert_eq!(judged(430, 440), (true, true));
        assert_eq!(judged(40, 45), (true, true), "under load");
    }

    #[test]
    fn a_slow_ring_0_beside_a_fast_ring_3_is_emulated() {
        assert_eq!(judged(2, 4_450), (false, true));
        assert_eq!(judged(90, 4_450), (false, true), "a faster interpreter is still one");
    }

    #[test]
    fn two_slow_rings_are_both_emulated() {
        assert_eq!(judged(1, 2), (false, false));
    }

    #[test]
    fn a_failure_keeps_its_reason_and_number() {
        let result = ProofResult::judge(Some(12), Err(("KVM_RUN fails".into(), Some(22))), of(100));
        assert_eq!(
            result.ring0,
            LoopResult::Fails { reason: "KVM_RUN fails".into(), errno: Some(22) }
        );
        assert!(matches!(result.ring3, LoopResult::Native { .. }));
    }
}
