//! What the fuzzer gives.

use super::soap::{self, Fault};
use super::{description, inventory};

/// Reads any bytes as a server's reply, and what is read from replies.
pub fn fuzz(bytes: &[u8]) {
    let Ok(Ok(reply)) = soap::reply(bytes) else { return };
    let mut known = Vec::new();
    for part in std::iter::once(&reply).chain(&reply.children) {
        let _ = Fault::of_task(part);
        let _ = (description::from_config(part, "fuzz"), description::disks(part));
        let _ = inventory::apply(&mut known, part);
        if let Some(object) = inventory::Object::from_reply(part) {
            let _ = object.summary();
        }
    }
}
