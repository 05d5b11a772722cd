//! XML as a tree whose every part remembers whether anybody looked at it.
//!
//! Names are local ones, without their prefixes. Entities are not expanded beyond XML's own five, document
//! types are refused, and depth and size are limited.

use std::cell::Cell;

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesRef, BytesStart, Event};

use super::description::Unread;
use super::text;
use crate::{Error, Place, Result};

/// An element.
pub(crate) struct Element {
    /// Its local name.
    pub name: String,
    /// The prefix of its name, empty if there is none.
    pub prefix: String,
    /// The file and its place there, for errors.
    pub place: Place,
    attributes: Vec<Attribute>,
    elements: Vec<Element>,
    text: String,
    seen: Cell<bool>,
    text_seen: Cell<bool>,
}

struct Attribute {
    name: String,
    value: String,
    seen: Cell<bool>,
}

/// Reads a document.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Element> {
    let text = text::decode_xml(bytes);
    let mut reader = Reader::from_str(&text);
    reader.config_mut().expand_empty_elements = true;
    let lines = Lines::new(&text);
    let mut parser = Parser { file, lines, open: Vec::new(), count: 0 };
    loop {
        let start = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader.read_event().map_err(|error| {
            let at = usize::try_from(reader.error_position()).unwrap_or(usize::MAX);
            parser.error(at, format!("This is not XML: {error}"))
        })?;
        match event {
            Event::Start(tag) => parser.start(&tag, start)?,
            Event::End(_) => {
                if let Some(root) = parser.end() {
                    root.seen.set(true);
                    return Ok(root);
                }
            }
            Event::Text(text) => parser.text(&text.xml10_content()),
            Event::CData(text) => parser.text(&text.xml10_content()),
            Event::GeneralRef(name) => {
                let Some(resolved) = resolve_reference(&name) else {
                    return Err(parser.error(start, "This entity is not one of XML's own"));
                };
                parser.text(resolved.encode_utf8(&mut [0; 4]));
            }
            Event::DocType(_) => {
                return Err(
                    parser.error(start, "Document types and entities of one's own are refused")
                );
            }
            Event::Eof => {
                let message = match parser.open.last() {
                    Some(element) => format!("The file ends within <{}>", element.name),
                    None => "There is no XML element".into(),
                };
                return Err(parser.error(text.len(), message));
            }
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

/// What a reference in a text stands for, by its number or as one of XML's own five entities (XML 1.0, 4.6).
pub fn resolve_reference(reference: &BytesRef<'_>) -> Option<char> {
    if let Ok(Some(letter)) = reference.resolve_char_ref() {
        return Some(letter);
    }
    Some(match reference.xml10_content().as_ref() {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "apos" => '\'',
        "quot" => '"',
        _ => return None,
    })
}

/// The name of the first element, without reading on; for beginnings of files.
pub(crate) fn root_name(text: &str) -> Option<String> {
    let mut reader = Reader::from_str(text);
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) | Event::Empty(tag) => {
                let name = tag.name();
                return Some(split(name.into_inner()).1.to_owned());
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// VirtualBox keeps up to 250 snapshots within each other, two elements each; nothing else is as deep.
const DEEPEST: usize = 640;
/// Readers keep attributes several times: for each of a chain's images, for instance.
const LONGEST_ATTRIBUTE: usize = 256 << 10;
/// Most elements and attributes of a document.
const MOST_PARTS: usize = 500_000;
/// How much of an unread value is told.
const LONGEST_VALUE: usize = 200;

impl Element {
    /// The first element of this name within it.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children(name).next()
    }

    /// The element at the end of these names, first ones taken.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// All elements of this name within it.
    pub fn children<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Self> + use<'a> {
        let name = name.to_owned();
        self.elements.iter().filter(move |element| element.name == name).inspect(|element| {
            element.seen.set(true);
        })
    }

    /// All elements within it; whoever asks looks at each.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        self.elements.iter().inspect(|element| element.seen.set(true))
    }

    /// All elements within it that were not looked at.
    pub fn rest(&self) -> impl Iterator<Item = &Self> {
        self.elements.iter().filter(|element| !element.seen.get())
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let attribute = self.attributes.iter().find(|attribute| attribute.name == name)?;
        attribute.seen.set(true);
        Some(&attribute.value)
    }

    /// The value of an attribute, owned and not empty.
    pub fn string(&self, name: &str) -> Option<String> {
        self.attribute(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// The text within it, without the spaces around.
    pub fn text(&self) -> &str {
        self.text_seen.set(true);
        self.text.trim()
    }

    /// The text of a child, if there is any.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(Self::text).filter(|text| !text.is_empty())
    }

    /// The number in an attribute.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.attribute(name) else { return Ok(None) };
        self.parse(value, &format!("attribute `{name}`")).map(Some)
    }

    /// The number in a child's text.
    pub fn child_number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(child) = self.child(name) else { return Ok(None) };
        match child.text() {
            "" => Ok(None),
            text => child.parse(text, &format!("<{name}>")).map(Some),
        }
    }

    /// Marks it as looked at.
    pub fn see(&self) {
        self.seen.set(true);
    }

    /// Marks it and all that is in it as looked at: it is known and of no account here.
    pub fn skip(&self) {
        self.seen.set(true);
        self.text_seen.set(true);
        self.attributes.iter().for_each(|attribute| attribute.seen.set(true));
        self.elements.iter().for_each(Self::skip);
    }

    /// Marks children of these names, as [`skip`](Self::skip) does.
    pub fn skip_children(&self, names: &[&str]) {
        for element in self.elements.iter().filter(|one| names.contains(&one.name.as_str())) {
            element.skip();
        }
    }

    /// Marks attributes of these names as looked at.
    pub fn skip_attributes(&self, names: &[&str]) {
        for attribute in self.attributes.iter().filter(|one| names.contains(&one.name.as_str())) {
            attribute.seen.set(true);
        }
    }

    /// An error about it.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::File { place: self.place.clone(), message: message.into() }
    }

    /// What nobody looked at.
    pub fn unread(&self) -> Vec<Unread> {
        let mut found = Vec::new();
        self.collect_unread(&mut self.name.clone(), &mut found);
        found
    }

    fn parse<T: std::str::FromStr>(&self, text: &str, what: &str) -> Result<T> {
        let shown: String = text.chars().take(40).collect();
        text.trim().parse().map_err(|_| {
            self.error(format!("The {what} of <{}> is `{shown}` instead of a number", self.name))
        })
    }

    fn collect_unread(&self, path: &mut String, found: &mut Vec<Unread>) {
        let line = self.place.position.map(|(line, _)| line);
        let mut add = |key: String, value: &str| {
            let value = value.chars().take(LONGEST_VALUE).collect();
            found.push(Unread { line, key, value });
        };
        if !self.seen.get() {
            let attributes: Vec<_> =
                self.attributes.iter().map(|one| format!("{}={}", one.name, one.value)).collect();
            let value = [self.text.trim(), &attributes.join(" ")].join(" ");
            return add(path.clone(), value.trim());
        }
        for attribute in self.attributes.iter().filter(|one| !one.seen.get()) {
            add(format!("{path}@{}", attribute.name), &attribute.value);
        }
        if !self.text_seen.get() && !self.text.trim().is_empty() {
            add(path.clone(), self.text.trim());
        }
        for element in &self.elements {
            let length = path.len();
            path.push('/');
            path.push_str(&element.name);
            element.collect_unread(path, found);
            path.truncate(length);
        }
    }
}

