//! How a differencing disk names its parent.

use super::header::{DynamicHeader, Locator, damaged};
use crate::open::{Identity, ParentLink, portable_names};
use crate::source::{Source, read_vec};
use crate::{Format, Result};

/// Longest path that Windows knows, in bytes of UTF-16.
const MAX_PATH_BYTES: u32 = 65536;

/// The parent's names, relative ones first.
pub(super) fn link(header: &DynamicHeader, source: &dyn Source) -> Result<ParentLink> {
    let mut names = Vec::new();
    for code in [b"W2ru", b"W2ku", b"MacX"] {
        let locators = header.parent_locators.iter();
        for locator in locators.filter(|locator| &locator.platform_code == code) {
            names.extend(portable_names(&path(locator, source)?));
        }
    }
    let name = header.parent_unicode_name.iter().map(|unit| unit.get());
    let name: Vec<u16> = name.take_while(|&unit| unit != 0).collect();
    if !name.is_empty() {
        names.extend(portable_names(&String::from_utf16_lossy(&name)));
    }
    let identity = Some(Identity::Uuid(header.parent_unique_id));
    Ok(ParentLink { names, format: Some(Format::Vhd), identity })
}

fn path(locator: &Locator, source: &dyn Source) -> Result<String> {
    let length = locator.platform_data_length.get();
    if length > MAX_PATH_BYTES {
        return Err(damaged("the path of its parent is too long"));
    }
    let bytes = read_vec(source, locator.platform_data_offset.get(), length as usize)?;
    if &locator.platform_code == b"MacX" {
        let text = String::from_utf8_lossy(&bytes);
        return Ok(text.trim_start_matches("file://").trim_end_matches('\0').to_owned());
    }
    // The specification says little-endian for both; its own name field is big-endian.
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    Ok(String::from_utf16_lossy(&units))
}
