//! Host folders shared with the guest (VIRTIO 1.2 section 5.11).
