//! What a guest reads about the computer that it is on.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::vm::is_default;
use crate::{Error, Result, option};

/// What the machine's SMBIOS tables tell the guest (DMTF DSP0134 3.7, sections 7.2 and 7.12): Linux shows it below
/// `/sys/class/dmi/id`. As a text: `UUID[,serial=TEXT]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Smbios {
    /// The system's UUID as Linux shows it (`product_uuid`); none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// The system's serial number (`product_serial`); none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Texts for programs in the guest, such as systemd's `io.systemd.credential:NAME=TEXT`.
    #[serde(skip_serializing_if = "is_default")]
    pub oem_strings: Vec<String>,
}

/// A UUID in the order of its text (RFC 9562), written `123e4567-e89b-12d3-a456-426614174000`; braces and capital
/// letters are read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub [u8; 16]);

/// A text that is no UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a UUID such as 123e4567-e89b-12d3-a456-426614174000")]
pub struct UuidError(String);

/// Characters of a text with its hyphens.
const LENGTH: usize = 36;

impl Smbios {
    pub(crate) fn merge(self, over: Self) -> Self {
        let Self { uuid, serial, oem_strings } = over;
        Self {
            uuid: uuid.or(self.uuid),
            serial: serial.or(self.serial),
            oem_strings: if oem_strings.is_empty() { self.oem_strings } else { oem_strings },
        }
    }
}

impl Uuid {
    /// The same number with the bytes of its first three fields turned around: what a UUID becomes between a reader who
    /// takes them for little-endian and one who does not.
    #[must_use]
    pub fn swapped(self) -> Self {
        let mut bytes = self.0;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Self(bytes)
    }
}

impl FromStr for Smbios {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "uuid")
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> std::result::Result<Self, UuidError> {
        parse(text).ok_or_else(|| UuidError(text.chars().take(2 * LENGTH).collect()))
    }
}

fn parse(text: &str) -> Option<Uuid> {
    let inside = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    let text = inside.unwrap_or(text);
    let hyphens = [8, 13, 18, 23];
    let as_written = |(place, byte): (usize, u8)| {
        if hyphens.contains(&place) { byte == b'-' } else { byte.is_ascii_hexdigit() }
    };
    if text.len() != LENGTH || !text.bytes().enumerate().all(as_written) {
        return None;
    }
    let number = u128::from_str_radix(&text.replace('-', ""), 16).ok()?;
    Some(Uuid(number.to_be_bytes()))
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let hyphen = if [4, 6, 8, 10].contains(&place) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Uuid {
    type Error = UuidError;

    fn try_from(text: String) -> std::result::Result<Self, UuidError> {
        text.parse()
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}

impl JsonSchema for Uuid {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Uuid".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "uuid" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_and_written() {
        let uuid: Uuid = "{123E4567-e89b-12d3-a456-426614174000}".parse().unwrap();
        assert_eq!(uuid.to_string(), "123e4567-e89b-12d3-a456-426614174000");
        assert_eq!(uuid.swapped().to_string(), "67453e12-9be8-d312-a456-426614174000");
        assert_eq!(uuid.swapped().swapped(), uuid);
        for wrong in ["", "123e4567", "123e4567-e89b-12d3-a456-42661417400", "{}", "é"] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
        assert!("123e4567+e89b-12d3-a456-426614174000".parse::<Uuid>().is_err());
    }

    #[test]
    fn an_option_begins_with_the_uuid() {
        let text = "123e4567-e89b-12d3-a456-426614174000,serial=abc,oem-strings=a=b,oem-strings=c";
        let smbios: Smbios = text.parse().unwrap();
        assert_eq!(smbios.uuid.unwrap().to_string(), text[..36]);
        assert_eq!(smbios.serial.as_deref(), Some("abc"));
        assert_eq!(smbios.oem_strings, ["a=b", "c"]);
        assert!("web".parse::<Smbios>().is_err());
    }
}
