//! `omnivisor disk compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk::Format;

use super::{OpenArgs, Progress, failed, print};
use crate::failure::Failure;

/// Options of `omnivisor disk compare`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 they hold the same, 1 they differ. A shorter disk is taken to go on with zeroes."
)]
pub struct CompareArgs {
    /// A disk
    pub a: PathBuf,
    /// Another
    pub b: PathBuf,
    #[command(flatten)]
    how: OpenArgs,
    /// Format of B, instead of finding it out by content
    #[arg(long, value_name = "FORMAT")]
    pub from_b: Option<Format>,
    /// Different lengths are a difference
    #[arg(long)]
    pub strict: bool,
}

/// Compares.
pub fn run(args: &CompareArgs) -> Result<ExitCode, Failure> {
    let a = disk::open(&args.a, &args.how.options(&args.a)?).map_err(failed)?;
    let other = OpenArgs { from: args.from_b, ..args.how.clone() };
    let b = disk::open(&args.b, &other.options(&args.b)?).map_err(failed)?;
    let progress = Progress::new(a.len().max(b.len()));
    let comparison = disk::compare(&*a, &*b, |done| progress.show(done)).map_err(failed)?;
    drop(progress);
    let lengths = format!("{} and {} bytes", a.len(), b.len());
    let (text, code) = match comparison.difference {
        Some(offset) => (format!("They differ at byte {offset}"), 1),
        None if a.len() == b.len() => ("They hold the same".to_owned(), 0),
        None if args.strict => (format!("They have different lengths, {lengths}"), 1),
        None => (format!("They hold the same but for zeroes at the end: {lengths}"), 0),
    };
    print(&format!("{text}\n"))?;
    Ok(ExitCode::from(code))
}
