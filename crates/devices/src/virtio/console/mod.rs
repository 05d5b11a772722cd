//! Consoles and serial ports (VIRTIO 1.2 section 5.3).
//!
//! The first port is the console, `hvc0` in Linux, with a size that follows the host's terminal. More ports,
//! if configured, have names and appear in the guest as `/dev/virtio-ports/<name>`; only then the
//! device offers VIRTIO_CONSOLE_F_MULTIPORT, with which Linux takes the console's size from control
//! messages instead of the configuration.
//!
//! Like the 16550A's, output is written by a thread, since a terminal may block for as long as it likes;
//! when [`OUTPUT_LIMIT`] bytes wait, the guest's buffers stay in its queue. Input is given by
//! [`Console::receive`], or read from a descriptor of the port.

#![forbid(unsafe_code)]

mod control;
mod device;
mod output;
#[cfg(test)]
mod tests;

pub use device::{Console, ConsolePort, INPUT_LIMIT};
pub use output::OUTPUT_LIMIT;

/// For fuzzing: parses `bytes` as a control message of the guest.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some(message) = control::Message::parse(bytes) {
        assert_eq!(message.bytes(&[]), bytes[..control::Message::SIZE]);
    }
}
