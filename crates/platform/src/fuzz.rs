//! What the fuzzer gives.

use crate::{Uri, VmName, files, libvirt, own, parallels, virtualbox, xapi, xen};

/// Reads any bytes as what platforms say, and as names.
pub fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    libvirt::fuzz(&text);
    virtualbox::fuzz(&text);
    xen::fuzz(bytes, &text);
    own::fuzz(bytes);
    parallels::fuzz(bytes);
    files::fuzz(bytes);
    xapi::fuzz(bytes);
    if let Ok(uri) = Uri::parse(&text) {
        assert_eq!(Uri::parse(&uri.to_string()).ok(), Some(uri));
    }
    if let Ok(name) = VmName::parse(&text) {
        assert_eq!(VmName::parse(&name.to_string()).ok(), Some(name));
    }
}
