//! `omnivisor probe`: what this computer can do, with evidence, and what to type to change it.

mod table;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use host::{Capture, Facts, NativeCpuid, ProofResult, Report};

/// Options of `omnivisor probe`.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// How to print the report
    #[arg(long, value_enum, default_value_t)]
    pub format: ProbeFormat,

    /// Do not run the tiny guest that proves that KVM runs code natively
    #[arg(long)]
    pub no_proof: bool,

    /// Also write everything that was read to FILE (TOML), to go with a bug report
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,
}

/// Forms of the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProbeFormat {
    /// For people.
    #[default]
    Table,
    /// For programs: one object, with fields that stay.
    Json,
}

/// Prints the report. Success means that some engine can run guests.
pub fn run(args: &ProbeArgs, proof: &dyn Fn() -> ProofResult) -> ExitCode {
    let facts = Facts::of_this_machine();
    let proof = (!args.no_proof && facts.kvm_opens()).then(proof);
    let report = host::report(&facts, proof.as_ref());
    if let Some(path) = &args.capture
        && let Err(error) = write_capture(path)
    {
        tell!("Cannot write {}: {error}", path.display());
        return ExitCode::from(FAILED);
    }
    match print(&report, args.format) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tell!("Cannot print the report: {error}");
            ExitCode::from(FAILED)
        }
        _ if report.usable_engine().is_some() => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

/// The proof by this program's KVM engine, in the words of the report.
pub fn kvm_proof() -> ProofResult {
    use engine_kvm::proof::{LoopError, Measurement, ProofError, prove};

    let measured = |ring: Result<Measurement, LoopError>| {
        ring.map(|Measurement { instructions, nanoseconds }| host::Measurement {
            instructions,
            nanoseconds,
        })
        .map_err(|error| (error.to_string(), None))
    };
    match prove() {
        Ok(proof) => ProofResult::judge(
            Some(proof.api_version),
            measured(proof.ring0),
            measured(proof.ring3),
        ),
        Err(error) => {
            let cause = match &error {
                ProofError::Open(cause)
                | ProofError::Request { source: cause, .. }
                | ProofError::Memory(cause) => Some(cause),
                ProofError::Hangs => None,
            };
            let errno = cause.and_then(io::Error::raw_os_error);
            let reason = cause.map_or(error.to_string(), |cause| format!("{error}: {cause}"));
            ProofResult::failed(reason, errno)
        }
    }
}

/// The exit code for a failure of the program itself.
const FAILED: u8 = 125;
/// Columns where there is no terminal to ask.
const WIDTH: u16 = 120;

fn print(report: &Report, format: ProbeFormat) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        ProbeFormat::Json => {
            serde_json::to_writer_pretty(&mut out, report)?;
            writeln!(out)?;
        }
        ProbeFormat::Table => {
            let colour = out.is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            out.write_all(table::render(report, width(), colour).as_bytes())?;
        }
    }
    out.flush()
}

/// Columns of the terminal that is written to.
pub fn width() -> u16 {
    let out = io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten();
    size.map(|size| size.ws_col).filter(|&width| width > 0).unwrap_or(WIDTH)
}

fn write_capture(path: &Path) -> io::Result<()> {
    let capture = Capture::of(Path::new("/"), &NativeCpuid);
    let text = toml::to_string_pretty(&capture).map_err(io::Error::other)?;
    std::fs::write(path, text)
}
