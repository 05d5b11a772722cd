//! The verbs for VMs where they live: on this computer, on other hypervisors, on other hosts.

mod change;
mod console_log;
mod list;
mod password;
mod pull;
mod show;
mod snapshot;
mod table;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use platform::{Connection, Kind, Options, Uri, VmName};

pub use change::{ResetArgs, StopArgs, VmArgs};
pub use console_log::ConsoleLogArgs;
pub use list::ListArgs;
pub use pull::{CopyArgs, PullArgs};
pub use show::ShowArgs;
pub use snapshot::SnapshotVerb;
pub use table::PlatformsArgs;
pub use watch::WatchArgs;

pub use change::{pause, reset, resume, start, stop};
pub use console_log::run as console_log;
pub use list::run as list;
pub use pull::run as pull;
pub use show::run as show;
pub use snapshot::run as snapshot;
pub use table::run as platforms;
pub use watch::run as watch;

use crate::failure::{FAILED, Failure, NOT_FOUND, USAGE};

/// How platforms are reached.
#[derive(Debug, Clone, Args)]
pub struct ReachArgs {
    /// How long a platform may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,

    /// SHA-256 of the certificate of the server, which alone is accepted then
    #[arg(long, value_name = "HEX")]
    pub tls_thumbprint: Option<String>,

    /// Certificates to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
}

impl ReachArgs {
    fn options(&self) -> Options {
        Options {
            time_limit: Duration::from_secs(self.timeout),
            state_folder: crate::run::state_folder().ok(),
            tls_thumbprint: self.tls_thumbprint.clone(),
            tls_ca: self.tls_ca.clone(),
            ask_password: Some(Arc::new(password::ask)),
        }
    }

    /// Reaches a platform.
    pub fn connect(&self, uri: &Uri) -> Result<Connection, Failure> {
        platform::connect(uri, &self.options()).map_err(failed)
    }
}

/// The platform and the name there; what has no platform is our own.
pub fn split(vm: &VmName) -> (Uri, &str) {
    (vm.uri.clone().unwrap_or_else(platform::own::uri), &vm.name)
}

/// A failure of a platform.
pub fn failed(error: platform::Error) -> Failure {
    let code = match error.kind() {
        Kind::Usage => USAGE,
        Kind::NotFound => NOT_FOUND,
        Kind::Failed => FAILED,
    };
    let repair = error.repair();
    let failure = Failure::from_error(code, error);
    match repair {
        Some(repair) => failure.help(repair),
        None => failure,
    }
}

/// What others wrote, without what would steer the terminal.
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Says what is done to a VM.
pub fn say(sentence: String) {
    tell!("{}.", plain(&sentence));
}

/// Success with nothing to say.
const DONE: Result<ExitCode, Failure> = Ok(ExitCode::SUCCESS);
