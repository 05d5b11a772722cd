//! Small messages of guests: socket packets, console control, balloon statistics, network control.

#![no_main]

use devices::virtio::net::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => devices::virtio::vsock::fuzz(bytes),
        1 => devices::virtio::console::fuzz(bytes),
        2 => devices::virtio::balloon::fuzz(bytes),
        _ => {
            let _ = Command::parse(bytes, u64::MAX);
        }
    }
});
