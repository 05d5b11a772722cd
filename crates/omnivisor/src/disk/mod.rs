//! `omnivisor disk`: what can be done with disks and their images.

mod check;
mod commit;
mod compare;
mod create;
mod map;
mod progress;
mod rebase;
mod resize;
mod snapshot;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use disk::{FilePolicy, Format, ImageOptions};
use machine::disks::remembered_format;

pub use create::usual;
pub use progress::Progress;
pub use snapshot::snapshot_json;

use crate::failure::{FAILED, Failure, NOT_FOUND};
use crate::run::state_folder;

/// What can be done with disks.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Tell whether two disks, of whatever formats, hold the same
    Compare(compare::CompareArgs),
    /// Print where a disk has data, zeroes and holes
    Map(map::MapArgs),
    /// Read all of a disk, and look whether its image is in order
    Check(check::CheckArgs),
    /// Make a new, empty image
    Create(create::CreateArgs),
    /// Make a disk longer
    Resize(resize::ResizeArgs),
    /// Keep, list, bring back and delete states within an image
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotVerb),
    /// Write what an overlay holds into its parent, and remove the overlay
    Commit(commit::CommitArgs),
    /// Give a qcow2 overlay another parent
    Rebase(rebase::RebaseArgs),
}

/// Carries out the verb.
pub fn run(verb: &DiskVerb) -> Result<ExitCode, Failure> {
    match verb {
        DiskVerb::Compare(args) => compare::run(args),
        DiskVerb::Map(args) => map::run(args),
        DiskVerb::Check(args) => check::run(args),
        DiskVerb::Create(args) => create::run(args),
        DiskVerb::Resize(args) => resize::run(args),
        DiskVerb::Snapshot(verb) => snapshot::run(verb),
        DiskVerb::Commit(args) => commit::run(args),
        DiskVerb::Rebase(args) => rebase::run(args),
    }
}

/// A disk to look at.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// An image of any format, or a block device
    #[arg(value_name = "DISK")]
    pub path: PathBuf,

    #[command(flatten)]
    pub how: OpenArgs,
}

/// How disks are opened.
#[derive(Debug, Clone, Args)]
pub struct OpenArgs {
    /// Format of the disk, instead of finding it out by content
    #[arg(long, value_name = "FORMAT")]
    pub from: Option<Format>,

    /// Follow parents outside the folder of the disk
    #[arg(long)]
    pub allow_outside: bool,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    #[default]
    Table,
    /// For programs: fields that stay
    Json,
}

impl OpenArgs {
    /// For reading `path`.
    pub fn options(&self, path: &std::path::Path) -> Result<ImageOptions, Failure> {
        let files = if self.allow_outside { FilePolicy::Anywhere } else { FilePolicy::SameFolder };
        let format = match self.from {
            Some(format) => Some(format),
            // Without a folder for state nothing was ever remembered.
            None => match state_folder() {
                Ok(folder) => remembered_format(path, &folder)
                    .map_err(|error| Failure::from_error(FAILED, error))?,
                Err(_) => None,
            },
        };
        Ok(ImageOptions { format, files, ..reading() })
    }
}

/// For reading what may be opened again.
pub fn reading() -> ImageOptions {
    ImageOptions { read_only: true, cache: cache_folder(), ..ImageOptions::default() }
}

/// Where what was found out about disks is kept, if there is a place for it.
pub fn cache_folder() -> Option<PathBuf> {
    Some(image::Cache::folder().ok()?.join("disks"))
}

/// A failure of the disk crate.
pub fn failed(error: disk::Error) -> Failure {
    let missing = matches!(&error, disk::Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let help = match root(&error) {
        disk::Error::OutsideFolder { .. } => Some("if you trust the image, say --allow-outside"),
        disk::Error::Archive { .. } => {
            Some("a disk that only begins like an archive is read with --from raw")
        }
        disk::Error::CutShort { .. } => Some(COPY_AGAIN),
        _ => None,
    };
    let failure = Failure::from_error(if missing { NOT_FOUND } else { FAILED }, error);
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}

/// What repairs a file that was cut short.
pub const COPY_AGAIN: &str = "copy the file again from where it came";

/// Why an image could not be used.
pub fn root(error: &disk::Error) -> &disk::Error {
    match error {
        disk::Error::Image { source, .. } => root(source),
        error => error,
    }
}

/// A size for people.
pub fn human(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut size = bytes as f64;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 || size.fract() == 0.0 {
        format!("{size} {}", units[unit])
    } else {
        format!("{size:.1} {}", units[unit])
    }
}

/// Prints on standard output; whoever closed the pipe has read enough.
pub fn print(bytes: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(FAILED, format!("Cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints JSON on standard output.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}
