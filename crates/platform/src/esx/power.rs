//! Changes to VMs: each is a task of the server that is waited for.

use std::time::{Duration, Instant};

use super::inventory;
use super::session::Session;
use super::snapshots;
use super::soap::{self, Element, Fault, Reference};
use crate::{Action, Error, Result};

/// Powering on a large VM or deleting a large snapshot takes minutes; after this long it is said that it did.
const LONGEST_TASK: Duration = Duration::from_secs(3600);
/// Between two looks at a task.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Does `action` to a VM.
pub(super) fn perform(session: &Session, vm: &Reference, action: &Action) -> Result<()> {
    match action {
        Action::Start | Action::Resume => task(session, "PowerOnVM_Task", vm, "").map(drop),
        Action::Stop { force: true } => task(session, "PowerOffVM_Task", vm, "").map(drop),
        Action::Stop { force: false } => ask_guest(session, "ShutdownGuest", vm, "stop"),
        Action::Pause => task(session, "SuspendVM_Task", vm, "").map(drop),
        Action::Reset { force: true } => task(session, "ResetVM_Task", vm, "").map(drop),
        Action::Reset { force: false } => ask_guest(session, "RebootGuest", vm, "reset"),
        Action::CreateSnapshot { name, description } => {
            let description = description.as_deref().unwrap_or_default();
            snapshots::create(session, vm, name, description, true).map(drop)
        }
        Action::RevertSnapshot { name } => {
            let snapshot = snapshots::find(session, vm, name)?;
            task(session, "RevertToSnapshot_Task", &snapshot, "").map(drop)
        }
        Action::DeleteSnapshot { name } => {
            let snapshot = snapshots::find(session, vm, name)?;
            snapshots::delete(session, &snapshot)
        }
    }
}

/// Starts a task and waits until it is done; returns what it made.
pub(super) fn task(
    session: &Session,
    method: &str,
    this: &Reference,
    arguments: &str,
) -> Result<Option<Reference>> {
    let reply = session.call(method, this, arguments)?;
    let task = reply.child("returnval").and_then(Element::reference);
    let task = task.ok_or_else(|| session.wrong(method, "it names no task"))?;
    let begin = Instant::now();
    let mut pause = FIRST_LOOK;
    loop {
        let found = inventory::get(session, &task, &["info"])?;
        let info =
            found.property("info").ok_or_else(|| session.wrong(method, "a task without state"))?;
        match info.value("state") {
            Some("success") => return Ok(info.child("result").and_then(Element::reference)),
            Some("error") => {
                let fault = info.child("error").map(Fault::of_task).unwrap_or_else(|| Fault {
                    kind: String::new(),
                    message: "the server does not say why".into(),
                });
                return Err(session.failed(method.trim_end_matches("_Task"), &fault));
            }
            Some("queued" | "running") if begin.elapsed() < LONGEST_TASK => {}
            Some("queued" | "running") => {
                let what = format!("{method} at {}", session.http.place);
                return Err(Error::TimedOut { what, limit: LONGEST_TASK });
            }
            _ => return Err(session.wrong(method, "the task's state is none")),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// Asks the guest through VMware Tools.
fn ask_guest(session: &Session, method: &str, vm: &Reference, verb: &str) -> Result<()> {
    match session.try_call(method, vm, "", session.http.limit)? {
        Ok(_) => Ok(()),
        Err(fault) if fault.kind == "ToolsUnavailable" => Err(Error::Failed {
            what: format!("{method} at {}", session.http.place),
            message: "VMware Tools do not run in the guest, so it cannot be asked".into(),
            repair: Some(format!("omnivisor {verb} --force")),
        }),
        Err(fault) => Err(session.failed(method, &fault)),
    }
}

/// Yes and no in XML.
pub(super) fn flag(name: &str, value: bool) -> String {
    soap::text(name, if value { "true" } else { "false" })
}
