//! What can go wrong, and what repairs it.

use std::time::Duration;

use crate::Verb;

/// Result of asking a platform.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a platform did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name makes no sense.
    #[error("{text:?} names no platform: {message}")]
    Name {
        /// What was given.
        text: String,
        /// Why not.
        message: String,
    },
    /// The platform cannot do this.
    #[error("{platform} cannot do {:?}: {reason}", verb.name())]
    Lacks {
        /// The platform.
        platform: String,
        /// What it cannot.
        verb: Verb,
        /// Why not.
        reason: String,
    },
    /// There is no such VM, or none such snapshot.
    #[error("{place} has no {what} called {name:?}")]
    NotFound {
        /// The platform.
        place: String,
        /// "VM" or "snapshot".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// There are several with this name.
    #[error("{place} has several {what}s called {name:?}: {}", ids.join(", "))]
    Ambiguous {
        /// The platform.
        place: String,
        /// "VM" or "snapshot".
        what: &'static str,
        /// The name.
        name: String,
        /// What tells them apart.
        ids: Vec<String>,
    },
    /// The VM's state does not allow it.
    #[error("{name:?} is {state}")]
    WrongState {
        /// The VM.
        name: String,
        /// Its state.
        state: crate::State,
        /// The command that brings it into the right one.
        repair: Option<String>,
    },
    /// A program cannot be started.
    #[error("Cannot run {program}")]
    Program {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
        /// What repairs it.
        repair: Option<String>,
    },
    /// A program, or the platform behind it, says that it failed.
    #[error("{what} failed: {message}")]
    Failed {
        /// What was called.
        what: String,
        /// What it said.
        message: String,
        /// What repairs it.
        repair: Option<String>,
    },
    /// The platform cannot be reached, or hung up.
    #[error("Cannot talk to {place}: {message}")]
    Unreachable {
        /// The host.
        place: String,
        /// Why not.
        message: String,
        /// What repairs it.
        repair: Option<String>,
    },
    /// User name and password do not fit, or there is none.
    #[error("{place} lets nobody in: {message}")]
    Credentials {
        /// The host.
        place: String,
        /// What it said.
        message: String,
        /// What repairs it.
        repair: Option<String>,
    },
    /// No answer in time.
    #[error("{what} did not answer within {} s", limit.as_secs_f32())]
    TimedOut {
        /// What was called.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is longer than anything sensible.
    #[error("{what} answers more than {limit} bytes")]
    TooMuch {
        /// What was called.
        what: String,
        /// How much is taken.
        limit: usize,
    },
    /// The answer makes no sense.
    #[error("The answer of {what} makes no sense: {message}")]
    Reply {
        /// What was called.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("Cannot use {}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The VM's description cannot be read.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// A disk cannot be read.
    #[error(transparent)]
    Disk(#[from] disk::Error),
}

/// Errors by whose matter they are; the program has an exit code for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was asked makes no sense, or the platform cannot do it.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// The platform failed.
    Failed,
}

impl Error {
    /// Whose matter it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } | Self::Lacks { .. } | Self::Ambiguous { .. } => Kind::Usage,
            Self::NotFound { .. } => Kind::NotFound,
            _ => Kind::Failed,
        }
    }

    /// A command or an advice that repairs it.
    pub fn repair(&self) -> Option<String> {
        match self {
            Self::Program { repair, .. }
            | Self::Failed { repair, .. }
            | Self::Unreachable { repair, .. }
            | Self::Credentials { repair, .. }
            | Self::WrongState { repair, .. } => repair.clone(),
            Self::Lacks { .. } => {
                Some("omnivisor platforms tells what each platform can do".into())
            }
            Self::NotFound { place, what: "VM", .. } => Some(format!("omnivisor list {place}")),
            Self::NotFound { what: "snapshot", .. } => {
                Some("omnivisor snapshot list [URI/]NAME".into())
            }
            Self::Ambiguous { .. } => Some("name it by its id".into()),
            Self::TimedOut { .. } => Some("give it more time with --timeout SECONDS".into()),
            _ => None,
        }
    }

    /// An answer that makes no sense.
    pub(crate) fn reply(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Reply { what: what.into(), message: message.into() }
    }
}
