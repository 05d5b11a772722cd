//! PowerShell over Windows Remote Management: WS-Management's shell, by HTTP or HTTPS.
//!
//! Source: MS-WSMV, "Web Services Management Protocol Extensions for Windows Vista".

mod http;
mod ntlm;
mod seal;
mod soap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Connection, Service};
use soap::{Ask, Fault, NOTHING_YET};

use super::USUAL_USER;
use super::talk::{Said, Talk};
use crate::xml::Element;
use crate::{Error, Options, Result, Uri};

/// So long a server may keep a question for what a program said; then it is asked again.
const PATIENCE: Duration = Duration::from_secs(20);
/// A server's answer may be on its way for so much longer.
const WAY: Duration = Duration::from_secs(10);
/// What is left on a server that does not answer is ended by its idle timeout.
const FAREWELL: Duration = Duration::from_secs(3);
/// So many bytes go into one message: with base64 well below 150 KiB, which every server takes.
const PORTION: usize = 64 << 10;

/// A WinRM service.
pub(super) struct Winrm {
    service: Arc<Service>,
}

impl Winrm {
    /// The service that `uri` names; nothing is sent yet.
    pub fn new(uri: &Uri, options: &Options) -> Result<Self> {
        Ok(Self { service: Arc::new(Service::new(uri, options)?) })
    }

    /// The host, for people.
    pub fn place(&self) -> &str {
        &self.service.place
    }

    /// Runs a program in a shell of its own.
    pub fn start(&self, program: &str, arguments: &str) -> Result<Box<dyn Talk>> {
        let connection = Connection::new(self.service.clone())?;
        let mut shell =
            Shell { service: self.service.clone(), connection, id: None, command: None };
        let created = shell.expect(&Ask::Create)?;
        let id = created.as_ref().and_then(soap::shell_id);
        shell.id = Some(id.ok_or_else(|| shell.wrong("it makes a shell without an identity"))?);
        let started = shell.expect(&Ask::Command { program, arguments })?;
        let id = started.as_ref().and_then(|started| started.value("CommandId"));
        let id = id.filter(|id| !id.is_empty()).map(str::to_owned);
        shell.command =
            Some(id.ok_or_else(|| shell.wrong("it starts a program without an identity"))?);
        Ok(Box::new(shell))
    }
}

/// A shell on a server, and the program in it.
struct Shell {
    service: Arc<Service>,
    connection: Connection,
    id: Option<String>,
    command: Option<String>,
}

impl Shell {
    fn ask(
        &mut self,
        ask: &Ask<'_>,
        limit: Duration,
    ) -> Result<std::result::Result<Option<Element>, Fault>> {
        let seconds = PATIENCE.min(limit).as_secs().max(1);
        let message = ask.envelope(
            &format!("http://{}/wsman", self.service.place),
            self.id.as_deref(),
            seconds,
        );
        let answer = self.connection.post(ask.name(), &message, limit)?;
        let what = || format!("{} at {}", ask.name(), self.service.place);
        soap::reply(&answer.body).map_err(|message| {
            let message = match answer.status.is_success() {
                true => message,
                false => format!("the server says {}", answer.status),
            };
            Error::reply(what(), message)
        })
    }

    fn expect(&mut self, ask: &Ask<'_>) -> Result<Option<Element>> {
        let limit = self.service.limit();
        self.ask(ask, limit)?.map_err(|fault| self.failed(ask, fault))
    }

    fn failed(&self, ask: &Ask<'_>, fault: Fault) -> Error {
        let place = self.service.place.clone();
        // ERROR_ACCESS_DENIED.
        if fault.code == 5 {
            let repair = "let the user into the host's group Remote Management Users";
            return Error::Credentials {
                place,
                message: fault.message,
                repair: Some(repair.into()),
            };
        }
        Error::Failed {
            what: format!("{} at {place}", ask.name()),
            message: fault.message,
            repair: None,
        }
    }

    fn wrong(&self, message: &str) -> Error {
        Error::reply(self.service.place.clone(), message)
    }
}

impl Talk for Shell {
    fn send(&mut self, bytes: &[u8], is_last: bool) -> Result<()> {
        let command = self.command.clone().unwrap_or_default();
        let mut rest = bytes;
        while is_last || !rest.is_empty() {
            let (bytes, after) = rest.split_at(rest.len().min(PORTION));
            let is_last = is_last && after.is_empty();
            rest = after;
            self.expect(&Ask::Send { command: &command, bytes, is_last })?;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    fn receive(&mut self, limit: Duration) -> Result<Said> {
        let command = self.command.clone().unwrap_or_default();
        let ask = Ask::Receive { command: &command };
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(Error::TimedOut {
                    what: format!("PowerShell at {}", self.service.place),
                    limit,
                });
            }
            match self.ask(&ask, left.min(PATIENCE + WAY))? {
                Ok(Some(response)) => {
                    let received =
                        soap::received(&response).map_err(|message| self.wrong(&message))?;
                    if received.done.is_some() {
                        self.command = None;
                    }
                    let said = Said {
                        stdout: received.stdout,
                        stderr: received.stderr,
                        done: received.done,
                    };
                    if !said.is_empty() {
                        return Ok(said);
                    }
                }
                Ok(None) => return Err(self.wrong("it answers nothing")),
                Err(fault) if fault.code == NOTHING_YET => {}
                Err(fault) => return Err(self.failed(&ask, fault)),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if self.id.is_none() {
            return;
        }
        // A server that is gone has nothing to end.
        if let Some(command) = self.command.take()
            && self.ask(&Ask::Terminate { command: &command }, FAREWELL).is_err()
        {
            return;
        }
        let _ = self.ask(&Ask::Delete, FAREWELL);
    }
}

/// Reads what a fuzzer says in a server's place.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(Ok(Some(content))) = soap::reply(bytes) {
        let _ = (soap::shell_id(&content), soap::received(&content));
    }
    let _ = seal::parts(bytes);
    ntlm::fuzz(bytes);
}
