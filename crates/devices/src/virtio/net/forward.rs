//! Ports of the host that lead into the guest.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A port of the host that leads into the guest, written `[ADDRESS:]HOST[:GUEST][/udp]`: `8080:80`, `53/udp`,
/// `127.0.0.1:2222:22`, `[::1]:2222:22`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// The host's address; all of its addresses if absent.
    pub address: Option<IpAddr>,
    /// The port on the host.
    pub host: NonZeroU16,
    /// The port in the guest.
    pub guest: NonZeroU16,
    /// TCP unless said otherwise.
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
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port to forward such as 8080:80, 53/udp or 127.0.0.1:2222:22")]
pub struct ForwardError(String);

impl Forward {
    /// The options of `passt` for these ports.
    pub(super) fn passt_options(forwards: &[Self]) -> Vec<String> {
        let mut options = Vec::new();
        for forward in forwards {
            let option = match forward.protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
            };
            let address = forward.address.map(|address| format!("{address}/")).unwrap_or_default();
            options.push(option.into());
            options.push(format!("{address}{}:{}", forward.host, forward.guest));
        }
        options
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        parse(text).ok_or_else(|| ForwardError(text.into()))
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

impl TryFrom<String> for Forward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Self, ForwardError> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

fn parse(text: &str) -> Option<Forward> {
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
        None => (text, Protocol::Tcp),
    };
    let (address, ports) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (address, ports) = rest.split_once("]:")?;
            (Some(IpAddr::V6(address.parse().ok()?)), ports)
        }
        None => match ports.split_once(':') {
            Some((address, rest)) if address.contains('.') => {
                (Some(IpAddr::V4(address.parse().ok()?)), rest)
            }
            _ => (None, ports),
        },
    };
    let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
    Some(Forward { address, host: port(host)?, guest: port(guest)?, protocol })
}

fn port(text: &str) -> Option<NonZeroU16> {
    // A sign would be parsed, too.
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
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
        for text in [
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
            "80,81",
            "-t",
        ] {
            assert_eq!(text.parse::<Forward>(), Err(ForwardError(text.into())), "{text}");
        }
    }

    #[test]
    fn passt_is_told_of_each_port() {
        let forwards = ["8080:80", "127.0.0.1:53:5353/udp"].map(|text| text.parse().unwrap());
        assert_eq!(Forward::passt_options(&forwards), ["-t", "8080:80", "-u", "127.0.0.1/53:5353"]);
    }
}
