//! What is made from the command line's definition: schema, completions, manual pages.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::disk::print;
use crate::failure::{FAILED, Failure};

/// Prints the JSON Schema of a VM's description.
pub fn schema() -> Result<ExitCode, Failure> {
    let text = serde_json::to_string_pretty(&spec::schema())
        .map_err(|error| Failure::from_error(FAILED, error))?;
    print(&format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a completion script.
pub fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "omnivisor", &mut script);
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page for the program and each verb.
pub fn man(folder: &Path) -> Result<ExitCode, Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| {
            clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder)
        })
        .map_err(|error| {
            Failure::new(
                FAILED,
                format!("Cannot write manual pages to {}: {error}", folder.display()),
            )
        })?;
    Ok(ExitCode::SUCCESS)
}
