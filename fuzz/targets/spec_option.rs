//! The options of the command line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spec::{Cpus, Disk, Memory, Nic, Share, Vsock};

fuzz_target!(|text: &str| {
    let _ = text.parse::<Disk>();
    let _ = text.parse::<Nic>();
    let _ = text.parse::<Share>();
    let _ = text.parse::<Vsock>();
    let _ = text.parse::<Memory>();
    let _ = text.parse::<Cpus>();
    let _ = spec::option::nics(&text.split(' ').collect::<Vec<_>>());
});
