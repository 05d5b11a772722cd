//! Descriptions as TOML files.

use crate::{Error, Place, Result, VmSpec, suggest};

impl VmSpec {
    /// Reads a description from the text of a file; `file_name` is for errors. Relative paths stay as they
    /// are, see [`relative_to`](Self::relative_to), and nothing is [validated](Self::validate).
    pub fn from_toml(text: &str, file_name: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let position = error.span().map(|span| position(text, span.start));
            Error::File {
                place: Place { file: file_name.into(), position },
                message: suggest::reword(error.message())
                    .unwrap_or_else(|| sentence(error.message())),
            }
        })
    }

    /// The description as the text of a file that reads as itself.
    ///
    /// # Errors
    /// [`Error::Write`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|source| Error::Write { source })
    }
}

/// Line and column of a byte, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

pub(crate) fn sentence(message: &str) -> String {
    let message = message.trim_end().replace('\n', "; ");
    let mut letters = message.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => message,
    }
}

#[cfg(test)]
mod tests;
