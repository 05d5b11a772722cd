//! PID 1 before a foreign initramfs: loads the modules that it lacks, and then is its `/init`.

use super::modules;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// By this name the kernel starts us if it is told `rdinit=`.
const NAME: &str = "/omnivisor/init";
/// What it would have started.
const NEXT: &str = "/init";

/// We were started by that name.
pub fn is_wanted() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Loads the modules and becomes the initramfs's own init, with the words that the kernel has given us.
pub fn run() -> ! {
    modules::load_listed();
    let error = Command::new(NEXT).args(std::env::args_os().skip(1)).exec();
    eprintln!("omnivisor: {NEXT} could not be started: {error}");
    // PID 1 must not end: that would be a kernel panic that hides the reason.
    loop {
        std::thread::park();
    }
}
