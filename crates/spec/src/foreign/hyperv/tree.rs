//! A tree of keys whose every part remembers whether anybody looked at it.

use std::cell::Cell;

use super::super::description::Unread;
use super::super::xml::Element;

/// A key with its value or with keys below it.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub name: String,
    pub value: Option<Value>,
    pub below: Vec<Node>,
    /// The line, in XML.
    pub line: Option<usize>,
    pub seen: Cell<bool>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
    Flag(bool),
}

impl Node {
    /// The key of this name below it.
    pub fn child(&self, name: &str) -> Option<&Self> {
        let found = self.below.iter().find(|one| one.name.eq_ignore_ascii_case(name))?;
        found.seen.set(true);
        Some(found)
    }

    /// All keys below it.
    pub fn children(&self) -> impl Iterator<Item = &Self> {
        self.below.iter()
    }

    /// Its value.
    pub fn value(&self) -> Option<&Value> {
        self.seen.set(true);
        self.value.as_ref()
    }

    /// Its text, if it is one and not empty.
    pub fn own_text(&self) -> Option<String> {
        match self.value()? {
            Value::Text(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// The text of a key below it.
    pub fn text(&self, name: &str) -> Option<String> {
        self.child(name)?.own_text()
    }

    /// The number of a key below it.
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.child(name)?.value()? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether a key below it says yes.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.child(name)?.value()? {
            Value::Flag(flag) => Some(*flag),
            Value::Number(number) => Some(*number != 0),
            _ => None,
        }
    }

    /// Marks it as looked at.
    pub fn see(&self) {
        self.seen.set(true);
    }

    /// Marks it and all below as known and of no account here.
    pub fn skip(&self) {
        self.seen.set(true);
        self.below.iter().for_each(Self::skip);
    }

    /// Marks keys of these names below it, as [`skip`](Self::skip) does.
    pub fn skip_children(&self, names: &[&str]) {
        self.below.iter().filter(|one| names.contains(&one.name.as_str())).for_each(Self::skip);
    }

    /// The values that nobody looked at.
    pub fn unread(&self) -> Vec<Unread> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, path: &str, found: &mut Vec<Unread>) {
        for node in &self.below {
            let key =
                if path.is_empty() { node.name.clone() } else { format!("{path}/{}", node.name) };
            if let Some(value) = node.value.as_ref().filter(|_| !node.seen.get()) {
                found.push(Unread { line: node.line, key: key.clone(), value: shown(value) });
            }
            node.collect(&key, found);
        }
    }
}

/// `<key type="string">value</key>` and `<key>` with keys below it.
pub(crate) fn from_xml(element: &Element) -> Node {
    let text = element.text();
    let value = match element.attribute("type") {
        Some("integer") => text.parse().ok().map(Value::Number),
        Some("bool") => Some(Value::Flag(text.eq_ignore_ascii_case("true") || text == "1")),
        Some("double") => text.parse().ok().map(Value::Real),
        Some("bytes") => Some(Value::Bytes(text.as_bytes().to_vec())),
        Some(_) => Some(Value::Text(text.to_owned())),
        None => None,
    };
    Node {
        name: element.name.clone(),
        value,
        below: element.all().map(from_xml).collect(),
        line: element.place.position.map(|(line, _)| line),
        seen: Cell::new(false),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Text(text) => text.chars().take(200).collect(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
    }
}
