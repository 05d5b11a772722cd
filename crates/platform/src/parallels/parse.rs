//! What `prlctl` prints as JSON. Numbers may be texts, and sizes are such as `8192Mb`.

use serde_json::Value;

use crate::{Error, Result, Snapshot, State, VmSummary};

/// A VM in the list.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) summary: VmSummary,
    /// Its `config.pvs`.
    pub(super) file: Option<String>,
}

impl Vm {
    /// Its UUID, which is no option of `prlctl` and names no other.
    pub(super) fn id(&self) -> &str {
        self.summary.id.as_deref().unwrap_or_default()
    }
}

/// So many VMs or snapshots are taken.
const MOST: usize = 10_000;

/// The answer of `prlctl list --all --info --json`.
pub(super) fn list(bytes: &[u8]) -> Result<Vec<Vm>> {
    let wrong = |message: String| Error::reply("prlctl list", message);
    let value: Value = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    let list = value.as_array().ok_or_else(|| wrong("it is no list".into()))?;
    list.iter().take(MOST).map(vm).collect()
}

fn vm(value: &Value) -> Result<Vm> {
    let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let missing = |key: &str| Error::reply("prlctl list", format!("a VM has no {key}"));
    let id = text("ID").ok_or_else(|| missing("ID"))?;
    let id = id.trim_matches(['{', '}']).to_owned();
    if id.is_empty()
        || !id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        || id.starts_with('-')
    {
        return Err(missing("UUID"));
    }
    let hardware = &value["Hardware"];
    let addresses = value["Network"]["ipAddresses"].as_array().into_iter().flatten();
    let addresses =
        addresses.filter_map(|one| one["ip"].as_str()?.parse::<std::net::IpAddr>().ok());
    let summary = VmSummary {
        name: text("Name").ok_or_else(|| missing("Name"))?,
        id: Some(id),
        state: state(value["State"].as_str().unwrap_or_default()),
        cpus: number(&hardware["cpu"]["cpus"]).and_then(|cpus| u32::try_from(cpus).ok()),
        memory: size(&hardware["memory"]["size"]),
        guest_os: text("OS"),
        addresses: addresses.take(64).map(|address| address.to_string()).collect(),
        note: None,
    };
    Ok(Vm { summary, file: text("Home path") })
}

fn state(word: &str) -> State {
    match word {
        "running" => State::Running,
        "paused" => State::Paused,
        "suspended" => State::Suspended,
        "stopped" => State::Stopped,
        "starting" | "stopping" | "suspending" | "resuming" | "pausing" | "restoring"
        | "snapshotting" | "deleting" | "migrating" | "reseting" => State::Changing,
        _ => State::Unknown,
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A size such as `8192Mb`, in bytes.
fn size(value: &Value) -> Option<u64> {
    let text = value.as_str()?.trim();
    let digits = text.trim_end_matches(|one: char| one.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The answer of `prlctl snapshot-list --json`: an object with a key for each snapshot.
pub(super) fn snapshots(bytes: &[u8]) -> Result<Vec<Snapshot>> {
    // A VM without snapshots has an empty answer.
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |message: String| Error::reply("prlctl snapshot-list", message);
    let value: Value = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    let all = value.as_object().ok_or_else(|| wrong("it is no object".into()))?;
    let one = |(id, value): (&String, &Value)| {
        let text =
            |key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Snapshot {
            id: id.clone(),
            name: text("name").unwrap_or_else(|| id.clone()),
            description: text("description"),
            created: text("date"),
            parent: text("parent"),
            current: value["current"].as_bool().unwrap_or(false),
        }
    };
    let mut found: Vec<_> = all.iter().take(MOST).map(one).collect();
    found.sort_by(|a, b| a.created.cmp(&b.created));
    Ok(found)
}

/// Reads what a fuzzer says in prlctl's place.
pub fn fuzz(bytes: &[u8]) {
    let _ = (list(bytes), snapshots(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form that Parallels Desktop 20 prints.
    const LIST: &str = include_str!("../../tests/parallels/list.json");

    #[test]
    fn a_list_is_read_with_its_odd_types() {
        let vms = list(LIST.as_bytes()).unwrap();
        let first = &vms[0].summary;
        assert_eq!((&first.name[..], first.state), ("build / web", State::Running));
        assert_eq!((first.cpus, first.memory), (Some(4), Some(8 << 30)));
        assert_eq!(first.addresses, ["10.211.55.7", "fe80::1"]);
        assert_eq!(vms[0].file.as_deref(), Some("/Users/ada/Parallels/web.pvm/config.pvs"));
        let second = &vms[1].summary;
        assert_eq!(
            (second.state, second.cpus, second.memory),
            (State::Suspended, Some(2), Some(512 << 20))
        );
        assert!(list(b"{}").is_err() && list(b"[{}]").is_err());
        assert!(list(br#"[{"ID": "--kill", "Name": "x"}]"#).is_err());
    }

    #[test]
    fn snapshots_are_read() {
        let text = br#"{"{2}": {"name": "two", "date": "2026-02-02 10:00:00", "current": true, "parent": "{1}"},
                        "{1}": {"name": "one", "date": "2026-01-01 10:00:00", "current": false, "parent": ""}}"#;
        let found = snapshots(text).unwrap();
        assert_eq!((&found[0].name[..], &found[0].parent), ("one", &None));
        assert_eq!(
            (&found[1].id[..], found[1].parent.as_deref(), found[1].current),
            ("{2}", Some("{1}"), true)
        );
        assert_eq!(snapshots(b"\n").unwrap(), []);
    }
}
