//! What `VBoxManage` prints. A warning about the missing module may stand in front of it, on the same stream.

use std::collections::HashMap;

use crate::{Error, Result, Snapshot, State, VmSummary};

/// So many VMs or snapshots are taken.
const MOST: usize = 10_000;

/// The lines `"NAME" {UUID}` of `list vms`.
pub(super) fn names(text: &str) -> Vec<(String, String)> {
    let name = |line: &str| {
        let (name, id) = line.trim_end().strip_prefix('"')?.rsplit_once("\" {")?;
        let id = id.strip_suffix('}')?;
        let is_id =
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        is_id.then(|| (name.to_owned(), id.to_owned()))
    };
    text.lines().filter_map(name).take(MOST).collect()
}

/// What `showvminfo --machinereadable` says.
#[derive(Debug)]
pub(super) struct Info {
    name: String,
    id: String,
    state: State,
    cpus: Option<u32>,
    memory: Option<u64>,
    guest_os: Option<String>,
    /// The VM's `.vbox` file.
    pub(super) file: String,
}

impl Info {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let values = pairs(text);
        let get = |key: &str| values.get(key).map(|value| (*value).to_owned());
        let need = |key: &str| {
            get(key)
                .ok_or_else(|| Error::reply("VBoxManage showvminfo", format!("it has no {key}")))
        };
        Ok(Self {
            name: need("name")?,
            id: need("UUID")?,
            state: state(&need("VMState")?),
            cpus: get("cpus").and_then(|text| text.parse().ok()),
            memory: get("memory")
                .and_then(|text| text.parse::<u64>().ok())
                .and_then(|mebibytes| mebibytes.checked_mul(1 << 20)),
            guest_os: get("ostype").filter(|text| !text.is_empty()),
            file: need("CfgFile")?,
        })
    }

    pub(super) fn summary(&self) -> VmSummary {
        VmSummary {
            name: self.name.clone(),
            id: Some(self.id.clone()),
            state: self.state,
            cpus: self.cpus,
            memory: self.memory,
            guest_os: self.guest_os.clone(),
            ..VmSummary::default()
        }
    }
}

/// Lines `key="value"`, `"key"="value"` and `key=value`. The first of a key counts: a VM's annotation, in which
/// its owner may write anything, comes late.
fn pairs(text: &str) -> HashMap<&str, &str> {
    let mut pairs = HashMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = unquoted(key).unwrap_or(key);
        if pairs.len() < MOST * 4 {
            pairs.entry(key).or_insert_with(|| unquoted(value).unwrap_or(value));
        }
    }
    pairs
}

fn unquoted(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"')
}

/// The names of VirtualBox's `MachineState` in `VBoxManage`.
fn state(word: &str) -> State {
    match word {
        "running" | "livesnapshotting" | "teleporting" => State::Running,
        "paused" => State::Paused,
        "saved" | "aborted-saved" => State::Suspended,
        "poweroff" | "teleported" => State::Stopped,
        "aborted" | "gurumeditation" => State::Crashed,
        "starting"
        | "stopping"
        | "saving"
        | "restoring"
        | "teleportingpausedvm"
        | "teleportingin"
        | "deletingsnapshotlive"
        | "deletingsnapshotlivepaused"
        | "onlinesnapshotting"
        | "restoringsnapshot"
        | "deletingsnapshot"
        | "settingup"
        | "offlinesnapshotting" => State::Changing,
        _ => State::Unknown,
    }
}

