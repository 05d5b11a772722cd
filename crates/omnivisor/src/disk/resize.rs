//! `omnivisor disk resize`.

use std::process::ExitCode;

use clap::Args;
use disk::SECTOR_SIZE;

use super::{ImageArgs, failed};
use crate::failure::{Failure, USAGE};

/// Options of `omnivisor disk resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// The new length, or what to add to it after a `+`, with K, M, G or T
    size: String,
}

/// Makes the disk longer.
pub fn run(args: &ResizeArgs) -> Result<ExitCode, Failure> {
    let path = &args.image.path;
    let options = args.image.how.options(path)?;
    let (text, base) = match args.size.strip_prefix('+') {
        Some(more) => (more, disk::open(path, &options).map_err(failed)?.len()),
        None => (&args.size[..], 0),
    };
    let wrong = |error: spec::SizeError| Failure::from_error(USAGE, error);
    let size: spec::Size = text.parse().map_err(wrong)?;
    let too_long = || Failure::new(USAGE, format!("{} is too long for a disk", args.size));
    let length = base.checked_add(size.0).ok_or_else(too_long)?;
    let length = length.checked_next_multiple_of(SECTOR_SIZE).ok_or_else(too_long)?;
    disk::resize(path, length, &options).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
