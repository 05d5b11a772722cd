//! Every format, against independent programs' images.

mod chains;
mod common;
mod converting;
mod creating;
mod differencing;
mod parallels;
mod qemu;
mod virtualbox;
mod writing;
