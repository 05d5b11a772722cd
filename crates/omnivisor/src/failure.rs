//! What the user sees when something goes wrong: the whole chain, and where there is one, the repair.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

/// Omnivisor itself failed.
pub const FAILED: u8 = 125;
/// The VM could not be started.
pub const NOT_STARTED: u8 = 126;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 127;
/// The command line makes no sense.
pub const USAGE: u8 = 2;

/// A failure on its way to the user.
#[derive(Debug)]
pub struct Failure {
    sentence: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    help: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure that is one sentence.
    pub fn new(code: u8, sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), cause: None, help: None, code }
    }

    /// A failure that comes from `error`.
    pub fn from_error(code: u8, error: impl Error + Send + Sync + 'static) -> Self {
        let sentence = error.to_string();
        // The error itself is the sentence; what follows is what lies behind it.
        let cause = error.source().map(|source| machine::chain(source).into());
        Self { sentence, cause, help: None, code }
    }

    /// With the command or the advice that repairs it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// As a VM that could not be started, if no more is known.
    #[must_use]
    pub fn not_started(mut self) -> Self {
        if self.code == FAILED {
            self.code = NOT_STARTED;
        }
        self
    }

    /// Prints it and returns the exit code.
    pub fn report(self) -> ExitCode {
        let mut text = String::new();
        let theme = if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::none()
        };
        match GraphicalReportHandler::new_themed(theme).render_report(&mut text, &self) {
            Ok(()) => tell!("{}", text.trim_matches('\n')),
            Err(_) => tell!("Error: {self}"),
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

impl Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

impl From<machine::Error> for Failure {
    fn from(error: machine::Error) -> Self {
        Self::from_error(NOT_STARTED, error)
    }
}

impl From<spec::Error> for Failure {
    fn from(error: spec::Error) -> Self {
        match &error {
            spec::Error::Read { path, source } if source.kind() == ErrorKind::NotFound => {
                Self::new(NOT_FOUND, format!("There is no VM at {}", path.display()))
            }
            _ => Self::from_error(USAGE, error),
        }
    }
}

impl From<image::Error> for Failure {
    fn from(error: image::Error) -> Self {
        Self::from_error(NOT_STARTED, error)
    }
}
