//! Runs a platform's program, here or on another computer by ssh.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::credentials::VARIABLE as PASSWORD;
use crate::{Error, Result, Uri};

/// Runs programs in one place, with limits on time and on what they say.
#[derive(Clone, Debug)]
pub struct Runner {
    ssh: Option<Ssh>,
    time_limit: Duration,
    output_limit: usize,
    repair: Option<String>,
}

/// Another computer.
#[derive(Clone, Debug)]
struct Ssh {
    destination: String,
    port: Option<u16>,
}

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; signals count from 128, as in a shell.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, without what is no text.
    pub stderr: String,
}

/// So much may a program say.
const OUTPUT_LIMIT: usize = 64 << 20;
/// So much of its standard error is kept.
const STDERR_LIMIT: usize = 64 << 10;
/// ssh's own failures.
const SSH_FAILED: i32 = 255;
/// What shells and `env` return for a program that is not there.
const NO_PROGRAM: i32 = 127;
/// The program to run instead of `ssh`.
const SSH_VARIABLE: &str = "OMNIVISOR_SSH";

impl Runner {
    /// Runs programs where `uri` says: on its host if its scheme ends in `+ssh`, here otherwise.
    pub fn new(uri: &Uri, time_limit: Duration) -> Self {
        let ssh = uri.host.as_deref().filter(|_| uri.is_ssh()).map(|host| Ssh {
            destination: match &uri.user {
                Some(user) => format!("{user}@{host}"),
                None => host.into(),
            },
            port: uri.port,
        });
        Self { ssh, time_limit, output_limit: OUTPUT_LIMIT, repair: None }
    }

    /// With what repairs a program that is not there.
    #[must_use]
    pub fn repair(mut self, repair: impl Into<String>) -> Self {
        self.repair = Some(repair.into());
        self
    }

    /// With another limit on time.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// With another limit on standard output, in bytes.
    #[must_use]
    pub fn output_limit(mut self, limit: usize) -> Self {
        self.output_limit = limit;
        self
    }

    /// Where it runs programs.
    pub fn place(&self) -> &str {
        self.ssh.as_ref().map_or("this computer", |ssh| &ssh.destination)
    }

    /// Whether it runs programs on this computer.
    pub fn is_local(&self) -> bool {
        self.ssh.is_none()
    }

