//! `omnivisor disk commit`.

use std::process::ExitCode;

use clap::Args;

use super::{ImageArgs, failed, human};
use crate::failure::{FAILED, Failure};

/// Options of `omnivisor disk commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// Do not remove the overlay afterwards
    #[arg(long)]
    keep: bool,
}

/// Commits.
pub fn run(args: &CommitArgs) -> Result<ExitCode, Failure> {
    let path = &args.image.path;
    let done = disk::commit(path, &args.image.how.options(path)?).map_err(failed)?;
    let (data, zeroes) = (human(done.data), human(done.zeroes));
    tell!("{}: {data} of data and {zeroes} of zeroes written", done.parent.display());
    if !args.keep {
        std::fs::remove_file(path).map_err(|error| {
            Failure::new(FAILED, format!("Cannot remove {}: {error}", path.display()))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
