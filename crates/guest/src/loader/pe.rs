//! Sections of a PE file: a unified kernel image (UAPI.5) carries kernel, initrd and command line in them.

use crate::volume::{Volume, at, read, read_up_to, text_of};

/// Most sections; the format allows more than any linker writes.
const MAX_SECTIONS: u16 = 96;
const SECTION: usize = 40;
/// Headers lie within it.
const HEAD: usize = 64 << 10;

/// The content of the first section of that name, if that is at most `limit` bytes. Nothing else is read but the
/// headers: kernel and initrd are most of the file.
pub fn section(file: &dyn Volume, name: &str, limit: u64) -> Option<Vec<u8>> {
    let head = read_up_to(file, 0, HEAD).ok()?;
    let (start, length) = place(&head, name)?;
    let is_there = start.checked_add(length).is_some_and(|end| end <= file.len());
    read(file, start, usize::try_from(length).ok().filter(|_| is_there && length <= limit)?).ok()
}

/// There is a section of that name.
pub fn has_section(file: &dyn Volume, name: &str) -> bool {
    read_up_to(file, 0, HEAD).is_ok_and(|head| place(&head, name).is_some())
}

/// Where a section begins in the file, and its length.
fn place(head: &[u8], name: &str) -> Option<(u64, u64)> {
    let header = at::le32(head, 0x3c)? as usize;
    if !head.starts_with(b"MZ") || !head.get(header..)?.starts_with(b"PE\0\0") {
        return None;
    }
    let count = at::le16(head, header + 6)?.min(MAX_SECTIONS);
    let optional = usize::from(at::le16(head, header + 20)?);
    let table = header + 24 + optional;
    for index in 0..usize::from(count) {
        let entry = head.get(table + index * SECTION..)?.get(..SECTION)?;
        if text_of(&entry[..8]) != name {
            continue;
        }
        let (in_memory, in_file) = (at::le32(entry, 8)?, at::le32(entry, 16)?);
        // The file's part is rounded up to the alignment of the file.
        let length = if in_memory == 0 { in_file } else { in_memory.min(in_file) };
        return Some((at::le32(entry, 20)?.into(), length.into()));
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::volume::Memory;

    /// A PE file of these sections and nothing else.
    pub fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file.extend(b"PE\0\0\x64\x86");
        file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        file.resize(0x40 + 24, 0);
        let mut place = file.len() + sections.len() * SECTION;
        for (name, content) in sections {
            let start = file.len();
            let length = u32::try_from(content.len()).unwrap().to_le_bytes();
            file.extend(name.as_bytes());
            file.resize(start + 8, 0);
            file.extend(
                [length, [0; 4], length, u32::try_from(place).unwrap().to_le_bytes()].concat(),
            );
            file.resize(start + SECTION, 0);
            place += content.len();
        }
        sections.iter().for_each(|(_, content)| file.extend(*content));
        file
    }

    #[test]
    fn a_section_is_what_is_between_its_ends() {
        let file = image(&[(".osrel", b"ID=a"), (".linux", b"kernel")]);
        let linux = |length: usize, limit| section(&Memory(file[..length].into()), ".linux", limit);
        assert_eq!(linux(file.len(), 6).as_deref(), Some(&b"kernel"[..]));
        assert_eq!(linux(file.len(), 5), None);
        assert_eq!(section(&Memory(file.clone()), ".initrd", 9), None);
        (0..file.len()).for_each(|length| assert_eq!(linux(length, 6), None));
    }
}