/// The snapshots in the same output: `SnapshotName-1-2` is the second child of the first child of the first one.
pub(super) fn snapshots(text: &str) -> Vec<Snapshot> {
    let values = pairs(text);
    let current = values.get("CurrentSnapshotUUID").copied();
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((key, _)) = line.split_once('=') else { continue };
        let Some(place) = key.strip_prefix("SnapshotName") else { continue };
        let is_place = place.is_empty()
            || place.strip_prefix('-').is_some_and(|rest| {
                rest.split('-')
                    .all(|part| !part.is_empty() && part.bytes().all(|one| one.is_ascii_digit()))
            });
        if !is_place || found.len() >= MOST {
            continue;
        }
        let at = |word: &str, place: &str| {
            values.get(&format!("{word}{place}")[..]).map(|text| (*text).to_owned())
        };
        let (Some(name), Some(id)) = (at("SnapshotName", place), at("SnapshotUUID", place)) else {
            continue;
        };
        let parent = place.rsplit_once('-').and_then(|(parent, _)| at("SnapshotUUID", parent));
        found.push(Snapshot {
            description: at("SnapshotDescription", place).filter(|text| !text.is_empty()),
            current: current == Some(&id),
            name,
            id,
            parent,
            created: None,
        });
    }
    found
}

/// The value that `guestproperty get` found.
pub(super) fn property(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("Value: "))?.trim();
    value.parse::<std::net::IpAddr>().ok().map(|address| address.to_string())
}

/// Reads what a fuzzer says in VBoxManage's place.
pub fn fuzz(text: &str) {
    let _ = (names(text), snapshots(text), property(text));
    let _ = Info::parse(text).map(|info| info.summary());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What VBoxManage 7.2 printed without the module.
    const LIST: &str = include_str!("../../tests/virtualbox/list.out");
    const RUNNING: &str = include_str!("../../tests/virtualbox/running.out");
    const PAUSED: &str = include_str!("../../tests/virtualbox/paused.out");
    const SAVED: &str = include_str!("../../tests/virtualbox/saved.out");
    const OFF: &str = include_str!("../../tests/virtualbox/off.out");

    #[test]
    fn names_are_found_behind_the_warning() {
        let names = names(LIST);
        assert_eq!(names.len(), 3);
        assert_eq!(names[1].0, "<inaccessible>");
        assert_eq!(names[2].0, "sample efi ünïcode");
        assert_eq!(names[2].1, "d5c30e42-5938-4053-b110-745e91d410c9");
    }

    #[test]
    fn a_vm_is_read_in_every_state() {
        for (text, state) in [
            (RUNNING, State::Running),
            (PAUSED, State::Paused),
            (SAVED, State::Suspended),
            (OFF, State::Stopped),
        ] {
            assert_eq!(Info::parse(text).unwrap().state, state);
        }
        let vm = Info::parse(RUNNING).unwrap().summary();
        assert_eq!((&vm.name[..], vm.cpus, vm.memory), ("live", Some(1), Some(64 << 20)));
        assert_eq!(vm.guest_os.as_deref(), Some("Linux 2.6 / 3.x / 4.x / 5.x (64-bit)"));
        assert!(Info::parse("").is_err());
    }

    #[test]
    fn snapshots_keep_their_tree() {
        let found = snapshots(OFF);
        assert_eq!(found.len(), 1);
        assert!(found[0].current && found[0].parent.is_none());
        assert_eq!(found[0].description.as_deref(), Some("first"));
        let tree = "SnapshotName=\"a\"\nSnapshotUUID=\"1\"\nSnapshotName-1=\"b\"\nSnapshotUUID-1=\"2\"\n\
                    SnapshotName-1-1=\"c\"\nSnapshotUUID-1-1=\"3\"\nCurrentSnapshotName=\"b\"\n\
                    CurrentSnapshotUUID=\"2\"\nCurrentSnapshotNode=\"SnapshotName-1\"\n";
        let found = snapshots(tree);
        let facts: Vec<_> =
            found.iter().map(|one| (&one.name[..], one.parent.as_deref(), one.current)).collect();
        assert_eq!(facts, [("a", None, false), ("b", Some("1"), true), ("c", Some("2"), false)]);
    }

    #[test]
    fn an_annotation_cannot_pretend_to_be_something_else() {
        let text = format!("{RUNNING}description=\"x\nVMState=\"poweroff\"\n\"\n");
        assert_eq!(Info::parse(&text).unwrap().state, State::Running);
    }
}
