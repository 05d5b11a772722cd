//! A program on a host: what it is told, and what it says.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Error, Output, Result, Runner};

/// A program that runs on a host. It ends with the value.
pub(super) trait Talk: Send {
    /// Gives it bytes; after the last ones its standard input ends.
    fn send(&mut self, bytes: &[u8], is_last: bool) -> Result<()>;

    /// Waits for what it says next, or for its end, within `limit`.
    fn receive(&mut self, limit: Duration) -> Result<Said>;
}

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Its exit code, after its end.
    pub done: Option<i32>,
}

impl Said {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is read from a pipe at once.
const PIECE: usize = 64 << 10;
/// Pieces that wait for whoever reads them; more of them wait in the pipe.
const WAITING: usize = 32;

/// A program behind ssh.
pub(super) struct Ssh {
    runner: Runner,
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Piece>,
    /// Of standard error, should it be ssh's own.
    stderr: Vec<u8>,
}

enum Piece {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

impl Ssh {
    /// Runs a command line, as the host's own shell reads it.
    pub fn start(runner: &Runner, line: &str) -> Result<Box<dyn Talk>> {
        let mut command = runner.raw(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Runner::no_ssh)?;
        let (sender, said) = sync_channel(WAITING);
        if let Some(pipe) = child.stdout.take() {
            read(pipe, &sender, Piece::Stdout);
        }
        if let Some(pipe) = child.stderr.take() {
            read(pipe, &sender, Piece::Stderr);
        }
        let stdin = child.stdin.take();
        Ok(Box::new(Self { runner: runner.clone(), child, stdin, said, stderr: Vec::new() }))
    }

    fn ended(&mut self) -> Result<Said> {
        let status = self.child.wait();
        let code = status.ok().and_then(|status| status.code()).unwrap_or(-1);
        let stderr = String::from_utf8_lossy(&self.stderr).into_owned();
        match self.runner.ssh_failure(&Output { code, stdout: Vec::new(), stderr }) {
            Some(error) => Err(error),
            None => Ok(Said { done: Some(code), ..Said::default() }),
        }
    }
}

impl Talk for Ssh {
    fn send(&mut self, bytes: &[u8], is_last: bool) -> Result<()> {
        // Whoever does not read it says why, or ends.
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(bytes).and_then(|()| stdin.flush()).is_err()
        {
            self.stdin = None;
        }
        if is_last {
            self.stdin = None;
        }
        Ok(())
    }

    fn receive(&mut self, limit: Duration) -> Result<Said> {
        let deadline = Instant::now() + limit;
        match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Piece::Stdout(bytes)) => Ok(Said { stdout: bytes, ..Said::default() }),
            Ok(Piece::Stderr(bytes)) => {
                if self.stderr.len() < PIECE {
                    self.stderr.extend(&bytes);
                }
                Ok(Said { stderr: bytes, ..Said::default() })
            }
            Err(RecvTimeoutError::Disconnected) => self.ended(),
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                what: format!("PowerShell on {}", self.runner.place()),
                limit,
            }),
        }
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.stdin = None;
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        // With all that it started.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Hands on what comes from a pipe, until nobody wants it.
fn read(
    mut pipe: impl Read + Send + 'static,
    sender: &SyncSender<Piece>,
    wrap: fn(Vec<u8>) -> Piece,
) {
    let sender = sender.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if sender.send(wrap(buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
}
