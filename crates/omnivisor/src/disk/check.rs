//! `omnivisor disk check`.

use std::process::ExitCode;

use clap::Args;

use super::{ImageArgs, Progress, failed, human, print};
use crate::failure::Failure;

/// Options of `omnivisor disk check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    image: ImageArgs,
}

/// Checks.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let options = args.image.how.options(&args.image.path)?;
    let disk = disk::open(&args.image.path, &options).map_err(failed)?;
    let progress = Progress::new(disk.len());
    let read = disk::read_all(&*disk, |done| progress.show(done)).map_err(failed)?;
    drop(progress);
    print(&format!("All {} of data can be read\n", human(read)))?;
    Ok(ExitCode::SUCCESS)
}
