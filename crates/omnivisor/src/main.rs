//! The `omnivisor` program: the command line. What its verbs do is in the crates below.

#![forbid(unsafe_code)]
// They panic when nobody reads any more; `disk::print` and `tell!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod tell;

mod cli;
mod consent;
mod convert;
mod description;
mod disk;
mod documents;
mod export;
mod failure;
mod guest_page;
mod import;
mod inspect;
mod package;
mod platforms;
mod probe;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .log_internal_errors(false)
        .init();
    let result = match cli.verb {
        Verb::Run(args) => run::run(*args, cli.verbose > 0),
        Verb::Probe(args) => Ok(probe::run(&args, &probe::kvm_proof)),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Disk { verb } => disk::run(&verb),
        Verb::List(args) => platforms::list(&args),
        Verb::Show(args) => platforms::show(&args),
        Verb::Start(args) => platforms::start(&args),
        Verb::Stop(args) => platforms::stop(&args),
        Verb::Pause(args) => platforms::pause(&args),
        Verb::Resume(args) => platforms::resume(&args),
        Verb::Reset(args) => platforms::reset(&args),
        Verb::Snapshot { verb } => platforms::snapshot(&verb),
        Verb::ConsoleLog(args) => platforms::console_log(&args),
        Verb::Watch(args) => platforms::watch(&args),
        Verb::Pull(args) => platforms::pull(&args),
        Verb::Platforms(args) => platforms::platforms(&args),
        Verb::Schema => documents::schema(),
        Verb::Completions { shell } => documents::completions(shell),
        Verb::Man { folder } => documents::man(&folder),
    };
    result.unwrap_or_else(|failure| failure.report())
}
