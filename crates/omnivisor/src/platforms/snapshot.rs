//! `omnivisor snapshot`: kept states of a VM.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use platform::{Action, Snapshot, VmName};
use serde_json::json;

use super::change::change;
use super::{ReachArgs, VmArgs, failed, list, plain, split};
use crate::consent::ConsentArgs;
use crate::disk::{OutputFormat, print, print_json};
use crate::failure::Failure;

/// What can be done with snapshots.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotVerb {
    /// List the snapshots of a VM
    List(ListArgs),
    /// Keep the present state of a VM
    Create(CreateArgs),
    /// Go back to a snapshot; what came after it is lost
    Revert(ChooseArgs),
    /// Delete a snapshot; the VM's present state stays as it is
    Delete(ChooseArgs),
}

/// Options of `omnivisor snapshot list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The VM
    #[arg(value_name = "[URI/]NAME")]
    vm: VmName,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Options of `omnivisor snapshot create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    vm: VmArgs,

    /// The snapshot's name
    snapshot: String,

    /// What to remember of it
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

/// A snapshot to go back to or to delete.
#[derive(Debug, Clone, Args)]
pub struct ChooseArgs {
    #[command(flatten)]
    vm: VmArgs,

    /// The snapshot's name or identity
    snapshot: String,

    #[command(flatten)]
    consent: ConsentArgs,
}

/// Carries it out.
pub fn run(verb: &SnapshotVerb) -> Result<ExitCode, Failure> {
    match verb {
        SnapshotVerb::List(args) => print_list(args),
        SnapshotVerb::Create(args) => {
            let (name, description) = (args.snapshot.clone(), args.description.clone());
            change(&args.vm, &Action::CreateSnapshot { name, description }, &ConsentArgs::default())
        }
        SnapshotVerb::Revert(args) => {
            let name = args.snapshot.clone();
            change(&args.vm, &Action::RevertSnapshot { name }, &args.consent)
        }
        SnapshotVerb::Delete(args) => {
            let name = args.snapshot.clone();
            change(&args.vm, &Action::DeleteSnapshot { name }, &args.consent)
        }
    }
}

fn print_list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let (uri, name) = split(&args.vm);
    let snapshots = args.reach.connect(&uri)?.snapshots(name).map_err(failed)?;
    match args.format {
        OutputFormat::Json => print_json(&json!({ "snapshots": snapshots }))?,
        OutputFormat::Table if snapshots.is_empty() => {}
        OutputFormat::Table => print(&table(&snapshots))?,
    }
    super::DONE
}

fn table(snapshots: &[Snapshot]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "CREATED", "FROM", "ID", "DESCRIPTION"]);
    for one in snapshots {
        let parent = snapshots.iter().find(|other| Some(&other.id) == one.parent.as_ref());
        let parent = parent.map_or_else(|| one.parent.clone(), |parent| Some(parent.name.clone()));
        let cells = [
            format!("{}{}", one.name, if one.current { " *" } else { "" }),
            one.created.clone().unwrap_or_default(),
            parent.unwrap_or_default(),
            if one.id == one.name { String::new() } else { one.id.clone() },
            one.description.clone().unwrap_or_default(),
        ];
        table.add_row(cells.map(|text| plain(&text)));
    }
    list::lines(&table)
}