    /// Runs a program, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started or reached, takes too long, or says too much.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.run_with_input(program, args, &[])
    }

    /// Runs a program that reads `input` from its standard input.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with_input(&self, program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = self.command(program, args);
        let what = self.what(program, args);
        tracing::debug!(command = ?command, "run");
        let output = supervise(&mut command, input, self.time_limit, self.output_limit, &what)
            .map_err(|error| match error {
                Broken::Start(source) if self.ssh.is_none() => {
                    Error::Program { program: program.into(), source, repair: self.repair.clone() }
                }
                Broken::Start(source) => Self::no_ssh(source),
                Broken::Known(error) => error,
            })?;
        match &self.ssh {
            Some(ssh) if output.code == SSH_FAILED => Err(ssh.failed(&output)),
            Some(ssh) if output.code == NO_PROGRAM => Err(Error::Program {
                program: format!("{program} on {}", ssh.destination),
                source: io::ErrorKind::NotFound.into(),
                repair: self.repair.clone(),
            }),
            _ => Ok(output),
        }
    }

    /// Runs a program that must succeed; returns its standard output.
    ///
    /// # Errors
    /// As [`run`](Self::run), or its exit code is not 0.
    pub fn expect(&self, program: &str, args: &[&str]) -> Result<Vec<u8>> {
        let output = self.run(program, args)?;
        if output.code == 0 {
            return Ok(output.stdout);
        }
        Err(Error::Failed {
            what: self.what(program, args),
            message: output.complaint(),
            repair: None,
        })
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// It cannot be read, or is longer.
    pub fn read_file(&self, path: &str, limit: usize) -> Result<Vec<u8>> {
        let what = format!("reading {path}");
        if self.ssh.is_some() {
            // An option cannot be meant.
            return self.clone().output_limit(limit).expect("cat", &["--", path]);
        }
        let wrong = |source| Error::File { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(wrong)?;
        let mut bytes = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        file.take(most).read_to_end(&mut bytes).map_err(wrong)?;
        if bytes.len() > limit {
            return Err(Error::TooMuch { what, limit });
        }
        Ok(bytes)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let Some(ssh) = &self.ssh else {
            let mut command = Command::new(program);
            // Programs speak English, but know names in any script.
            command.args(args).env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE").env_remove(PASSWORD);
            return command;
        };
        let mut command = self.ssh_command(ssh, &[]);
        let words = [&["env", "LC_ALL=C.UTF-8", program], args].concat();
        command.arg(words.into_iter().map(quote).collect::<Vec<_>>().join(" "));
        command
    }

    /// ssh with a command line, which the other computer's own shell reads as it is. Here, a command that fails.
    pub(crate) fn raw(&self, line: &str) -> Command {
        match &self.ssh {
            Some(ssh) => {
                let mut command = self.ssh_command(ssh, &[]);
                command.arg(line);
                command
            }
            None => Command::new("false"),
        }
    }

    /// ssh's own failure, if it is one.
    pub(crate) fn ssh_failure(&self, output: &Output) -> Option<Error> {
        let ssh = self.ssh.as_ref().filter(|_| output.code == SSH_FAILED)?;
        Some(ssh.failed(output))
    }

    /// ssh with a subsystem of the other computer's server at its standard streams. Here, a command that fails.
    pub(crate) fn subsystem(&self, name: &str) -> Command {
        match &self.ssh {
            Some(ssh) => {
                let mut command = self.ssh_command(ssh, &["-s"]);
                command.arg(name);
                command
            }
            None => Command::new("false"),
        }
    }

    /// ssh that leads from a socket here to one of the other computer. Here, a command that fails.
    pub(crate) fn forward(&self, here: &std::path::Path, there: &std::path::Path) -> Command {
        match &self.ssh {
            Some(ssh) => {
                let mut sockets = here.as_os_str().to_owned();
                sockets.push(":");
                sockets.push(there);
                let sockets = sockets.to_string_lossy().into_owned();
                let failing = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", &sockets];
                self.ssh_command(ssh, &failing)
            }
            None => Command::new("false"),
        }
    }

    /// ssh up to the name of the other computer.
    fn ssh_command(&self, ssh: &Ssh, options: &[&str]) -> Command {
        let named = std::env::var_os(SSH_VARIABLE).filter(|name| !name.is_empty());
        let mut command = Command::new(named.unwrap_or_else(|| OsString::from("ssh")));
        command.args(["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5"]);
        command.arg("-o").arg(format!("ConnectTimeout={}", self.time_limit.as_secs().clamp(1, 15)));
        if let Some(port) = ssh.port {
            command.arg("-p").arg(port.to_string());
        }
        command.args(options).arg("--").arg(&ssh.destination).env_remove(PASSWORD).process_group(0);
        command
    }

    /// ssh cannot be started.
    pub(crate) fn no_ssh(source: io::Error) -> Error {
        let repair = Some("install OpenSSH's client".into());
        Error::Program { program: "ssh".into(), source, repair }
    }

    /// ssh ended where it should have gone on, with these words.
    pub(crate) fn lost(&self, output: &Output) -> Error {
        let place = self.place().to_owned();
        match &self.ssh {
            Some(_) if output.stderr.contains("subsystem request failed") => Error::Failed {
                what: format!("SFTP to {place}"),
                message: "its SSH server has no subsystem sftp".into(),
                repair: Some("its sshd_config needs: Subsystem sftp internal-sftp".into()),
            },
            Some(ssh) if output.code == SSH_FAILED && !output.stderr.trim().is_empty() => {
                ssh.failed(output)
            }
            _ => Error::Unreachable {
                place,
                message: "the connection was lost".into(),
                repair: None,
            },
        }
    }

    /// A command in the words of an error.
    fn what(&self, program: &str, args: &[&str]) -> String {
        let mut text = String::from(program);
        for arg in args.iter().take(8) {
            text.push(' ');
            text.extend(arg.chars().take(80).map(|one| if one.is_control() { ' ' } else { one }));
        }
        match &self.ssh {
            Some(ssh) => format!("{text} on {}", ssh.destination),
            None => text,
        }
    }
}

impl Output {
    /// What it complains of: the lines of its standard error, or the last one of its standard output.
    pub fn complaint(&self) -> String {
        let said = String::from_utf8_lossy(&self.stdout[self.stdout.len().saturating_sub(4096)..]);
        let mut lines: Vec<_> = self.stderr.lines().map(str::trim).collect();
        lines.retain(|line| !line.is_empty());
        if lines.is_empty() {
            lines.extend(said.lines().map(str::trim).rfind(|line| !line.is_empty()));
        }
        let text: String = lines.join("; ").chars().take(600).collect();
        let text = text.replace(char::is_control, " ");
        if text.is_empty() { format!("it ended with code {}", self.code) } else { text }
    }

    /// Its standard output as text.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&self, what: &str) -> Result<&str> {
        std::str::from_utf8(&self.stdout).map_err(|_| Error::reply(what, "it is no text"))
    }
}

