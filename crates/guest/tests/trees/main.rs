//! File systems made and filled by Linux, and read by us: the same names, sizes, modes, links and bytes. Needs root
//! and loop devices; without them, or without the file system's tools, a test says so and does nothing.

mod btrfs;
mod damaged;
mod ext;
mod files;
mod harness;
#[path = "../common/ntfs_3g.rs"]
mod ntfs_3g;
mod packed;
mod plain;
mod replay;
mod xfs;
