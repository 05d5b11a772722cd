//! Lists of `key = "value"`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::str::FromStr;

use super::super::description::Unread;
use super::super::text;
use crate::{Error, Place, Result};

/// The keys of a file; each remembers whether anybody asked for it.
pub(crate) struct Dictionary {
    file: String,
    /// By the key in lower case.
    entries: BTreeMap<String, Entry>,
    duplicates: Vec<usize>,
}

struct Entry {
    key: String,
    value: String,
    line: usize,
    seen: Cell<bool>,
}

/// More is no VM.
const MOST_ENTRIES: usize = 100_000;

impl Dictionary {
    /// Reads a file in the encoding that its `.encoding` names.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let text = text::decode_named(bytes, encoding(bytes));
        let mut found =
            Self { file: file.into(), entries: BTreeMap::new(), duplicates: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |message: &str| Error::File {
                place: Place { file: file.into(), position: Some((number, 1)) },
                message: message.into(),
            };
            let (key, value) =
                line.split_once('=').ok_or_else(|| wrong("Expected `key = \"value\"`"))?;
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() || key.contains(|letter: char| letter.is_control() || letter == '"') {
                return Err(wrong("Expected a key before `=`"));
            }
            let value = match value.strip_prefix('"') {
                Some(rest) => {
                    let end =
                        rest.find('"').ok_or_else(|| wrong("The value has no closing quote"))?;
                    let after = rest[end + 1..].trim_start();
                    if !after.is_empty() && !after.starts_with('#') {
                        return Err(wrong("Expected nothing after the closing quote"));
                    }
                    &rest[..end]
                }
                None => value,
            };
            let entry = Entry {
                key: key.into(),
                value: unescape(value),
                line: number,
                seen: Cell::new(false),
            };
            if found.entries.insert(key.to_ascii_lowercase(), entry).is_some() {
                found.duplicates.push(number);
            }
            if found.entries.len() > MOST_ENTRIES {
                return Err(wrong("There are too many keys"));
            }
        }
        Ok(found)
    }

    /// Lines that say a key again.
    pub fn duplicates(&self) -> &[usize] {
        &self.duplicates
    }

    /// A value that is not empty.
    pub fn text(&self, key: &str) -> Option<String> {
        let entry = self.entries.get(key)?;
        entry.seen.set(true);
        Some(entry.value.clone()).filter(|value| !value.is_empty())
    }

    /// A number.
    pub fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.trim().parse().map(Some);
        number.map_err(|_| self.error(key, format!("`{}` is not a number", shorten(&text))))
    }

    /// Yes or no.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" | "y" | "t" => Ok(Some(true)),
            "false" | "no" | "off" | "0" | "n" | "f" => Ok(Some(false)),
            _ => Err(self.error(key, format!("`{}` is neither TRUE nor FALSE", shorten(&text)))),
        }
    }

    /// Words between commas.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        let text = self.text(key)?;
        Some(
            text.split(',')
                .map(|word| word.trim().to_owned())
                .filter(|word| !word.is_empty())
                .collect(),
        )
    }

    /// Marks a key as one that is known.
    pub fn skip(&self, key: &str) {
        if let Some(entry) = self.entries.get(key) {
            entry.seen.set(true);
        }
    }

    /// Marks these keys as known; one that ends in a dot stands for all below.
    pub fn skip_known(&self, known: &[&str]) {
        for (key, entry) in &self.entries {
            if known.iter().any(|one| key == one || (one.ends_with('.') && key.starts_with(one))) {
                entry.seen.set(true);
            }
        }
    }

    /// All keys in lower case that begin so.
    pub fn keys_below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries
            .range(prefix.to_owned()..)
            .map(|(key, _)| key.as_str())
            .take_while(move |key| key.starts_with(prefix))
    }

    /// What nobody asked for.
    pub fn unread(&self) -> Vec<Unread> {
        let unseen = self.entries.values().filter(|entry| !entry.seen.get());
        let mut unread: Vec<_> = unseen
            .map(|entry| Unread {
                line: Some(entry.line),
                key: entry.key.clone(),
                value: entry.value.chars().take(200).collect(),
            })
            .collect();
        unread.sort_by_key(|one| one.line);
        unread
    }

    /// An error about a key.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        let entry = self.entries.get(key);
        let place = Place { file: self.file.clone(), position: entry.map(|entry| (entry.line, 1)) };
        let name = entry.map_or(key, |entry| &entry.key);
        Error::File { place, message: format!("{} (`{name}`)", message.into()) }
    }
}

/// The value of `.encoding`, which stands in ASCII near the beginning.
fn encoding(bytes: &[u8]) -> Option<&str> {
    for line in bytes.split(|byte| *byte == b'\n').take(50) {
        let line = std::str::from_utf8(line).unwrap_or_default().trim();
        if let Some((key, value)) = line.split_once('=')
            && key.trim().eq_ignore_ascii_case(".encoding")
        {
            return Some(value.trim().trim_matches('"'));
        }
    }
    None
}

/// VMware writes bytes that a value cannot hold as `|` and two hexadecimal digits.
fn unescape(value: &str) -> String {
    if !value.contains('|') {
        return value.to_owned();
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(digits, 16).ok())?
        });
        match code {
            Some(code) if *first == b'|' => {
                bytes.push(code);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
