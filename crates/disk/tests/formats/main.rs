//! Every format, against independent programs' images.

mod chains;
mod common;
mod qemu;
mod virtualbox;
