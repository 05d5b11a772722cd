//! Files as text, whatever their encoding.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

use crate::{Error, Place, Result};

/// The largest description that is read: VirtualBox keeps certificates and thumbnails in its own, and
/// none of a real VM was ever seen to pass a few megabytes.
pub(crate) const LARGEST: u64 = 16 << 20;

/// Reads a whole file that is not absurdly large.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let reading = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(reading)?;
    let metadata = file.metadata().map_err(reading)?;
    if !metadata.is_file() {
        return Err(error(path, "It is not an ordinary file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(reading)?;
    if bytes.len() as u64 > LARGEST {
        return Err(error(
            path,
            format!("It is larger than {} MiB: no description", LARGEST >> 20),
        ));
    }
    Ok(bytes)
}

/// How much of a file tells what it is.
pub(crate) const HEAD: usize = 64 << 10;

/// The first [`HEAD`] bytes of a file, or all if it is shorter.
pub(crate) fn read_head(path: &Path) -> Result<Vec<u8>> {
    let reading = |source| Error::Read { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD as u64).read_to_end(&mut head))
        .map_err(reading)?;
    Ok(head)
}

/// An error about a whole file.
pub(crate) fn error(path: &Path, message: impl Into<String>) -> Error {
    let place = Place { file: path.display().to_string(), position: None };
    Error::File { place, message: message.into() }
}

/// A text in which bytes are written as in addresses, `%20`; `None` if none was.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = match (first, after) {
            (b'%', [high, low, ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high)
                    .zip(digit(low))
                    .and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    let decoded = String::from_utf8(bytes).ok()?;
    (decoded != text).then_some(decoded)
}

/// The text of XML: by its byte order mark, its declaration, or as UTF-8.
pub(crate) fn decode_xml(bytes: &[u8]) -> Cow<'_, str> {
    if Encoding::for_bom(bytes).is_some() {
        return decode_as(bytes, UTF_8);
    }
    match bytes {
        [b'<', 0, ..] => return decode_as(bytes, UTF_16LE),
        [0, b'<', ..] => return decode_as(bytes, UTF_16BE),
        _ => {}
    }
    let head = &bytes[..bytes.len().min(200)];
    let named = head
        .windows(9)
        .position(|window| window.eq_ignore_ascii_case(b"encoding="))
        .and_then(|at| {
            let rest = &head[at + 9..];
            let quote = *rest.first()?;
            let end = rest[1..].iter().position(|byte| *byte == quote)?;
            Encoding::for_label(&rest[1..=end])
        })
        // Eight-bit text that says UTF-16 was converted by someone who left the declaration.
        .filter(|encoding| head.starts_with(b"<?xml") && !is_utf16(encoding));
    decode_as(bytes, named.unwrap_or(UTF_8))
}

/// The text of bytes in a named encoding; UTF-8 if the name is unknown or absent. Bytes that are no
/// UTF-8 although they should be are taken for Windows' western European ones.
pub(crate) fn decode_named<'a>(bytes: &'a [u8], name: Option<&str>) -> Cow<'a, str> {
    let encoding = name.and_then(|name| Encoding::for_label(name.as_bytes())).unwrap_or(UTF_8);
    if encoding == UTF_8
        && Encoding::for_bom(bytes).is_none()
        && std::str::from_utf8(bytes).is_err()
    {
        return decode_as(bytes, WINDOWS_1252);
    }
    decode_as(bytes, encoding)
}

fn is_utf16(encoding: &'static Encoding) -> bool {
    encoding == UTF_16LE || encoding == UTF_16BE
}

fn decode_as<'a>(bytes: &'a [u8], encoding: &'static Encoding) -> Cow<'a, str> {
    encoding.decode(bytes).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_found_by_mark_and_by_declaration() {
        let utf16: Vec<u8> = "\u{feff}<a>ü</a>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode_xml(&utf16), "<a>ü</a>");
        assert_eq!(decode_xml(&utf16[2..]), "<a>ü</a>");
        assert_eq!(
            decode_xml(b"<?xml version='1.0' encoding='iso-8859-1'?><a>\xfc</a>"),
            "<?xml version='1.0' encoding='iso-8859-1'?><a>ü</a>"
        );
        assert_eq!(decode_xml("<a>ü</a>".as_bytes()), "<a>ü</a>");
        let said = b"<?xml version=\"1.0\" encoding=\"UTF-16\"?><a/>";
        assert_eq!(decode_xml(said).as_bytes(), said);
        assert_eq!(decode_named(b"\xfc", None), "ü");
        assert_eq!(decode_named(b"\xfc", Some("windows-1252")), "ü");
        assert_eq!(decode_named(b"\x83\x65", Some("Shift_JIS")), "テ");
        assert_eq!(decode_named("ü".as_bytes(), Some("no such")), "ü");
    }
}
