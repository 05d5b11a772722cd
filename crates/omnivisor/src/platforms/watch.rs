//! `omnivisor watch`: a line for each change of a VM, until it is interrupted.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use platform::{Change, Uri};
use serde_json::json;

use super::{ReachArgs, failed, list, plain};
use crate::disk::{OutputFormat, print};
use crate::failure::Failure;

/// Options of `omnivisor watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// The platform
    #[arg(value_name = "URI", default_value = "own:///")]
    uri: Uri,

    /// How often a platform is asked that does not tell of changes itself, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=86400))]
    interval: u64,

    /// How to print: json is one object in each line
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Prints changes as they come, beginning with all VMs.
pub fn run(args: &WatchArgs) -> Result<ExitCode, Failure> {
    let platform = args.reach.connect(&args.uri)?;
    let mut trouble = None;
    let mut tell = |change: Change| {
        let (word, vm) = match &change {
            Change::Appeared { vm } => ("appeared", vm),
            Change::Changed { vm } => ("changed", vm),
            Change::Vanished { vm } => ("vanished", vm),
        };
        let line = match args.format {
            OutputFormat::Table => {
                format!("{word:<8} {:<9} {}\n", vm.state.name(), plain(&vm.name))
            }
            OutputFormat::Json => {
                format!("{}\n", json!({ "change": word, "vm": list::with_uri(&args.uri, vm) }))
            }
        };
        trouble = print(&line).err();
        trouble.is_none()
    };
    platform.watch(Duration::from_secs(args.interval), &mut tell).map_err(failed)?;
    trouble.map_or(super::DONE, Err)
}
