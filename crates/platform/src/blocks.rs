//! Bytes that come in order, cut into the blocks that a [`ReadAhead`] keeps.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use disk::{ReadAhead, RemoteSource};

use crate::{Error, Result};

/// Is handed bytes in order.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// How often a disk's reader tries again after a lost connection.
const ATTEMPTS: u32 = 6;
/// The pause before the first of these; it doubles each time.
const PAUSE: Duration = Duration::from_millis(250);

/// Fills `buffer` from `offset` of a source whose bytes `read` hands out in order. After a lost connection it goes on behind
/// what came.
pub(crate) fn read_at(
    source: &dyn RemoteSource,
    ahead: &ReadAhead,
    buffer: &mut [u8],
    offset: u64,
    read: &dyn Fn(Range<u64>, Take<'_>) -> Result<()>,
) -> disk::Result<()> {
    let length = source.len();
    ahead.read_at(source, buffer, offset, &|run, give| {
        let bytes = run.start * ReadAhead::BLOCK..(run.end * ReadAhead::BLOCK).min(length);
        let mut blocks = Blocks::new(run.start, length);
        let all = patiently(bytes, read, &mut |piece| {
            blocks.push(piece, give);
            Ok(())
        });
        all.map_err(|error| {
            let source_error = std::io::Error::other(error.to_string());
            disk::Error::Io { action: "read", path: source.address().into(), source: source_error }
        })
    })
}

fn patiently(
    mut range: Range<u64>,
    read: &dyn Fn(Range<u64>, Take<'_>) -> Result<()>,
    take: Take<'_>,
) -> Result<()> {
    let mut failures = 0;
    loop {
        let start = range.start;
        let result = read(range.clone(), &mut |bytes| {
            range.start += bytes.len() as u64;
            take(bytes)
        });
        let error = match result {
            Err(error @ (Error::Unreachable { .. } | Error::TimedOut { .. })) => error,
            result => return result,
        };
        failures = if range.start > start { 1 } else { failures + 1 };
        if failures >= ATTEMPTS {
            return Err(error);
        }
        tracing::info!(%error, "reading is tried again");
        std::thread::sleep(PAUSE.saturating_mul(1 << failures));
    }
}

/// The blocks of a source, from one of them on.
struct Blocks {
    number: u64,
    /// Bytes of the whole source, whose last block may be shorter.
    length: u64,
    block: Vec<u8>,
}

impl Blocks {
    /// Bytes that begin with the block `first` of a source of `length` bytes.
    fn new(first: u64, length: u64) -> Self {
        Self { number: first, length, block: Vec::new() }
    }

    /// Takes the next bytes, and gives away each block that is whole by them; what is past the source's end is left out.
    fn push(&mut self, mut piece: &[u8], give: &mut dyn FnMut(u64, Arc<[u8]>)) {
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
