//! What PID 1 does: mounts, modules, network, root, and then the host's commands, a shell, or the root's own init.

pub mod chain;
mod console;
mod modules;
pub mod net;
mod root;
pub mod settings;
pub mod transport;

use agent::{Ended, ServeOptions, children};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;
use settings::Settings;
use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// This program by a name that stays right after the initramfs has been left.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Runs the guest; switches it off, or restarts it, in the end.
pub fn run() -> ! {
    mount_basics();
    let settings = Settings::of_kernel();
    modules::load_listed();
    if let Some(name) = &settings.hostname {
        let _ = rustix::system::sethostname(name.as_bytes());
    }
    if let Some(root) = settings.root.as_ref().filter(|_| settings.boots_roots_init()) {
        // Returns only when that root has no init that runs.
        let error = root::enter(root, &settings).and_then(|()| root::exec_init(&settings));
        if let Err(error) = error {
            complain(&error);
        }
        shut_down(RebootCommand::PowerOff);
    }
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM] {
        signals.add(signal);
    }
    if let Err(error) = children::take_over(signals) {
        complain(&error);
    }
    let worker = thread::Builder::new().name("serve".into()).spawn(move || {
        if let Err(error) = work(&settings) {
            complain(&*error);
        }
        shut_down(RebootCommand::PowerOff);
    });
    if let Err(error) = worker {
        complain(&error);
        shut_down(RebootCommand::PowerOff);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => children::reap(),
            // What busybox's poweroff, halt and reboot send to init.
            Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => shut_down(RebootCommand::PowerOff),
            Ok(Signal::SIGTERM) => shut_down(RebootCommand::Restart),
            _ => {}
        }
    }
}

/// Prints an error with its causes on the console.
pub fn complain(error: &dyn Error) {
    eprintln!("omnivisor: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  {error}");
        cause = error.source();
    }
}

fn work(settings: &Settings) -> Result<(), Box<dyn Error + Send + Sync>> {
    let resolver = net::set_up(&settings.networks);
    if let Some(root) = &settings.root {
        root::enter(root, settings)?;
    }
    net::write_resolver(&resolver);
    for share in &settings.shares {
        if let Err(error) = root::mount_share(share) {
            complain(&error);
        }
    }
    match &settings.agent {
        Some(transport) => {
            let options = ServeOptions { tty_helper: OWN_PROGRAM.into() };
            match agent::serve(transport.open()?, &options)? {
                Ended::PowerOff | Ended::Disconnected => Ok(()),
            }
        }
        None => Ok(console::run_shell(settings)?),
    }
}

fn mount_basics() {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mounts: [(&str, &str, MountFlags, Option<&std::ffi::CStr>); 6] = [
        ("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755")),
        ("proc", "/proc", plain, None),
        ("sysfs", "/sys", plain, None),
        ("devpts", "/dev/pts", no_exec, Some(c"mode=0620,ptmxmode=0666")),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777")),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755")),
    ];
    for (kind, target, flags, data) in mounts {
        let _ = rustix::fs::mkdirat(CWD, target, Mode::from_raw_mode(0o755));
        match mount(kind, target, kind, flags, data) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => eprintln!("omnivisor: {target} could not be mounted: {error}"),
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = rustix::fs::symlink(target, link);
    }
}

/// Ends everything in order, as far as that goes.
fn shut_down(command: RebootCommand) -> ! {
    if root::is_writable_disk(Path::new("/")) {
        console::end_all_processes();
        rustix::fs::sync();
        let _ = rustix::mount::mount_remount("/", MountFlags::RDONLY, c"");
    }
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(command) {
        eprintln!("omnivisor: The guest could not be switched off: {error}");
    }
    // PID 1 must not end: that would be a kernel panic.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
