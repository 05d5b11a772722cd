//! Facts about this computer and the verdict on what its virtualization can do.

#![forbid(unsafe_code)]
