//! `omnivisor start`, `stop`, `pause`, `resume` and `reset`.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use platform::{Action, VmName};

use super::{ReachArgs, failed, split};
use crate::failure::{FAILED, Failure, USAGE};

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

/// Consent to what loses something.
#[derive(Debug, Clone, Args)]
pub struct ConsentArgs {
    /// Do not ask before something is lost
    #[arg(short, long)]
    yes: bool,
}

/// `omnivisor start`
pub fn start(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Start, true)
}

/// `omnivisor stop`
pub fn stop(args: &StopArgs) -> Result<ExitCode, Failure> {
    change(&args.vm, &Action::Stop { force: args.force }, args.consent.yes)
}

/// `omnivisor pause`
pub fn pause(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Pause, true)
}

/// `omnivisor resume`
pub fn resume(args: &VmArgs) -> Result<ExitCode, Failure> {
    change(args, &Action::Resume, true)
}

/// `omnivisor reset`
pub fn reset(args: &ResetArgs) -> Result<ExitCode, Failure> {
    change(&args.vm, &Action::Reset { force: args.force }, args.consent.yes)
}

impl ConsentArgs {
    /// Whether it was given on the command line.
    pub(super) fn given(&self) -> bool {
        self.yes
    }
}

/// Carries it out, after whoever asks for it has agreed to what is lost.
pub(super) fn change(args: &VmArgs, action: &Action, agreed: bool) -> Result<ExitCode, Failure> {
    let (uri, name) = split(&args.vm);
    let platform = args.reach.connect(&uri)?;
    // Nobody is asked about what is refused anyway.
    platform.check(action.verb()).map_err(failed)?;
    if let Some(loss) = action.destroys().filter(|_| !agreed) {
        consent(&format!("{}: {loss}.", args.vm))?;
    }
    let done = platform.perform(name, action).map_err(failed);
    match done {
        Err(failure) if *action == Action::Start => Err(failure.not_started()),
        Err(failure) => Err(failure),
        Ok(()) => super::DONE,
    }
}

/// Asks on the terminal.
fn consent(what: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(USAGE, what).help("if that is what you want, say --yes"));
    }
    eprint!("{} Go on? [y/N] ", super::plain(what));
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(FAILED, "Nothing was changed")),
    }
}