struct Parser<'a> {
    file: &'a str,
    lines: Lines<'a>,
    open: Vec<Element>,
    count: usize,
}

impl Parser<'_> {
    fn start(&mut self, tag: &BytesStart<'_>, at: usize) -> Result<()> {
        if self.open.len() >= DEEPEST {
            return Err(self.error(at, format!("Elements are nested more than {DEEPEST} deep")));
        }
        let mut attributes = Vec::new();
        for attribute in tag.attributes() {
            let wrong = |error: &dyn std::fmt::Display| {
                self.error(
                    at,
                    format!("An attribute of <{}> is wrong: {error}", tag.local_name().as_ref()),
                )
            };
            let attribute = attribute.map_err(|error| wrong(&error))?;
            let (prefix, name) = split(attribute.key.into_inner());
            if prefix == "xmlns"
                || (prefix.is_empty() && name == "xmlns")
                || name == "schemaLocation"
            {
                continue;
            }
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|error| wrong(&error))?
                .into_owned();
            if value.len() > LONGEST_ATTRIBUTE {
                let message = format!(
                    "The attribute `{}` is longer than 256 KiB",
                    name.get(..40).unwrap_or(name)
                );
                return Err(self.error(at, message));
            }
            attributes.push(Attribute {
                name: name.into(),
                value,
                seen: Cell::new(prefix == "xml"),
            });
        }
        self.count += 1 + attributes.len();
        if self.count > MOST_PARTS {
            return Err(self.error(at, format!("There are more than {MOST_PARTS} elements")));
        }
        let name = tag.name();
        let (prefix, name) = split(name.into_inner());
        self.open.push(Element {
            name: name.into(),
            prefix: prefix.into(),
            place: self.place(at),
            attributes,
            elements: Vec::new(),
            text: String::new(),
            seen: Cell::new(false),
            text_seen: Cell::new(false),
        });
        Ok(())
    }

    /// The root, when it is complete.
    fn end(&mut self) -> Option<Element> {
        let element = self.open.pop()?;
        match self.open.last_mut() {
            Some(parent) => {
                parent.elements.push(element);
                None
            }
            None => Some(element),
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(element) = self.open.last_mut() {
            element.text.push_str(text);
        }
    }

    fn place(&self, at: usize) -> Place {
        Place { file: self.file.into(), position: Some(self.lines.position(at)) }
    }

    fn error(&self, at: usize, message: impl Into<String>) -> Error {
        Error::File { place: self.place(at), message: message.into() }
    }
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("", name))
}

