//! What two engines offer in common: for a guest that is to move between them.

use crate::Capabilities;
use crate::cpuid::{CpuidLeaf, CpuidTable};

/// Extended state components (SDM volume 1, section 13.1).
const XSTATE: u32 = 0xd;
/// Leaf 1 ECX: a timer with deadlines, OSXSAVE, a hypervisor. The machine or the guest sets them, whatever the engine offers.
const OF_ANY_MACHINE_ECX: u32 = 1 << 24 | 1 << 27 | 1 << 31;
/// Leaf 1 EDX: several processors.
const OF_ANY_MACHINE_EDX: u32 = 1 << 28;
/// Leaf 0x80000001 ECX: topology extensions.
const OF_ANY_MACHINE_EXTENDED_ECX: u32 = 1 << 22;
/// Bytes of the legacy region and the header of an XSAVE area (SDM volume 1, section 13.4).
const XSAVE_SMALLEST: u32 = 576;

impl Capabilities {
    /// What both offer; where it is no feature (names, caches), this one's word stands.
    pub fn common(&self, other: &Self) -> Self {
        let mut leaves: Vec<CpuidLeaf> = Vec::with_capacity(self.cpuid.0.len());
        for leaf in &self.cpuid.0 {
            if let Some(theirs) = other.cpuid.get(leaf.function, leaf.index.unwrap_or(0)) {
                leaves.push(common_leaf(*leaf, *theirs));
            }
        }
        let mut cpuid = CpuidTable(leaves);
        fit_xsave(&mut cpuid);
        Self {
            cpuid,
            msrs: self.msrs.iter().copied().filter(|msr| other.msrs.contains(msr)).collect(),
            max_vcpus: self.max_vcpus.min(other.max_vcpus),
            physical_address_bits: self.physical_address_bits.min(other.physical_address_bits),
            tsc_khz: self.tsc_khz.filter(|_| self.tsc_khz == other.tsc_khz),
        }
    }

    /// Whether a guest that was given `table` finds all of its features here.
    pub fn has_features_of(&self, table: &CpuidTable) -> bool {
        table.0.iter().all(|wanted| {
            let own = self.cpuid.get(wanted.function, wanted.index.unwrap_or(0));
            let (mut wanted, mut own) = (*wanted, own.copied().unwrap_or_default());
            if wanted.function == 1 {
                wanted.ecx &= !OF_ANY_MACHINE_ECX;
                wanted.edx &= !OF_ANY_MACHINE_EDX;
            }
            if wanted.function == 0x8000_0001 {
                wanted.ecx &= !OF_ANY_MACHINE_EXTENDED_ECX;
            }
            features(&wanted).into_iter().zip(REGISTERS).all(|(is_feature, register)| {
                !is_feature || *register(&mut wanted) & !*register(&mut own) == 0
            })
        })
    }
}

/// The output registers of a leaf.
const REGISTERS: [fn(&mut CpuidLeaf) -> &mut u32; 4] =
    [|leaf| &mut leaf.eax, |leaf| &mut leaf.ebx, |leaf| &mut leaf.ecx, |leaf| &mut leaf.edx];

/// Which output registers of a leaf, EAX to EDX, are bits that name features (SDM volume 2A, "CPUID"; AMD APM volume 3,
/// appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst).
fn features(leaf: &CpuidLeaf) -> [bool; 4] {
    match (leaf.function, leaf.index.unwrap_or(0)) {
        (1 | 0x8000_0001, _) => [false, false, true, true],
        (7, 0) => [false, true, true, true],
        (7, _) => [true; 4],
        (XSTATE, 0) => [true, false, false, true],
        (XSTATE, 1) | (0x4000_0001, _) => [true, false, false, false],
        (0x8000_0007, _) => [false, true, false, true],
        (0x8000_0008, _) => [false, true, false, false],
        _ => [false; 4],
    }
}

/// Features are those of both, highest functions the lower ones.
fn common_leaf(mut leaf: CpuidLeaf, mut other: CpuidLeaf) -> CpuidLeaf {
    for (register, is_feature) in REGISTERS.iter().zip(features(&leaf)) {
        if is_feature {
            *register(&mut leaf) &= *register(&mut other);
        }
    }
    if matches!((leaf.function, leaf.index.unwrap_or(0)), (0 | 7 | 0x4000_0000 | 0x8000_0000, 0)) {
        leaf.eax = leaf.eax.min(other.eax);
    }
    leaf
}

