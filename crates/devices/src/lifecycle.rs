//! The one lifecycle of every device.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A device of the machine.
///
/// Order of calls: built from its configuration; then [`restore`](Device::restore) if a saved guest
/// goes on; [`start`](Device::start); any number of [`pause`](Device::pause), `save`,
/// [`resume`](Device::resume) and [`reset`](Device::reset); [`stop`](Device::stop). All calls come from
/// one thread, while processors and the event loop may be using the device's registers and queues.
pub trait Device: Send + Sync {
    /// Its name within the machine: unique, stable over restarts, the key of its saved state.
    fn name(&self) -> &str;

    /// Begins to work: timers run, host descriptors are watched.
    fn start(&self) -> Result<()> {
        Ok(())
    }

    /// Returns when nothing of it touches guest memory any more: requests that were begun are
    /// finished, those that wait stay in their queues.
    fn pause(&self) -> Result<()> {
        Ok(())
    }

    /// Goes on after [`pause`](Device::pause) or a restore, and looks at what waited meanwhile.
    fn resume(&self) -> Result<()> {
        Ok(())
    }

    /// Back to the state after power-on.
    fn reset(&self) -> Result<()>;

    /// The paused device's state.
    fn save(&self) -> Result<State>;

    /// Takes over a saved state before [`start`](Device::start). The state is not trusted.
    fn restore(&self, state: &State) -> Result<()>;

    /// Ends its work for good and flushes what it holds.
    fn stop(&self) {}
}

/// Registers that a guest reaches by port or memory-mapped I/O.
///
/// Called by processors, several at once. `data` is 1, 2, 4 or 8 bytes; `offset` is relative to the
/// device's range and `offset + data.len()` may pass its end.
pub trait Registers: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device's saved state: a self-describing value, so that a later version reads an older one's by
/// giving new fields a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(pub serde_json::Value);

impl State {
    /// The state that `state` serialises to.
    pub fn new<T: Serialize>(state: &T) -> Result<Self> {
        serde_json::to_value(state).map(Self).map_err(|source| Error::State { source })
    }

    /// The struct it was made of.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.0).map_err(|source| Error::State { source })
    }
}

/// Result of a device's work.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a device, on the host's side. What a guest does wrong is never an error here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("Cannot {action}")]
    Io {
        /// What was tried, after "cannot".
        action: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A saved state does not fit.
    #[error("The saved state is not one of this device")]
    State {
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A saved state holds a value that cannot be.
    #[error("The saved state is invalid: {0}")]
    InvalidState(&'static str),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The device was configured with something that cannot be.
    #[error("{0}")]
    Configuration(String),
}

impl Error {
    /// For `map_err`: wraps what the operating system said while doing `action`.
    pub fn io<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action: action.into(), source: source.into() }
    }
}
