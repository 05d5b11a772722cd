//! The guest's program: PID 1 of the initramfs, or in a full system the service that serves the host.

#![forbid(unsafe_code)]

mod init;

use agent::{Ended, ServeOptions};
use init::transport::Transport;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

const USAGE: &str = "Usage: omnivisor-agent --serve [vsock:PORT|port:NAME]
Without an argument, omnivisor.serve= of the kernel command line says where the host is.";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        if init::chain::is_wanted() {
            init::chain::run();
        }
        init::run();
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|argument| argument.to_str()) {
        Some(agent::TTY_HELPER) => on_tty(&arguments[1..]),
        Some("--serve") => serve(arguments.get(1).and_then(|argument| argument.to_str())),
        // busybox udhcpc calls its script, which we are, with the event's name and the lease in the environment.
        Some("bound" | "renew") if std::env::var_os("interface").is_some() => {
            init::net::apply_lease()
        }
        Some("deconfig" | "leasefail" | "nak") => ExitCode::SUCCESS,
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn on_tty(argv: &[OsString]) -> ExitCode {
    let error = agent::exec_on_tty(argv);
    eprintln!(
        "omnivisor: {}: {error}",
        argv.first().map(|p| p.to_string_lossy()).unwrap_or_default()
    );
    ExitCode::from(agent::exit_code_of(&error))
}

fn serve(transport: Option<&str>) -> ExitCode {
    let transport = match transport {
        Some(text) => Transport::parse(text),
        None => init::settings::Settings::of_kernel().serve,
    };
    let Some(transport) = transport else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let options = ServeOptions { tty_helper: init::OWN_PROGRAM.into() };
    let ended =
        transport.open().map_err(Into::into).and_then(|stream| agent::serve(stream, &options));
    match ended {
        Ok(Ended::Disconnected) => ExitCode::SUCCESS,
        Ok(Ended::PowerOff) => match Command::new("poweroff").status() {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(error) => {
            init::complain(&error);
            ExitCode::FAILURE
        }
    }
}
