//! Descriptions as options of the command line: `disk.img,readonly,serial=abc`.
//!
//! An option is a list of `key=value`, parted by commas; a doubled comma is one of the text. A key alone is
//! a flag. The first part, if it is not `key=value`, is the value of the option's main key. Keys of inner
//! tables follow a dot, keys of lists may be repeated, and a hyphen in a key is an underscore. The
//! keys are the fields of the same structs that a file is read into.

mod deserializer;
mod tree;

#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;

use crate::file::sentence;
use crate::{Error, Nic, Result};
use deserializer::NodeDeserializer;

/// Reads `text` into a `T`, whose field `positional` takes the first part if that has no key.
pub fn parse<T: DeserializeOwned>(text: &str, positional: &str) -> Result<T> {
    let read = || T::deserialize(NodeDeserializer::new(tree::Node::parse(text, positional)?));
    read()
        .map_err(|failure| Error::Option { text: text.into(), message: sentence(&failure.message) })
}

/// The network cards of all `--net` options: `None` if there is no option, an empty list for `none`.
pub fn nics<S: AsRef<str>>(options: &[S]) -> Result<Option<Vec<Nic>>> {
    let none = |option: &S| option.as_ref() == NONE;
    match options {
        [] => Ok(None),
        [only] if none(only) => Ok(Some(Vec::new())),
        options if options.iter().any(none) => Err(Error::Option {
            text: NONE.into(),
            message: "`none` cannot be together with other network cards".into(),
        }),
        options => {
            options.iter().map(|option| option.as_ref().parse()).collect::<Result<_>>().map(Some)
        }
    }
}

/// Says that there is no network card.
const NONE: &str = "none";

/// Why an option cannot be read.
#[derive(Debug)]
struct Failure {
    message: String,
    /// Whether the message says which key it is about.
    placed: bool,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), placed: true }
    }
}
