//! Guest kernels and roots fetched through the host's package manager, and the initramfs that carries them.

#![forbid(unsafe_code)]
