//! The side of the VM: it registers itself and does what it is asked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{Record, Registry, file_name};
use crate::{Error, Result, State};

/// What can be asked of a running VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "request")]
pub(super) enum Request {
    State,
    /// Its power button is pressed.
    Stop,
    Kill,
    Pause,
    Resume,
    Reset,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "answer")]
pub(super) enum Answer {
    Done,
    State { state: State },
    Failed { message: String },
}

/// Whoever can steer a running VM. What fails says why in one sentence.
pub trait Steer: Send + Sync {
    /// What it does now.
    fn state(&self) -> State;
    /// Presses its power button.
    fn press_power_button(&self) -> std::result::Result<(), String>;
    /// Ends it without asking the guest.
    fn kill(&self) -> std::result::Result<(), String>;
    /// Stops its processors.
    fn pause(&self) -> std::result::Result<(), String>;
    /// Lets them go on.
    fn resume(&self) -> std::result::Result<(), String>;
    /// Resets it.
    fn reset(&self) -> std::result::Result<(), String>;
}

/// A running VM's place among the others; it is given up when this is dropped.
pub struct Registration {
    registry: Registry,
    record: Record,
    /// The name is taken as long as this is held.
    _lock: File,
}

/// Longest request.
const LONGEST: u64 = 4096;
/// How long whoever asks may take to say it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Registration {
    /// Registers a VM in the folder for state, and listens to what `steer` is to do.
    ///
    /// # Errors
    /// Another one of this name runs, or the files cannot be written.
    pub fn new(state: &Path, record: Record, steer: Arc<dyn Steer>) -> Result<Self> {
        let registry = Registry::create(state)?;
        let lock = registry.take(&record.name)?.ok_or_else(|| Error::WrongState {
            name: record.name.clone(),
            state: State::Running,
            repair: Some("choose another --name, or stop it with omnivisor stop NAME".into()),
        })?;
        let stem = file_name(&record.name)?;
        // What a process that was killed left.
        let socket = registry.socket(&record.name)?;
        let _ = std::fs::remove_file(&socket);
        let wrong = |source| Error::File { path: socket.clone(), source };
        let listener = UnixListener::bind(&socket).map_err(wrong)?;
        std::thread::Builder::new()
            .name("control".into())
            .stack_size(128 << 10)
            .spawn(move || serve(&listener, &*steer))
            .map_err(wrong)?;
        let registration = Self { registry, record, _lock: lock };
        if let Err(error) = registration.registry.write(&registration.record) {
            registration.registry.remove(&stem, Some(&registration.record));
            return Err(error);
        }
        Ok(registration)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Ok(stem) = file_name(&self.record.name) {
            self.registry.remove(&stem, Some(&self.record));
        }
    }
}

/// One after the other: each is done in a moment, and whoever stops talking is left.
fn serve(listener: &UnixListener, steer: &dyn Steer) {
    for stream in listener.incoming() {
        match stream.and_then(|stream| answer(&stream, steer)) {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "control");
                // Too many open files would be told again and again.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn answer(stream: &UnixStream, steer: &dyn Steer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    let done = match serde_json::from_str(&line)? {
        Request::State => Ok(None),
        Request::Stop => steer.press_power_button().map(Some),
        Request::Kill => steer.kill().map(Some),
        Request::Pause => steer.pause().map(Some),
        Request::Resume => steer.resume().map(Some),
        Request::Reset => steer.reset().map(Some),
    };
    let answer = match done {
        Ok(Some(())) => Answer::Done,
        Ok(None) => Answer::State { state: steer.state() },
        Err(message) => Answer::Failed { message },
    };
    let mut stream = stream;
    stream.write_all(&serde_json::to_vec(&answer)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Action, Options, connect, own};

    /// Remembers what it was asked, and cannot be reset.
    struct Machine(Mutex<State>);

    impl Machine {
        fn becomes(&self, state: State) -> std::result::Result<(), String> {
            *self.0.lock().unwrap() = state;
            Ok(())
        }
    }

    impl Steer for Machine {
        fn state(&self) -> State {
            *self.0.lock().unwrap()
        }
        fn press_power_button(&self) -> std::result::Result<(), String> {
            self.becomes(State::Changing)
        }
        fn kill(&self) -> std::result::Result<(), String> {
            self.becomes(State::Stopped)
        }
        fn pause(&self) -> std::result::Result<(), String> {
            self.becomes(State::Paused)
        }
        fn resume(&self) -> std::result::Result<(), String> {
            self.becomes(State::Running)
        }
        fn reset(&self) -> std::result::Result<(), String> {
            Err("It cannot".into())
        }
    }

    #[test]
    fn a_registered_vm_does_what_it_is_asked() {
        let parent = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let state = parent.path().join("x".repeat(120));
        let record = || Record {
            name: "web".into(),
            pid: 42,
            cpus: 1,
            memory: 1 << 20,
            spec: "name = \"web\"\nmemory = \"64M\"\n".into(),
            ..Record::default()
        };
        let machine = || Arc::new(Machine(Mutex::new(State::Running)));
        let registration = Registration::new(&state, record(), machine()).unwrap();
        assert!(matches!(
            Registration::new(&state, record(), machine()),
            Err(Error::WrongState { .. })
        ));
        let options = Options { state_folder: Some(state.clone()), ..Options::default() };
        let own = connect(&own::uri(), &options).unwrap();
        let state_of = || own.list().unwrap()[0].state;
        assert_eq!(state_of(), State::Running);
        own.perform("web", &Action::Pause).unwrap();
        assert_eq!(state_of(), State::Paused);
        own.perform("42", &Action::Resume).unwrap();
        assert_eq!(state_of(), State::Running);
        let error = own.perform("web", &Action::Reset { force: true }).unwrap_err();
        assert!(error.to_string().contains("It cannot"), "{error}");
        assert!(matches!(own.perform("web", &Action::Start), Err(Error::Lacks { .. })));
        assert!(matches!(own.perform("dbx", &Action::Pause), Err(Error::NotFound { .. })));
        assert_eq!(own.show("web").unwrap().description.memory.size, Some(64 << 20));
        own.perform("web", &Action::Stop { force: true }).unwrap();
        assert_eq!(state_of(), State::Stopped);
        drop(registration);
        assert_eq!(own.list().unwrap(), []);
        assert_eq!(std::fs::read_dir(state.join("running")).unwrap().count(), 0);
    }
}
