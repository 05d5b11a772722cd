//! Sections of a PE file: a unified kernel image (UAPI.5) carries kernel, initrd and command line in them.

use crate::volume::{at, text_of};

/// Most sections; the format allows more than any linker writes.
const MAX_SECTIONS: u16 = 96;
const SECTION: usize = 40;

/// The content of the first section of that name.
pub fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let header = at::le32(file, 0x3c)? as usize;
    if !file.starts_with(b"MZ") || !file.get(header..)?.starts_with(b"PE\0\0") {
        return None;
    }
    let count = at::le16(file, header + 6)?.min(MAX_SECTIONS);
    let optional = usize::from(at::le16(file, header + 20)?);
    let table = header + 24 + optional;
    for index in 0..usize::from(count) {
        let entry = file.get(table + index * SECTION..)?.get(..SECTION)?;
        if text_of(&entry[..8]) != name {
            continue;
        }
        let (in_memory, in_file) = (at::le32(entry, 8)?, at::le32(entry, 16)?);
        // The file's part is rounded up to the alignment of the file.
        let length = if in_memory == 0 { in_file } else { in_memory.min(in_file) };
        let start = at::le32(entry, 20)? as usize;
        return file.get(start..start.checked_add(length as usize)?);
    }
    None
}
