//! The metadata of LVM is a text (`man lvm.conf` describes the syntax).

use std::collections::{BTreeMap, HashMap};

/// Deepest section, and deepest list.
const MAX_DEPTH: usize = 16;

/// `name { ... }`: values and further sections.
#[derive(Debug, Default)]
pub struct Section {
    pub values: HashMap<String, Value>,
    pub sections: BTreeMap<String, Section>,
}

#[derive(Debug, PartialEq)]
pub enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Section {
    /// What a whole text says; `None` if it is damaged.
    pub fn of(text: &str) -> Option<Self> {
        Parser { rest: text }.section(0)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A text, or the texts of a list.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = match self.values.get(name) {
            Some(Value::List(list)) => list.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        values.iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// What is in braces, or all of it at depth 0.
    fn section(&mut self, depth: usize) -> Option<Section> {
        let mut section = Section::default();
        loop {
            self.skip();
            if depth > 0 && self.takes('}') || depth == 0 && self.rest.is_empty() {
                return Some(section);
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
            let end = self.rest.find(|c| !is_name(c)).filter(|&end| end > 0)?;
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            self.skip();
            if self.takes('{') {
                if depth == MAX_DEPTH {
                    return None;
                }
                section.sections.insert(name.to_owned(), self.section(depth + 1)?);
            } else if self.takes('=') {
                section.values.insert(name.to_owned(), self.value(0)?);
            } else {
                return None;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip();
        if self.takes('"') {
            let mut text = String::new();
            let mut chars = self.rest.char_indices();
            loop {
                match chars.next()? {
                    (end, '"') => {
                        self.rest = &self.rest[end + 1..];
                        return Some(Value::Text(text));
                    }
                    (_, '\\') => text.push(chars.next()?.1),
                    (_, other) => text.push(other),
                }
            }
        }
        if self.takes('[') {
            let mut list = Vec::new();
            loop {
                self.skip();
                if self.takes(']') {
                    return Some(Value::List(list));
                }
                if depth == MAX_DEPTH {
                    return None;
                }
                list.push(self.value(depth + 1)?);
                self.skip();
                self.takes(',');
            }
        }
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && !"-.".contains(c))?;
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        // Negative numbers and fractions do not matter.
        (!number.is_empty()).then(|| Value::Number(number.parse().unwrap_or(0)))
    }

    fn takes(&mut self, wanted: char) -> bool {
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn metadata_is_parsed() {
        let text = "# Generated\nvg0 {\nid = \"a-b\"\nseqno = 7\nstatus = [\"RESIZEABLE\", \"READ\"]\n\
                    physical_volumes {\n\npv0 {\ndevice = \"/dev/\\\"x\" # Hint\nstripes = [ \"pv0\", 0 ]\n}\n}\n}\ncontents = \"Text\"\n";
        let root = Section::of(text).unwrap();
        let group = &root.sections["vg0"];
        assert_eq!(group.number("seqno"), Some(7));
        assert_eq!(group.texts("status").collect::<Vec<_>>(), ["RESIZEABLE", "READ"]);
        let volume = &group.sections["physical_volumes"].sections["pv0"];
        assert_eq!(volume.texts("device").next(), Some("/dev/\"x"));
        let list = Value::List(vec![Value::Text("pv0".into()), Value::Number(0)]);
        assert_eq!(volume.values["stripes"], list);
        assert!(Section::of(&"a {".repeat(5000)).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "[a-c{}=\\[\\]\"\\\\#,\n 0-9]{0,200}") {
            let _ = Section::of(&text);
        }
    }
}
