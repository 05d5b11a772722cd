//! The kinds of images that are written to in place.

/// What makes one of each kind.
pub const WAYS: [&str; 18] = [
    "raw",
    "raw,layout=fixed",
    "qcow2",
    "qcow2,cluster-size=4K",
    "qcow2,extended-l2=on",
    "qcow2,preallocation=falloc",
    "qcow2,data-file=data.bin",
    "vmdk",
    "vmdk,layout=fixed",
    "vmdk,layout=split-sparse",
    "vmdk,layout=split-fixed",
    "vhd",
    "vhd,layout=fixed",
    "vhdx,block-size=1M",
    "vhdx,layout=fixed",
    "vdi",
    "vdi,layout=fixed",
    "parallels",
];
