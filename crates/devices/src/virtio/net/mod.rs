//! Network cards (VIRTIO 1.2 section 5.1).
