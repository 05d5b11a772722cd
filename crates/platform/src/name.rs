//! How platforms and their VMs are named: `[URI/]NAME`.

use std::fmt;

use crate::{Error, Result, registry};

/// Names a platform, such as `xen:///`, `qemu:///system`, `esx://root@host` or `vc://user@host/Datacenter`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uri {
    /// The scheme, in small letters: `xen`, `xen+ssh`.
    pub scheme: String,
    /// Who logs in.
    pub user: Option<String>,
    /// The host; absent means this computer.
    pub host: Option<String>,
    /// Its port, if it is not the usual one.
    pub port: Option<u16>,
    /// What follows the host, such as `system` or a data center, without percent signs.
    pub path: Vec<String>,
}

/// Names a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName {
    /// Its platform; absent for our own.
    pub uri: Option<Uri>,
    /// Its name there, or what identifies it.
    pub name: String,
}

impl Uri {
    /// Reads the name of a platform.
    ///
    /// # Errors
    /// It is none, or of a scheme that no driver has.
    pub fn parse(text: &str) -> Result<Self> {
        let (uri, rest) = split(text)?;
        match rest {
            None => Ok(uri),
            Some(rest) => Err(wrong(text, format!("what is {rest:?} at its end"))),
        }
    }

    /// What is before the `+` of the scheme.
    pub fn product(&self) -> &str {
        self.scheme.split('+').next().unwrap_or_default()
    }

    /// Whether the platform's program is run on its host by ssh.
    pub fn is_ssh(&self) -> bool {
        self.scheme.ends_with("+ssh")
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", encode(user))?;
        }
        match self.host.as_deref() {
            Some(host) if host.contains(':') => write!(f, "[{host}]")?,
            Some(host) => f.write_str(host)?,
            None => {}
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if self.host.is_none() || !self.path.is_empty() {
            f.write_str("/")?;
        }
        f.write_str(&self.path.iter().map(|part| encode(part)).collect::<Vec<_>>().join("/"))
    }
}

impl std::str::FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl VmName {
    /// Reads `[URI/]NAME`. In the name behind a URI, `%2F` stands for a slash and so on, as in all URIs.
    ///
    /// # Errors
    /// The URI makes no sense, or there is no name.
    pub fn parse(text: &str) -> Result<Self> {
        if !text.contains("://") {
            return match text {
                "" => Err(wrong(text, "it is empty")),
                _ => Ok(Self { uri: None, name: text.into() }),
            };
        }
        let (uri, rest) = split(text)?;
        let name = rest.ok_or_else(|| wrong(text, "the name of a VM is missing behind it"))?;
        Ok(Self { uri: Some(uri), name })
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.uri {
            None => f.write_str(&self.name),
            Some(uri) => {
                let uri = uri.to_string();
                let slash = if uri.ends_with('/') { "" } else { "/" };
                // Slashes in names can stand as they are.
                let name = self.name.split('/').map(encode).collect::<Vec<_>>().join("/");
                write!(f, "{uri}{slash}{name}")
            }
        }
    }
}

impl std::str::FromStr for VmName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Longest names that are taken.
const LONGEST: usize = 4096;

/// Splits what names a platform from the rest; `None` where nothing follows.
fn split(text: &str) -> Result<(Uri, Option<String>)> {
    if text.len() > LONGEST || text.contains('\0') {
        return Err(wrong(&text.chars().take(40).collect::<String>(), "it is too long or broken"));
    }
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| wrong(text, "it does not begin with SCHEME://"))?;
    let scheme = scheme.to_ascii_lowercase();
    let driver = registry::driver(&scheme).ok_or_else(|| {
        let known = registry::schemes().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>();
        wrong(text, format!("known are {}", known.join(", ")))
    })?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host, port) = authority_parts(text, authority)?;
    let is_local = !scheme.ends_with("+ssh") && driver.is_local;
    match (&host, is_local) {
        (Some(_), true) => {
            let hint = format!("another computer's is {scheme}+ssh://[USER@]HOST");
            return Err(wrong(text, hint));
        }
        (None, false) => return Err(wrong(text, "the host is missing")),
        _ => {}
    }
    let mut parts = path.splitn(driver.path_parts + 1, '/');
    let mut path = Vec::new();
    for part in parts.by_ref().take(driver.path_parts).filter(|part| !part.is_empty()) {
        path.push(decode(part).ok_or_else(|| wrong(text, "its percent signs make no sense"))?);
    }
    let rest = parts.next().filter(|rest| !rest.is_empty());
    let rest = match rest {
        Some(rest) => {
            Some(decode(rest).ok_or_else(|| wrong(text, "its percent signs make no sense"))?)
        }
        None => None,
    };
    Ok((Uri { scheme, user, host, port, path }, rest))
}

