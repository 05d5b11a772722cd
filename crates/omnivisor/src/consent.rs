//! Asking before something is lost.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;

use crate::failure::{FAILED, Failure, USAGE};
use crate::platforms::plain;

/// Consent to what loses something.
#[derive(Debug, Clone, Default, Args)]
pub struct ConsentArgs {
    /// Do not ask before something is lost
    #[arg(short, long)]
    yes: bool,
}

impl ConsentArgs {
    /// Asks on the terminal, unless consent was given on the command line.
    ///
    /// # Errors
    /// The answer is no, or there is nobody to ask.
    pub fn ask(&self, loss: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::new(USAGE, loss).help("if that is what you want, say --yes"));
        }
        let _ = write!(std::io::stderr(), "{} Go on? [y/N] ", plain(loss));
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        match read {
            Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
            _ => Err(Failure::new(FAILED, "Nothing was changed")),
        }
    }
}