impl Ssh {
    fn failed(&self, output: &Output) -> Error {
        let message = output.complaint();
        let port = self.port.map(|port| format!(" -p {port}")).unwrap_or_default();
        let place = self.destination.clone();
        if message.contains("Permission denied") {
            let repair = Some(format!("let it in by a key: ssh-copy-id{port} {place}"));
            return Error::Credentials { place, message, repair };
        }
        let repair = message
            .contains("Host key verification failed")
            .then(|| format!("look at its key and accept it: ssh{port} {place} true"));
        Error::Unreachable { place, message, repair }
    }
}

/// A word that any POSIX shell reads as it is.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Why a program said nothing useful.
enum Broken {
    Start(io::Error),
    Known(Error),
}

/// What comes from the threads that read.
enum Said {
    Stdout(io::Result<Vec<u8>>),
    Stderr(Vec<u8>),
}

/// Runs a program in a process group of its own, which is killed if it breaks a limit.
fn supervise(
    command: &mut Command,
    input: &[u8],
    time_limit: Duration,
    output_limit: usize,
    what: &str,
) -> std::result::Result<Output, Broken> {
    let deadline = Instant::now() + time_limit;
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(Broken::Start)?;
    let result = collect(&mut child, input, deadline, output_limit);
    if result.is_err() {
        // Those whom it started, too.
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = child.wait();
    }
    result.map_err(|trouble| {
        let what = what.to_owned();
        Broken::Known(match trouble {
            Trouble::Time => Error::TimedOut { what, limit: time_limit },
            Trouble::Length => Error::TooMuch { what, limit: output_limit },
            Trouble::Io(error) => Error::Failed { what, message: error.to_string(), repair: None },
        })
    })
}

enum Trouble {
    Time,
    Length,
    Io(io::Error),
}

