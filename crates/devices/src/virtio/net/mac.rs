//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of a network card, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is not the address of a network card.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacAddressError {
    /// It is not six bytes.
    #[error("`{0}` is not an Ethernet address such as 52:54:00:12:34:56")]
    Syntax(String),
    /// It addresses a group, or nobody.
    #[error("{0} is not the address of one network card")]
    NotUnicast(String),
}

impl MacAddress {
    /// A locally administered address that depends on `name` alone, so that a machine keeps its address
    /// from run to run.
    pub fn of_name(name: &str) -> Self {
        // FNV-1a (64 bits): stable for ever, and names that differ a little differ everywhere.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // Its low bits are the best mixed; fold the high ones in.
        let [.., a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
        // 0x52 is a unicast address that is locally administered (bit 1), as KVM guests commonly have.
        Self([0x52, a, b, c, d, e])
    }

    /// The address with these bytes, if it is that of one card.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let group = bytes[0] & 1 != 0;
        (!group && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// Its bytes in the order of the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let bytes = parse(text).ok_or_else(|| MacAddressError::Syntax(text.into()))?;
        Self::new(bytes).ok_or_else(|| MacAddressError::NotUnicast(text.into()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, MacAddressError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut parts = text.split(separator);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        // `from_str_radix` would take a sign, too.
        *byte = part
            .bytes()
            .all(|digit| digit.is_ascii_hexdigit())
            .then(|| u8::from_str_radix(part, 16).ok())??;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        let address: MacAddress = "52:54:00:ab:CD:ef".parse().unwrap();
        assert_eq!(address.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(address.to_string(), "52:54:00:ab:cd:ef");
        assert_eq!("52-54-00-AB-CD-EF".parse(), Ok(address));
        let json = serde_json::to_string(&address).unwrap();
        assert_eq!(serde_json::from_str::<MacAddress>(&json).unwrap(), address);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "52:54:00:ab:cd:+f",
            "5254.00ab.cdef",
            "52:54-00:ab:cd:ef",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError::Syntax(text.into())));
        }
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError::NotUnicast(text.into())));
        }
    }

    #[test]
    fn a_name_makes_a_stable_local_unicast_address() {
        assert_eq!(MacAddress::of_name("web").to_string(), "52:19:48:2c:be:10");
        let mut seen = std::collections::HashSet::new();
        for number in 0..10_000 {
            let address = MacAddress::of_name(&format!("vm{number}"));
            assert_eq!(address.bytes()[0] & 3, 2);
            assert!(seen.insert(address), "two names have one address");
        }
    }
}
