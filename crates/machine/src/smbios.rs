//! What the machine tells its guest about itself (SMBIOS, DMTF DSP0134 3.7).

use engine::GuestMemory;
use spec::{Smbios, Uuid};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::layout::{SMBIOS, SMBIOS_END};
use crate::{Error, Result};

const MANUFACTURER: &str = "Omnivisor";
const PRODUCT: &str = "Virtual machine";

/// The 64-bit entry point (section 5.2.2).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryPoint {
    anchor: [u8; 5],
    checksum: u8,
    length: u8,
    /// Of the specification, the latest of which something is told.
    version: [u8; 3],
    revision: u8,
    reserved: u8,
    most: U32,
    table: U64,
}

/// Type 0 (section 7.1), behind its header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Bios {
    vendor: u8,
    version: u8,
    segment: U16,
    release_date: u8,
    rom_size: u8,
    characteristics: U64,
    /// The second one says that this is a virtual machine.
    extension: [u8; 2],
    releases: [u8; 4],
    extended_rom_size: U16,
}

/// Type 1 (section 7.2), behind its header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct System {
    manufacturer: u8,
    product: u8,
    version: u8,
    serial: u8,
    uuid: [u8; 16],
    wake_up: u8,
    sku: u8,
    family: u8,
}

/// Bit of the characteristics: the other bits mean nothing (section 7.1.1).
const NO_CHARACTERISTICS: u64 = 1 << 3;
/// Bit of the second extension byte (section 7.1.2.2).
const IS_VIRTUAL: u8 = 1 << 4;
/// The system was started by its power switch (section 7.2.2).
const POWER_SWITCH: u8 = 6;

/// Writes the tables to guest memory, where a kernel that no UEFI has started looks for them (section 5.2).
///
/// # Errors
/// [`Error::TablesTooLarge`] if the texts take more room than there is.
pub fn write(memory: &GuestMemory, smbios: &Smbios) -> Result<()> {
    let mut tables = Tables::default();
    let bios = Bios {
        vendor: 1,
        version: 2,
        segment: 0.into(),
        // None is told: Linux takes a computer with an old date for an old computer.
        release_date: 0,
        rom_size: 0,
        characteristics: NO_CHARACTERISTICS.into(),
        extension: [0, IS_VIRTUAL],
        releases: [u8::MAX; 4],
        extended_rom_size: 0.into(),
    };
    tables.add(0, bios.as_bytes(), &[MANUFACTURER, env!("CARGO_PKG_VERSION")]);
    let system = System {
        manufacturer: 1,
        product: 2,
        version: 0,
        serial: if smbios.serial.is_some() { 3 } else { 0 },
        // All zeroes say that there is none; the first three fields are little-endian (section 7.2.1).
        uuid: smbios.uuid.map_or([0; 16], |uuid: Uuid| uuid.swapped().0),
        wake_up: POWER_SWITCH,
        sku: 0,
        family: 0,
    };
    let mut texts = vec![MANUFACTURER, PRODUCT];
    texts.extend(smbios.serial.as_deref());
    tables.add(1, system.as_bytes(), &texts);
    // A structure counts its texts with one byte (section 7.12).
    for strings in smbios.oem_strings.chunks(usize::from(u8::MAX)) {
        let texts: Vec<&str> = strings.iter().map(String::as_str).collect();
        tables.add(11, &[texts.len() as u8], &texts);
    }
    tables.add(127, &[], &[]);

    let table = SMBIOS + size_of::<EntryPoint>().next_multiple_of(16) as u64;
    if table + tables.bytes.len() as u64 > SMBIOS_END {
        return Err(Error::TablesTooLarge);
    }
    memory.write_slice(&tables.bytes, GuestAddress(table))?;
    let mut entry = EntryPoint {
        anchor: *b"_SM3_",
        checksum: 0,
        length: size_of::<EntryPoint>() as u8,
        version: [3, 3, 0],
        revision: 1,
        reserved: 0,
        most: (tables.bytes.len() as u32).into(),
        table: table.into(),
    };
    let sum = entry.as_bytes().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    entry.checksum = sum.wrapping_neg();
    memory.write_slice(entry.as_bytes(), GuestAddress(SMBIOS))?;
    Ok(())
}

#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    count: u16,
}

impl Tables {
    /// Adds a structure: header, what its type has, and its texts, to which fields refer by number from 1 on (section 6.1).
    fn add(&mut self, kind: u8, fields: &[u8], texts: &[&str]) {
        self.bytes.extend([kind, 4 + fields.len() as u8]);
        self.bytes.extend(self.count.to_le_bytes());
        self.count += 1;
        self.bytes.extend(fields);
        for text in texts {
            self.bytes.extend(text.as_bytes());
            self.bytes.push(0);
        }
        self.bytes.push(0);
        if texts.is_empty() {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(smbios: &Smbios) -> Result<Vec<u8>> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory, smbios)?;
        let mut bytes = vec![0; (SMBIOS_END - SMBIOS) as usize];
        memory.read_slice(&mut bytes, GuestAddress(SMBIOS)).unwrap();
        Ok(bytes)
    }

    #[test]
    fn the_entry_point_adds_up_and_leads_to_the_structures() {
        let smbios = Smbios {
            uuid: Some("123e4567-e89b-12d3-a456-426614174000".parse().unwrap()),
            serial: Some("VMware-1".into()),
            oem_strings: vec!["a=b".into(), "c".into()],
        };
        let bytes = written(&smbios).unwrap();
        let (entry, tables) = bytes.split_at(24);
        assert_eq!((&entry[..5], entry[6]), (&b"_SM3_"[..], 24));
        assert_eq!(entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(entry[16..], (SMBIOS + 32).to_le_bytes());
        let length = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let mut rest = &tables[8..8 + length];
        let mut found = Vec::new();
        while let [kind, header, ..] = *rest {
            let (fields, texts) = rest.split_at(header.into());
            let end = texts.windows(2).position(|pair| pair == [0, 0]).unwrap();
            found.push((kind, fields, String::from_utf8(texts[..end].to_vec()).unwrap()));
            rest = &texts[end + 2..];
        }
        let kinds: Vec<u8> = found.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 11, 127]);
        assert_eq!(found[1].2, "Omnivisor\0Virtual machine\0VMware-1");
        assert_eq!(found[1].1[8..12], [0x67, 0x45, 0x3e, 0x12]);
        assert_eq!(found[1].1.len(), 27);
        assert_eq!((found[2].1[4], found[2].2.as_str()), (2, "a=b\0c"));
        assert_eq!(found[0].1.len(), 26);
    }

    #[test]
    fn what_takes_too_much_room_is_refused() {
        let smbios = Smbios { oem_strings: vec!["x".repeat(1 << 16)], ..Smbios::default() };
        assert!(matches!(written(&smbios), Err(Error::TablesTooLarge)));
        assert!(written(&Smbios { oem_strings: vec!["x".into(); 300], ..smbios }).is_ok());
    }
}
