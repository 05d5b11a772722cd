//! The property list: `resource-fork`, `blkx`, and for each partition a table in base64.

use quick_xml::Reader;
use quick_xml::events::Event;

use super::damaged;
use crate::Result;

/// Most partitions.
const MAX_TABLES: usize = 1024;

/// The tables of all partitions.
pub(super) fn tables(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let text = std::str::from_utf8(text).map_err(|_| damaged("its property list is no text"))?;
    let mut reader = Reader::from_str(text);
    let mut found = Vec::new();
    let mut value = String::new();
    // Within the array that follows the key `blkx`, at which depth.
    let (mut depth, mut array, mut is_next) = (0_u32, None, false);
    loop {
        let event = reader.read_event();
        match event.map_err(|error| damaged(format!("its property list is no XML: {error}")))? {
            Event::Start(start) => {
                depth += 1;
                if is_next && start.name().as_ref() == "array" {
                    array = Some(depth);
                }
                is_next = false;
                value.clear();
            }
            Event::Text(text) => value.push_str(&text),
            Event::End(end) => {
                match end.name().as_ref() {
                    "key" => is_next = value.trim() == "blkx",
                    "data" if array.is_some() => {
                        found.push(
                            base64(&value).ok_or_else(|| damaged("a table of it is no base64"))?,
                        );
                        if found.len() > MAX_TABLES {
                            return Err(damaged("it has too many partitions"));
                        }
                    }
                    _ => {}
                }
                if array == Some(depth) {
                    array = None;
                }
                depth = depth.saturating_sub(1);
                value.clear();
            }
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            // The eight bits that are complete.
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_of_every_length_is_decoded() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9v\n\tYg==", b"foob"),
        ] {
            assert_eq!(super::base64(text).unwrap(), bytes);
        }
        assert_eq!(super::base64("Zm9*"), None);
    }
}
