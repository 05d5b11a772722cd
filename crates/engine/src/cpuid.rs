//! The CPUID table that a guest is given.

use serde::{Deserialize, Serialize};

/// One answer of the CPUID instruction (Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input; `None` where the leaf does not depend on it.
    pub index: Option<u32>,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

/// The whole answer sheet of one virtual processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidTable(pub Vec<CpuidLeaf>);

impl CpuidTable {
    /// The leaf for `function` and, where the leaf depends on it, `index`.
    pub fn get(&self, function: u32, index: u32) -> Option<&CpuidLeaf> {
        self.0
            .iter()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|own| own == index))
    }

    /// Like [`CpuidTable::get`], to change it.
    pub fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut CpuidLeaf> {
        self.0
            .iter_mut()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|own| own == index))
    }

    /// Puts `leaf` in the place of the one with the same function and index, or adds it.
    pub fn set(&mut self, leaf: CpuidLeaf) {
        match self.0.iter_mut().find(|own| own.function == leaf.function && own.index == leaf.index)
        {
            Some(own) => *own = leaf,
            None => self.0.push(leaf),
        }
    }

    /// Removes every leaf that `unwanted` names.
    pub fn remove(&mut self, unwanted: impl Fn(&CpuidLeaf) -> bool) {
        self.0.retain(|leaf| !unwanted(leaf));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: Option<u32>, eax: u32) -> CpuidLeaf {
        CpuidLeaf { function, index, eax, ..CpuidLeaf::default() }
    }

    #[test]
    fn a_leaf_without_an_index_answers_every_index() {
        let table = CpuidTable(vec![leaf(1, None, 7), leaf(4, Some(0), 8), leaf(4, Some(1), 9)]);
        assert_eq!(table.get(1, 5).unwrap().eax, 7);
        assert_eq!(table.get(4, 1).unwrap().eax, 9);
        assert!(table.get(4, 2).is_none());
    }

    #[test]
    fn set_replaces_the_leaf_with_the_same_key() {
        let mut table = CpuidTable::default();
        table.set(leaf(7, Some(0), 1));
        table.set(leaf(7, Some(0), 2));
        table.set(leaf(7, Some(1), 3));
        assert_eq!(table.0.len(), 2);
        assert_eq!(table.get(7, 0).unwrap().eax, 2);
    }
}
