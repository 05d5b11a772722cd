//! Kept states of a VM.

use super::inventory;
use super::power::{flag, task};
use super::session::Session;
use super::soap::{self, Element, Reference};
use crate::{Error, Result, Snapshot};

/// Most snapshots that are taken from a server; vSphere allows 32 in a row.
const MOST: usize = 4096;

/// All of them, parents before their children.
pub(super) fn list(session: &Session, vm: &Reference) -> Result<Vec<Snapshot>> {
    Ok(tree(session, vm)?.into_iter().map(|(_, snapshot)| snapshot).collect())
}

/// The one with this name or identity.
pub(super) fn find(session: &Session, vm: &Reference, name: &str) -> Result<Reference> {
    let tree = tree(session, vm)?;
    let mut found: Vec<_> = tree.iter().filter(|(_, one)| one.name == name).collect();
    if found.is_empty() {
        found = tree.iter().filter(|(_, one)| one.id == name).collect();
    }
    let place = session.http.place.clone();
    match found[..] {
        [(reference, _)] => Ok(reference.clone()),
        [] => Err(Error::NotFound { place, what: "snapshot", name: name.into() }),
        _ => Err(Error::Ambiguous {
            place,
            what: "snapshot",
            name: name.into(),
            ids: found.iter().map(|(_, one)| one.id.clone()).collect(),
        }),
    }
}

/// Keeps the present state, with the memory of a running VM or without.
pub(super) fn create(
    session: &Session,
    vm: &Reference,
    name: &str,
    description: &str,
    memory: bool,
) -> Result<Reference> {
    let arguments = soap::text("name", name)
        + &soap::text("description", description)
        + &flag("memory", memory)
        + &flag("quiesce", false);
    let made = task(session, "CreateSnapshot_Task", vm, &arguments)?;
    made.ok_or_else(|| session.wrong("CreateSnapshot_Task", "it names no snapshot"))
}

/// Forgets one; its children stay.
pub(super) fn delete(session: &Session, snapshot: &Reference) -> Result<()> {
    task(session, "RemoveSnapshot_Task", snapshot, &flag("removeChildren", false)).map(drop)
}

fn tree(session: &Session, vm: &Reference) -> Result<Vec<(Reference, Snapshot)>> {
    let found = inventory::get(session, vm, &["snapshot"])?;
    let Some(info) = found.property("snapshot") else { return Ok(Vec::new()) };
    let current = info.child("currentSnapshot").and_then(Element::reference);
    let mut list = Vec::new();
    for root in info.children("rootSnapshotList") {
        add(root, None, current.as_ref(), &mut list);
    }
    Ok(list)
}

fn add(
    element: &Element,
    parent: Option<&str>,
    current: Option<&Reference>,
    list: &mut Vec<(Reference, Snapshot)>,
) {
    let Some(reference) = element.child("snapshot").and_then(Element::reference) else { return };
    if list.len() >= MOST {
        return;
    }
    let snapshot = Snapshot {
        name: element.value("name").map(inventory::plain_name).unwrap_or_default(),
        id: reference.id.clone(),
        parent: parent.map(str::to_owned),
        description: element
            .value("description")
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
        created: element.value("createTime").map(str::to_owned),
        current: current == Some(&reference),
    };
    list.push((reference.clone(), snapshot));
    for child in element.children("childSnapshotList") {
        add(child, Some(&reference.id), current, list);
    }
}
