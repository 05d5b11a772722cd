//! The text of an option as a tree of values.

use super::Failure;

/// A value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// The key stands alone.
    Flag,
    Text(String),
    /// The key stands several times.
    List(Vec<String>),
    /// In the order of the text.
    Table(Vec<(String, Node)>),
}

impl Node {
    /// The table that `text` says.
    pub(super) fn parse(text: &str, positional: &str) -> Result<Self, Failure> {
        let mut root = Vec::new();
        for (index, part) in split(text).into_iter().enumerate() {
            if part.is_empty() {
                return Err(Failure::new(
                    "There is nothing between two commas; double a comma that belongs to a value",
                ));
            }
            match part.split_once('=').filter(|(key, _)| is_key(key)) {
                Some((key, value)) => insert(&mut root, key, Self::Text(value.into()))?,
                None if index == 0 => insert(&mut root, positional, Self::Text(part))?,
                None => insert(&mut root, &part, Self::Flag)?,
            }
        }
        Ok(Self::Table(root))
    }
}

/// No struct of ours is deeper.
const DEEPEST: usize = 4;

/// Parts `text` at single commas.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

/// Whether this can be a key: paths and numbers, which may stand first and hold an equals sign, are none.
fn is_key(text: &str) -> bool {
    let letters = |letter: u8| letter.is_ascii_alphabetic() || matches!(letter, b'_' | b'-' | b'.');
    !text.is_empty() && text.bytes().all(letters)
}

fn insert(table: &mut Vec<(String, Node)>, key: &str, value: Node) -> Result<(), Failure> {
    if key.split('.').count() > DEEPEST {
        return Err(Failure::new(format!(
            "`{}` is not an option",
            key.chars().take(40).collect::<String>()
        )));
    }
    insert_at(table, key, key, value)
}

fn insert_at(
    table: &mut Vec<(String, Node)>,
    whole: &str,
    key: &str,
    value: Node,
) -> Result<(), Failure> {
    let twice = || Err(Failure::new(format!("`{whole}` is given twice")));
    let (name, rest) = match key.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (key, None),
    };
    let name = name.replace('-', "_");
    let at = table.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
        let empty = if rest.is_some() { Node::Table(Vec::new()) } else { Node::List(Vec::new()) };
        table.push((name, empty));
        table.len() - 1
    });
    match (&mut table[at].1, rest, value) {
        (Node::Table(inner), Some(rest), value) => insert_at(inner, whole, rest, value),
        (node @ Node::List(_), None, value) if *node == Node::List(Vec::new()) => {
            *node = value;
            Ok(())
        }
        (Node::List(values), None, Node::Text(value)) => {
            values.push(value);
            Ok(())
        }
        (node @ Node::Text(_), None, Node::Text(value)) => {
            if let Node::Text(first) = node {
                *node = Node::List(vec![std::mem::take(first), value]);
            }
            Ok(())
        }
        _ => twice(),
    }
}
