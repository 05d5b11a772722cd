//! Runs a command in the guest by the agent there.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Client, ClientError, Exec, Exit, Streams, Window};
use machine::{Control, Finished, Outcome};

use crate::failure::{FAILED, Failure};
use crate::run::console::Attachment;
use crate::run::plan::AgentSocket;
use crate::run::terminal::{RawTerminal, size};

/// How long the guest has to switch itself off after the command.
const GRACE: Duration = Duration::from_secs(10);

/// A command and the socket at which its agent will arrive.
pub struct Command {
    listener: UnixListener,
    argv: Vec<OsString>,
    /// What is said of the machine when the guest is there.
    announcement: Option<String>,
}

/// A command whose guest is running.
pub struct Pending {
    result: Receiver<Result<Exit, ClientError>>,
}

impl Command {
    /// Listens before the guest starts, so that the agent never comes too early.
    pub fn listen(
        socket: &AgentSocket,
        argv: &[OsString],
        announcement: Option<String>,
    ) -> Result<Self, Failure> {
        let listener = bind(&socket.path).map_err(|error| {
            Failure::new(
                FAILED,
                format!("Cannot listen on {} for the guest agent: {error}", socket.path.display()),
            )
        })?;
        Ok(Self { listener, argv: argv.to_vec(), announcement })
    }

    /// Runs the command as soon as the agent is there, on a thread of its own; then ends the machine.
    pub fn serve(&self, control: &Control) -> Result<Pending, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(FAILED, format!("Cannot serve the guest agent: {error}"))
        };
        let listener = self.listener.try_clone().map_err(cannot)?;
        let (argv, announcement, control) =
            (self.argv.clone(), self.announcement.clone(), control.clone());
        let (sender, result) = channel();
        // Where no agent ever comes, the thread waits until the program ends.
        thread::Builder::new()
            .name("command".into())
            .spawn(move || {
                let outcome =
                    serve(&listener, argv, announcement, |result| drop(sender.send(result)));
                // The machine ends by itself when the agent has switched it off.
                if outcome.is_ok() {
                    thread::sleep(GRACE);
                }
                control.stop();
            })
            .map_err(cannot)?;
        Ok(Pending { result })
    }
}

impl Pending {
    /// The command's exit code, once the machine has ended.
    pub fn finish(self, finished: &Finished, attachment: &Attachment) -> Result<ExitCode, Failure> {
        match self.result.try_recv() {
            Ok(Ok(exit)) => Ok(ExitCode::from(exit.code())),
            Ok(Err(error)) => Err(with_console(Failure::from_error(FAILED, error), attachment)),
            Err(_) => {
                let failure = match &finished.outcome {
                    Outcome::Stopped => {
                        Failure::new(FAILED, "The machine was stopped before the command ended")
                    }
                    Outcome::TripleFault => Failure::new(
                        FAILED,
                        "The guest crashed before the command ended: triple fault",
                    ),
                    Outcome::Failed(reason) => {
                        Failure::new(FAILED, format!("The guest cannot go on: {reason}"))
                    }
                    Outcome::PowerOff | Outcome::Reset | Outcome::Suspended => {
                        Failure::new(FAILED, "The guest ended before the command did")
                    }
                };
                Err(with_console(failure, attachment))
            }
        }
    }
}

/// Binds a socket, also where one is left of a process that was killed: nobody answers at that.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let left = matches!(UnixStream::connect(path),
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused);
            if !left {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// What the guest printed last often says why.
fn with_console(failure: Failure, attachment: &Attachment) -> Failure {
    let lines = attachment.last_lines(12);
    if lines.is_empty() {
        failure
    } else {
        failure.help(format!("the guest's console ended with\n{lines}"))
    }
}

/// Talks with the agent; `tell` gets the command's end before the guest is switched off.
fn serve(
    listener: &UnixListener,
    argv: Vec<OsString>,
    announcement: Option<String>,
    tell: impl FnOnce(Result<Exit, ClientError>),
) -> Result<(), ()> {
    let begun = Instant::now();
    let connected = listener
        .accept()
        .map_err(ClientError::Setup)
        .and_then(|(stream, _)| Client::from_stream(stream));
    let mut client = match connected {
        Ok(client) => client,
        Err(error) => {
            tell(Err(error));
            return Err(());
        }
    };
    if let Some(announcement) = announcement {
        let kernel = &client.hello().kernel;
        tell!(
            "Linux {kernel} is up after {:.1?}: {announcement}; its shell reads standard input.",
            begun.elapsed()
        );
    }
    // A terminal in the guest only where there is one here at both ends.
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let window = size().map(|(cols, rows)| Window { rows, cols }).filter(|_| on_terminal);
    let raw = if window.is_some() { RawTerminal::enter().ok().flatten() } else { None };
    let env = std::env::var_os("TERM")
        .map(|term| (OsString::from("TERM"), term))
        .filter(|_| window.is_some());
    let exec = Exec { argv, env: env.into_iter().collect(), cwd: None, tty: window };
    let mut stdout = io::stdout();
    let mut stderr = io::stderr();
    let streams =
        Streams { stdin: Some(Box::new(io::stdin())), stdout: &mut stdout, stderr: &mut stderr };
    let result = client.run(&exec, streams);
    drop(raw);
    let ended = result.is_ok();
    tell(result);
    if ended { client.control().power_off().map_err(drop) } else { Err(()) }
}
