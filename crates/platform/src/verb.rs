//! What can be asked of a platform.

use std::fmt;

use serde::Serialize;

/// Everything that can be asked of a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Names and states of all VMs.
    List,
    /// All that the platform knows of one VM.
    Show,
    /// Switches a VM on.
    Start,
    /// Switches a VM off.
    Stop,
    /// Stops its processors.
    Pause,
    /// Lets them go on.
    Resume,
    /// Restarts it.
    Reset,
    /// What states were kept.
    SnapshotList,
    /// Keeps the present state.
    SnapshotCreate,
    /// Goes back to a kept state.
    SnapshotRevert,
    /// Forgets a kept state.
    SnapshotDelete,
    /// What the guest wrote to its console.
    ConsoleLog,
    /// Reads a VM's disks from afar.
    ReadDisks,
    /// Tells of changes as they happen.
    Watch,
}

impl Verb {
    /// All of them, in the order in which tables have them.
    pub const ALL: [Self; 14] = [
        Self::List,
        Self::Show,
        Self::Start,
        Self::Stop,
        Self::Pause,
        Self::Resume,
        Self::Reset,
        Self::SnapshotList,
        Self::SnapshotCreate,
        Self::SnapshotRevert,
        Self::SnapshotDelete,
        Self::ConsoleLog,
        Self::ReadDisks,
        Self::Watch,
    ];

    /// The word that the command line has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Show => "show",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::SnapshotList => "snapshot list",
            Self::SnapshotCreate => "snapshot create",
            Self::SnapshotRevert => "snapshot revert",
            Self::SnapshotDelete => "snapshot delete",
            Self::ConsoleLog => "console-log",
            Self::ReadDisks => "read disks",
            Self::Watch => "watch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a platform can do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "can", content = "reason")]
pub enum Ability {
    /// It can.
    Yes,
    /// It can in part or by other means: how, as a sentence without a full stop.
    Partly(String),
    /// It cannot: why, as a sentence without a full stop.
    No(String),
}

impl Ability {
    /// It can in part.
    pub fn partly(how: impl Into<String>) -> Self {
        Self::Partly(how.into())
    }

    /// It cannot.
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No(reason.into())
    }
}

/// A change to one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Switches it on.
    Start,
    /// Asks the guest to shut down; by force, its power is cut.
    Stop {
        /// Without asking the guest.
        force: bool,
    },
    /// Stops its processors.
    Pause,
    /// Lets them go on.
    Resume,
    /// Asks the guest to restart; by force, its reset button is pressed.
    Reset {
        /// Without asking the guest.
        force: bool,
    },
    /// Keeps the present state.
    CreateSnapshot {
        /// Under this name.
        name: String,
        /// What its owner wants to remember of it.
        description: Option<String>,
    },
    /// Goes back to a kept state; what came after it is lost.
    RevertSnapshot {
        /// Its name or identity.
        name: String,
    },
    /// Forgets a kept state.
    DeleteSnapshot {
        /// Its name or identity.
        name: String,
    },
}

impl Action {
    /// The verb that it is.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Start => Verb::Start,
            Self::Stop { .. } => Verb::Stop,
            Self::Pause => Verb::Pause,
            Self::Resume => Verb::Resume,
            Self::Reset { .. } => Verb::Reset,
            Self::CreateSnapshot { .. } => Verb::SnapshotCreate,
            Self::RevertSnapshot { .. } => Verb::SnapshotRevert,
            Self::DeleteSnapshot { .. } => Verb::SnapshotDelete,
        }
    }

    /// What will be lost without asking anyone, as the rest of a sentence about the VM; `None` if nothing.
    pub fn destroys(&self) -> Option<String> {
        match self {
            Self::Stop { force: true } => {
                Some("its power is cut; what the guest has not written to its disks is lost".into())
            }
            Self::Reset { force: true } => {
                Some("it is reset; what the guest has not written to its disks is lost".into())
            }
            Self::RevertSnapshot { name } => {
                Some(format!("it goes back to snapshot {name:?}; its present state is lost"))
            }
            Self::DeleteSnapshot { name } => Some(format!("its snapshot {name:?} is deleted")),
            _ => None,
        }
    }
}
