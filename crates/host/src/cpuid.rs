//! CPUID: where its leaves come from, and the few questions that this crate asks them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The four registers that CPUID answers with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Something that answers CPUID: this processor, or the dump of another one.
pub trait CpuidSource {
    /// The answer to a leaf and sub-leaf.
    fn leaf(&self, leaf: u32, subleaf: u32) -> Registers;
}

/// The processor that runs this program. It answers zeros where it is not an x86-64.
#[derive(Debug, Clone, Copy, Default)]
pub struct NativeCpuid;

impl CpuidSource for NativeCpuid {
    #[cfg(target_arch = "x86_64")]
    fn leaf(&self, leaf: u32, subleaf: u32) -> Registers {
        let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        Registers { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn leaf(&self, _leaf: u32, _subleaf: u32) -> Registers {
        Registers::default()
    }
}

/// Leaves written down, in the text format of the `cpuid -1 -r` program, which is also their form
/// in JSON and TOML.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuidDump {
    leaves: BTreeMap<(u32, u32), Registers>,
}

impl CpuidSource for CpuidDump {
    fn leaf(&self, leaf: u32, subleaf: u32) -> Registers {
        self.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }
}

/// A line that is not one of `cpuid -1 -r`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a line of `cpuid -1 -r`: {0:?}")]
pub struct CpuidDumpError(String);

impl CpuidDump {
    /// Writes down the leaves that [`crate::report()`] looks at.
    pub fn of(source: &dyn CpuidSource) -> Self {
        let mut dump = Self::default();
        let highest = dump.take(source, 0, 0).eax;
        dump.take(source, 1, 0);
        for leaf in [7, TDX_LEAF] {
            if leaf <= highest {
                dump.take(source, leaf, 0);
            }
        }
        if dump.hypervisor_bit() {
            for base in hypervisor_bases() {
                dump.take(source, base, 0);
                if dump.signature_at(base).is_some() {
                    for leaf in 1..=5 {
                        dump.take(source, base + leaf, 0);
                    }
                }
            }
        }
        let highest = dump.take(source, 0x8000_0000, 0).eax;
        for leaf in [1, 2, 3, 4, 0xa, 0x1f].map(|leaf| 0x8000_0000 + leaf) {
            if leaf <= highest {
                dump.take(source, leaf, 0);
            }
        }
        dump
    }

    fn take(&mut self, source: &dyn CpuidSource, leaf: u32, subleaf: u32) -> Registers {
        let answer = source.leaf(leaf, subleaf);
        self.leaves.insert((leaf, subleaf), answer);
        answer
    }

    /// Adds or replaces a leaf.
    pub fn insert(&mut self, leaf: u32, subleaf: u32, registers: Registers) {
        self.leaves.insert((leaf, subleaf), registers);
    }

    /// The vendor string of leaf 0, for example `GenuineIntel`.
    pub fn vendor(&self) -> String {
        let answer = self.leaf(0, 0);
        text(&[answer.ebx, answer.edx, answer.ecx])
    }

    /// The processor's brand string, empty if it has none.
    pub fn brand(&self) -> String {
        let words: Vec<u32> = (0x8000_0002..=0x8000_0004)
            .map(|leaf| self.leaf(leaf, 0))
            .flat_map(|answer| [answer.eax, answer.ebx, answer.ecx, answer.edx])
            .collect();
        text(&words).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Leaf 1 ECX bit 31, which processors keep zero for hypervisors to set.
    pub fn hypervisor_bit(&self) -> bool {
        self.leaf(1, 0).ecx & (1 << 31) != 0
    }

    /// Intel VT-x: leaf 1 ECX bit 5.
    pub fn vmx(&self) -> bool {
        self.leaf(1, 0).ecx & (1 << 5) != 0
    }

    /// AMD-V: leaf 0x80000001 ECX bit 2.
    pub fn svm(&self) -> bool {
        self.leaf(0x8000_0001, 0).ecx & (1 << 2) != 0
    }

    /// The hypervisors that answer, with the base leaf of each, lowest first. One that emulates
    /// another's interface answers twice.
    pub fn signatures(&self) -> Vec<(u32, String)> {
        if !self.hypervisor_bit() {
            // Above its highest leaf an Intel processor answers with the highest one, not with
            // zeros.
            return Vec::new();
        }
        hypervisor_bases().filter_map(|base| Some((base, self.signature_at(base)?))).collect()
    }

    /// The signature of a TDX guest (leaf 0x21, Intel TDX module specification).
    pub fn tdx_guest(&self) -> bool {
        let answer = self.leaf(TDX_LEAF, 0);
        text(&[answer.ebx, answer.edx, answer.ecx]) == "IntelTDX"
    }

    fn signature_at(&self, base: u32) -> Option<String> {
        let answer = self.leaf(base, 0);
        let signature = text(&[answer.ebx, answer.ecx, answer.edx]);
        // Old KVM answers 0 in EAX for "one more leaf".
        let plausible = answer.eax == 0 || (base..=base + 0xff).contains(&answer.eax);
        let printable = signature.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        (plausible && printable && signature.len() > 3).then_some(signature)
    }
}

impl FromStr for CpuidDump {
    type Err = CpuidDumpError;

