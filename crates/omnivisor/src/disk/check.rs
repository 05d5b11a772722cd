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

    /// Set right what can be: counts of references, leaked space and marks of qcow2; logs that were not carried out
    #[arg(long)]
    repair: bool,
}

/// Checks; ends with 1 if something is wrong with the image, and was not repaired.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let path = &args.image.path;
    let options = args.image.how.options(path)?;
    let found = disk::check(path, &options, args.repair).map_err(failed)?;
    for finding in &found.findings {
        print(&format!("{finding}\n"))?;
    }
    let told = found.findings.len() as u64;
    if found.errors + found.leaks > told {
        print(&format!("and {} more\n", found.errors + found.leaks - told))?;
    }
    if found.errors + found.leaks != 0 {
        let state = match (found.is_repaired, found.beyond_repair) {
            (false, _) => "",
            (true, 0) => ": repaired",
            (true, _) => ": repaired as far as possible",
        };
        let count = |number: u64, what: &str| {
            let plural = if number == 1 { "" } else { "s" };
            format!("{number} {what}{plural}")
        };
        let leaked =
            || format!("{} leaked in {}", human(found.leaked), count(found.leaks, "place"));
        let errors = || count(found.errors, "error");
        let told = match (found.errors, found.leaks) {
            (_, 0) => errors(),
            (0, _) => leaked(),
            _ => format!("{}, {}", errors(), leaked()),
        };
        print(&format!("{told}{state}\n"))?;
    }
    if !found.is_in_order() {
        return Ok(ExitCode::FAILURE);
    }
    let disk = disk::open(path, &options).map_err(failed)?;
    let progress = Progress::new(disk.len());
    let read = disk::read_all(&*disk, |done| progress.show(done)).map_err(failed)?;
    drop(progress);
    print(&format!("The image is in order, and all {} of data can be read\n", human(read)))?;
    Ok(ExitCode::SUCCESS)
}
