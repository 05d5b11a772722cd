//! Small messages of guests: socket packets, console control, balloon statistics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => devices::virtio::vsock::fuzz(bytes),
        1 => devices::virtio::console::fuzz(bytes),
        _ => devices::virtio::balloon::fuzz(bytes),
    }
});
