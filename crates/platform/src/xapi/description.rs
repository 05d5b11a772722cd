//! A VM's records as the `ova.xml` that an export would have, so that both are read by one reader.

use std::fmt::Write;

use serde_json::{Value, json};
use spec::foreign::Description;

use super::records::{Vm, texts};
use super::session::Session;
use crate::{Result, describe};

/// Most objects around a VM that are asked for.
pub(super) const MOST: usize = 4096;
/// Deepest value in a record.
const DEEPEST: usize = 16;

/// What the server says of a VM, and of what belongs to it.
pub(super) fn describe(session: &Session, vm: &Vm, label: &str) -> Result<Description> {
    let mut objects = vec![("VM", vm.reference.clone(), vm.record.clone())];
    let get = |class: &'static str, reference: &str| {
        session.call(&format!("{class}.get_record"), &[json!(reference)])
    };
    for reference in texts(&vm.record["VBDs"]).take(MOST) {
        let drive = get("VBD", &reference)?;
        let image = drive["VDI"].as_str().unwrap_or_default().to_owned();
        if is_reference(&image) {
            objects.push(("VDI", image.clone(), get("VDI", &image)?));
        }
        objects.push(("VBD", reference, drive));
    }
    for reference in texts(&vm.record["VIFs"]).take(MOST) {
        let card = get("VIF", &reference)?;
        let network = card["network"].as_str().unwrap_or_default().to_owned();
        if is_reference(&network) {
            objects.push(("network", network.clone(), get("network", &network)?));
        }
        objects.push(("VIF", reference, card));
    }
    for reference in texts(&vm.record["snapshots"]).take(MOST) {
        let record = get("VM", &reference)?;
        objects.push(("VM", reference, record));
    }
    describe::read(document(&objects).as_bytes(), "ova.xml", label, false)
}

/// Whether something is there at all.
fn is_reference(text: &str) -> bool {
    !text.is_empty() && text != "OpaqueRef:NULL"
}

/// `ova.xml`: XML-RPC's form of the objects.
fn document(objects: &[(&str, String, Value)]) -> String {
    let mut list = Vec::new();
    for (class, id, record) in objects {
        list.push(json!({ "class": class, "id": id, "snapshot": record }));
    }
    let mut text = String::from("<?xml version='1.0'?>\n");
    value(&json!({ "version": {}, "objects": list }), 0, &mut text);
    text
}

fn value(of: &Value, depth: usize, text: &mut String) {
    let escape = |plain: &str| {
        let plain: String = plain.chars().filter(|one| !one.is_control()).collect();
        quick_xml::escape::escape(&plain).into_owned()
    };
    text.push_str("<value>");
    match of {
        _ if depth > DEEPEST => {}
        Value::Null => {}
        Value::Bool(flag) => {
            let _ = write!(text, "<boolean>{}</boolean>", u8::from(*flag));
        }
        Value::Number(number) => {
            let _ = write!(text, "{number}");
        }
        Value::String(plain) => text.push_str(&escape(plain)),
        Value::Array(list) => {
            text.push_str("<array><data>");
            for one in list {
                value(one, depth + 1, text);
            }
            text.push_str("</data></array>");
        }
        Value::Object(map) => {
            text.push_str("<struct>");
            for (key, one) in map {
                let _ = write!(text, "<member><name>{}</name>", escape(key));
                value(one, depth + 1, text);
                text.push_str("</member>");
            }
            text.push_str("</struct>");
        }
    }
    text.push_str("</value>");
}

/// Writes any value as objects, and reads them.
pub(super) fn fuzz(record: &Value) {
    let text = document(&[("VM", "OpaqueRef:1".into(), record.clone())]);
    let _ = describe::read(text.as_bytes(), "ova.xml", "fuzz", false);
}
