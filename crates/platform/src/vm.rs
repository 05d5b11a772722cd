//! What platforms say of their VMs, in one form.

use std::fmt;

use serde::{Deserialize, Serialize};
use spec::foreign::Description;

/// One VM in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSummary {
    /// Its name, by which the verbs find it.
    pub name: String,
    /// What identifies it on its platform, by which the verbs find it, too: a UUID, a number, a managed object's name.
    pub id: Option<String>,
    /// What it does now.
    pub state: State,
    /// Processors.
    pub cpus: Option<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// The guest's operating system in the platform's words.
    pub guest_os: Option<String>,
    /// The guest's addresses, where the platform knows them.
    pub addresses: Vec<String>,
    /// What is to be said about it, such as why it cannot be read.
    pub note: Option<String>,
}

/// What a VM does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its processors run.
    Running,
    /// Its processors stand still, its memory is there.
    Paused,
    /// Its memory is in a file.
    Suspended,
    /// It is switched off.
    Stopped,
    /// It is on its way from one state to another.
    Changing,
    /// Its guest or its process broke down.
    Crashed,
    /// The platform does not say, or a word that is not known here.
    #[default]
    Unknown,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Changing => "changing",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All that a platform says of one VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VmDetails {
    /// As in a list.
    pub summary: VmSummary,
    /// What it is made of: the same as what `inspect` reads from its files.
    pub description: Description,
}

/// What happened on a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "change")]
pub enum Change {
    /// A VM that was not there, or was not known to be.
    Appeared {
        /// It.
        vm: VmSummary,
    },
    /// A VM is not as it was.
    Changed {
        /// As it is now.
        vm: VmSummary,
    },
    /// A VM is gone.
    Vanished {
        /// As it was.
        vm: VmSummary,
    },
}
