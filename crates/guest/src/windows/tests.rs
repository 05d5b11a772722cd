use super::*;
use crate::volume::{Memory, Volume};

/// A hive with one key per path, of which only the last one has values: texts and numbers.
fn hive() -> Vec<u8> {
    let mut bins = vec![0; 32];
    bins[..4].copy_from_slice(b"hbin");
    // A number in a value, and a text beside it.
    let text: Vec<u8> = "Pro\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let text = cell(&mut bins, &text);
    let number = value(&mut bins, "Start", 4, 0x8000_0004, 3);
    let edition = value(&mut bins, "EditionID", 1, 8, text);
    let list = cell(&mut bins, &[number.to_le_bytes(), edition.to_le_bytes()].concat());
    let below = key(&mut bins, "StorAHCI", (0, 0), (2, list));
    let keys = [&b"lh\x01\0"[..], &below.to_le_bytes(), &hash_of_upper("STORAHCI").to_le_bytes()];
    let keys = cell(&mut bins, &keys.concat());
    let root = key(&mut bins, "ROOT", (1, keys), (0, 0));
    let mut hive = vec![0; 4096];
    hive[..4].copy_from_slice(b"regf");
    hive[36..40].copy_from_slice(&root.to_le_bytes());
    bins.resize(4096, 0);
    [hive, bins].concat()
}

fn cell(bins: &mut Vec<u8>, content: &[u8]) -> u32 {
    let place = bins.len() as u32;
    let length = (content.len() + 4).next_multiple_of(8);
    bins.extend((-(length as i32)).to_le_bytes());
    bins.extend(content);
    bins.resize(place as usize + length, 0);
    place
}

fn key(bins: &mut Vec<u8>, name: &str, keys: (u32, u32), values: (u32, u32)) -> u32 {
    let mut content = vec![0; 76];
    content[..4].copy_from_slice(b"nk\x20\0");
    for (place, number) in [(20, keys.0), (28, keys.1), (36, values.0), (40, values.1)] {
        content[place..place + 4].copy_from_slice(&number.to_le_bytes());
    }
    content[72] = name.len() as u8;
    content.extend(name.as_bytes());
    cell(bins, &content)
}

fn value(bins: &mut Vec<u8>, name: &str, kind: u32, size: u32, data: u32) -> u32 {
    let mut content = b"vk".to_vec();
    content.extend((name.len() as u16).to_le_bytes());
    for number in [size, data, kind, 1] {
        content.extend(number.to_le_bytes());
    }
    content.extend(name.as_bytes());
    cell(bins, &content)
}

fn hash_of_upper(name: &str) -> u32 {
    name.bytes().fold(0, |hash: u32, byte| hash.wrapping_mul(37).wrapping_add(byte.into()))
}

fn file(bytes: Vec<u8>) -> Arc<dyn Volume> {
    Arc::new(Memory(bytes))
}

#[test]
fn keys_and_values_are_found() {
    let hive = Hive::open(file(hive()), &[]).unwrap();
    let key = hive.key("storahci").unwrap().unwrap();
    let start = hive.value(&key, "START").unwrap().unwrap();
    assert_eq!((start.number(), start.text()), (Some(3), None));
    let mut there = [0; 4];
    hive.file().read_at(&mut there, start.place().unwrap()).unwrap();
    assert_eq!(there, [3, 0, 0, 0]);
    let edition = hive.value(&key, "EditionID").unwrap().unwrap();
    assert_eq!((edition.text().as_deref(), edition.place()), (Some("Pro"), None));
    assert!(hive.key("none").unwrap().is_none() && !hive.is_dirty());
    assert!(hive.value(&key, "none").unwrap().is_none());
}

#[test]
fn newer_transactions_of_a_log_count() {
    let mut bytes = hive();
    let opened = Hive::open(file(bytes.clone()), &[]).unwrap();
    let key = opened.key("StorAHCI").unwrap().unwrap();
    let place = opened.value(&key, "Start").unwrap().unwrap().place().unwrap() as usize;
    // The header says that the second write of 7 did not take place.
    bytes[4] = 8;
    bytes[8] = 7;
    let transaction = |sequence: u32, start: u8| {
        let mut page = bytes[4096..].to_vec();
        page[place - 4096] = start;
        let mut entry = b"HvLE".to_vec();
        let size = (48 + page.len()).next_multiple_of(512);
        for number in [size as u32, 0, sequence, 4096, 1, 0, 0, 0, 0, 0, 4096] {
            entry.extend(number.to_le_bytes());
        }
        entry.extend(page);
        entry.resize(size, 0);
        entry
    };
    let log = [vec![0; 512], transaction(7, 1), transaction(8, 2), transaction(3, 9)].concat();
    let hive = Hive::open(file(bytes.clone()), &[file(log)]).unwrap();
    assert!(hive.is_dirty());
    let key = hive.key("StorAHCI").unwrap().unwrap();
    assert_eq!(hive.value(&key, "Start").unwrap().unwrap().number(), Some(2));
}

#[test]
fn damaged_hives_are_errors_at_worst() {
    let good = hive();
    let written = good.iter().rposition(|&byte| byte != 0).unwrap();
    for place in (0..48).chain(4096..written) {
        for byte in [0, 1, 0xff] {
            let mut bytes = good.clone();
            bytes[place] = byte;
            if bytes[place] != good[place] {
                fuzz_hive(&bytes);
            }
        }
    }
    for length in (0..good.len()).step_by(97) {
        fuzz_hive(&good[..length]);
    }
}
