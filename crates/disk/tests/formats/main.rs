//! Every format, against independent programs' images.

mod chains;
mod common;
mod converting;
mod creating;
mod qemu;
mod virtualbox;
mod writing;
