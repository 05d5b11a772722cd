//! What a guest does to a disk, and to a vector beside it.

use std::ops::Range;

use proptest::prelude::*;

use crate::{Disk, Result};

/// What a guest does to a disk.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

impl Action {
    /// What it changes.
    pub(crate) fn range(&self) -> Option<Range<u64>> {
        match *self {
            Self::Write(at, count, _) | Self::Zero(at, count, _) | Self::Discard(at, count) => {
                Some(at..at + count)
            }
            Self::Flush => None,
        }
    }

    /// Does it to the disk and to a model; discarded bytes may be either, so they are read back.
    pub(crate) fn apply(&self, disk: &dyn Disk, model: &mut [u8]) -> Result<()> {
        let range = |start: u64, length: u64| start..(start + length).min(model.len() as u64);
        match *self {
            Self::Write(start, length, value) => {
                let range = range(start, length);
                let bytes: Vec<u8> =
                    range.clone().map(|at| value.wrapping_add((at / 512) as u8) | 1).collect();
                model[range.start as usize..range.end as usize].copy_from_slice(&bytes);
                disk.write_at(&bytes, range.start)
            }
            Self::Zero(start, length, unmap) => {
                let range = range(start, length);
                model[range.start as usize..range.end as usize].fill(0);
                disk.write_zeroes(range, unmap)
            }
            Self::Discard(start, length) => {
                let range = range(start, length);
                disk.discard(range.clone())?;
                let part = &mut model[range.start as usize..range.end as usize];
                let mut found = vec![0; part.len()];
                disk.read_at(&mut found, range.start)?;
                let is_either = |(old, new): (&u8, &u8)| new == old || *new == 0;
                assert!(part == found || part.iter().zip(&found).all(is_either));
                part.copy_from_slice(&found);
                Ok(())
            }
            Self::Flush => disk.flush(),
        }
    }
}

pub(crate) fn action(length: u64) -> impl Strategy<Value = Action> {
    let start = move || 0..length;
    let length = move || prop_oneof![1..2000_u64, 1..length / 3];
    prop_oneof![
        4 => (start(), length(), any::<u8>()).prop_map(|(at, count, v)| Action::Write(at, count, v)),
        1 => (start(), length(), any::<bool>()).prop_map(|(at, count, u)| Action::Zero(at, count, u)),
        1 => (start(), length()).prop_map(|(at, count)| Action::Discard(at, count)),
        1 => Just(Action::Flush),
    ]
}
