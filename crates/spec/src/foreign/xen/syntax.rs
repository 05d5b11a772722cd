//! `KEY = VALUE` with texts, numbers and lists: what is left of the Python that `xm` took.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::super::description::Unread;
use crate::{Error, Place, Result};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    List(Vec<Value>),
}

/// The keys of a file; each remembers whether anybody asked for it.
pub(crate) struct Config {
    file: String,
    entries: BTreeMap<String, Entry>,
    /// Statements of Python, which nobody runs.
    statements: Vec<Unread>,
}

struct Entry {
    value: Value,
    line: usize,
    seen: Cell<bool>,
}

/// More is no VM.
const MOST_VALUES: usize = 100_000;
const DEEPEST: usize = 8;

/// Without these a VM would be another one: they are never passed over.
const ESSENTIAL: [&str; 12] = [
    "bootloader",
    "builder",
    "disk",
    "extra",
    "kernel",
    "memory",
    "name",
    "ramdisk",
    "root",
    "type",
    "vcpus",
    "vif",
];

/// Whether a text is likely to be such a file: it sets keys that every one sets.
pub(crate) fn looks_right(text: &str) -> bool {
    let typical =
        ["memory", "disk", "vif", "vcpus", "kernel", "builder", "type", "name", "bootloader"];
    let keys = text.lines().take(2000).filter_map(|line| line.split_once('='));
    keys.filter(|(key, _)| typical.contains(&key.trim())).count() >= 2
}

