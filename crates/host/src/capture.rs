//! A machine written down: everything that [`crate::Facts::gather`] reads, as one text file that
//! can be sent in a bug report and replayed in a test.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cpuid::CpuidDump;
use crate::facts::{Caller, Node};

/// What was read from a machine, by path. Files are cut down to the lines that concern
/// virtualization before they get here, and serial numbers, user names and command lines are never
/// in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Which machine it is, for people.
    pub about: String,
    /// `captured`, or the documentation from which it was written.
    pub source: String,
    /// The leaves, as `cpuid -1 -r` prints them.
    pub cpuid: CpuidDump,
    /// Lines of the kernel log; absent if the log cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Vec<String>>,
    /// The user who captured.
    pub caller: Caller,
    /// Model-specific registers by hexadecimal number: a hexadecimal value, or `errno N`.
    pub msrs: BTreeMap<String, String>,
    /// Programs in PATH, with where they are.
    pub programs: BTreeMap<String, String>,
    /// Folders, with the names in them.
    pub folders: BTreeMap<String, BTreeSet<String>>,
    /// Files that are there but may not be read.
    pub denied: BTreeSet<String>,
    /// Files that are there, whatever is in them.
    pub present: BTreeSet<String>,
    /// Files, with their contents.
    pub files: BTreeMap<String, String>,
    /// Device nodes and sockets.
    pub nodes: BTreeMap<String, Node>,
}
