//! Sockets between guest and host (VIRTIO 1.2 section 5.10), without a kernel module: what is AF_VSOCK in the
//! guest are Unix stream sockets on the host, by the convention of Firecracker.
//!
//! - A program in the guest that connects to (CID 2, port P) reaches the Unix socket `<path>_P`.
//! - A program of the host connects to the Unix socket `<path>`, writes `CONNECT P\n` and, once the
//!   guest has accepted, reads `OK <its own port>\n`; from then on the stream is the connection.
//!
//! Only stream sockets are offered. Data goes between the guest's buffers and the sockets without a copy
//! in between; only what a slow reader on the host leaves is held, up to the credit that the guest
//! was given for its connection. Connections do not outlive a snapshot: the guest is told by
//! VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, and its programs see their connections reset.

#![forbid(unsafe_code)]

mod connection;
mod device;
mod packet;
mod switch;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockConfig};

/// For fuzzing: parses `bytes` as a packet of the guest, and as the greeting of a program of the host.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk() {
        let header = switch::parse(*first);
        assert_eq!(header.reset().reset().src_port, header.src_port);
        let _ = header.operation();
    }
    if let Some(Some((_, length))) = switch::parse_line(bytes) {
        assert_eq!(bytes[length - 1], b'\n');
    }
}
