//! `omnivisor start`, `stop`, `pause`, `resume` and `reset`.

use std::process::ExitCode;

use clap::Args;
use platform::{Action, VmName};

use super::{ReachArgs, failed, split};
use crate::consent::ConsentArgs;
use crate::failure::Failure;

/// A VM to change.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    /// The VM: its platform, and its name or what identifies it there
    #[arg(value_name = "[URI/]NAME")]
    vm: VmName,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Options of `omnivisor stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    #[command(flatten)]
    vm: VmArgs,

    /// Cut its power instead of asking the guest
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    consent: ConsentArgs,
}

/// Options of `omnivisor reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    #[command(flatten)]
    vm: VmArgs,

    /// Reset it instead of asking the guest
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    consent: ConsentArgs,
}

/// `omnivisor start`
pub fn start(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Start, &ConsentArgs::default())
}

/// `omnivisor stop`
pub fn stop(args: &StopArgs) -> Result<ExitCode, Failure> {
    change(&args.vm, &Action::Stop { force: args.force }, &args.consent)
}

/// `omnivisor pause`
pub fn pause(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Pause, &ConsentArgs::default())
}

/// `omnivisor resume`
pub fn resume(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Resume, &ConsentArgs::default())
}

/// `omnivisor reset`
pub fn reset(args: &ResetArgs) -> Result<ExitCode, Failure> {
    change(&args.vm, &Action::Reset { force: args.force }, &args.consent)
}

/// Carries it out, after whoever asks for it has agreed to what is lost.
pub(super) fn change(
    args: &VmArgs,
    action: &Action,
    consent: &ConsentArgs,
) -> Result<ExitCode, Failure> {
    let (uri, name) = split(&args.vm);
    let platform = args.reach.connect(&uri)?;
    // Nobody is asked about what is refused anyway.
    platform.check(action.verb()).map_err(failed)?;
    if let Some(loss) = action.destroys() {
        consent.ask(&format!("{}: {loss}.", args.vm))?;
    }
    let done = platform.perform(name, action).map_err(failed);
    match done {
        Err(failure) if *action == Action::Start => Err(failure.not_started()),
        Err(failure) => Err(failure),
        Ok(()) => super::DONE,
    }
}
