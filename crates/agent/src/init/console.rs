//! The shell on the console, and the end of all processes.

use super::OWN_PROGRAM;
use super::settings::Settings;
use agent::children;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_millis(500);

/// Runs a shell on the console until it ends; again and again with `omnivisor.respawn`.
pub fn run_shell(settings: &Settings) -> io::Result<()> {
    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/bin/sh");
    loop {
        let tty = open_console()?;
        if let Some(window) = settings.window {
            let size =
                Winsize { ws_row: window.rows, ws_col: window.cols, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = tcsetwinsize(&tty, size);
        }
        let mut command = Command::new(OWN_PROGRAM);
        command.arg(agent::TTY_HELPER).arg(shell).arg("-l");
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("USER", "root").env("SHELL", shell);
        command.env("TERM", settings.term.as_deref().unwrap_or("linux"));
        command.current_dir(if Path::new("/root").is_dir() { "/root" } else { "/" });
        command.stdin(tty.try_clone()?).stdout(tty.try_clone()?).stderr(tty);
        let mut child = children::spawn(&mut command)?;
        children::collect(&mut child, true)?;
        if !settings.respawn {
            return Ok(());
        }
    }
}

/// Ends all other processes: asks, waits a little, and kills.
pub fn end_all_processes() {
    signal_all(Signal::TERM);
    signal_all(Signal::CONT);
    let start = Instant::now();
    while start.elapsed() < GRACE && !user_processes().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    signal_all(Signal::KILL);
}

/// The terminal behind `/dev/console`, which itself cannot be a controlling terminal.
fn open_console() -> io::Result<File> {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split_whitespace().next_back().unwrap_or("console");
    let no_ctty = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_ctty)
        .open(Path::new("/dev").join(name))
}

fn signal_all(signal: Signal) {
    for pid in user_processes() {
        let _ = kill_process(pid, signal);
    }
}

/// All processes but PID 1, kernel threads (they have no program) and zombies (neither have they).
fn user_processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| pid > 1 && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .filter_map(Pid::from_raw)
        .collect()
}
