//! `omnivisor run`.

mod command;
mod console;
mod control;
mod description;
mod disks;
pub mod engine;
pub mod guest;
mod kernel;
mod names;
pub mod plan;
mod remote;
pub mod room;
pub mod scratch;
pub mod seed;
mod state;
mod terminal;
pub mod unattended;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use machine::{Finished, Machine, Outcome};

use crate::cli::RunArgs;
use crate::failure::{FAILED, Failure};
use crate::run::command::Command;
use crate::run::console::Attachment;
pub use crate::run::names::of_nics;
use crate::run::plan::Plan;
pub use crate::run::state::folder as state_folder;

/// Runs the machine that `args` describe until its guest ends; the exit code is that of the command in the
/// guest, if there is one.
pub fn run(args: RunArgs, verbose: bool) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let mut plan = Plan::new(&args)?;
    if args.dry_run {
        return plan.print();
    }
    let engine = engine::choose(args.engine)?;
    // Once, since what a reset throws away is the machine, not its disks.
    let remote = plan.remote.take();
    let disks = match &remote {
        Some(remote) => remote.open(&plan.spec)?,
        None => disks::open(&plan.spec)?,
    };
    let mut prepared = plan.look_into(&disks)?;
    let announcement = plan.is_script.then(|| {
        let memory = plan.spec.memory.size();
        format!("{} CPU, {memory} of memory, engine {}", plan.config.cpus.count(), engine.name())
    });
    let listen = |agent| Command::listen(agent, &plan.command, announcement);
    let command = plan.agent.as_ref().map(listen).transpose()?;
    let interactive = command.is_none() && std::io::stdin().is_terminal();
    let steering = Arc::default();
    let _registration = control::register(&plan.spec, engine.name(), &steering)?;
    loop {
        let started = Instant::now();
        let attachment = Arc::new(Attachment::new(interactive, command.is_some() && !verbose));
        let machine = Machine::new(&*engine, &plan.config, |board| {
            machine::plug(board, &plan.spec, &disks)?;
            attachment.plug(board, plan.spec.console.unwrap_or_default())
        })
        .map_err(plan::explain)?;
        let control = machine.control();
        attachment.attach(&control)?;
        let pending = command.as_ref().map(|command| command.serve(&control)).transpose()?;
        tracing::info!(engine = engine.name(), "machine built in {:.1?}", started.elapsed());
        // Most of the program only led here.
        if let Err(error) = devices::memory::forget_code() {
            tracing::debug!(%error, "the program's code stays in memory");
        }
        tracing::info!("the guest's first instruction comes after {:.1?}", begun.elapsed());
        steering.begin(control);
        let finished = machine.run()?;
        steering.end();
        attachment.detach();
        if args.statistics {
            print_statistics(&finished);
        }
        let is_again = matches!(finished.outcome, Outcome::Reset) && !args.no_reboot;
        if let Some(remote) = remote.as_ref().filter(|_| pending.is_some() || !is_again) {
            remote.close();
        }
        if let Some(pending) = pending {
            return pending.finish(&finished, &attachment);
        }
        match finished.outcome {
            // The guest may have another kernel now.
            Outcome::Reset if !args.no_reboot => {
                drop(prepared);
                prepared = plan.look_into(&disks)?;
            }
            outcome => return end(outcome),
        }
    }
}

fn end(outcome: Outcome) -> Result<ExitCode, Failure> {
    match outcome {
        Outcome::PowerOff | Outcome::Reset | Outcome::Stopped | Outcome::Suspended => {
            Ok(ExitCode::SUCCESS)
        }
        Outcome::TripleFault => Err(Failure::new(
            FAILED,
            "The guest crashed: a processor shut down after a triple fault",
        )),
        Outcome::Failed(reason) => {
            Err(Failure::new(FAILED, format!("The guest cannot go on: {reason}")))
        }
    }
}

fn print_statistics(finished: &Finished) {
    if let Ok(text) = serde_json::to_string(&finished.statistics) {
        tell!("{text}");
    }
}
