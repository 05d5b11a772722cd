//! Bytes that come in order, cut into the blocks that a [`ReadAhead`] keeps.

use std::sync::Arc;

use disk::ReadAhead;

/// The blocks of a source, from one of them on.
pub(crate) struct Blocks {
    number: u64,
    /// Bytes of the whole source, whose last block may be shorter.
    length: u64,
    block: Vec<u8>,
}

impl Blocks {
    /// Bytes that begin with the block `first` of a source of `length` bytes.
    pub fn new(first: u64, length: u64) -> Self {
        Self { number: first, length, block: Vec::new() }
    }

    /// Takes the next bytes, and gives away each block that is whole by them; what is past the source's end is left out.
    pub fn push(&mut self, mut piece: &[u8], give: &mut dyn FnMut(u64, Arc<[u8]>)) {
        while !piece.is_empty() {
            let start = self.number * ReadAhead::BLOCK;
            let size = self.length.saturating_sub(start).min(ReadAhead::BLOCK) as usize;
            if size == 0 {
                return;
            }
            let (now, later) = piece.split_at(piece.len().min(size - self.block.len()));
            self.block.extend_from_slice(now);
            piece = later;
            if self.block.len() == size {
                give(self.number, std::mem::take(&mut self.block).into());
                self.number += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_become_blocks() {
        let length = 2 * ReadAhead::BLOCK + 5;
        let mut given = Vec::new();
        let mut blocks = Blocks::new(1, length);
        let bytes = vec![7; (ReadAhead::BLOCK + 5) as usize];
        for piece in bytes.chunks(1000) {
            blocks.push(piece, &mut |number, block| given.push((number, block.len() as u64)));
        }
        blocks.push(&[1], &mut |_, _| panic!("nothing is past the end"));
        assert_eq!(given, [(1, ReadAhead::BLOCK), (2, 5)]);
    }
}