    fn from_str(dump: &str) -> Result<Self, Self::Err> {
        let mut leaves = BTreeMap::new();
        for line in dump.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') || line.ends_with("CPU:") {
                continue;
            }
            let (key, registers) =
                parse_line(line).ok_or_else(|| CpuidDumpError(line.chars().take(80).collect()))?;
            leaves.insert(key, registers);
        }
        Ok(Self { leaves })
    }
}

impl TryFrom<String> for CpuidDump {
    type Error = CpuidDumpError;

    fn try_from(dump: String) -> Result<Self, Self::Error> {
        dump.parse()
    }
}

impl From<CpuidDump> for String {
    fn from(dump: CpuidDump) -> Self {
        dump.to_string()
    }
}

impl fmt::Display for CpuidDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((leaf, subleaf), Registers { eax, ebx, ecx, edx }) in &self.leaves {
            writeln!(
                f,
                "{leaf:#010x} {subleaf:#04x}: eax={eax:#010x} ebx={ebx:#010x} ecx={ecx:#010x} \
                 edx={edx:#010x}"
            )?;
        }
        Ok(())
    }
}

const TDX_LEAF: u32 = 0x21;

/// Hypervisors that add an interface to their own put it 0x100 further; three at once have been
/// seen.
fn hypervisor_bases() -> impl Iterator<Item = u32> {
    (0x4000_0000..=0x4000_0400).step_by(0x100)
}

/// The bytes of the words as text, without what follows the first zero byte and without blanks at
/// the ends.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

fn parse_line(line: &str) -> Option<((u32, u32), Registers)> {
    let (place, values) = line.split_once(':')?;
    let mut place = place.split_whitespace().map(hexadecimal);
    let key = (place.next()??, place.next()??);
    let mut registers = Registers::default();
    for value in values.split_whitespace() {
        let (name, value) = value.split_once('=')?;
        let register = match name {
            "eax" => &mut registers.eax,
            "ebx" => &mut registers.ebx,
            "ecx" => &mut registers.ecx,
            "edx" => &mut registers.edx,
            _ => return None,
        };
        *register = hexadecimal(value)?;
    }
    Some((key, registers))
}

fn hexadecimal(value: &str) -> Option<u32> {
    u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KVM: &str = "CPU:\n   0x00000000 0x00: eax=0x00000001 ebx=0x756e6547 ecx=0x6c65746e \
     edx=0x49656e69\n\
        0x00000001 0x00: eax=0x000306c3 ebx=0x00000000 ecx=0x80000020 edx=0x00000000\n\
        0x40000000 0x00: eax=0x00000000 ebx=0x4b4d564b ecx=0x564b4d56 edx=0x0000004d\n";

    #[test]
    fn a_dump_of_the_cpuid_program_is_read_and_written_back() {
        let dump: CpuidDump = KVM.parse().expect("the format of cpuid -1 -r");
        assert_eq!(dump.vendor(), "GenuineIntel");
        assert!(dump.vmx() && !dump.svm());
        assert_eq!(dump.signatures(), [(0x4000_0000, "KVMKVMKVM".to_owned())]);
        assert_eq!(dump.to_string().parse::<CpuidDump>(), Ok(dump));
    }

    #[test]
    fn a_line_of_something_else_is_refused() {
        for line in [
            "hello",
            "0x1 0x0: eax=12",
            "0x1: eax=0x1",
            "0x1 0x0: rax=0x1",
            "0x123456789 0x0: eax=0x0",
        ] {
            assert!(line.parse::<CpuidDump>().is_err(), "{line}");
        }
    }

    #[test]
    fn without_the_hypervisor_bit_nobody_answers() {
        let bare = KVM.replace("ecx=0x80000020", "ecx=0x00000020");
        assert_eq!(bare.parse::<CpuidDump>().expect("a dump").signatures(), []);
    }

    #[test]
    fn a_dump_taken_from_a_dump_answers_the_same() {
        let dump: CpuidDump = KVM.parse().expect("a dump");
        let copy = CpuidDump::of(&dump);
        assert_eq!(copy.signatures(), dump.signatures());
        assert_eq!(copy.vendor(), dump.vendor());
    }
}
