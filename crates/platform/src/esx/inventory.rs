//! What VMs there are, and their properties: by the property collector, page by page.

use std::fmt::Write;
use std::time::Duration;

use super::session::Session;
use super::soap::{self, Element, Reference};
use crate::{Change, Error, Result, State, VmSummary};

/// Objects in a page.
const PAGE: usize = 200;
/// Most VMs that are taken from a server.
const MOST_OBJECTS: usize = 100_000;
/// Deepest folder of an inventory.
const DEEPEST: usize = 64;
/// How long the server may wait for something to happen.
const WAIT: Duration = Duration::from_secs(25);

/// What a list needs.
pub(super) const SUMMARY: &[&str] = &[
    "name",
    "runtime.powerState",
    "runtime.connectionState",
    "summary.config.numCpu",
    "summary.config.memorySizeMB",
    "summary.config.guestFullName",
    "summary.config.uuid",
    "summary.config.template",
    "guest.ipAddress",
];

/// A managed object with those of its properties that were asked for and are set.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub reference: Reference,
    properties: Vec<(String, Element)>,
}

impl Object {
    pub fn property(&self, name: &str) -> Option<&Element> {
        self.properties.iter().find(|(named, _)| named == name).map(|(_, value)| value)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.property(name).map(|value| value.text.trim()).filter(|text| !text.is_empty())
    }

    pub fn from_reply(element: &Element) -> Option<Self> {
        let reference = element.child("obj")?.reference()?;
        let properties = element.children("propSet").filter_map(|property| {
            Some((property.value("name")?.to_owned(), property.child("val")?.clone()))
        });
        Some(Self { reference, properties: properties.collect() })
    }

    /// As a line of a list.
    pub fn summary(&self) -> VmSummary {
        let number = |name: &str| self.value(name)?.parse::<u64>().ok();
        let memory = number("summary.config.memorySizeMB");
        let connection = self.value("runtime.connectionState").filter(|said| *said != "connected");
        let template = self.value("summary.config.template") == Some("true");
        VmSummary {
            name: self.value("name").map(plain_name).unwrap_or_default(),
            id: Some(self.reference.id.clone()),
            state: state(self.value("runtime.powerState")),
            cpus: number("summary.config.numCpu").and_then(|count| count.try_into().ok()),
            memory: memory.and_then(|mebibytes| mebibytes.checked_mul(1 << 20)),
            guest_os: self.value("summary.config.guestFullName").map(str::to_owned),
            addresses: self.value("guest.ipAddress").map(str::to_owned).into_iter().collect(),
            note: match (connection, template) {
                (Some(connection), _) => Some(connection.to_owned()),
                (None, true) => Some("template".into()),
                (None, false) => None,
            },
        }
    }
}

/// All VMs below `container`.
pub(super) fn list(session: &Session, container: &Reference) -> Result<Vec<VmSummary>> {
    let view = View::open(session, container, "VirtualMachine")?;
    Ok(view.retrieve(SUMMARY)?.iter().map(Object::summary).collect())
}

/// The VM that is called so, has this identity or this UUID, with `properties`.
pub(super) fn find(
    session: &Session,
    container: &Reference,
    vm: &str,
    properties: &[&str],
) -> Result<Object> {
    let all = {
        let view = View::open(session, container, "VirtualMachine")?;
        view.retrieve(&["name", "summary.config.uuid"])?
    };
    let is_identity = |object: &&Object| {
        object.reference.id == vm
            || object.value("summary.config.uuid").is_some_and(|uuid| uuid.eq_ignore_ascii_case(vm))
    };
    let is_named = |object: &&Object| object.value("name").map(plain_name).as_deref() == Some(vm);
    let mut found: Vec<_> = all.iter().filter(is_named).collect();
    if found.is_empty() {
        found = all.iter().filter(is_identity).collect();
    }
    let place = session.http.place.clone();
    match found[..] {
        [one] => get(session, &one.reference, properties),
        [] => Err(Error::NotFound { place, what: "VM", name: vm.into() }),
        _ => Err(Error::Ambiguous {
            place,
            what: "VM",
            name: vm.into(),
            ids: found.iter().map(|object| object.reference.id.clone()).collect(),
        }),
    }
}

/// Properties of one object.
pub(super) fn get(session: &Session, object: &Reference, properties: &[&str]) -> Result<Object> {
    let set = format!("<objectSet>{}</objectSet>", soap::object("obj", object));
    let objects = retrieve(session, &object.class, properties, &set)?;
    let found = objects.into_iter().find(|found| found.reference == *object);
    found.ok_or_else(|| Error::NotFound {
        place: session.http.place.clone(),
        what: "object",
        name: object.id.clone(),
    })
}

