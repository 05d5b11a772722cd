//! `omnivisor disk rebase`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk::{Format, NewParent};

use super::create::name_for;
use super::{ImageArgs, failed, human};
use crate::failure::{Failure, USAGE};

/// Options of `omnivisor disk rebase`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("to").required(true).args(["parent", "flatten"]))]
pub struct RebaseArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// The new parent
    #[arg(long, value_name = "DISK")]
    parent: Option<PathBuf>,

    /// Keep all in the image, so that it needs no parent
    #[arg(long)]
    flatten: bool,

    /// Format of the new parent, instead of finding it out by content
    #[arg(long, value_name = "FORMAT", requires = "parent")]
    parent_format: Option<Format>,

    /// Only write the name down: for a parent that has moved, or whose content is known to be the same
    #[arg(long = "unsafe", requires = "parent_format")]
    only_name: bool,
}

/// Rebases.
pub fn run(args: &RebaseArgs) -> Result<ExitCode, Failure> {
    let path = &args.image.path;
    let options = args.image.how.options(path)?;
    let parent = match &args.parent {
        Some(parent) => {
            let name = name_for(path, parent).into_os_string().into_string().map_err(|_| {
                Failure::new(
                    USAGE,
                    "The name of a parent must be UTF-8, as the image has to hold it",
                )
            })?;
            Some(NewParent { path: parent.clone(), name, format: args.parent_format })
        }
        None => None,
    };
    let done = disk::rebase(path, parent.as_ref(), &options, args.only_name).map_err(failed)?;
    let (data, zeroes) = (human(done.data), human(done.zeroes));
    tell!("{}: {data} of data and {zeroes} of zeroes kept", path.display());
    Ok(ExitCode::SUCCESS)
}
