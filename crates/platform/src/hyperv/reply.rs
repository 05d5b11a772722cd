//! What the scripts answer. A value that is missing or of another kind is taken for one that the host does not tell.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{Snapshot, State, VmSummary};

/// The answer of `product.ps1`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Product {
    pub system: Option<String>,
    pub version: Option<String>,
    /// The version of the module Hyper-V, if it is there.
    pub module: Option<String>,
    /// Why the user may not use it.
    pub denied: Option<String>,
}

/// The answer of `list.ps1`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct List {
    #[serde(deserialize_with = "many")]
    pub vms: Vec<Summary>,
}

/// A VM in a list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Summary {
    pub name: String,
    pub id: String,
    pub state: String,
    pub status: Option<String>,
    pub cpus: Option<u32>,
    pub memory: Option<u64>,
    #[serde(deserialize_with = "many")]
    pub addresses: Vec<String>,
}

/// The answer of `show.ps1`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    pub summary: Summary,
    pub generation: u32,
    pub version: Option<String>,
    pub notes: Option<String>,
    pub cpus: Option<u32>,
    pub threads: Option<u32>,
    pub nested: bool,
    pub memory: Memory,
    pub firmware: Firmware,
    pub security: Option<Security>,
    #[serde(deserialize_with = "many")]
    pub scsi: Vec<u32>,
    #[serde(deserialize_with = "many")]
    pub drives: Vec<Drive>,
    #[serde(deserialize_with = "many")]
    pub nics: Vec<Nic>,
    #[serde(deserialize_with = "many")]
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    pub size: Option<u64>,
    pub dynamic: bool,
    pub minimum: Option<u64>,
    pub maximum: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Firmware {
    pub secure_boot: Option<String>,
    pub template: Option<String>,
    #[serde(deserialize_with = "many")]
    pub order: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Security {
    pub tpm: bool,
    pub shielded: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Drive {
    pub kind: String,
    pub bus: Option<String>,
    pub controller: Option<u32>,
    pub unit: Option<u32>,
    pub path: Option<String>,
    /// The number of a disk of the host that is passed through.
    pub disk: Option<u32>,
    pub size: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Nic {
    pub name: Option<String>,
    pub legacy: bool,
    pub mac: Option<String>,
    pub switch: Option<String>,
    pub connected: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub number: u32,
    pub path: Option<String>,
}

/// The answer of `snapshots.ps1`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Snapshots {
    #[serde(deserialize_with = "many")]
    pub snapshots: Vec<Kept>,
}

/// A checkpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    pub id: String,
    pub name: String,
    pub parent: Option<String>,
    pub notes: Option<String>,
    pub created: Option<String>,
    pub current: bool,
}

/// The answer of `hold.ps1`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Held {
    /// The checkpoint that was made, or is there of a pull before.
    pub checkpoint: Option<String>,
    #[serde(deserialize_with = "many")]
    pub disks: Vec<HeldDisk>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeldDisk {
    pub bus: Option<String>,
    pub controller: Option<u32>,
    pub unit: Option<u32>,
    /// Its topmost image and what that is based on; none for a disk that is passed through.
    #[serde(deserialize_with = "many")]
    pub chain: Vec<Image>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub path: String,
    pub length: u64,
    pub stamp: String,
}

/// Most elements of any list.
const MOST: usize = 100_000;
/// More addresses are no guest's.
const MOST_ADDRESSES: usize = 64;

impl Summary {
    pub fn into_summary(self) -> VmSummary {
        let is_critical = self.state.ends_with("Critical");
        let status = self.status.filter(|status| !status.is_empty()).unwrap_or_default();
        let addresses = self.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
        VmSummary {
            state: state(&self.state),
            name: self.name,
            id: Some(self.id).filter(|id| !id.is_empty()),
            cpus: self.cpus,
            memory: self.memory,
            guest_os: None,
            addresses: addresses.take(MOST_ADDRESSES).map(|one| one.to_string()).collect(),
            note: is_critical.then(|| format!("its storage cannot be reached: {status}")),
        }
    }
}

impl Kept {
    pub fn into_snapshot(self) -> Snapshot {
        let told = |text: Option<String>| text.filter(|text| !text.is_empty());
        Snapshot {
            id: self.id,
            name: self.name,
            description: told(self.notes),
            created: told(self.created),
            parent: told(self.parent),
            current: self.current,
        }
    }
}

/// A VMState of the module Hyper-V.
pub(super) fn state(word: &str) -> State {
    match word.strip_suffix("Critical").unwrap_or(word) {
        "Running" => State::Running,
        "Off" => State::Stopped,
        "Paused" => State::Paused,
        "Saved" | "FastSaved" | "Hibernated" => State::Suspended,
        "Stopping" | "Starting" | "Reset" | "Saving" | "FastSaving" | "Pausing" | "Resuming"
        | "ForceShutdown" | "ForceReboot" | "ComponentServicing" => State::Changing,
        _ => State::Unknown,
    }
}

/// A list. Windows PowerShell writes some as `{"value":[...],"Count":n}`, and an empty one as `null` or `{}`.
fn many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let list = match Value::deserialize(deserializer)? {
        Value::Array(list) => list,
        Value::Object(mut wrapped) => match wrapped.remove("value") {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let read = |one| serde_json::from_value(one).map_err(serde::de::Error::custom);
    list.into_iter().take(MOST).filter(|one| !one.is_null()).map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_all_forms_of_windows_powershell() {
        for text in [
            r#"{"vms":[{"name":"a","state":"RunningCritical","status":"Lost","addresses":["10.0.0.1","x"]}]}"#,
            r#"{"vms":{"value":[{"name":"a","state":"RunningCritical","status":"Lost","addresses":["10.0.0.1"]}],"Count":1}}"#,
        ] {
            let mut list: List = serde_json::from_str(text).unwrap();
            let vm = list.vms.remove(0).into_summary();
            assert_eq!(
                (vm.state, &vm.addresses[..]),
                (State::Running, &["10.0.0.1".to_owned()][..])
            );
            assert_eq!(vm.note.as_deref(), Some("its storage cannot be reached: Lost"));
        }
        for text in [r#"{"vms":null}"#, r#"{"vms":{}}"#, r#"{"vms":[null]}"#] {
            assert!(serde_json::from_str::<List>(text).unwrap().vms.is_empty(), "{text}");
        }
        for text in ["{}", r#"{"vms":[1]}"#, r#"{"vms":[{"name":1}]}"#] {
            assert!(serde_json::from_str::<List>(text).is_err(), "{text}");
        }
    }
}