/// Where lines begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let after =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after).collect() }
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts[line - 1];
        // Of very long lines only bytes are counted.
        let column = match self.text.get(start..at) {
            Some(before) if before.len() < 4096 => before.chars().count() + 1,
            _ => at.saturating_sub(start) + 1,
        };
        (line, column)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        parse(text.as_bytes(), "x.xml").err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_nobody_looked_at_is_told() {
        let root = parse(
            b"<v:a xmlns:v='u' x='1' y='2'>\n<b><c>one &amp; two</c></b>\n<b z='3'/><d>4</d></v:a>",
            "x.xml",
        )
        .unwrap();
        assert_eq!((root.name.as_str(), root.prefix.as_str()), ("a", "v"));
        assert_eq!(root.number::<u32>("x").unwrap(), Some(1));
        assert_eq!(root.at(&["b", "c"]).unwrap().text(), "one & two");
        assert_eq!(root.children("b").count(), 2);
        let unread: Vec<_> =
            root.unread().into_iter().map(|one| (one.line, one.key, one.value)).collect();
        let expected = [(1, "a@y", "2"), (3, "a/b@z", "3"), (3, "a/d", "4")]
            .map(|(line, key, value)| (Some(line), key.to_owned(), value.to_owned()));
        assert_eq!(unread, expected);
    }

    #[test]
    fn bombs_and_broken_files_are_refused_with_their_place() {
        let bomb = "<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY x 'y'>]>\n<a>&x;</a>";
        assert_eq!(
            message(bomb),
            "x.xml:2:1: Document types and entities of one's own are refused"
        );
        assert_eq!(message("<a>\n &x;</a>"), "x.xml:2:2: This entity is not one of XML's own");
        assert!(message("<a b='&x;'/>").starts_with("x.xml:1:1: An attribute of <a> is wrong"));
        assert_eq!(message("<a>\n<b>"), "x.xml:2:4: The file ends within <b>");
        assert_eq!(message(""), "x.xml:1:1: There is no XML element");
        assert!(message("<a></b>").starts_with("x.xml:1:4: This is not XML"));
        assert!(message(&"<a>".repeat(1000)).contains("nested more than 640 deep"));
        let long = format!("<a b='{}'/>", "c".repeat(300_000));
        assert!(message(&long).contains("The attribute `b` is longer than 256 KiB"));
        let number = parse(b"<a b='two'/>", "x.xml").unwrap().number::<u32>("b").unwrap_err();
        assert_eq!(
            number.to_string(),
            "x.xml:1:1: The attribute `b` of <a> is `two` instead of a number"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(<[/a-c!?]?|a='|>|&|;|\\]|\n|ü|'| ){0,60}") {
            if let Ok(root) = parse(text.as_bytes(), "x.xml") {
                let _ = root.unread();
            }
        }
    }
}
