//! Host folders shared with the guest (VIRTIO 1.2 section 5.11): a virtio-fs device whose FUSE server works
//! in this process, on threads of its own since files block.
//!
//! Why a server of our own: `virtiofsd` 1.14 as a library pins vm-memory 0.17.1 and virtio-queue 0.17 (a
//! second copy of both beside ours, and a copy of all data to bridge them), links the C library
//! libcap-ng even without its sandbox, and brings the vhost-user stack; `fuse-backend-rs` 0.14
//! brings mio 0.8 and nix 0.24. Both hold a descriptor for every file that the guest knows. What is
//! needed of the protocol is small.
//!
//! What a guest may do:
//! - It reaches only what is below the shared folder: each step of a path is one name, opened by
//!   openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS. Symbolic links are followed by the
//!   guest, among its own files.
//! - Mounts below the folder are shared too, but for the kernel's own (`proc`, `sys`, ...), which are
//!   empty folders: they show the host's processes, not files.
//! - Only regular files and folders are opened; the guest makes no device nodes of the host, and sets no
//!   extended attributes but `user.` ones.
//! - Permissions are checked by the guest's kernel, against owners and modes as the host has them, and
//!   then by the host's against the user that runs the machine. If that is root, new files
//!   belong to the guest's users by their numbers, and a guest may leave programs there with the
//!   set-user-ID bit: share a folder writable only if you would mount it so.
//!
//! [`Cache`] says for how long the guest believes what it read. A saved guest's files are found again by
//! their names, and its open files are opened again; a file that was removed while it was open
//! cannot be, and answers ESTALE after the restore.

#![forbid(unsafe_code)]

mod device;
mod folder;
#[cfg(test)]
mod linux;
mod nodes;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use device::{Cache, Fs, FsConfig};
pub use server::fuzz;
