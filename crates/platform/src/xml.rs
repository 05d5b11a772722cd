//! Replies in XML, read into a small tree.
//!
//! A reply is the word of a stranger: depth, parts and size are bounded, entities beyond XML's own five and document
//! types are refused.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Most bytes of a document.
pub(crate) const LONGEST: usize = 32 << 20;
/// Nothing real is deeper.
const DEEPEST: usize = 64;
/// Most elements of a document.
const MOST_ELEMENTS: usize = 500_000;

/// An element, by local names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub name: String,
    /// Attributes with their prefixes, but for those that declare namespaces.
    pub attributes: Vec<(String, String)>,
    pub text: String,
    pub children: Vec<Element>,
}

/// Reads a document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Element, String> {
    if bytes.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        let event = reader.read_event().map_err(|error| format!("it is not XML: {error}"))?;
        match event {
            Event::Start(tag) => {
                count += 1;
                if open.len() >= DEEPEST || count > MOST_ELEMENTS {
                    return Err("it is deeper or has more parts than any real one".into());
                }
                open.push(started(&tag)?);
            }
            Event::End(_) => {
                let Some(element) = open.pop() else {
                    return Err("an element ends that did not begin".into());
                };
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::Text(text) => add(&mut open, &text.xml10_content()),
            Event::CData(text) => add(&mut open, &text.xml10_content()),
            Event::GeneralRef(name) => {
                let Some(resolved) = spec::foreign::resolve_reference(&name) else {
                    return Err("it has an entity that is not one of XML's own".into());
                };
                add(&mut open, resolved.encode_utf8(&mut [0; 4]));
            }
            Event::DocType(_) => return Err("it has a document type".into()),
            Event::Eof => return Err("it ends in the middle".into()),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

impl Element {
    /// The attribute of this local name, with a prefix or without.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| local(key) == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The element at the end of these names.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// The text of the first child of this name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.trim())
    }

    /// The number in the first child of this name.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.value(name)?.parse().ok()
    }

    /// Whether the first child of this name says `true`.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.value(name), Some("true" | "1"))
    }

    pub fn into_child(self, name: &str) -> Option<Self> {
        self.children.into_iter().find(|child| child.name == name)
    }
}

/// As much of a stranger's text as fits into a sentence.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(300).collect()
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn started(tag: &BytesStart<'_>) -> Result<Element, String> {
    let mut element = Element { name: local(tag.name().into_inner()).into(), ..Element::default() };
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| format!("it is not XML: {error}"))?;
        let key = attribute.key.into_inner();
        if key.starts_with("xmlns") {
            continue;
        }
        let value = attribute
            .normalized_value(quick_xml::XmlVersion::Implicit1_0)
            .map_err(|error| format!("it is not XML: {error}"))?;
        element.attributes.push((key.to_owned(), value.into_owned()));
    }
    Ok(element)
}

pub(crate) fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}
