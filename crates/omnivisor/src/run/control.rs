//! A machine that others can steer: `omnivisor list`, `stop`, `pause` and so on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use machine::Control;
use platform::State;
use platform::own::{Record, Registration, Steer};
use spec::VmSpec;

use crate::failure::{Failure, NOT_STARTED};
use crate::run::state;

/// The machine that runs now; after a reset it is another one.
#[derive(Default)]
pub struct Steering {
    machine: Mutex<Option<Steered>>,
}

struct Steered {
    control: Control,
    paused: bool,
}

/// Registers a machine that has a name, so that others find it as long as the result is held.
pub fn register(
    spec: &VmSpec,
    engine: &str,
    steering: &Arc<Steering>,
) -> Result<Option<Registration>, Failure> {
    // Without a folder for state nobody can look for it.
    let (Some(name), Ok(folder)) = (&spec.name, state::folder()) else { return Ok(None) };
    let record = Record {
        name: name.clone(),
        pid: std::process::id(),
        cpus: spec.cpus.count(),
        memory: spec.memory.size().0,
        engine: engine.into(),
        image: spec.image.clone(),
        spec: spec.to_toml()?,
    };
    match Registration::new(&folder, record, Arc::clone(steering) as Arc<dyn Steer>) {
        Ok(registration) => Ok(Some(registration)),
        Err(error @ platform::Error::WrongState { .. }) => {
            let repair = error.repair().unwrap_or_default();
            Err(Failure::new(NOT_STARTED, format!("A VM called {name:?} runs already"))
                .help(repair))
        }
        Err(error) => {
            tracing::warn!("others cannot steer this VM: {}", machine::chain(&error));
            Ok(None)
        }
    }
}

impl Steering {
    /// There is a new machine.
    pub fn begin(&self, control: Control) {
        *self.lock() = Some(Steered { control, paused: false });
    }

    /// It has ended.
    pub fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Steered>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Steered) -> Result<T, String>) -> Result<T, String> {
        match &mut *self.lock() {
            Some(steered) => act(steered),
            None => Err("It is not running at the moment".into()),
        }
    }
}

impl Steer for Steering {
    fn state(&self) -> State {
        match &*self.lock() {
            Some(Steered { paused: true, .. }) => State::Paused,
            Some(_) => State::Running,
            None => State::Changing,
        }
    }

    fn press_power_button(&self) -> Result<(), String> {
        self.with(|steered| match () {
            () if steered.paused => Err("Its guest is paused and hears nothing".into()),
            () if steered.control.press_power_button() => Ok(()),
            () => {
                Err("Its guest does not listen to the power button: --force cuts its power".into())
            }
        })
    }

    fn kill(&self) -> Result<(), String> {
        self.with(|steered| {
            steered.control.stop();
            Ok(())
        })
    }

    fn pause(&self) -> Result<(), String> {
        self.with(|steered| {
            steered.control.pause_processors();
            steered.paused = true;
            Ok(())
        })
    }

    fn resume(&self) -> Result<(), String> {
        self.with(|steered| {
            steered.control.resume_processors();
            steered.paused = false;
            Ok(())
        })
    }

    fn reset(&self) -> Result<(), String> {
        self.with(|steered| {
            steered.control.reset();
            Ok(())
        })
    }
}
