//! The log of a HyperVStorage file: what was under way when the host lost its power.
//!
//! | where | what |
//! |---|---|
//! | in the newer header | the log's offset (26) and length (34) |
//! | the log | signature, CRC-32, number of entries that still count, ...: 34 bytes |
//! | then | entries of 28 bytes: offset and length in the file, where in the log the bytes are, 0, CRC-32 of the entry and of the bytes |
//!
//! Entries that do not count any more stay: from those of real files the form is known.

use std::borrow::Cow;

use super::storage::{HEADER_LENGTH, SECOND_HEADER, SIGNATURE, crc, u16_at, u32_at, u64_at};
use crate::{Error, Place, Result};

const LOG_SIGNATURE: u32 = 0x0111_0003;
const LOG_HEADER: usize = 34;
const ENTRY: usize = 28;
/// A file does not grow by more than this in its log.
const MOST_GROWTH: usize = 16 << 20;

/// The file with what its log still holds.
pub(crate) fn replayed<'a>(bytes: &'a [u8], file: &str) -> Result<Cow<'a, [u8]>> {
    let error = |at: usize, message: &str| {
        let place = Place { file: file.into(), position: None };
        Error::File { place, message: format!("{message} (at offset {at:#x})") }
    };
    let Some(start) = place(bytes) else { return Ok(Cow::Borrowed(bytes)) };
    let header = bytes.get(start..start.saturating_add(LOG_HEADER));
    let header = header.filter(|header| u32_at(header, 0) == Some(LOG_SIGNATURE));
    let header = header.ok_or_else(|| error(start, "Expected a log"))?;
    if crc(header, 4) != u32_at(header, 4).unwrap_or(0) {
        return Err(error(start, "The log is damaged: its checksum is wrong"));
    }
    let mut replayed = Cow::Borrowed(bytes);
    for index in 0..u32_at(header, 8).unwrap_or(0) as usize {
        let at = start + LOG_HEADER + index * ENTRY;
        let entry = bytes.get(at..at + ENTRY).ok_or_else(|| error(at, "The log ends too early"))?;
        let word = |place| u32_at(entry, place).unwrap_or(0);
        let place = u64_at(entry, 0).and_then(|place| usize::try_from(place).ok());
        let length = word(8) as usize;
        let data = start.saturating_add(word(12) as usize);
        let data = bytes.get(data..data.saturating_add(length));
        let whole = data
            .zip(place)
            .filter(|(data, _)| crc(entry, 20) == word(20) && flate2_crc(data) == word(24));
        let (data, place) = whole.ok_or_else(|| error(at, "The log's entry is damaged"))?;
        let end = place.checked_add(length).filter(|end| *end <= bytes.len() + MOST_GROWTH);
        let end = end.ok_or_else(|| error(at, "The log leads out of the file"))?;
        let target = replayed.to_mut();
        if target.len() < end {
            target.resize(end, 0);
        }
        target[place..end].copy_from_slice(data);
    }
    Ok(replayed)
}

/// Where the log begins, by the newer header.
fn place(bytes: &[u8]) -> Option<usize> {
    let header = |at: usize| {
        let header = bytes.get(at..at + HEADER_LENGTH)?;
        let is_good = header.starts_with(&SIGNATURE) && crc(header, 4) == u32_at(header, 4)?;
        is_good.then(|| u16_at(header, 8).zip(u64_at(header, 26)))?
    };
    let headers = [header(0), header(SECOND_HEADER)].into_iter().flatten();
    let (_, start) = headers.max_by_key(|(sequence, _)| *sequence)?;
    usize::try_from(start).ok().filter(|start| *start > 0)
}

fn flate2_crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::super::storage::tests::{add_log, write};
    use super::super::storage::{self};
    use super::*;

    const NUMBER: u8 = 3;

    #[test]
    fn what_is_in_the_log_counts() {
        let old = write(&[("a", NUMBER, &7_u64.to_le_bytes())]);
        let new =
            write(&[("a", NUMBER, &9_u64.to_le_bytes()), ("b", NUMBER, &1_u64.to_le_bytes())]);
        let number = |bytes: &[u8], key: &str| storage::parse(bytes, "x").unwrap().number(key);
        assert_eq!(number(&old, "a"), Some(7));
        // The new table in two parts, the second one behind the end of the old file.
        let mut dirty = old.clone();
        add_log(&mut dirty, &[(0x3000, &new[0x3000..0x3100]), (0x3100, &new[0x3100..])]);
        assert_eq!(replayed(&dirty, "x").unwrap()[0x3000..0x4000], new[0x3000..0x4000]);
        assert_eq!((number(&dirty, "a"), number(&dirty, "b")), (Some(9), Some(1)));
        // A bit of the log's data.
        let last = dirty.len() - 1;
        dirty[last] ^= 1;
        let error = storage::parse(&dirty, "x").err().unwrap().to_string();
        assert!(error.contains("log's entry is damaged") && error.contains("offset"), "{error}");
    }
}
