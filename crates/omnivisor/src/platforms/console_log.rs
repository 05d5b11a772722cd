//! `omnivisor console-log`: what a guest wrote to its console, where the platform keeps it.

use std::process::ExitCode;

use clap::Args;
use platform::VmName;

use super::{ReachArgs, failed, split};
use crate::disk::print;
use crate::failure::Failure;

/// Options of `omnivisor console-log`.
#[derive(Debug, Clone, Args)]
pub struct ConsoleLogArgs {
    /// The VM
    #[arg(value_name = "[URI/]NAME")]
    vm: VmName,

    /// So many bytes of its end
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    bytes: spec::Size,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Prints it as it is.
pub fn run(args: &ConsoleLogArgs) -> Result<ExitCode, Failure> {
    let (uri, name) = split(&args.vm);
    let limit = usize::try_from(args.bytes.0).unwrap_or(usize::MAX).min(MOST);
    let log = args.reach.connect(&uri)?.console_log(name, limit).map_err(failed)?;
    print(&log)?;
    super::DONE
}

/// So much is held in memory at most.
const MOST: usize = 64 << 20;
