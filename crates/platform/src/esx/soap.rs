//! SOAP 1.1 as VMware's servers speak it: requests are written as text, replies read into a small tree.

use std::fmt;

use quick_xml::escape::escape;

pub(super) use crate::xml::{Element, parse};
use crate::xml::{local, shortened};

/// Names a managed object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Reference {
    pub class: String,
    pub id: String,
}

/// What a server says when it does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its class in the vSphere API, such as `InvalidLogin`; may be empty.
    pub kind: String,
    /// What the server says, for people.
    pub message: String,
}

/// A request's envelope around the call of a method of `this`; `arguments` is XML.
pub(super) fn envelope(method: &str, this: &Reference, arguments: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>\
         <{method} xmlns=\"urn:vim25\">{}{arguments}</{method}>\
         </soapenv:Body></soapenv:Envelope>",
        object("_this", this)
    )
}

/// An element that holds text.
pub(super) fn text(name: &str, value: &str) -> String {
    format!("<{name}>{}</{name}>", escape(value))
}

/// An element that names a managed object.
pub(super) fn object(name: &str, reference: &Reference) -> String {
    format!("<{name} type=\"{}\">{}</{name}>", escape(&reference.class), escape(&reference.id))
}

/// Reads a reply: what is in its body, or the fault there.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn reply(bytes: &[u8]) -> Result<Result<Element, Fault>, String> {
    let envelope = parse(bytes)?;
    if envelope.name != "Envelope" {
        return Err(format!("it is no SOAP envelope but <{}>", shortened(&envelope.name)));
    }
    let body = envelope.into_child("Body").ok_or("the envelope has no body")?;
    let Some(content) = body.children.into_iter().next() else {
        return Err("the body is empty".into());
    };
    if content.name != "Fault" {
        return Ok(Ok(content));
    }
    let detail = content.child("detail").and_then(|detail| detail.children.first());
    let kind = detail.map(fault_kind).unwrap_or_default();
    let said = content.value("faultstring").unwrap_or_default();
    Ok(Err(Fault { message: sentence(said, &kind, detail), kind }))
}

impl Element {
    /// Its `xsi:type` without the prefix.
    pub(super) fn kind(&self) -> Option<&str> {
        let mut found = self.attributes.iter().filter(|(key, _)| key.contains(':'));
        found.find(|(key, _)| local(key) == "type").map(|(_, value)| local(value))
    }

    /// The managed object that it names, with the class in its `type`.
    pub(super) fn reference(&self) -> Option<Reference> {
        let id = self.text.trim();
        let (_, class) = self.attributes.iter().find(|(key, _)| key == "type")?;
        (!id.is_empty()).then(|| Reference { class: class.clone(), id: id.to_owned() })
    }
}

impl Reference {
    pub fn new(class: &str, id: &str) -> Self {
        Self { class: class.into(), id: id.into() }
    }
}

impl Fault {
    /// From the `error` of a task.
    pub fn of_task(error: &Element) -> Self {
        let detail = error.child("fault");
        let kind = detail.map(fault_kind).unwrap_or_default();
        let said = error.value("localizedMessage").unwrap_or_default();
        Self { message: sentence(said, &kind, detail), kind }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn fault_kind(detail: &Element) -> String {
    let kind =
        detail.kind().unwrap_or_else(|| detail.name.strip_suffix("Fault").unwrap_or(&detail.name));
    shortened(kind)
}

/// One sentence: what the server says, if it says anything, and what its fault holds.
fn sentence(said: &str, kind: &str, detail: Option<&Element>) -> String {
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentence = match shortened(said.trim_end_matches('.')) {
        said if !said.is_empty() && !said.contains("*types.") => said,
        _ if kind.is_empty() => "the server does not say why".into(),
        _ => words(kind),
    };
    let facts = ["existingState", "requestedState", "name", "file", "reason", "property"];
    for fact in facts {
        let Some(value) = detail.and_then(|detail| detail.value(fact)) else { continue };
        if !value.is_empty() && !sentence.contains(value) {
            sentence.push_str(&format!(", {} {}", words(fact), shortened(value)));
        }
    }
    sentence
}

/// `InvalidPowerState` as people write it.
fn words(kind: &str) -> String {
    let mut words = String::new();
    for letter in kind.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "<soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
        xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>";
    const TAIL: &str = "</soapenv:Body></soapenv:Envelope>";

    #[test]
    fn a_reply_is_read_by_local_names() {
        let text = format!(
            "{HEAD}<R xmlns=\"urn:vim25\"><obj type=\"VirtualMachine\">vm-9</obj>\
             <val xmlns:x=\"u\" x:type=\"xsd:string\">a &amp; &#98;<![CDATA[<c>]]></val><none/></R>{TAIL}"
        );
        let element = reply(text.as_bytes()).unwrap().unwrap();
        let object = element.child("obj").unwrap().reference().unwrap();
        assert_eq!(object, Reference::new("VirtualMachine", "vm-9"));
        let value = element.child("val").unwrap();
        assert_eq!((value.kind(), value.text.as_str()), (Some("string"), "a & b<c>"));
        assert_eq!(element.value("none"), Some(""));
    }

    #[test]
    fn a_fault_is_one_sentence() {
        let text = format!(
            "{HEAD}<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring></faultstring>\
             <detail><InvalidPowerStateFault xsi:type=\"InvalidPowerState\"><requestedState>poweredOn\
             </requestedState><existingState>poweredOn</existingState></InvalidPowerStateFault></detail>\
             </soapenv:Fault>{TAIL}"
        );
        let fault = reply(text.as_bytes()).unwrap().unwrap_err();
        assert_eq!(fault.kind, "InvalidPowerState");
        assert_eq!(fault.message, "invalid power state, existing state poweredOn");
    }

    #[test]
    fn what_is_no_reply_is_refused_with_a_reason() {
        let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
        let many = format!("<a>{}</a>", "<b/>".repeat(500_000));
        for (bytes, reason) in [
            ("", "ends in the middle"),
            ("<a>", "ends in the middle"),
            ("<html></html>", "no SOAP envelope but <html>"),
            ("<Envelope/>", "no body"),
            ("<Envelope><Body/></Envelope>", "body is empty"),
            ("<a></b>", "not XML"),
            ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
            ("<a>&b;</a>", "entity"),
            (&deep, "deeper"),
            (&many, "more parts"),
        ] {
            let error = reply(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{bytes:.40}: {error}");
        }
        assert_eq!(reply(b"<a>\xff</a>").unwrap_err(), "it is not UTF-8");
    }

    #[test]
    fn what_is_sent_is_escaped() {
        let this = Reference::new("SessionManager", "s<1");
        let sent = envelope("Login", &this, &text("password", "a<b&\"c"));
        let element = parse(sent.as_bytes()).unwrap();
        let login = element.at(&["Body", "Login"]).unwrap();
        assert_eq!(login.child("_this").unwrap().reference().unwrap(), this);
        assert_eq!(login.value("password"), Some("a<b&\"c"));
    }
}
