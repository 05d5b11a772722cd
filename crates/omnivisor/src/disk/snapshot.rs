//! `omnivisor disk snapshot`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ImageArgs, OutputFormat, failed, human, print, print_json};
use crate::failure::Failure;

/// What can be done with internal snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Print the snapshots of an image
    List(ListArgs),
    /// Keep the present state of a qcow2 image
    Create(OneArgs),
    /// Make the present state of a qcow2 image what a snapshot has kept; what was written since is lost
    Revert(OneArgs),
    /// Delete a snapshot of a qcow2 image
    Delete(OneArgs),
}

/// Options of `omnivisor disk snapshot list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// One snapshot of one image.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// A qcow2 image that nobody uses
    #[arg(value_name = "DISK")]
    path: PathBuf,

    /// The snapshot's name, or its number where there is one already
    name: String,
}

/// Carries out the verb.
pub fn run(verb: &SnapshotVerb) -> Result<ExitCode, Failure> {
    match verb {
        SnapshotVerb::List(args) => list(args)?,
        SnapshotVerb::Create(args) => {
            disk::create_snapshot(&args.path, &args.name).map_err(failed)?;
        }
        SnapshotVerb::Revert(args) => {
            disk::revert_to_snapshot(&args.path, &args.name).map_err(failed)?;
        }
        SnapshotVerb::Delete(args) => {
            disk::delete_snapshot(&args.path, &args.name).map_err(failed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let path = &args.image.path;
    let (_, chain) = disk::open_chain(path, &args.image.how.options(path)?).map_err(failed)?;
    let snapshots = chain.into_iter().next().map(|image| image.snapshots).unwrap_or_default();
    if args.format == OutputFormat::Json {
        let rows: Vec<Value> = snapshots.iter().map(snapshot_json).collect();
        return print_json(&rows.into());
    }
    for snapshot in snapshots {
        // What others wrote must not steer the terminal.
        let name = snapshot.name.replace(char::is_control, " ");
        let length = human(snapshot.length);
        print(&format!(
            "{:<4} {name:<24} {length:>10}  {}\n",
            snapshot.id,
            spec::foreign::utc(snapshot.created)
        ))?;
    }
    Ok(())
}

/// A snapshot in the form that does not change.
pub fn snapshot_json(snapshot: &disk::Snapshot) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "created": snapshot.created,
        "length": snapshot.length,
        "machine_state": snapshot.machine_state,
    })
}
