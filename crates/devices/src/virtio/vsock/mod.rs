//! Sockets between guest and host (VIRTIO 1.2 section 5.10).
