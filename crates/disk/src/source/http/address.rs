//! Addresses of files on HTTP servers (RFC 3986).

use std::path::Path;

use ureq::http::Uri;

use super::HttpError;

/// Longest address.
const MAX_ADDRESS: usize = 8 << 10;

/// Whether a path is an address: it begins with `http://` or `https://`.
pub fn is_url(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref().as_os_str().as_encoded_bytes();
    ["http://", "https://"].iter().any(|scheme| {
        path.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    })
}

/// An address that can be asked for.
pub(super) fn parse(text: &str) -> Result<Uri, HttpError> {
    let wrong = |what: &str| HttpError::Address(what.to_owned());
    if !is_url(text) || text.len() > MAX_ADDRESS {
        return Err(wrong("it does not begin with http:// or https://, or is too long"));
    }
    // What follows a # is not sent.
    let text = text.split('#').next().unwrap_or_default();
    let uri: Uri =
        text.parse().map_err(|_| wrong("it has characters that must be written with %"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(wrong("it names no server"));
    }
    Ok(uri)
}

/// What may be shown of an address, and written to logs: neither a password nor what might be a token.
pub(super) fn displayed(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let slash = rest.find('/').unwrap_or(rest.len());
    let host = rest[..slash].rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", &rest[slash..])
}

/// Whether both have the same scheme, host and port.
pub(super) fn is_same_server(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
    };
    one.scheme() == other.scheme()
        && one.host().map(str::to_ascii_lowercase) == other.host().map(str::to_ascii_lowercase)
        && port(one) == port(other)
}

/// Where a redirect leads. Nothing that was asked for by TLS is then asked for without.
pub(super) fn redirected(from: &Uri, location: &str) -> Result<Uri, HttpError> {
    let refused = || HttpError::Redirect(displayed(location));
    let to = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", from.scheme_str().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{}{location}", server(from))
    } else {
        format!("{}{}{location}", server(from), folder(from))
    };
    let to = parse(&to).map_err(|_| refused())?;
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err(refused());
    }
    Ok(to)
}

/// The file of this name in the folder of another file, or below; the same is asked of both.
pub(super) fn beside(file: &Uri, name: &str) -> Option<Uri> {
    let parts: Vec<&str> = name.split('/').filter(|part| *part != ".").collect();
    let is_plain = |part: &&str| !part.is_empty() && *part != ".." && !part.contains('\\');
    if !parts.iter().all(is_plain) || parts.is_empty() {
        return None;
    }
    let mut text = format!("{}{}", server(file), folder(file));
    for (index, part) in parts.iter().enumerate() {
        if index != 0 {
            text.push('/');
        }
        for byte in part.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(byte.into());
                }
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    if let Some(query) = file.query() {
        text.push('?');
        text.push_str(query);
    }
    parse(&text).ok()
}

/// "https://user@host:port".
fn server(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", uri.scheme_str().unwrap_or("https"))
}

/// The path as far as its last slash.
fn folder(uri: &Uri) -> &str {
    let path = uri.path();
    path.rfind('/').map_or("/", |slash| &path[..=slash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        for url in ["http://a/b", "HTTPS://a:1/", "http://u:p@a/b?c#d"] {
            assert!(is_url(url) && parse(url).is_ok(), "{url}");
        }
        for path in ["/http://a", "http:/a", "ftp://a/b", "http", "é"] {
            assert!(!is_url(path), "{path}");
        }
        assert!(parse("http:///x").is_err());
        assert!(parse("http://a/b c").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(displayed("https://u:p@h:1/a/b?token=1#x"), "https://h:1/a/b");
    }

    #[test]
    fn neighbours_are_in_the_folder_or_below() {
        let file = parse("https://h/folder/web/web.vmdk?dsName=a%20b").unwrap();
        let name = |name| beside(&file, name).map(|uri| uri.to_string());
        let found = name("web flat.vmdk").unwrap();
        assert_eq!(found, "https://h/folder/web/web%20flat.vmdk?dsName=a%20b");
        assert_eq!(name("./x/y").unwrap(), "https://h/folder/web/x/y?dsName=a%20b");
        assert_eq!(name("?#%").unwrap(), "https://h/folder/web/%3F%23%25?dsName=a%20b");
        for escaping in ["../x", "/x", "x/../../y", "", "a\\..\\b", "x//y", "."] {
            assert_eq!(name(escaping), None, "{escaping}");
        }
        assert_eq!(name("http://evil/x"), None);
    }

    #[test]
    fn redirects_are_followed_but_not_away_from_tls() {
        let from = parse("https://h/a/b").unwrap();
        let to = |location| redirected(&from, location).map(|uri| uri.to_string());
        assert_eq!(to("c").unwrap(), "https://h/a/c");
        assert_eq!(to("/c?x").unwrap(), "https://h/c?x");
        assert_eq!(to("//i/c").unwrap(), "https://i/c");
        assert_eq!(to("https://i:2/c").unwrap(), "https://i:2/c");
        for refused in ["http://h/a", "file:///etc/passwd", "https://"] {
            assert!(to(refused).is_err(), "{refused}");
        }
        assert!(is_same_server(&from, &parse("https://H:443/").unwrap()));
        assert!(!is_same_server(&from, &parse("https://h:444/").unwrap()));
    }
}
