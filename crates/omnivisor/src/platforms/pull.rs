//! `omnivisor pull`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use platform::{PullOptions, VmName};

use super::{DONE, ReachArgs, failed, plain, say, split};
use crate::disk::{Progress, human, print};
use crate::failure::Failure;

/// Options of `omnivisor pull`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  omnivisor pull esx://root@host/web web    copies the VM into the folder web; omnivisor run web boots it
  omnivisor pull xen+ssh://root@host/web    the same of a Xen host, by nothing but its SSH server

What is here already is not copied again: after a lost connection, run the same command once more. SHA256SUMS in the
folder has the hash of each file.")]
pub struct PullArgs {
    /// The VM: its platform, and its name or what identifies it there
    #[arg(value_name = "URI/NAME")]
    vm: VmName,

    /// The folder for its files [default: one of the VM's name]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,

    #[command(flatten)]
    copy: CopyArgs,

    #[command(flatten)]
    reach: ReachArgs,
}

/// How disks of another host are copied.
#[derive(Debug, Clone, Args)]
pub struct CopyArgs {
    /// How many connections copy at once [default: 4, or 2 behind a guest that runs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,

    /// Most bytes that are copied in a second, with K, M or G
    #[arg(long, value_name = "SIZE")]
    rate: Option<spec::Size>,
}

impl CopyArgs {
    /// What is said, and so many connections if nothing is.
    pub fn options(&self, connections: u16) -> PullOptions {
        PullOptions {
            connections: self.connections.unwrap_or(connections).into(),
            rate: self.rate.map(|rate| rate.bytes()),
            ..PullOptions::default()
        }
    }
}

/// Copies a VM's files into a folder.
pub fn run(args: &PullArgs) -> Result<ExitCode, Failure> {
    let (uri, vm) = split(&args.vm);
    let connection = args.reach.connect(&uri)?;
    let folder = args.folder.clone().unwrap_or_else(|| PathBuf::from(vm.replace('/', "_")));
    let ready = connection.pullable(vm, &mut say).map_err(failed)?;
    let options = args.copy.options(4);
    let progress = Progress::new(ready.total());
    let report = ready.pull(&folder, &options, &mut |at| progress.show(at.done)).map_err(failed)?;
    drop(progress);
    let line = |file: &platform::PulledFile| {
        format!("{}  {}\n", file.sha256, plain(&file.path.display().to_string()))
    };
    print(&report.files.iter().map(line).collect::<String>())?;
    tell!(
        "{}: {} copied, {} were here; each file has the hash that was sent.",
        folder.display(),
        human(report.copied),
        human(report.kept)
    );
    DONE
}
