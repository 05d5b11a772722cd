//! Messages that are encrypted by NTLM's session (MS-WSMV, 2.2.9.1.1).
//!
//! Two parts between boundaries: what it was, and the signature's length, the signature and the encrypted bytes. The lines
//! within parts begin with a tabulator.

use super::ntlm::{SIGNATURE, Session};

/// What a request says of itself.
pub(super) const CONTENT_TYPE: &str = "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";\
    boundary=\"Encrypted Boundary\"";

const BOUNDARY: &[u8] = b"--Encrypted Boundary";
const KIND: &str = "application/HTTP-SPNEGO-session-encrypted";

/// Encrypts a message.
pub(super) fn seal(session: &mut Session, message: &str) -> Vec<u8> {
    let mut sealed = message.as_bytes().to_vec();
    let signature = session.seal(&mut sealed);
    let mut body = BOUNDARY.to_vec();
    body.extend(
        format!(
            "\r\n\tContent-Type: {KIND}\r\n\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length={}\r\n",
            message.len()
        )
        .bytes(),
    );
    body.extend(BOUNDARY);
    body.extend(b"\r\n\tContent-Type: application/octet-stream\r\n");
    body.extend((SIGNATURE as u32).to_le_bytes());
    body.extend(signature);
    body.extend(sealed);
    body.extend(BOUNDARY);
    body.extend(b"--\r\n");
    body
}

/// Decrypts a message.
pub(super) fn open(session: &mut Session, body: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (length, content) = parts(body).ok_or("an encrypted answer is broken")?;
    let (signature, sealed) =
        content.split_at_checked(4 + SIGNATURE).ok_or("an encrypted answer is cut off")?;
    if signature[..4] != (SIGNATURE as u32).to_le_bytes() || sealed.len() != length {
        return Err("an encrypted answer is cut off");
    }
    let mut message = sealed.to_vec();
    session.unseal(&mut message, &signature[4..])?;
    Ok(message)
}

/// The length of what was encrypted, and the second part's content.
pub(super) fn parts(body: &[u8]) -> Option<(usize, &[u8])> {
    let rest = after(body, BOUNDARY)?;
    let end = find(rest, BOUNDARY)?;
    let head = std::str::from_utf8(&rest[..end]).ok()?;
    let length = head.lines().find_map(|line| {
        let (_, length) = line.trim().strip_prefix("OriginalContent:")?.split_once("Length=")?;
        length.trim().parse().ok()
    })?;
    let rest = &rest[end + BOUNDARY.len()..];
    let content = after(rest, b"application/octet-stream\r\n")?;
    // What is encrypted may look like a boundary; the last one ends it.
    let content = content.strip_suffix(b"\r\n").unwrap_or(content);
    let content = content.strip_suffix(b"--")?.strip_suffix(BOUNDARY)?;
    Some((length, content))
}

fn after<'a>(bytes: &'a [u8], what: &[u8]) -> Option<&'a [u8]> {
    find(bytes, what).map(|at| &bytes[at + what.len()..])
}

/// In the head of a message only.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes[..bytes.len().min(2000)].windows(what.len()).position(|window| window == what)
}
