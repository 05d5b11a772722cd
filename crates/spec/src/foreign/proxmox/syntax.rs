//! Lines of `key: value`, of which a value may be a list such as `local:100/disk.qcow2,size=32G`; sections for other states.

use std::str::FromStr;

use super::super::description::Unread;
use super::super::text::percent_decoded;
use crate::{Error, Place, Result};

/// A file.
pub(super) struct Text {
    /// The present state.
    pub main: Section,
    /// Snapshots, and what else has a name in brackets.
    pub sections: Vec<Section>,
}

/// A state.
#[derive(Default)]
pub(super) struct Section {
    pub name: String,
    /// What its owner wrote about it.
    pub comment: Option<String>,
    pub entries: Vec<Entry>,
}

/// A line.
pub(super) struct Entry {
    file: String,
    line: usize,
    pub key: String,
    pub value: String,
}

/// What is between the commas of a value: `key=value`, of which the first may have no key.
pub(super) struct Options<'a>(Vec<(&'a str, &'a str)>, &'a str);

/// More is no VM.
const MOST_LINES: usize = 100_000;
/// Of them, so many make a text a configuration of Proxmox VE's.
const TYPICAL: [&str; 12] = [
    "boot", "bootdisk", "cores", "memory", "meta", "net0", "numa", "ostype", "scsihw", "smbios1",
    "sockets", "vmgenid",
];
const ENOUGH: usize = 3;

/// Whether a text is in this form, and about a VM.
pub(crate) fn looks_right(text: &str) -> bool {
    let mut typical = 0;
    for line in text.lines().map(str::trim_end).take_while(|line| !line.starts_with('[')) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, _)) = line.split_once(':').filter(|(key, _)| is_key(key)) else {
            return false;
        };
        typical += usize::from(TYPICAL.contains(&key));
    }
    typical >= ENOUGH
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// A comment or a description, in which letters are written as in addresses.
pub(super) fn decoded(text: &str) -> String {
    percent_decoded(text).unwrap_or_else(|| text.to_owned())
}

/// A key's word and its number: `scsi` and 0 of `scsi0`.
pub(super) fn numbered(key: &str) -> (&str, Option<u32>) {
    let word = key.trim_end_matches(|letter: char| letter.is_ascii_digit());
    (word, key[word.len()..].parse().ok())
}

impl Text {
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let mut found = Self { main: Section::default(), sections: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let wrong = |message: &str| Error::File {
                place: Place { file: file.into(), position: Some((index + 1, 1)) },
                message: message.into(),
            };
            if index >= MOST_LINES {
                return Err(wrong("There are too many lines"));
            }
            let section = found.sections.last_mut().unwrap_or(&mut found.main);
            // What `vzdump` notes about the disks in an archive.
            if line.starts_with("#qmdump#") {
                continue;
            }
            if let Some(comment) = line.strip_prefix('#') {
                let known = section.comment.get_or_insert_default();
                let separator = if known.is_empty() { "" } else { "\n" };
                known.push_str(&format!("{separator}{}", decoded(comment)));
            } else if let Some(name) = line.strip_prefix('[') {
                let name =
                    name.strip_suffix(']').ok_or_else(|| wrong("Expected `]` at the end"))?;
                found.sections.push(Section { name: name.into(), ..Section::default() });
            } else if !line.is_empty() {
                let (key, value) = line
                    .split_once(':')
                    .filter(|(key, _)| is_key(key))
                    .ok_or_else(|| wrong("Expected `key: value`"))?;
                section.entries.push(Entry {
                    file: file.into(),
                    line: index + 1,
                    key: key.into(),
                    value: value.trim().into(),
                });
            }
        }
        Ok(found)
    }
}

impl Section {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }
}

impl Entry {
    pub fn word(&self) -> &str {
        numbered(&self.key).0
    }

    pub fn index(&self) -> Option<u32> {
        numbered(&self.key).1
    }

    /// The value as a list; what has no key has that of `main`.
    pub fn options<'a>(&'a self, main: &'a str) -> Options<'a> {
        let part = |part: &'a str| part.split_once('=').unwrap_or((main, part));
        Options(self.value.split(',').map(str::trim).map(part).collect(), main)
    }

    pub fn number<T: FromStr>(&self, text: &str) -> Result<T> {
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(50).collect();
            Error::File {
                place: Place { file: self.file.clone(), position: Some((self.line, 1)) },
                message: format!("`{shown}` is not a number (`{}`)", self.key),
            }
        })
    }

    /// As a setting that is not understood.
    pub fn unread(&self, value: &str) -> Unread {
        Unread {
            line: Some(self.line),
            key: self.key.clone(),
            value: value.chars().take(200).collect(),
        }
    }
}

impl<'a> Options<'a> {
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    /// What may have no key.
    pub fn main(&self) -> Option<String> {
        self.get(self.1).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().copied()
    }
}
