//! Every format, against independent programs' images.

mod archives;
mod chains;
mod checking;
mod common;
mod converting;
mod creating;
mod cut;
mod devices;
mod differencing;
mod link_vhdx;
mod loop_device;
mod make_vma;
mod oracles;
mod parallels;
mod peers;
mod qemu;
mod resuming;
mod safety;
mod table;
mod virtualbox;
#[path = "../ways/mod.rs"]
mod ways;
mod writing;
