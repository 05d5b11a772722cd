//! Where a tar archive's members lie: ustar (POSIX.1-1988) and what was before it, with the longer names and sizes of
//! pax (POSIX.1-2001) and GNU. Nothing is unpacked to anywhere.

use crate::source::{Source, read_vec};
use crate::{Error, Result};

const BLOCK: u64 = 512;
/// The longest header that says more about the next member.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// A member of a tar archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name with folders, without a `./` before it; it may lead anywhere.
    pub name: Box<str>,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
    /// What it is.
    pub kind: MemberKind,
}

/// What a member of an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A file.
    File,
    /// A folder, which has no bytes of its own.
    Folder,
    /// A link, a device, or what only one program knows.
    Other,
}

/// The members of a tar archive, in their order, until one is damaged: [`Error::Tar`] is the last then.
#[derive(Debug)]
pub struct Members<'a> {
    source: &'a dyn Source,
    /// Where the next header is; nothing past the last one.
    at: Option<u64>,
}

impl Member {
    /// Where its header is in the archive.
    pub fn header(&self) -> u64 {
        self.offset - BLOCK
    }
}

impl<'a> Members<'a> {
    /// Those of an archive that is not compressed.
    pub fn of(source: &'a dyn Source) -> Self {
        Self { source, at: Some(0) }
    }

    /// The next member, and where the header behind it is.
    fn read(&self, mut at: u64) -> Result<Option<(Member, u64)>> {
        let length = self.source.len();
        // What extensions say about the next member.
        let (mut next_name, mut next_size) = (None::<String>, None);
        loop {
            let wrong = |what: &str| Error::Tar { offset: at, what: what.to_owned() };
            // Some writers leave out the blocks of zeros at the end.
            if at == length && at != 0 {
                return Ok(None);
            }
            if length - at < BLOCK {
                return Err(wrong("The archive ends within a header"));
            }
            let mut header = [0; BLOCK as usize];
            self.source.read_at(&mut header, at)?;
            if header == [0; BLOCK as usize] {
                return Ok(None);
            }
            if !is_tar(&header) {
                return Err(wrong("Expected the header of a member: its checksum is wrong"));
            }
            let kind = header[156];
            let is_extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
            let name = if is_extension { None } else { next_name.take() };
            let name = name.unwrap_or_else(|| name_of(&header));
            let size = match kind {
                // The sizes of links and folders are not those of something behind their headers.
                b'1'..=b'6' => Some(0),
                _ => next_size.filter(|_| !is_extension).or_else(|| number(&header[124..136])),
            };
            let size = size.ok_or_else(|| wrong("The size of a member is no number"))?;
            let offset = at + BLOCK;
            let end = offset.checked_add(size).filter(|&end| end <= length).ok_or_else(|| {
                let what = format!(
                    "The archive ends at byte {length}, within the {size} bytes of its member `{name:.80}`"
                );
                Error::Tar { offset, what }
            })?;
            let next = end.checked_next_multiple_of(BLOCK).map_or(length, |next| next.min(length));
            match kind {
                b'x' | b'L' if size > LONGEST_EXTENSION => {
                    return Err(wrong("A header about a member is too long"));
                }
                b'L' => next_name = Some(text(&read_vec(self.source, offset, size as usize)?)),
                b'x' => {
                    for (key, value) in pax(&read_vec(self.source, offset, size as usize)?) {
                        match key {
                            "path" => next_name = Some(value.to_owned()),
                            "size" => next_size = value.parse().ok(),
                            _ => {}
                        }
                    }
                }
                b'g' | b'K' => {}
                _ => {
                    let kind = match kind {
                        b'0' | 0 | b'7' => MemberKind::File,
                        b'5' => MemberKind::Folder,
                        _ => MemberKind::Other,
                    };
                    let name = name.trim_start_matches("./").into();
                    return Ok(Some((Member { name, offset, length: size, kind }, next)));
                }
            }
            at = next;
        }
    }
}

impl Iterator for Members<'_> {
    type Item = Result<Member>;

    fn next(&mut self) -> Option<Result<Member>> {
        let at = self.at.take()?;
        let read = self.read(at).transpose()?;
        Some(read.map(|(member, next)| {
            self.at = Some(next);
            member
        }))
    }
}

/// Whether these are the first bytes of a tar archive, 512 at least: the header of a member.
pub fn is_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..BLOCK as usize) else { return false };
    let field = &header[148..156];
    let sum = |of: fn(u8) -> i64| -> i64 {
        let all: i64 = header.iter().map(|&byte| of(byte)).sum();
        // It counts as spaces.
        all - field.iter().map(|&byte| of(byte)).sum::<i64>() + 8 * 32
    };
    let is_sum = |said: i64| {
        // Some old writers counted signed bytes.
        said != 0 && (said == sum(i64::from) || said == sum(|byte| i64::from(byte.cast_signed())))
    };
    (header[257..262] == *b"ustar" || header[0] != 0)
        && number(field).and_then(|said| said.try_into().ok()).is_some_and(is_sum)
}

fn name_of(header: &[u8; BLOCK as usize]) -> String {
    let name = text(&header[..100]);
    // GNU's old form has other things where ustar has a prefix.
    if header[257..263] != *b"ustar\0" || header[345] == 0 {
        return name;
    }
    format!("{}/{name}", text(&header[345..500]))
}

/// Octal digits, or big-endian binary after a set first bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..]
            .iter()
            .try_fold(first, |value, &byte| Some(value.checked_mul(256)? | u64::from(byte)));
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

/// Lines of `LENGTH KEY=VALUE`, where the length counts all of it.
fn pax(mut bytes: &[u8]) -> Vec<(&str, &str)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|&byte| byte == b' ') {
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse().ok());
        let Some(length) = length.filter(|length| (space + 1..=bytes.len()).contains(length))
        else {
            break;
        };
        let (record, rest) = bytes.split_at(length);
        let line = std::str::from_utf8(&record[space + 1..]).unwrap_or_default();
        records.extend(line.strip_suffix('\n').unwrap_or(line).split_once('='));
        bytes = rest;
    }
    records
}
