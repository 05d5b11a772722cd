//! `omnivisor disk create`.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use disk::{CreateOptions, Format, SECTOR_SIZE};

use super::failed;
use crate::failure::{Failure, USAGE};

/// Options of `omnivisor disk create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The image to make
    #[arg(value_name = "DISK")]
    path: PathBuf,

    /// Length of the disk, with K, M, G or T; that of the parent if there is one
    #[arg(required_unless_present = "parent")]
    size: Option<spec::Size>,

    /// Format, then options such as layout=fixed, block-size=64K, preallocation=full; by the end of its name otherwise, or
    /// qcow2
    #[arg(long, value_name = "FORMAT[,OPTION=VALUE]...")]
    to: Option<CreateOptions>,

    /// Read from this disk what is not written to the new one; qcow2 only
    #[arg(long, value_name = "DISK")]
    parent: Option<PathBuf>,
}

/// Makes the image.
pub fn run(args: &CreateArgs) -> Result<ExitCode, Failure> {
    let mut options = args.to.clone().unwrap_or_else(|| usual(&args.path));
    if let Some(parent) = &args.parent {
        let how = super::OpenArgs { from: None, allow_outside: true };
        let (disk, chain) = disk::open_chain(parent, &how.options(parent)?).map_err(failed)?;
        let path = name_for(&args.path, parent);
        let name = path.to_str().ok_or_else(|| {
            Failure::new(USAGE, "The name of a parent must be UTF-8, as the image has to hold it")
        })?;
        options.length = disk.len();
        options.backing = chain.first().map(|image| (name.to_owned(), image.format));
    }
    if let Some(size) = args.size {
        options.length = size.0;
    }
    options.length = options.length.next_multiple_of(SECTOR_SIZE);
    disk::create(&args.path, &options).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// The image that the name of a file promises.
pub fn usual(target: &Path) -> CreateOptions {
    let end = target.extension().and_then(|end| end.to_str());
    let is_device = target.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let usual = if is_device { Format::Raw } else { Format::Qcow2 };
    let format = end.and_then(|end| end.parse().ok()).unwrap_or(usual);
    CreateOptions::new(format, 0)
}

/// How the image at `path` is to name its parent: by its name alone if they lie in one folder, so that both can be
/// moved, by its whole path otherwise.
pub(super) fn name_for(path: &Path, parent: &Path) -> PathBuf {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (path, parent) = (whole(path), whole(parent));
    match parent.file_name() {
        Some(name) if path.parent() == parent.parent() => name.into(),
        _ => parent,
    }
}
