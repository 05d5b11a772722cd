//! Packets of the SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02).

/// Longest packet that is taken: more than OpenSSH's server sends.
pub(super) const LONGEST: usize = (256 << 10) + 1024;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// SSH_FXP_OPEN for reading.
    Open(&'a str),
    /// SSH_FXP_CLOSE.
    Close(&'a [u8]),
    /// SSH_FXP_READ of so many bytes at an offset.
    Read(&'a [u8], u64, u32),
    /// SSH_FXP_FSTAT.
    Fstat(&'a [u8]),
    /// SSH_FXP_STAT.
    Stat(&'a str),
    /// `limits@openssh.com` of OpenSSH's PROTOCOL, section 4.8.
    Limits,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// SSH_FXP_STATUS: its code and what it says.
    Status(u32, String),
    /// SSH_FXP_HANDLE.
    Handle(&'a [u8]),
    /// SSH_FXP_DATA.
    Data(&'a [u8]),
    /// SSH_FXP_ATTRS.
    Attributes(Attributes),
    /// SSH_FXP_EXTENDED_REPLY.
    Extended(&'a [u8]),
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Its type and permissions, as in `st_mode`.
    pub mode: Option<u32>,
    /// When it was changed, in seconds since 1970.
    pub modified: Option<u32>,
}

/// SSH_FX_EOF.
pub(super) const EOF: u32 = 1;
/// SSH_FX_NO_SUCH_FILE.
pub(super) const NO_SUCH_FILE: u32 = 2;
/// SSH_FX_PERMISSION_DENIED.
pub(super) const PERMISSION_DENIED: u32 = 3;
/// SSH_FX_FAILURE.
pub(super) const FAILURE: u32 = 4;
/// SSH_FX_BAD_MESSAGE: OpenSSH's word for EINVAL.
pub(super) const BAD_MESSAGE: u32 = 5;

const VERSION: u8 = 2;
const ATTRIBUTE_SIZE: u32 = 1;
const ATTRIBUTE_OWNER: u32 = 2;
const ATTRIBUTE_MODE: u32 = 4;
const ATTRIBUTE_TIMES: u32 = 8;

/// SSH_FXP_INIT of version 3.
pub(super) const INIT: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 3];

/// A request with its number, as it is sent.
pub(super) fn encode(id: u32, request: &Request<'_>) -> Vec<u8> {
    let mut packet = vec![0; 4];
    let kind = match request {
        Request::Open(_) => 3,
        Request::Close(_) => 4,
        Request::Read(..) => 5,
        Request::Fstat(_) => 8,
        Request::Stat(_) => 17,
        Request::Limits => 200,
    };
    packet.push(kind);
    packet.extend(id.to_be_bytes());
    let mut string = |bytes: &[u8]| {
        packet.extend((bytes.len() as u32).to_be_bytes());
        packet.extend(bytes);
    };
    match request {
        Request::Open(path) => {
            string(path.as_bytes());
            // SSH_FXF_READ, and no attributes.
            packet.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        }
        Request::Stat(path) => string(path.as_bytes()),
        Request::Close(handle) | Request::Fstat(handle) => string(handle),
        Request::Read(handle, offset, length) => {
            string(handle);
            packet.extend(offset.to_be_bytes());
            packet.extend(length.to_be_bytes());
        }
        Request::Limits => string(b"limits@openssh.com"),
    }
    let length = (packet.len() - 4) as u32;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// Whether a packet, without its length, says that its sender speaks version 3.
pub(super) fn is_version_3(packet: &[u8]) -> bool {
    let mut rest = packet;
    take::<1>(&mut rest) == Some([VERSION]) && number(&mut rest) == Some(3)
}

/// Reads an answer, without its length: the request's number, and what is said.
pub(super) fn decode(packet: &[u8]) -> Option<(u32, Reply<'_>)> {
    let mut rest = packet;
    let [kind] = take(&mut rest)?;
    let id = number(&mut rest)?;
    let reply = match kind {
        101 => {
            let code = number(&mut rest)?;
            // Older servers send no text.
            let text = string(&mut rest).unwrap_or_default();
            Reply::Status(code, String::from_utf8_lossy(text).chars().take(200).collect())
        }
        102 => Reply::Handle(string(&mut rest).filter(|handle| handle.len() <= 256)?),
        103 => Reply::Data(string(&mut rest)?),
        105 => Reply::Attributes(attributes(&mut rest)?),
        201 => Reply::Extended(rest),
        _ => return None,
    };
    Some((id, reply))
}

/// The longest read that a server allows, by its answer to [`Request::Limits`].
pub(super) fn longest_read(mut answer: &[u8]) -> Option<u64> {
    let _packet: [u8; 8] = take(&mut answer)?;
    take(&mut answer).map(u64::from_be_bytes)
}

fn attributes(rest: &mut &[u8]) -> Option<Attributes> {
    let flags = number(rest)?;
    let mut found = Attributes::default();
    if flags & ATTRIBUTE_SIZE != 0 {
        found.size = Some(u64::from_be_bytes(take(rest)?));
    }
    if flags & ATTRIBUTE_OWNER != 0 {
        let _owner: [u8; 8] = take(rest)?;
    }
    if flags & ATTRIBUTE_MODE != 0 {
        found.mode = Some(number(rest)?);
    }
    if flags & ATTRIBUTE_TIMES != 0 {
        let _accessed = number(rest)?;
        found.modified = Some(number(rest)?);
    }
    Some(found)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(rest)? as usize;
    let (found, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(found)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (found, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*found)
}

/// Reads any bytes as a packet.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = is_version_3(bytes);
    if let Some((_, Reply::Extended(answer))) = decode(bytes) {
        let _ = longest_read(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_form_of_the_draft() {
        let read = encode(7, &Request::Read(b"h", 0x1_0000_0000, 32));
        assert_eq!(
            read,
            [0, 0, 0, 22, 5, 0, 0, 0, 7, 0, 0, 0, 1, b'h', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 32]
        );
        let open = encode(1, &Request::Open("/a"));
        assert_eq!(
            open,
            [0, 0, 0, 19, 3, 0, 0, 0, 1, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 1, 0, 0, 0, 0]
        );
    }

    #[test]
    fn answers_are_read_and_broken_ones_are_not() {
        let status = [101, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2, b'n', b'o', 0, 0, 0, 0];
        assert_eq!(decode(&status), Some((9, Reply::Status(2, "no".into()))));
        let data = [103, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2];
        assert_eq!(decode(&data), Some((1, Reply::Data(&[1, 2]))));
        let attributes = [
            105, 0, 0, 0, 1, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x81, 0xa4, 0, 0, 0, 5, 0,
            0, 0, 6,
        ];
        let known = Attributes { size: Some(256), mode: Some(0o100644), modified: Some(6) };
        assert_eq!(decode(&attributes), Some((1, Reply::Attributes(known))));
        for packet in [&status[..8], &data[..10], &attributes[..20], &[104, 0, 0, 0, 1], &[]] {
            assert_eq!(decode(packet), None, "{packet:?}");
        }
        assert!(is_version_3(&[2, 0, 0, 0, 3]) && !is_version_3(&[2, 0, 0, 0, 4]));
    }
}
