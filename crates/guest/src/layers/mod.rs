//! Volumes that are made of others: logical volumes and RAID arrays.

pub mod firmware;
pub mod lvm;
pub mod md;
mod raid;
mod snapshot;
mod thin;

use std::sync::Arc;

use crate::volume::Volume;
use crate::{Error, Result};

/// One volume after another, or in stripes: what both layers come down to.
pub struct Pieces {
    length: u64,
    pieces: Vec<Piece>,
}

/// Where something begins on a volume.
pub type Place = (Arc<dyn Volume>, u64);

/// A range of a volume that lies on one or several others.
pub struct Piece {
    pub start: u64,
    pub length: u64,
    /// Bytes on one of them before the next one's turn.
    pub stripe: u64,
    /// The others, and where on them it begins.
    pub on: Vec<Place>,
}

impl Pieces {
    /// `None` if the pieces do not follow each other.
    pub fn new(mut pieces: Vec<Piece>) -> Option<Self> {
        pieces.sort_by_key(|piece| piece.start);
        let mut length = 0_u64;
        for piece in &pieces {
            if piece.start != length || piece.on.is_empty() || piece.stripe == 0 {
                return None;
            }
            length = length.checked_add(piece.length)?;
        }
        (length > 0).then_some(Self { length, pieces })
    }
}

impl Volume for Pieces {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bad = || Error::damaged("volume", format!("something leads to {offset:#x}"));
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.checked_add(done as u64).ok_or_else(bad)?;
            let next = self.pieces.partition_point(|piece| piece.start <= at);
            let piece = next.checked_sub(1).map(|index| &self.pieces[index]).ok_or_else(bad)?;
            let within = at - piece.start;
            let left = piece.length.checked_sub(within).filter(|&left| left > 0).ok_or_else(bad)?;
            let (stripe, into) = (within / piece.stripe, within % piece.stripe);
            let count = piece.on.len() as u64;
            // With one volume beneath there are no stripes.
            let left = if count == 1 { left } else { left.min(piece.stripe - into) };
            let (volume, start) = &piece.on[(stripe % count) as usize];
            let place = (stripe / count)
                .checked_mul(piece.stripe)
                .and_then(|place| place.checked_add(into));
            let place = place.and_then(|place| place.checked_add(*start)).ok_or_else(bad)?;
            let step = left.min((buffer.len() - done) as u64) as usize;
            volume.read_at(&mut buffer[done..done + step], place)?;
            done += step;
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        let next = self.pieces.partition_point(|piece| piece.start <= offset);
        let piece = &self.pieces[next.checked_sub(1)?];
        // Of what is in stripes or has copies, a byte is not all there is to write.
        let [(volume, start)] = &piece.on[..] else { return None };
        let within = Some(offset - piece.start).filter(|&within| within < piece.length)?;
        volume.place(start.checked_add(within)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Memory, read};

    #[test]
    fn stripes_take_turns_and_pieces_follow_each_other() {
        let volume = |text: &str| Arc::new(Memory(text.into())) as Arc<dyn Volume>;
        let pieces = Pieces::new(vec![
            Piece { start: 8, length: 3, stripe: 3, on: vec![(volume("xxxyz"), 2)] },
            Piece {
                start: 0,
                length: 8,
                stripe: 2,
                on: vec![(volume("abef"), 0), (volume("cdgh"), 0)],
            },
        ])
        .unwrap();
        assert_eq!(read(&pieces, 0, 11).unwrap(), b"abcdefghxyz");
        assert_eq!(read(&pieces, 3, 6).unwrap(), b"defghx");
        assert!(read(&pieces, 3, 9).is_err() && read(&pieces, 11, 1).is_err());
    }
}
