//! Where a tar archive's members lie: POSIX.1-1988 ustar, with the longer names and sizes of pax (POSIX.1-2001) and GNU.

use crate::source::{Source, read_vec};
use crate::{Error, Format, Result};

const BLOCK: u64 = 512;
/// Most members of an archive: those of an XVA are blocks of 1 MiB.
const MAX_MEMBERS: usize = 8 << 20;
/// Longest record of names that belong to the next member.
const MAX_RECORD: u64 = 64 << 10;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, with folders.
    pub name: String,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// The files in a tar archive, in their order; nothing if the source is none.
pub fn members(source: &dyn Source) -> Result<Option<Vec<Member>>> {
    let mut members = Vec::new();
    let mut at = 0;
    let (mut name, mut size) = (None, None);
    // An archive that was cut off ends with its last whole header.
    while source.len().saturating_sub(at) >= BLOCK {
        let header = read_vec(source, at, BLOCK as usize)?;
        if at == 0 && !is_header(&header) {
            return Ok(None);
        }
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        if !is_header(&header) {
            return Err(damaged(format!("what should be a header at {at} is none")));
        }
        let stated = number(&header[124..136]).ok_or_else(|| damaged("a size is no number"))?;
        let kind = header[156];
        let length = match kind {
            b'0' | 0 | b'7' => size.take().unwrap_or(stated),
            _ => stated,
        };
        let start = at + BLOCK;
        let end = start.checked_add(length).filter(|&end| end <= source.len());
        let end = end.ok_or_else(|| damaged("a member passes the end of the file"))?;
        match kind {
            b'L' | b'x' if length > MAX_RECORD => return Err(damaged("a name is too long")),
            b'L' => {
                let bytes = read_vec(source, start, length as usize)?;
                name = Some(text(&bytes));
            }
            b'x' => {
                let record = read_vec(source, start, length as usize)?;
                let (path, length) = pax(&record);
                name = path.or(name);
                size = length;
            }
            b'0' | 0 | b'7' => {
                let short = || {
                    let name = text(&header[..100]);
                    let prefix = text(&header[345..500]);
                    // GNU's archives have other things where ustar has a prefix.
                    let is_gnu = &header[257..265] == b"ustar  \0";
                    if prefix.is_empty() || is_gnu { name } else { format!("{prefix}/{name}") }
                };
                let name = name.take().unwrap_or_else(short);
                let name = name.strip_prefix("./").map(str::to_owned).unwrap_or(name);
                members.push(Member { name, offset: start, length });
                if members.len() > MAX_MEMBERS {
                    return Err(damaged("it has too many members"));
                }
            }
            b'g' => {}
            _ => (name, size) = (None, None),
        }
        at = end.next_multiple_of(BLOCK);
    }
    Ok((at != 0).then_some(members))
}

/// Whether 512 bytes describe a member.
pub(super) fn is_header(header: &[u8]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(index, &byte)| if (148..156).contains(&index) { 32 } else { u64::from(byte) })
        .sum();
    &header[257..262] == b"ustar" && number(&header[148..156]) == Some(sum)
}

/// Octal digits, or GNU's big-endian binary after a set first bit.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let (high, low) = rest.split_at(rest.len().saturating_sub(8));
        if first & 0x7f != 0 || high.iter().any(|&byte| byte != 0) {
            return None;
        }
        return Some(low.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return digits.iter().all(|&byte| byte == 0).then_some(0);
    }
    u64::from_str_radix(std::str::from_utf8(&digits[..end]).ok()?, 8).ok()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Path and size of a pax record: lines of "LENGTH KEY=VALUE".
fn pax(mut record: &[u8]) -> (Option<String>, Option<u64>) {
    let (mut path, mut size) = (None, None);
    while let Some(space) = record.iter().position(|&byte| byte == b' ') {
        let length = std::str::from_utf8(&record[..space]).ok().and_then(|text| text.parse().ok());
        let Some(length) = length.filter(|&length| length > space + 1 && length <= record.len())
        else {
            break;
        };
        let line = record[space + 1..length].strip_suffix(b"\n").unwrap_or_default();
        if let Some(value) = line.strip_prefix(b"path=") {
            path = Some(text(value));
        } else if let Some(value) = line.strip_prefix(b"size=") {
            size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        }
        record = &record[length..];
    }
    (path, size)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::Damaged { format: Format::Raw, what: format!("as a tar archive, {}", what.into()) }
}