fn collect(
    child: &mut Child,
    input: &[u8],
    deadline: Instant,
    output_limit: usize,
) -> std::result::Result<Output, Trouble> {
    let (sender, said) = channel();
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // Whoever does not read it has said enough.
        thread::spawn(move || drop(stdin.write_all(&input)));
    }
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let most = output_limit.saturating_add(1);
        read(stdout, most, &sender, Said::Stdout);
        read(stderr, STDERR_LIMIT, &sender, |said| Said::Stderr(said.unwrap_or_default()));
    }
    drop(sender);
    let mut output = Output::default();
    while let Some(part) = next(&said, deadline)? {
        match part {
            Said::Stdout(bytes) => output.stdout = bytes.map_err(Trouble::Io)?,
            Said::Stderr(bytes) => output.stderr = String::from_utf8_lossy(&bytes).into_owned(),
        }
        if output.stdout.len() > output_limit {
            return Err(Trouble::Length);
        }
    }
    // Its pipes are closed, so its end is near.
    loop {
        if let Some(status) = child.try_wait().map_err(Trouble::Io)? {
            use std::os::unix::process::ExitStatusExt;
            output.code = status.code().or(status.signal().map(|one| 128 + one)).unwrap_or(-1);
            return Ok(output);
        }
        if Instant::now() >= deadline {
            return Err(Trouble::Time);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn next(said: &Receiver<Said>, deadline: Instant) -> std::result::Result<Option<Said>, Trouble> {
    match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(part) => Ok(Some(part)),
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err(Trouble::Time),
    }
}

/// Reads on a thread until the end or `most` bytes; what is more of standard error is thrown away.
fn read(
    mut pipe: impl Read + Send + 'static,
    most: usize,
    sender: &Sender<Said>,
    wrap: impl FnOnce(io::Result<Vec<u8>>) -> Said + Send + 'static,
) {
    let sender = sender.clone();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let limit = u64::try_from(most).unwrap_or(u64::MAX);
        let result = (&mut pipe).take(limit).read_to_end(&mut bytes);
        let full = bytes.len() >= most;
        let said = wrap(result.map(|_| bytes));
        let goes_on = full && matches!(said, Said::Stderr(_));
        let _ = sender.send(said);
        drop(sender);
        if goes_on {
            // Or it would wait for a reader.
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(milliseconds: u64) -> Runner {
        Runner::new(&Uri::default(), Duration::from_millis(milliseconds))
    }

    #[test]
    fn output_errors_and_exit_codes_come_through() {
        let script = "printf out; echo '  trouble ' >&2; exit 3";
        let output = runner(20_000).run("sh", &["-c", script]).unwrap();
        assert_eq!((output.code, &output.stdout[..]), (3, &b"out"[..]));
        assert_eq!(output.complaint(), "trouble");
        let error = runner(20_000).expect("sh", &["-c", script]).unwrap_err();
        assert!(error.to_string().ends_with("failed: trouble"), "{error}");
        let echoed = runner(20_000).run_with_input("cat", &[], b"in").unwrap();
        assert_eq!(echoed.stdout, b"in");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_that_it_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("(sleep 1000 & echo $! > {}; wait)", file.path().display());
        let error = runner(300).run("sh", &["-c", &script]).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        let pid: i32 = std::fs::read_to_string(file.path()).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // A zombie that nobody has waited for yet is gone, too.
        let is_gone = || {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        while !is_gone() {
            assert!(Instant::now() < deadline, "it still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_never_stops_talking_is_ended() {
        let error = runner(60_000).output_limit(1000).run("yes", &[]).unwrap_err();
        assert!(matches!(error, Error::TooMuch { limit: 1000, .. }), "{error}");
        let output = runner(60_000).run("sh", &["-c", "yes | head -c 1000000 >&2"]).unwrap();
        assert_eq!(output.stderr.len(), STDERR_LIMIT);
    }

    #[test]
    fn a_program_that_is_missing_has_its_repair() {
        let error = runner(1000).repair("install it").run("/nonexistent/xl", &[]).unwrap_err();
        assert_eq!(error.repair().as_deref(), Some("install it"));
    }

    #[test]
    fn shells_read_quoted_words_as_they_are() {
        for word in ["", "plain", "it's", "a b", "$HOME", "`id`", "\\", "-n", "ü", "a\nb", "*"] {
            let script = format!("printf '%s' {}", quote(word));
            let output = runner(20_000).run("sh", &["-c", &script]).unwrap();
            assert_eq!(output.stdout, word.as_bytes(), "{word:?}");
        }
    }
}