/// The data centers on a server by the paths that file addresses have.
pub(super) fn datacenter(session: &Session, path: &[String]) -> Result<Reference> {
    let view = View::open(session, &session.content.root, "Datacenter")?;
    let wanted = path.join("/");
    for found in view.retrieve(&["name"])? {
        let is_named = found.value("name").map(plain_name).as_deref() == Some(&wanted);
        if is_named || datacenter_path(session, &found.reference)? == wanted {
            return Ok(found.reference);
        }
    }
    Err(Error::NotFound { place: session.http.place.clone(), what: "data center", name: wanted })
}

/// The path of the data center that an object is in, by the names of its folders.
pub(super) fn datacenter_path(session: &Session, object: &Reference) -> Result<String> {
    let mut at = object.clone();
    let mut path: Vec<String> = Vec::new();
    for _ in 0..DEEPEST {
        if at == session.content.root {
            return Ok(path.join("/"));
        }
        let found = get(session, &at, &["name", "parent"])?;
        if at.class == "Datacenter" || !path.is_empty() {
            path.insert(0, found.value("name").map(plain_name).unwrap_or_default());
        }
        match found.property("parent").and_then(Element::reference) {
            Some(parent) => at = parent,
            None => break,
        }
    }
    match path.is_empty() {
        true => Err(session.wrong("RetrievePropertiesEx", "the VM is in no data center")),
        false => Ok(path.join("/")),
    }
}

/// Tells of changes to the VMs below `container` until `tell` returns `false`.
pub(super) fn watch(
    session: &Session,
    container: &Reference,
    tell: &mut dyn FnMut(Change) -> bool,
) -> Result<()> {
    let collector = session.call("CreatePropertyCollector", &session.content.properties, "")?;
    let collector = collector.child("returnval").and_then(Element::reference);
    let collector =
        collector.ok_or_else(|| session.wrong("CreatePropertyCollector", "it is empty"))?;
    let result = watch_with(session, container, &collector, tell);
    // After an error the server may be gone, and the collector with its session.
    let _ = session.call("DestroyPropertyCollector", &collector, "");
    result
}

fn watch_with(
    session: &Session,
    container: &Reference,
    collector: &Reference,
    tell: &mut dyn FnMut(Change) -> bool,
) -> Result<()> {
    let view = View::open(session, container, "VirtualMachine")?;
    let filter = format!(
        "<spec>{}{}</spec><partialUpdates>false</partialUpdates>",
        property_set("VirtualMachine", SUMMARY),
        view.object_set(),
    );
    session.call("CreateFilter", collector, &filter)?;
    let mut known: Vec<Object> = Vec::new();
    let mut version = String::new();
    loop {
        let arguments = format!(
            "{}<options><maxWaitSeconds>{}</maxWaitSeconds></options>",
            soap::text("version", &version),
            WAIT.as_secs(),
        );
        let limit = WAIT + session.http.limit;
        let reply = session.call_within("WaitForUpdatesEx", collector, &arguments, limit)?;
        // Nothing within that time is an empty reply.
        let Some(update) = reply.child("returnval") else { continue };
        let Some(next) = update.value("version") else {
            return Err(session.wrong("WaitForUpdatesEx", "it has no version"));
        };
        version = next.to_owned();
        for object in update.children("filterSet").flat_map(|set| set.children("objectSet")) {
            if let Some(change) = apply(&mut known, object)
                && !tell(change)
            {
                return Ok(());
            }
        }
    }
}

/// Applies an `ObjectUpdate`.
pub(super) fn apply(known: &mut Vec<Object>, update: &Element) -> Option<Change> {
    let reference = update.child("obj")?.reference()?;
    let at = known.iter().position(|object| object.reference == reference);
    if update.value("kind") == Some("leave") {
        let vm = known.remove(at?).summary();
        return Some(Change::Vanished { vm });
    }
    let is_new = at.is_none();
    let index = at.unwrap_or_else(|| {
        known.push(Object { reference, properties: Vec::new() });
        known.len() - 1
    });
    if known.len() > MOST_OBJECTS {
        known.pop();
        return None;
    }
    let object = &mut known[index];
    let before = object.summary();
    for change in update.children("changeSet") {
        let Some(name) = change.value("name") else { continue };
        if !SUMMARY.contains(&name) {
            continue;
        }
        object.properties.retain(|(known, _)| known != name);
        if let Some(value) = change.child("val") {
            object.properties.push((name.to_owned(), value.clone()));
        }
    }
    let vm = object.summary();
    match is_new {
        true => Some(Change::Appeared { vm }),
        false => (vm != before).then_some(Change::Changed { vm }),
    }
}

