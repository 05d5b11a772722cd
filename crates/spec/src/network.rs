//! Addresses and ports of network cards.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A network card's hardware address, written `52:54:00:12:34:56`; hyphens are read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a hardware address such as 52:54:00:12:34:56")]
pub struct MacAddressError(String);

/// A port of the host that leads into the guest, written `[ADDRESS:]HOST[:GUEST][/udp]`: `8080:80`,
/// `53/udp`, `127.0.0.1:2222:22`, `[::1]:2222:22`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// The host's address; all of its addresses if absent.
    pub address: Option<IpAddr>,
    /// The port on the host.
    pub host: NonZeroU16,
    /// The port in the guest.
    pub guest: NonZeroU16,
    /// What runs over it.
    pub protocol: Protocol,
}

/// What runs over a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A text that names no port to forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port to forward such as 8080:80, 53/udp or 127.0.0.1:2222:22")]
pub struct ForwardError(String);

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

    /// Whether it names a group of cards instead of one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it names one card: neither a group nor nobody.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        parse_address(text).ok_or_else(|| MacAddressError(text.chars().take(LONGEST).collect()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        parse_forward(text).ok_or_else(|| ForwardError(text.chars().take(LONGEST).collect()))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

/// How much of a wrong text an error repeats.
const LONGEST: usize = 60;

fn parse_address(text: &str) -> Option<MacAddress> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        let part = parts.next()?;
        let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = digits.then(|| u8::from_str_radix(part, 16).ok())??;
    }
    parts.next().is_none().then_some(MacAddress(bytes))
}

fn parse_forward(text: &str) -> Option<Forward> {
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
        None => (text, Protocol::Tcp),
    };
    let (address, ports) = if let Some(rest) = ports.strip_prefix('[') {
        let (address, ports) = rest.split_once("]:")?;
        (Some(IpAddr::V6(address.parse().ok()?)), ports)
    } else {
        match ports.split_once(':') {
            Some((address, rest)) if address.contains('.') => {
                (Some(IpAddr::V4(address.parse().ok()?)), rest)
            }
            _ => (None, ports),
        }
    };
    let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
    Some(Forward { address, host: parse_port(host)?, guest: parse_port(guest)?, protocol })
}

fn parse_port(text: &str) -> Option<NonZeroU16> {
    // The standard library would take a sign, too.
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// What serde and schemars need of a type that is a text.
macro_rules! text {
    ($type:ident, $error:ident, $description:literal) => {
        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

text!(MacAddress, MacAddressError, "A hardware address such as 52:54:00:12:34:56.");
text!(
    Forward,
    ForwardError,
    "A port of the host that leads into the guest, [ADDRESS:]HOST[:GUEST][/udp]: 8080:80, 53/udp."
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_read_as_they_are_written() {
        for (text, written) in [
            ("8080:80", "8080:80"),
            ("22", "22:22"),
            ("53/udp", "53:53/udp"),
            ("127.0.0.1:2222:22/tcp", "127.0.0.1:2222:22"),
            ("127.0.0.1:22", "127.0.0.1:22:22"),
            ("[::1]:2222:22", "[::1]:2222:22"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.to_string(), written);
            assert_eq!(written.parse(), Ok(forward));
        }
    }

    #[test]
    fn what_names_no_port_is_refused() {
        let wrong = [
            "",
            "0",
            "80:",
            ":80",
            "+80",
            "65536",
            "80/sctp",
            "host:80:80",
            "1.2.3:80",
            "[::1]80",
            "1:2:3",
        ];
        for text in wrong {
            assert_eq!(text.parse::<Forward>(), Err(ForwardError(text.into())), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        assert_eq!("52-54-00-AB-cd-0f".parse(), Ok(MacAddress([0x52, 0x54, 0, 0xab, 0xcd, 0x0f])));
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:0:12:34:56",
            "52:54-00:12:34:56",
            "+1:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError(text.into())), "{text}");
        }
    }

    #[test]
    fn a_name_makes_a_stable_local_unicast_address() {
        assert_eq!(MacAddress::of_name("web").to_string(), "52:19:48:2c:be:10");
        let mut seen = std::collections::HashSet::new();
        for number in 0..10_000 {
            let address = MacAddress::of_name(&format!("vm{number}"));
            assert!(address.is_unicast() && address.0[0] & 2 != 0);
            assert!(seen.insert(address), "two names have one address");
        }
    }

    proptest! {
        #[test]
        fn addresses_read_as_they_are_written(bytes: [u8; 6]) {
            let address = MacAddress(bytes);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn any_text_is_survived(text in "[0-9a-f:./\\[\\]tudp-]{0,40}") {
            let _ = (text.parse::<Forward>(), text.parse::<MacAddress>());
        }
    }
}
