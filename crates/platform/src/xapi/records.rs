//! Records of the XenAPI: what VMs there are, and what happens to them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::session::Session;
use crate::{Change, Result, Snapshot, State, VmSummary};

/// Most records that are taken.
const MOST: usize = 100_000;
/// Most addresses of a VM.
const MOST_ADDRESSES: usize = 64;

/// A VM by its record.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    /// What the server calls it while it runs.
    pub reference: String,
    pub name: String,
    pub uuid: String,
    pub record: Value,
}

impl Vm {
    /// What it does.
    pub fn state(&self) -> State {
        match self.record["power_state"].as_str() {
            Some("Running") => State::Running,
            Some("Halted") => State::Stopped,
            Some("Paused") => State::Paused,
            Some("Suspended") => State::Suspended,
            _ => State::Unknown,
        }
    }

    fn of(reference: &str, record: Value) -> Option<Self> {
        let text = |key: &str| Some(record[key].as_str()?.replace(char::is_control, " "));
        let (name, uuid) = (text("name_label")?, text("uuid")?);
        Some(Self { reference: reference.into(), name, uuid, record })
    }

    fn summary(&self, guests: &Map<String, Value>) -> VmSummary {
        let guest = self.record["guest_metrics"].as_str().and_then(|guest| guests.get(guest));
        let guest_os = guest.and_then(|guest| guest["os_version"]["name"].as_str());
        VmSummary {
            name: self.name.clone(),
            id: Some(self.uuid.clone()),
            state: self.state(),
            cpus: number(&self.record["VCPUs_at_startup"])
                .and_then(|count| u32::try_from(count).ok()),
            memory: number(&self.record["memory_static_max"]),
            guest_os: guest_os
                .filter(|name| !name.is_empty())
                .map(|name| name.split('|').next().unwrap_or(name).into()),
            addresses: guest.map(addresses).unwrap_or_default(),
            note: None,
        }
    }
}

/// All VMs, without templates, snapshots and the hosts' own.
pub(super) fn all(session: &Session) -> Result<Vec<Vm>> {
    let records = session.call("VM.get_all_records", &[])?;
    let Value::Object(records) = records else {
        return Err(session.wrong("VM.get_all_records", "it is no map"));
    };
    Ok(vms(records))
}

fn vms(records: Map<String, Value>) -> Vec<Vm> {
    let records = records.into_iter().take(MOST);
    records.filter(|(_, record)| is_vm(record)).filter_map(|(id, one)| Vm::of(&id, one)).collect()
}

fn is_vm(record: &Value) -> bool {
    let flag = |key: &str| record[key].as_bool().unwrap_or(false);
    !flag("is_a_template") && !flag("is_a_snapshot") && !flag("is_control_domain")
}

/// All VMs as lines of a list.
pub(super) fn summaries(session: &Session) -> Result<Vec<VmSummary>> {
    let vms = all(session)?;
    let guests = guests(session)?;
    Ok(vms.iter().map(|vm| vm.summary(&guests)).collect())
}

/// What the tools in the guests say.
fn guests(session: &Session) -> Result<Map<String, Value>> {
    match session.call("VM_guest_metrics.get_all_records", &[])? {
        Value::Object(guests) => Ok(guests),
        _ => Err(session.wrong("VM_guest_metrics.get_all_records", "it is no map")),
    }
}

/// The product and its version.
pub(super) fn product(session: &Session) -> Result<String> {
    let hosts = session.call("host.get_all_records", &[])?;
    let host = hosts.as_object().and_then(|hosts| hosts.values().next());
    let version = host.map(|host| &host["software_version"]);
    let word = |key: &str| version.and_then(|version| version[key].as_str());
    let brand = word("product_brand").unwrap_or("XenServer");
    Ok(match word("product_version") {
        Some(number) => format!("{brand} {number}"),
        None => brand.to_owned(),
    })
}

