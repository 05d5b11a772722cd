//! What can be wrong with a description.

use std::fmt;
use std::path::PathBuf;

use crate::Problem;

/// Result of reading a description.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with a description of a VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file does not say what a VM is.
    #[error("{place}: {message}")]
    File {
        /// Where.
        place: Place,
        /// A sentence.
        message: String,
    },
    /// A file or folder cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// It.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An option of the command line does not say what it describes.
    #[error("{message}")]
    Option {
        /// The whole option.
        text: String,
        /// A sentence.
        message: String,
    },
    /// It can be read and cannot be.
    #[error("{}", sentences(problems))]
    Invalid {
        /// All that is wrong; never empty.
        problems: Vec<Problem>,
    },
    /// It cannot be written as TOML.
    #[error("Cannot write the description of the VM as TOML")]
    Write {
        /// Why not.
        #[source]
        source: toml::ser::Error,
    },
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// Line and column in characters, both counted from 1; absent where the whole file is meant.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.position {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

fn sentences(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}