/// Makes the sizes of the XSAVE area those of the components that are left.
fn fit_xsave(cpuid: &mut CpuidTable) {
    let Some(first) = cpuid.get(XSTATE, 0).copied() else { return };
    let left = u64::from(first.edx) << 32 | u64::from(first.eax);
    let has = |component: u32| component < 64 && left >> component & 1 != 0;
    cpuid.remove(|leaf| {
        leaf.function == XSTATE && leaf.index.is_some_and(|index| index >= 2 && !has(index))
    });
    let ends = cpuid.0.iter().filter(|leaf| leaf.function == XSTATE && leaf.index >= Some(2));
    let size = ends.map(|leaf| leaf.ebx.saturating_add(leaf.eax)).fold(XSAVE_SMALLEST, u32::max);
    if let Some(leaf) = cpuid.get_mut(XSTATE, 0) {
        (leaf.ebx, leaf.ecx) = (size.min(leaf.ebx), size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(leaves: &[CpuidLeaf]) -> Capabilities {
        Capabilities { cpuid: CpuidTable(leaves.to_vec()), ..Capabilities::default() }
    }

    fn leaf(function: u32, index: Option<u32>, registers: [u32; 4]) -> CpuidLeaf {
        let [eax, ebx, ecx, edx] = registers;
        CpuidLeaf { function, index, eax, ebx, ecx, edx }
    }

    #[test]
    fn features_are_those_of_both_and_names_the_firsts() {
        let a = offering(&[leaf(0, None, [9, 1, 2, 3]), leaf(1, None, [7, 8, 0b110, 0b011])]);
        let b = offering(&[leaf(0, None, [5, 4, 4, 4]), leaf(1, None, [0, 0, 0b011, 0b110])]);
        let common = a.common(&b).cpuid;
        assert_eq!(common.0[0], leaf(0, None, [5, 1, 2, 3]));
        assert_eq!(common.0[1], leaf(1, None, [7, 8, 0b010, 0b010]));
    }

    #[test]
    fn what_only_one_has_is_gone() {
        let mut a = offering(&[leaf(0x14, Some(0), [1; 4])]);
        let mut b = offering(&[]);
        (a.msrs, b.msrs) = (vec![1, 2, 3], vec![3, 1]);
        (a.tsc_khz, b.tsc_khz) = (Some(5), Some(6));
        let common = a.common(&b);
        assert!(common.cpuid.0.is_empty());
        assert_eq!((common.msrs, common.tsc_khz), (vec![1, 3], None));
    }

    #[test]
    fn a_guest_misses_what_the_engine_has_not() {
        let engine = offering(&[leaf(1, None, [0, 0, 0b11, 0b1]), leaf(7, Some(0), [0, 1, 0, 0])]);
        let with = |ecx, ebx| {
            let leaves =
                vec![leaf(1, None, [9, 9, ecx, 1 << 28]), leaf(7, Some(0), [5, ebx, 0, 0])];
            engine.has_features_of(&CpuidTable(leaves))
        };
        assert!(with(1 << 31 | 0b10, 1));
        assert!(!with(0b100, 1) && !with(0b10, 2));
    }

    #[test]
    fn the_xsave_area_shrinks_with_its_components() {
        let avx = leaf(0xd, Some(2), [256, 576, 0, 0]);
        let large = leaf(0xd, Some(9), [8, 2688, 0, 0]);
        let a = offering(&[leaf(0xd, Some(0), [0x207, 2696, 2696, 0]), avx, large]);
        let b = offering(&[leaf(0xd, Some(0), [7, 832, 832, 0]), avx]);
        let common = a.common(&b).cpuid;
        assert_eq!(common.get(0xd, 0).unwrap(), &leaf(0xd, Some(0), [7, 832, 832, 0]));
        assert!(common.get(0xd, 9).is_none());
        let none = offering(&[leaf(0xd, Some(0), [3, 576, 576, 0])]);
        assert_eq!(a.common(&none).cpuid.get(0xd, 0).unwrap().ecx, 576);
    }
}