impl Config {
    /// Reads a file.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let mut reader = Reader { text, at: 0, file, count: 0, known: Cell::new((0, 1)) };
        let mut config =
            Self { file: file.into(), entries: BTreeMap::new(), statements: Vec::new() };
        loop {
            reader.skip_blank();
            let Some(first) = reader.peek() else { return Ok(config) };
            let (line, indented) = (reader.line(), reader.is_indented());
            let word = reader.word();
            reader.skip_spaces();
            let append = reader.rest().starts_with("+=");
            if word.is_empty() || indented || is_python(word) || !(append || reader.is_assignment())
            {
                // `xm` ran its files as Python programs; what they compute is not known here.
                let statement = reader.whole_line();
                if !(indented || is_python(word) || reader.is_python_call(statement)) {
                    return Err(
                        reader.error(line, format!("Expected `KEY = VALUE` instead of `{first}`"))
                    );
                }
                config.statement(line, statement);
                continue;
            }
            let key = word.to_owned();
            reader.at += if append { 2 } else { 1 };
            let (start, known) = (reader.at, reader.known.get());
            let value = reader.value(0).and_then(|value| reader.end_of_statement().map(|()| value));
            let value = match value {
                Err(_) if !ESSENTIAL.contains(&word) && is_computed(&text[start..]) => {
                    // Back, and with it where the line begins.
                    reader.at = start;
                    reader.known.set(known);
                    config.statement(line, reader.whole_line());
                    continue;
                }
                value => value?,
            };
            let entry = Entry { value, line, seen: Cell::new(false) };
            config.insert(key, entry, append);
        }
    }

    fn statement(&mut self, line: usize, statement: &str) {
        let value = statement.trim().chars().take(200).collect();
        self.statements.push(Unread { line: Some(line), key: "statement".into(), value });
    }

    fn insert(&mut self, key: String, entry: Entry, append: bool) {
        if append && let Some(old) = self.entries.get_mut(&key) {
            match (&mut old.value, entry.value) {
                (Value::Text(old), Value::Text(more)) => old.push_str(&more),
                (Value::List(old), Value::List(more)) => old.extend(more),
                (old, value) => *old = value,
            }
            return;
        }
        self.entries.insert(key, entry);
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let entry = self.entries.get(key)?;
        entry.seen.set(true);
        Some(&entry.value)
    }

    /// A text that is not empty; numbers are texts, too.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::List(_)) => Err(self.error(key, "a text")),
        }
    }

    /// A number; texts of digits are numbers, too.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Text(text)) if text.is_empty() => return Ok(None),
            Some(Value::Number(number)) => u64::try_from(*number).ok(),
            Some(Value::Text(text)) => text.trim().parse().ok(),
            Some(Value::List(_)) => None,
        };
        number.map(Some).ok_or_else(|| self.error(key, "a number"))
    }

    /// The texts of a list; a text alone is a list of one.
    pub fn list(&self, key: &str) -> Result<Vec<String>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Text(text)) => {
                Ok(Some(text.clone()).filter(|text| !text.is_empty()).into_iter().collect())
            }
            Some(Value::List(items)) => items
                .iter()
                .map(|item| match item {
                    Value::Text(text) => Ok(text.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    Value::List(_) => Err(self.error(key, "a list of texts")),
                })
                .collect(),
            Some(Value::Number(_)) => Err(self.error(key, "a list")),
        }
    }

    /// Marks keys as known.
    pub fn skip(&self, keys: &[&str]) {
        for entry in keys.iter().filter_map(|key| self.entries.get(*key)) {
            entry.seen.set(true);
        }
    }

    /// What nobody asked for.
    pub fn unread(&self) -> Vec<Unread> {
        let unseen = self.entries.iter().filter(|(_, entry)| !entry.seen.get());
        let mut unread: Vec<_> = unseen
            .map(|(key, entry)| Unread {
                line: Some(entry.line),
                key: key.clone(),
                value: shown(&entry.value),
            })
            .collect();
        unread.extend_from_slice(&self.statements);
        unread.sort_by_key(|one| one.line);
        unread
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, message: impl Into<String>) -> Error {
        let position = self.entries.get(key).map(|entry| (entry.line, 1));
        Error::File { place: Place { file: self.file.clone(), position }, message: message.into() }
    }

    fn error(&self, key: &str, expected: &str) -> Error {
        self.wrong(key, format!("The key `{key}` is not {expected}"))
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    file: &'a str,
    count: usize,
    /// Where the last line that was asked for begins, and its number: counting goes on from there.
    known: Cell<(usize, usize)>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Where the present line begins, and its number.
    fn line_start(&self) -> (usize, usize) {
        let (mut start, mut line) = self.known.get();
        while let Some(end) = self.text.get(start..self.at).and_then(|text| text.find('\n')) {
            (start, line) = (start + end + 1, line + 1);
        }
        self.known.set((start, line));
        (start, line)
    }

    fn line(&self) -> usize {
        self.line_start().1
    }

    fn is_indented(&self) -> bool {
        let line = &self.text[self.line_start().0..self.at];
        // Only deep indentation is Python's: people indent keys by accident.
        (4..=200).contains(&line.len()) && line.trim().is_empty()
    }

    /// Spaces, line ends, semicolons and comments.
    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(|letter: char| {
                letter.is_whitespace() || letter == ';' || letter == '\u{feff}'
            });
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r']).len();
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end =
            rest.find(|letter: char| !(letter.is_ascii_alphanumeric() || "_.-".contains(letter)));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn is_assignment(&self) -> bool {
        self.rest().starts_with('=') && !self.rest().starts_with("==")
    }

    fn whole_line(&mut self) -> &'a str {
        let start = self.line_start().0;
        let end = self.rest().find('\n').map_or(self.text.len(), |at| self.at + at);
        self.at = end;
        &self.text[start..end]
    }

    fn is_python_call(&self, statement: &str) -> bool {
        let statement = statement.trim_end();
        statement.ends_with(')')
            && statement.trim_start().starts_with(|letter: char| letter.is_ascii_lowercase())
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        self.count += 1;
        if self.count > MOST_VALUES || depth > DEEPEST {
            return Err(self.error(self.line(), "There are too many values"));
        }
        self.skip_spaces();
        let rest = self.rest();
        for quote in ["\"\"\"", "'''"] {
            if let Some(inner) = rest.strip_prefix(quote) {
                let end = inner
                    .find(quote)
                    .ok_or_else(|| self.error(self.line(), "The text has no end"))?;
                self.at += end + 2 * quote.len();
                return Ok(Value::Text(inner[..end].to_owned()));
            }
        }
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(Value::Text),
            Some('[') => self.list(depth),
            Some(letter) if letter.is_ascii_digit() || letter == '-' => self.number(),
            Some(letter) if letter.is_ascii_alphabetic() => {
                // Python's words for numbers; anything else would have to be computed.
                let line = self.line();
                match self.word() {
                    "True" => Ok(Value::Number(1)),
                    "False" => Ok(Value::Number(0)),
                    "None" => Ok(Value::Text(String::new())),
                    word => Err(self.error(
                        line,
                        format!("Expected a text, a number or a list instead of `{word}`"),
                    )),
                }
            }
            _ => Err(self.error(self.line(), "Expected a text, a number or a list")),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String> {
        let line = self.line();
        let mut text = String::new();
        let mut letters = self.rest().char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => match letters.next() {
                    Some((_, escaped)) if escaped == quote || escaped == '\\' => text.push(escaped),
                    // As xl's own reader does: anything else stays as it is.
                    Some((_, other)) => text.extend(['\\', other]),
                    None => break,
                },
                '\n' => break,
                _ if letter == quote => {
                    self.at += at + 1;
                    return Ok(text);
                }
                _ => text.push(letter),
            }
        }
        Err(self.error(line, "The text has no closing quote"))
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_blank_in_list();
            match self.peek() {
                Some(']') => {
                    self.at += 1;
                    return Ok(Value::List(items));
                }
                None => return Err(self.error(self.line(), "The list has no closing bracket")),
                _ => {}
            }
            items.push(self.value(depth + 1)?);
            self.skip_blank_in_list();
            match self.peek() {
                Some(',') => self.at += 1,
                Some(']') => {}
                _ => return Err(self.error(self.line(), "Expected `,` or `]` in the list")),
            }
        }
    }

    fn skip_blank_in_list(&mut self) {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn number(&mut self) -> Result<Value> {
        let line = self.line();
        let word = self.word();
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
        let parsed = if let Some(digits) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            i64::from_str_radix(digits, 16)
        } else if digits.len() > 1 && digits.starts_with('0') {
            i64::from_str_radix(digits, 8)
        } else {
            digits.parse()
        };
        let number = parsed.map_err(|_| {
            let word: String = word.chars().take(40).collect();
            self.error(line, format!("`{word}` is not a number"))
        })?;
        Ok(Value::Number(number * sign))
    }

    fn end_of_statement(&mut self) -> Result<()> {
        self.skip_spaces();
        match self.peek() {
            None | Some('\n' | ';' | '#') => Ok(()),
            Some(_) => Err(self.error(self.line(), "Expected the end of the line after the value")),
        }
    }

    fn error(&self, line: usize, message: impl Into<String>) -> Error {
        let place = Place { file: self.file.into(), position: Some((line, 1)) };
        Error::File { place, message: message.into() }
    }
}

/// A value that begins with a name, or goes on with an operator, on its line.
fn is_computed(text: &str) -> bool {
    let line = text.lines().next().unwrap_or_default().trim();
    line.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '(')
        || [" + ", " % "].iter().any(|operator| line.contains(operator))
}

fn is_python(word: &str) -> bool {
    let words = [
        "import", "from", "def", "if", "elif", "else", "for", "while", "try", "except", "print",
        "return",
    ];
    words.contains(&word)
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Text(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::List(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
    };
    text.chars().take(200).collect()
}
