//! Changes to VMs.

use std::time::Duration;

use serde_json::{Value, json};

use super::records::{self, Vm, texts};
use super::session::Session;
use crate::{Action, Error, Result, State};

/// Suspending writes memory to disk, and a guest may take its time to shut down.
const LONG: Duration = Duration::from_secs(3600);

/// Changes a VM; returns when it is done.
pub(super) fn perform(session: &Session, vm: &Vm, action: &Action) -> Result<()> {
    let state = vm.state();
    match action {
        Action::Start if state == State::Suspended => run(session, vm, "VM.resume", &START),
        Action::Start => run(session, vm, "VM.start", &START),
        Action::Stop { force: false } => run(session, vm, "VM.clean_shutdown", &[]),
        Action::Stop { force: true } => run(session, vm, "VM.hard_shutdown", &[]),
        Action::Pause => run(session, vm, "VM.pause", &[]),
        Action::Resume if state == State::Suspended => run(session, vm, "VM.resume", &START),
        Action::Resume => run(session, vm, "VM.unpause", &[]),
        Action::Reset { force: false } => run(session, vm, "VM.clean_reboot", &[]),
        Action::Reset { force: true } => run(session, vm, "VM.hard_reboot", &[]),
        Action::CreateSnapshot { name, description } => {
            let made = snapshot(session, vm, name)?;
            match description {
                Some(text) => {
                    session.call("VM.set_name_description", &[json!(made), json!(text)]).map(drop)
                }
                None => Ok(()),
            }
        }
        Action::RevertSnapshot { name } => {
            let snapshot = find_snapshot(session, vm, name)?;
            session.call_within("VM.revert", &[json!(snapshot)], LONG).map(drop)
        }
        Action::DeleteSnapshot { name } => destroy(session, &find_snapshot(session, vm, name)?),
    }
}

/// Neither paused nor on a host that may not be able to.
const START: [Value; 2] = [Value::Bool(false), Value::Bool(false)];

fn run(session: &Session, vm: &Vm, method: &str, more: &[Value]) -> Result<()> {
    let mut arguments = vec![json!(vm.reference)];
    arguments.extend_from_slice(more);
    match session.try_call(method, &arguments, LONG)? {
        Ok(_) => Ok(()),
        Err(fault) if fault.code == "VM_BAD_POWER_STATE" => {
            Err(Error::WrongState { name: vm.name.clone(), state: vm.state(), repair: None })
        }
        Err(fault) => Err(session.failed(method, &fault)),
    }
}

/// Keeps the present state; returns the reference of the snapshot.
pub(super) fn snapshot(session: &Session, vm: &Vm, name: &str) -> Result<String> {
    let arguments = [json!(vm.reference), json!(name)];
    let made = session.call_within("VM.snapshot", &arguments, LONG)?;
    let made = made.as_str().map(str::to_owned);
    made.ok_or_else(|| session.wrong("VM.snapshot", "it names no snapshot"))
}

/// The reference of the snapshot with this name or reference.
fn find_snapshot(session: &Session, vm: &Vm, name: &str) -> Result<String> {
    let all = records::snapshots(session, vm)?;
    let found: Vec<_> = all.iter().filter(|one| one.name == name || one.id == name).collect();
    let (place, name) = (session.http.place.clone(), name.to_owned());
    match found[..] {
        [one] => Ok(one.id.clone()),
        [] => Err(Error::NotFound { place, what: "snapshot", name }),
        _ => {
            let ids = found.iter().map(|one| one.id.clone()).collect();
            Err(Error::Ambiguous { place, what: "snapshot", name, ids })
        }
    }
}

/// Forgets a snapshot with its disks, which `VM.destroy` alone would leave.
pub(super) fn destroy(session: &Session, snapshot: &str) -> Result<()> {
    let record = session.call("VM.get_record", &[json!(snapshot)])?;
    if record["is_a_snapshot"] != json!(true) {
        return Err(session.wrong("VM.get_record", "what should be a snapshot is none"));
    }
    let mut images = Vec::new();
    for drive in texts(&record["VBDs"]) {
        let drive = session.call("VBD.get_record", &[json!(drive)])?;
        if drive["type"] == json!("Disk") && drive["empty"] != json!(true) {
            images.push(drive["VDI"].clone());
        }
    }
    session.call_within("VM.destroy", &[json!(snapshot)], LONG)?;
    for image in images {
        session.call_within("VDI.destroy", &[image], LONG)?;
    }
    Ok(())
}