/// Kept states of a VM, parents before their children.
pub(super) fn snapshots(session: &Session, vm: &Vm) -> Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    for reference in texts(&vm.record["snapshots"]).take(MOST) {
        let record = session.call("VM.get_record", &[json!(reference)])?;
        let Some(one) = Vm::of(&reference, record) else { continue };
        let text =
            |key: &str| one.record[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        found.push((
            text("parent"),
            Snapshot {
                id: reference.clone(),
                name: one.name.clone(),
                description: text("name_description"),
                created: text("snapshot_time").map(|time| readable(&time)),
                parent: None,
                current: vm.record["parent"].as_str() == Some(&reference),
            },
        ));
    }
    Ok(in_order(found))
}

/// Parents before their children, the oldest first.
fn in_order(mut found: Vec<(Option<String>, Snapshot)>) -> Vec<Snapshot> {
    found.sort_by(|(_, a), (_, b)| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    let known: Vec<String> = found.iter().map(|(_, one)| one.id.clone()).collect();
    let set = |(parent, mut one): (Option<String>, Snapshot)| {
        one.parent = parent.filter(|parent| known.contains(parent) && *parent != one.id);
        one
    };
    found.into_iter().map(set).collect()
}

/// `20260102T03:04:05Z` as `2026-01-02T03:04:05Z`.
fn readable(time: &str) -> String {
    match time.split_once('T') {
        Some((date, rest)) if date.len() == 8 && date.bytes().all(|one| one.is_ascii_digit()) => {
            format!("{}-{}-{}T{rest}", &date[..4], &date[4..6], &date[6..])
        }
        _ => time.to_owned(),
    }
}

/// Tells of all VMs, then of each change, until `tell` returns `false`.
pub(super) fn watch(
    session: &Session,
    wait: Duration,
    tell: &mut dyn FnMut(Change) -> bool,
) -> Result<()> {
    let mut known: BTreeMap<String, VmSummary> = BTreeMap::new();
    let mut token = String::new();
    let limit = wait + session.http.limit;
    loop {
        let classes = json!(["vm", "vm_guest_metrics"]);
        let arguments = [classes, json!(token), json!(wait.as_secs_f64())];
        let answer = session.try_call("event.from", &arguments, limit)?;
        let answer = match answer {
            Ok(answer) => answer,
            // What was missed cannot be told any more: everything is asked for again.
            Err(fault) if fault.code == "EVENTS_LOST" => {
                token.clear();
                continue;
            }
            Err(fault) => return Err(session.failed("event.from", &fault)),
        };
        let Some(next) = answer["token"].as_str() else {
            return Err(session.wrong("event.from", "it has no token"));
        };
        let is_news = answer["events"].as_array().is_some_and(|events| !events.is_empty());
        if is_news || token.is_empty() {
            // Records come whole and few events at once, so the list is asked for instead of followed.
            let now: BTreeMap<_, _> = summaries(session)?
                .into_iter()
                .map(|vm| (vm.id.clone().unwrap_or_default(), vm))
                .collect();
            for change in crate::connection::changes(&known, &now) {
                if !tell(change) {
                    return Ok(());
                }
            }
            known = now;
        }
        next.clone_into(&mut token);
    }
}

/// A number, which older servers write as a text.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The texts in a list.
pub(super) fn texts(list: &Value) -> impl Iterator<Item = String> + '_ {
    list.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned))
}

/// `{"0/ip": "10.0.0.5", "0/ipv4/0": ..., "0/ipv6/0": ...}`
fn addresses(guest: &Value) -> Vec<String> {
    let networks = guest["networks"].as_object().into_iter().flatten();
    let mut found: Vec<String> = networks
        .filter(|(key, _)| key.contains("/ip"))
        .filter_map(|(_, value)| value.as_str()?.parse::<std::net::IpAddr>().ok())
        .map(|address| address.to_string())
        .take(MOST_ADDRESSES)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Reads any value as records.
pub(super) fn fuzz(value: &Value) {
    if let Value::Object(records) = value {
        for vm in vms(records.clone()) {
            let _ = vm.summary(records);
        }
    }
    let _ = readable(value.as_str().unwrap_or_default());
}
