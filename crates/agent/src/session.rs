//! One command in the guest: its process, its pipes or terminal, and what is under way between them and the host.

use crate::children;
use crate::wire::{Exec, Exit, MAX_DATA, Message, STDIN_WINDOW, Window};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Most output of an ended command that is still fetched from its pipes: more than a pipe holds, so all of it, while
/// descendants that live on and write for ever cannot hold up the exit code.
const MAX_TAIL: usize = 2 << 20;
/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: u8 = 4;

/// Replaces this process by `argv` on the terminal that is its standard input, in a session of its own. Returns only
/// when that fails.
pub fn exec_on_tty(argv: &[OsString]) -> io::Error {
    let Some((program, arguments)) = argv.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    if let Err(error) = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) {
        return error.into();
    }
    Command::new(program).args(arguments).exec()
}

/// The shell's exit code for a program that could not be started: 127 not found, 126 anything else.
pub fn exit_code_of(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

pub(crate) struct Session {
    pub id: u32,
    child: Child,
    /// Readable when the child has ended; `None` on kernels before 5.3, where it is asked now and then.
    pidfd: Option<OwnedFd>,
    /// The terminal, when there is one.
    tty: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    pending: VecDeque<u8>,
    stdin_ended: bool,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// The places of a session's handles among those polled.
#[derive(Default)]
pub(crate) struct Slots {
    stdin: Option<usize>,
    stdout: Option<usize>,
    stderr: Option<usize>,
    pidfd: Option<usize>,
}

impl Session {
    /// Starts the command; `tty_helper` is the program that puts it on its terminal.
    pub fn start(id: u32, exec: &Exec, tty_helper: &Path) -> io::Result<Self> {
        let mut session = match exec.tty {
            Some(window) => Self::start_on_tty(id, exec, window, tty_helper)?,
            None => Self::start_on_pipes(id, exec)?,
        };
        for fd in [&session.stdin, &session.stdout, &session.stderr].into_iter().flatten() {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        session.pidfd = session.pid().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(session)
    }

    fn start_on_pipes(id: u32, exec: &Exec) -> io::Result<Self> {
        let mut command = Command::new(&exec.argv[0]);
        command
            .args(&exec.argv[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.process_group(0);
        surroundings(&mut command, exec)?;
        let mut child = children::spawn(&mut command)?;
        Ok(Self {
            id,
            pidfd: None,
            tty: None,
            stdin: child.stdin.take().map(OwnedFd::from),
            pending: VecDeque::new(),
            stdin_ended: false,
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            child,
        })
    }

    fn start_on_tty(id: u32, exec: &Exec, window: Window, helper: &Path) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        tcsetwinsize(&master, winsize(window))?;
        let mut command = Command::new(helper);
        command.arg(crate::TTY_HELPER).args(&exec.argv);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        surroundings(&mut command, exec)?;
        let child = children::spawn(&mut command)?;
        Ok(Self {
            id,
            child,
            pidfd: None,
            stdin: Some(master.try_clone()?),
            pending: VecDeque::new(),
            stdin_ended: false,
            stdout: Some(master.try_clone()?),
            stderr: None,
            tty: Some(master),
        })
    }

    /// Whether its end shows without asking for it.
    pub fn announces_its_end(&self) -> bool {
        self.pidfd.is_some()
    }

    /// Enters what is to be polled; output only when there is room for it.
    pub fn poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>, room: bool) -> Slots {
        let mut add = |fd: &'a Option<OwnedFd>, flags, wanted: bool| {
            let fd = fd.as_ref().filter(|_| wanted)?;
            fds.push(PollFd::new(fd, flags));
            Some(fds.len() - 1)
        };
        Slots {
            stdin: add(&self.stdin, PollFlags::OUT, !self.pending.is_empty()),
            stdout: add(&self.stdout, PollFlags::IN, room),
            stderr: add(&self.stderr, PollFlags::IN, room),
            pidfd: add(&self.pidfd, PollFlags::IN, room),
        }
    }

    /// Moves what can be moved. Returns how the command ended, once it has and its output is in `messages`.
    pub fn advance(
        &mut self,
        slots: &Slots,
        ready: &[bool],
        messages: &mut Vec<Message>,
    ) -> Option<Exit> {
        let is_ready = |slot: Option<usize>| slot.is_some_and(|slot| ready[slot]);
        if is_ready(slots.stdin) {
            self.write_stdin(messages);
        }
        if is_ready(slots.stdout) {
            self.read_output(MAX_DATA, 0, messages);
        }
        if is_ready(slots.stderr) {
            self.read_output(0, MAX_DATA, messages);
        }
        if self.pidfd.is_some() && !is_ready(slots.pidfd) {
            return None;
        }
        let exit = match children::collect(&mut self.child, self.pidfd.is_some()) {
            Ok(exit) => exit?,
            Err(_) => Exit::Code(126),
        };
        self.read_output(MAX_TAIL, MAX_TAIL, messages);
        Some(exit)
    }

    /// Takes input from the host; `false` when it is more than the host had credit for.
    pub fn feed(&mut self, data: &[u8], messages: &mut Vec<Message>) -> bool {
        if self.pending.len() + data.len() > STDIN_WINDOW {
            return false;
        }
        if self.stdin.is_some() && !self.stdin_ended {
            self.pending.extend(data);
            self.write_stdin(messages);
        }
        true
    }

    /// The host's input has ended.
    pub fn end_stdin(&mut self, messages: &mut Vec<Message>) {
        if self.tty.is_some() && !self.stdin_ended {
            self.pending.push_back(END_OF_TRANSMISSION);
        }
        self.stdin_ended = true;
        self.write_stdin(messages);
    }

    /// Sets the terminal's size.
    pub fn resize(&self, window: Window) {
        if let Some(tty) = &self.tty {
            let _ = tcsetwinsize(tty, winsize(window));
        }
    }

    /// Signals the process group; an unknown number does nothing.
    pub fn signal(&self, number: u8) {
        if let (Some(signal), Some(pid)) = (Signal::from_named_raw(number.into()), self.pid()) {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Ends the command at once.
    pub fn kill(mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        // A terminal's command may not have made its own group yet.
        let _ = self.child.kill();
        let _ = children::collect(&mut self.child, true);
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn write_stdin(&mut self, messages: &mut Vec<Message>) {
        let mut taken = 0;
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.pending.is_empty()) {
            match rustix::io::write(stdin, self.pending.as_slices().0) {
                Ok(n) => {
                    self.pending.drain(..n);
                    taken += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The command no longer reads. No more credit: the host need not send what nobody takes.
                Err(_) => {
                    self.pending.clear();
                    self.stdin = None;
                }
            }
        }
        if taken > 0 {
            messages.push(Message::Credit { session: self.id, bytes: taken as u32 });
        }
        if self.stdin_ended && self.pending.is_empty() {
            self.stdin = None;
        }
    }

    fn read_output(&mut self, stdout: usize, stderr: usize, messages: &mut Vec<Message>) {
        let session = self.id;
        pump(&mut self.stdout, stdout, |data| messages.push(Message::Stdout { session, data }));
        pump(&mut self.stderr, stderr, |data| messages.push(Message::Stderr { session, data }));
    }
}

/// Reads up to `limit` bytes without waiting, and closes the handle at its end.
fn pump(source: &mut Option<OwnedFd>, limit: usize, mut emit: impl FnMut(Vec<u8>)) {
    let mut read = 0;
    let mut buffer = [0; MAX_DATA];
    while read < limit {
        let Some(fd) = source.as_ref() else { return };
        match rustix::io::read(fd.as_fd(), &mut buffer) {
            Ok(0) => *source = None,
            Ok(n) => {
                emit(buffer[..n].to_vec());
                read += n;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            // A terminal whose last user has gone answers EIO.
            Err(_) => *source = None,
        }
    }
}

/// Environment and working directory.
fn surroundings(command: &mut Command, exec: &Exec) -> io::Result<()> {
    command.env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("USER", "root").env("HOME", "/root").env("TERM", "linux");
    for (name, value) in &exec.env {
        command.env(name, value);
    }
    match &exec.cwd {
        Some(cwd) if !Path::new(cwd).is_dir() => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a directory", Path::new(cwd).display()),
        )),
        Some(cwd) => {
            command.current_dir(cwd);
            Ok(())
        }
        None => {
            command.current_dir(if Path::new("/root").is_dir() { "/root" } else { "/" });
            Ok(())
        }
    }
}

fn winsize(window: Window) -> Winsize {
    Winsize { ws_row: window.rows, ws_col: window.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
