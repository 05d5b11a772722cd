//! Finding zeroes.

use std::ops::Range;

/// The parts of `bytes` that are not zeroes, in multiples of `unit`.
pub(super) fn nonzero(bytes: &[u8], unit: usize) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (index, part) in bytes.chunks(unit).enumerate() {
        if is_zero(part) {
            continue;
        }
        let range = index * unit..index * unit + part.len();
        match found.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => found.push(range),
        }
    }
    found
}

/// Looks at the first and last bytes before all others, where data mostly show.
fn is_zero(bytes: &[u8]) -> bool {
    if bytes.first().is_some_and(|&byte| byte != 0) || bytes.last().is_some_and(|&byte| byte != 0) {
        return false;
    }
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && rest.iter().all(|&byte| byte == 0)
}
