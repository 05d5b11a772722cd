//! What the fuzzer gives.

use std::path::Path;

use super::{hyperv, ovf, read, tar, vagrant};

/// Reads any bytes in every way in which bytes are read here.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(vms) = read::parse(bytes, Path::new("fuzz")) {
        for vm in vms {
            let _ = (vm.to_spec(), vm.differences(), serde_json::to_string(&vm));
        }
    }
    hyperv::fuzz(bytes);
    tar::fuzz(bytes);
    let _ = vagrant::parse(bytes, Path::new(vagrant::METADATA));
    ovf::fuzz_manifest(bytes);
}