/// The objects of one class below a folder, as the server keeps them for us.
struct View<'a> {
    session: &'a Session,
    view: Reference,
    class: &'static str,
}

impl<'a> View<'a> {
    fn open(session: &'a Session, container: &Reference, class: &'static str) -> Result<Self> {
        let arguments = soap::object("container", container)
            + &soap::text("type", class)
            + "<recursive>true</recursive>";
        let views = &session.content.views;
        let reply = session.call("CreateContainerView", views, &arguments)?;
        let view = reply.child("returnval").and_then(Element::reference);
        let view = view.ok_or_else(|| session.wrong("CreateContainerView", "it names no view"))?;
        Ok(Self { session, view, class })
    }

    fn retrieve(&self, properties: &[&str]) -> Result<Vec<Object>> {
        retrieve(self.session, self.class, properties, &self.object_set())
    }

    fn object_set(&self) -> String {
        format!(
            "<objectSet>{}<skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><name>view</name>\
             <type>ContainerView</type><path>view</path><skip>false</skip></selectSet></objectSet>",
            soap::object("obj", &self.view)
        )
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // It would end with the session.
        let _ = self.session.call("DestroyView", &self.view, "");
    }
}

fn property_set(class: &str, properties: &[&str]) -> String {
    let mut set = format!("<propSet>{}<all>false</all>", soap::text("type", class));
    for property in properties {
        let _ = write!(set, "{}", soap::text("pathSet", property));
    }
    set + "</propSet>"
}

fn retrieve(
    session: &Session,
    class: &str,
    properties: &[&str],
    objects: &str,
) -> Result<Vec<Object>> {
    let arguments = format!(
        "<specSet>{}{objects}</specSet><options><maxObjects>{PAGE}</maxObjects></options>",
        property_set(class, properties)
    );
    let collector = &session.content.properties;
    let mut reply = session.call("RetrievePropertiesEx", collector, &arguments)?;
    let mut found = Vec::new();
    // No object at all is an empty reply.
    while let Some(result) = reply.child("returnval") {
        let before = found.len();
        found.extend(result.children("objects").filter_map(Object::from_reply));
        if found.len() > MOST_OBJECTS {
            let limit = MOST_OBJECTS;
            return Err(session.wrong("RetrievePropertiesEx", format!("more than {limit} objects")));
        }
        let Some(token) = result.value("token") else { break };
        if found.len() == before {
            return Err(session.wrong("RetrievePropertiesEx", "a page of it is empty"));
        }
        let token = soap::text("token", token);
        reply = session.call("ContinueRetrievePropertiesEx", collector, &token)?;
    }
    Ok(found)
}

fn state(said: Option<&str>) -> State {
    match said {
        Some("poweredOn") => State::Running,
        Some("poweredOff") => State::Stopped,
        Some("suspended") => State::Suspended,
        _ => State::Unknown,
    }
}

/// An inventory writes slashes and percent signs of names as `%2f`, `%5c` and `%25`.
pub(super) fn plain_name(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        let (letter, length) = match rest.get(at..at + 3).map(str::to_ascii_lowercase).as_deref() {
            Some("%2f") => ('/', 3),
            Some("%5c") => ('\\', 3),
            Some("%25") => ('%', 3),
            _ => ('%', 1),
        };
        plain.push(letter);
        rest = &rest[at + length..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_inventory_are_made_plain() {
        for (name, plain) in [
            ("a%2fb", "a/b"),
            ("100%25", "100%"),
            ("a%5Cb", "a\\b"),
            ("%", "%"),
            ("%é", "%é"),
            ("%2", "%2"),
        ] {
            assert_eq!(plain_name(name), plain);
        }
    }

    #[test]
    fn updates_are_told_once() {
        let update = |kind: &str, state: &str| {
            let text = format!(
                "<objectSet><kind>{kind}</kind><obj type=\"VirtualMachine\">vm-1</obj><changeSet>\
                 <name>runtime.powerState</name><op>assign</op><val>{state}</val></changeSet></objectSet>"
            );
            soap::parse(text.as_bytes()).unwrap()
        };
        let mut known = Vec::new();
        let change = apply(&mut known, &update("enter", "poweredOn"));
        assert!(matches!(change, Some(Change::Appeared { vm }) if vm.state == State::Running));
        let change = apply(&mut known, &update("modify", "poweredOff"));
        assert!(matches!(change, Some(Change::Changed { vm }) if vm.state == State::Stopped));
        assert_eq!(apply(&mut known, &update("modify", "poweredOff")), None);
        assert!(matches!(apply(&mut known, &update("leave", "")), Some(Change::Vanished { .. })));
        assert_eq!(apply(&mut known, &update("leave", "")), None);
    }
}
