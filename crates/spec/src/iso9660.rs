//! A small ISO 9660 image with Rock Ridge names: one folder, files of any content.
//!
//! Sources: ECMA-119 (the sections are named below), IEEE P1281 (SUSP) and P1282 (RRIP).

const SECTOR: usize = 2048;
/// The system area stays empty.
const DESCRIPTORS: usize = 16;
const PATH_TABLE_LITTLE: usize = 18;
const PATH_TABLE_BIG: usize = 19;
const ROOT: usize = 20;
const CONTENT: usize = 21;
/// A path table with the root alone.
const PATH_TABLE_LENGTH: u32 = 10;

/// An image with this label and these files, a handful with names of up to 100 bytes.
pub(crate) fn image(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut at = CONTENT;
    let mut places = Vec::new();
    for (_, content) in files {
        places.push(at);
        at += content.len().div_ceil(SECTOR);
    }
    let mut image = vec![0; at * SECTOR];
    descriptor(&mut image[DESCRIPTORS * SECTOR..][..SECTOR], label, at);
    let terminator = &mut image[(DESCRIPTORS + 1) * SECTOR..];
    // 8.3: the end of the descriptors.
    terminator[0] = 255;
    terminator[1..7].copy_from_slice(b"CD001\x01");
    // 9.4: length of the name, no attributes, place, parent, name.
    let root = sector_number(ROOT);
    let table =
        |place: [u8; 4], parent: [u8; 2]| [&[1, 0], &place[..], &parent[..], &[0, 0]].concat();
    image[PATH_TABLE_LITTLE * SECTOR..][..10].copy_from_slice(&table(root.to_le_bytes(), [1, 0]));
    image[PATH_TABLE_BIG * SECTOR..][..10].copy_from_slice(&table(root.to_be_bytes(), [0, 1]));
    let folder = folder(files, &places);
    image[ROOT * SECTOR..][..folder.len()].copy_from_slice(&folder);
    for ((_, content), place) in files.iter().zip(places) {
        image[place * SECTOR..][..content.len()].copy_from_slice(content);
    }
    image
}

/// 8.4: the primary volume descriptor.
fn descriptor(sector: &mut [u8], label: &str, sectors: usize) {
    sector[0] = 1;
    sector[1..7].copy_from_slice(b"CD001\x01");
    let mut text = |range: std::ops::Range<usize>, text: &str| {
        sector[range.clone()].fill(b' ');
        let count = text.len().min(range.len());
        sector[range.start..range.start + count].copy_from_slice(&text.as_bytes()[..count]);
    };
    text(8..40, "");
    text(40..72, label);
    for range in [190..318, 318..446, 446..574, 574..702, 702..739, 739..776, 776..813] {
        text(range, "");
    }
    sector[80..88].copy_from_slice(&both(sector_number(sectors)));
    for at in [120, 124] {
        sector[at..at + 4].copy_from_slice(&[1, 0, 0, 1]);
    }
    sector[128..132].copy_from_slice(&[0, 8, 8, 0]);
    sector[132..140].copy_from_slice(&both(PATH_TABLE_LENGTH));
    sector[140..144].copy_from_slice(&sector_number(PATH_TABLE_LITTLE).to_le_bytes());
    sector[148..152].copy_from_slice(&sector_number(PATH_TABLE_BIG).to_be_bytes());
    sector[156..190].copy_from_slice(&record(&[0], ROOT, SECTOR, true, &[]));
    for at in [813, 830, 847, 864] {
        // 8.4.26.1: no date is digits of zero and an offset of zero.
        sector[at..at + 16].fill(b'0');
    }
    sector[881] = 1;
}

/// The root folder: itself, its parent (itself again), the files.
fn folder(files: &[(&str, &[u8])], places: &[usize]) -> Vec<u8> {
    let folder_mode = mode(0o040_555, 2);
    let mut own = vec![b'S', b'P', 7, 1, 0xbe, 0xef, 0];
    own.extend_from_slice(&folder_mode);
    // P1281, 5.5: which extension is used, without words about it.
    own.extend_from_slice(&[b'E', b'R', 18, 1, 10, 0, 0, 1]);
    own.extend_from_slice(b"RRIP_1991A");
    let mut bytes = record(&[0], ROOT, SECTOR, true, &own);
    bytes.extend(record(&[1], ROOT, SECTOR, true, &folder_mode));
    let mut records: Vec<_> = files
        .iter()
        .zip(places)
        .map(|((name, content), place)| {
            let mut system = mode(0o100_444, 1);
            // P1282, 4.1.4: the name as it is.
            system.extend([b'N', b'M', u8::try_from(5 + name.len()).unwrap_or(u8::MAX), 1, 0]);
            system.extend_from_slice(name.as_bytes());
            let short = short(name);
            let record = record(short.as_bytes(), *place, content.len(), false, &system);
            (short, record)
        })
        .collect();
    // 9.3: in the order of their names.
    records.sort();
    bytes.extend(records.into_iter().flat_map(|(_, record)| record));
    bytes
}

/// 9.1: a record of a folder.
fn record(name: &[u8], place: usize, length: usize, is_folder: bool, system: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(sector_number(place)));
    record.extend(both(u32::try_from(length).unwrap_or(u32::MAX)));
    // Seven bytes of date: none. Flags, two for interleaving, the volume.
    record.extend([0; 7]);
    record.extend([u8::from(is_folder) << 1, 0, 0, 1, 0, 0, 1]);
    record.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    record.extend(name);
    if name.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend(system);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = u8::try_from(record.len()).unwrap_or(u8::MAX);
    record
}

/// P1282, 4.1.1: mode, links, owner and group.
fn mode(mode: u32, links: u32) -> Vec<u8> {
    let mut entry = vec![b'P', b'X', 36, 1];
    for number in [mode, links, 0, 0] {
        entry.extend(both(number));
    }
    entry
}

/// 7.5: a name that every reader takes.
fn short(name: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' }
    };
    let name: String = name.chars().map(letter).take(8).collect();
    format!("{name}.;1")
}

/// 7.3.3: a number in both orders of bytes.
fn both(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn sector_number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
