//! Differencing VHDX, which the program does not make: for the tests here, and for those of whole VMs.

use std::fs;
use std::path::Path;

/// Where both images, as they are made here, have their metadata.
const METADATA: usize = 2 << 20;
/// Of the metadata, where the file's parameters are, and room for the locator.
const PARAMETERS: usize = 64 << 10;
const LOCATOR: usize = 128 << 10;
/// Kind of the locator, then its reserved field (MS-VHDX 2.6.2.6, Parent Locator).
const KIND: [u8; 18] = [
    0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13,
    0, 0,
];
/// Identifier of the metadata item that holds it.
const ITEM: [u8; 16] = [
    0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
];

/// Makes the empty image `child` a differencing disk of `parent`, which lies in the same folder.
pub fn link_vhdx(child: &Path, parent: &Path) {
    let name = parent.file_name().unwrap().to_str().unwrap();
    let locator = locator(&[
        ("parent_linkage", &data_write_guid(&fs::read(parent).unwrap())),
        ("relative_path", &format!(".\\{name}")),
    ]);
    let mut bytes = fs::read(child).unwrap();
    let metadata = &mut bytes[METADATA..];
    metadata[LOCATOR..][..locator.len()].copy_from_slice(&locator);
    let count = u16::from_le_bytes([metadata[10], metadata[11]]);
    metadata[10..12].copy_from_slice(&(count + 1).to_le_bytes());
    let entry = &mut metadata[32 + usize::from(count) * 32..][..28];
    entry[..16].copy_from_slice(&ITEM);
    // Its place, its length, and that whoever does not know it must not open the image.
    for (field, value) in [(16, LOCATOR), (20, locator.len()), (24, 4)] {
        entry[field..field + 4].copy_from_slice(&(value as u32).to_le_bytes());
    }
    // The second of the parameters says whether there is a parent.
    metadata[PARAMETERS + 4] |= 2;
    fs::write(child, bytes).unwrap();
}

/// A parent locator with these keys and values.
fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut locator = KIND.to_vec();
    locator.extend_from_slice(&(pairs.len() as u16).to_le_bytes());
    let mut strings = Vec::new();
    for (key, value) in pairs {
        let (key, value) = (utf16(key), utf16(value));
        let at = (20 + pairs.len() * 12 + strings.len()) as u32;
        locator.extend_from_slice(&at.to_le_bytes());
        locator.extend_from_slice(&(at + key.len() as u32).to_le_bytes());
        locator.extend_from_slice(&(key.len() as u16).to_le_bytes());
        locator.extend_from_slice(&(value.len() as u16).to_le_bytes());
        strings.extend_from_slice(&key);
        strings.extend_from_slice(&value);
    }
    [locator, strings].concat()
}

/// The identifier of an image's content, in the header with the greater number.
fn data_write_guid(image: &[u8]) -> String {
    let number = |at: usize| u64::from_le_bytes(image[at + 8..at + 16].try_into().unwrap());
    let (first, second) = (64 << 10, 128 << 10);
    let header = if number(first) > number(second) { first } else { second };
    let bytes = &image[header + 32..header + 48];
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let digits = order.map(|at: usize| format!("{:02X}", bytes[at]));
    let groups = [&digits[..4], &digits[4..6], &digits[6..8], &digits[8..10], &digits[10..]];
    format!("{{{}}}", groups.map(<[String]>::concat).join("-"))
}
