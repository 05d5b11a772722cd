//! Our own VMs: each is a process that registers itself in the folder for state and listens to a Unix socket there.
//!
//! Three files belong to a VM: a record of what it is, the socket, and a lock that its process holds as long as it
//! lives. What a process that was killed left behind is removed by whoever comes by.

mod record;
mod serve;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use spec::foreign::Description;

use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, Error, Options, Platform, Result, Snapshot, State, Uri, Verb, VmDetails,
    VmSummary,
};

pub use record::Record;
use record::Registry;
use serve::{Answer, Request};
pub use serve::{Registration, Steer};

/// How they are reached.
pub const DRIVER: Driver = Driver {
    platform: "Omnivisor",
    schemes: &["own"],
    is_local: true,
    path_parts: 0,
    met: Met::Product("itself"),
    ability,
    connect,
};

/// The name of the place where our own VMs are.
pub fn uri() -> Uri {
    Uri { scheme: "own".into(), ..Uri::default() }
}

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::Start => Ability::no("`omnivisor run --name NAME` starts it"),
        Verb::SnapshotList | Verb::SnapshotCreate | Verb::SnapshotRevert | Verb::SnapshotDelete => {
            Ability::no("whole machines are not saved yet")
        }
        Verb::ConsoleLog => Ability::no("the console is where it was started"),
        Verb::ReadDisks => Ability::no("they are files: name them"),
        Verb::Reset => {
            Ability::partly("with --force only: the machine has no way to ask its guest")
        }
        Verb::Watch => Ability::partly("by asking again and again"),
        Verb::List | Verb::Show | Verb::Stop | Verb::Pause | Verb::Resume => Ability::Yes,
    }
}

fn connect(_uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let folder = options.state_folder.clone().ok_or_else(|| Error::Unreachable {
        place: uri().to_string(),
        message: "there is no folder for the state of VMs".into(),
        repair: Some("set XDG_STATE_HOME or HOME".into()),
    })?;
    // A process that is stopped accepts nothing.
    let time_limit = options.time_limit.min(Duration::from_secs(5));
    Ok(Box::new(Own { folder, time_limit }))
}

struct Own {
    folder: PathBuf,
    time_limit: Duration,
}

/// Longest answers.
const LONGEST: u64 = 64 << 10;

impl Own {
    fn records(&self) -> Result<Vec<Record>> {
        match Registry::open(&self.folder)? {
            Some(registry) => registry.alive(),
            None => Ok(Vec::new()),
        }
    }

    fn find(&self, vm: &str) -> Result<Record> {
        let records = self.records()?;
        let by_name = records.iter().position(|record| record.name == vm);
        let at = by_name.or_else(|| records.iter().position(|record| vm.parse() == Ok(record.pid)));
        let at = at.ok_or_else(|| Error::NotFound {
            place: uri().to_string(),
            what: "VM",
            name: vm.into(),
        })?;
        Ok(records.into_iter().nth(at).unwrap_or_default())
    }

    fn ask(&self, record: &Record, request: Request) -> Result<Answer> {
        let what = format!("VM {:?}", record.name);
        let hung_up = |error: std::io::Error| {
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            {
                return Error::TimedOut { what: what.clone(), limit: self.time_limit };
            }
            let (place, message) = (what.clone(), error.to_string());
            Error::Unreachable { place, message, repair: None }
        };
        let gone = || hung_up(std::io::ErrorKind::NotFound.into());
        let registry = Registry::open(&self.folder)?.ok_or_else(gone)?;
        let stream = UnixStream::connect(registry.socket(&record.name)?).map_err(hung_up)?;
        stream.set_read_timeout(Some(self.time_limit)).map_err(hung_up)?;
        stream.set_write_timeout(Some(self.time_limit)).map_err(hung_up)?;
        let mut text = serde_json::to_vec(&request).unwrap_or_default();
        text.push(b'\n');
        (&stream).write_all(&text).map_err(hung_up)?;
        let mut answer = Vec::new();
        (&stream).take(LONGEST).read_to_end(&mut answer).map_err(hung_up)?;
        serde_json::from_slice(&answer).map_err(|error| Error::reply(what, error.to_string()))
    }

    fn summary(&self, record: &Record) -> VmSummary {
        let (state, note) = match self.ask(record, Request::State) {
            Ok(Answer::State { state }) => (state, None),
            Ok(_) => (State::Unknown, Some("it answers what was not asked".into())),
            Err(error) => (State::Unknown, Some(error.to_string())),
        };
        VmSummary {
            name: record.name.clone(),
            id: Some(record.pid.to_string()),
            state,
            cpus: Some(record.cpus),
            memory: Some(record.memory),
            guest_os: record.image.clone(),
            note,
            ..VmSummary::default()
        }
    }
}

impl Platform for Own {
    fn product(&self) -> Result<String> {
        Ok(format!("Omnivisor {}", env!("CARGO_PKG_VERSION")))
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        Ok(self.records()?.iter().map(|record| self.summary(record)).collect())
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let record = self.find(vm)?;
        let path = format!("{}.toml", record.name);
        let mut vms = spec::foreign::parse(record.spec.as_bytes(), path.as_ref())?;
        let description = vms.pop().unwrap_or_else(Description::default);
        Ok(VmDetails { summary: self.summary(&record), description })
    }

    fn snapshots(&self, _vm: &str) -> Result<Vec<Snapshot>> {
        Ok(Vec::new())
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let record = self.find(vm)?;
        let request = match action {
            Action::Stop { force: false } => Request::Stop,
            Action::Stop { force: true } => Request::Kill,
            Action::Pause => Request::Pause,
            Action::Resume => Request::Resume,
            Action::Reset { force: true } => Request::Reset,
            other => {
                return Err(Error::Lacks {
                    platform: DRIVER.platform.into(),
                    verb: other.verb(),
                    reason: "say --force: the machine has no way to ask its guest".into(),
                });
            }
        };
        match self.ask(&record, request)? {
            Answer::Done | Answer::State { .. } => Ok(()),
            Answer::Failed { message } => {
                Err(Error::Failed { what: format!("VM {vm:?}"), message, repair: None })
            }
        }
    }
}

/// Reads what a fuzzer says in the place of a file or a VM.
pub fn fuzz(bytes: &[u8]) {
    let _ = Record::read(bytes);
    let _ = serde_json::from_slice::<Request>(bytes);
    let _ = serde_json::from_slice::<Answer>(bytes);
}
