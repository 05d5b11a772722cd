//! Memory given back to the host (VIRTIO 1.2 section 5.5).
