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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

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
        assert_eq!(section(&file, ".linux"), Some(&b"kernel"[..]));
        assert_eq!(section(&file, ".initrd"), None);
        (0..file.len()).for_each(|length| assert_eq!(section(&file[..length], ".linux"), None));
    }
}