/// User, host and port.
type Authority = (Option<String>, Option<String>, Option<u16>);

fn authority_parts(text: &str, authority: &str) -> Result<Authority> {
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    if user.is_some_and(|user| user.contains(':')) {
        // A password would be in the shell's history and in the list of processes by now; it is not repeated.
        return Err(wrong(place, "a password does not belong into a URI"));
    }
    let user = match user {
        Some(user) => Some(
            decode(user)
                .filter(|user| is_plain(user, "@+\\ "))
                .ok_or_else(|| wrong(text, "its user is no name"))?,
        ),
        None => None,
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once(']').ok_or_else(|| wrong(text, "its bracket is not closed"))?;
            (host, port.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        Some(port) => Some(port.parse().map_err(|_| wrong(text, format!("{port:?} is no port")))?),
        None => None,
    };
    // What begins with a hyphen would be an option of ssh.
    if !host.is_empty() && !is_plain(host, ":%") {
        return Err(wrong(text, format!("{host:?} is no host")));
    }
    if host.is_empty() && (user.is_some() || port.is_some()) {
        return Err(wrong(text, "the host is missing"));
    }
    Ok((user, Some(host.to_owned()).filter(|host| !host.is_empty()), port))
}

/// Whether a word is made of letters, digits, `-`, `_`, `.` and `more`, and does not look like an option.
fn is_plain(word: &str, more: &str) -> bool {
    !word.is_empty()
        && !word.starts_with('-')
        && word
            .chars()
            .all(|one| one.is_alphanumeric() || "-_.".contains(one) || more.contains(one))
}

fn wrong(text: &str, message: impl Into<String>) -> Error {
    Error::Name { text: text.into(), message: message.into() }
}

/// Percent-decoding; `None` if what comes out is no text.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
        out.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

/// Percent-encoding of what would be read as something else.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '%' | '/' | '@' | '?' | '#' | ' ' => out.push_str(&format!("%{:02X}", one as u32)),
            _ => out.push(one),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vms_are_split_from_their_platforms() {
        for (text, uri, name) in [
            ("vbox:///web", "vbox:///", "web"),
            ("vbox:///prod/web 1", "vbox:///", "prod/web 1"),
            ("vbox:///a%2Fb%25", "vbox:///", "a/b%"),
            ("qemu:///system/web", "qemu:///system", "web"),
            (
                "libvirt+ssh://root@host:2222/session/web",
                "libvirt+ssh://root@host:2222/session",
                "web",
            ),
            ("VBOX+SSH://[::1]/web", "vbox+ssh://[::1]", "web"),
        ] {
            let parsed = VmName::parse(text).unwrap();
            assert_eq!(parsed.uri.as_ref().unwrap().to_string(), uri, "{text}");
            assert_eq!(parsed.name, name, "{text}");
            assert_eq!(VmName::parse(&parsed.to_string()).unwrap(), parsed, "{text}");
        }
        let own = VmName::parse("web").unwrap();
        assert_eq!((own.uri, &own.name[..]), (None, "web"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for (text, part) in [
            ("nobody:///x", "known are"),
            ("vbox:///", "the name of a VM is missing"),
            ("qemu:///system", "the name of a VM is missing"),
            ("vbox+ssh:///x", "the host is missing"),
            ("vbox://host/x", "vbox+ssh://[USER@]HOST"),
            ("vbox+ssh://-oProxyCommand=id/x", "no host"),
            ("vbox+ssh://-l@host/x", "no name"),
            ("vbox+ssh://host:99999/x", "no port"),
            ("vbox+ssh://[::1/x", "bracket"),
            ("vbox:///%zz", "percent"),
            ("", "empty"),
        ] {
            let error = VmName::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = Uri::parse("vbox+ssh://root:secret@host/").unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
        assert!(Uri::parse("vbox:///web").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_name_comes_back(name in "[^\\x00]{1,40}", user in "[a-z][a-z0-9.@+-]{0,8}") {
            let uri = Uri::parse("qemu+ssh://host/system").unwrap();
            let given = VmName { uri: Some(Uri { user: Some(user), ..uri }), name };
            proptest::prop_assert_eq!(VmName::parse(&given.to_string()).unwrap(), given);
        }

        #[test]
        fn nothing_that_is_read_stops_the_program(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            crate::fuzz(&bytes);
        }
    }
}
