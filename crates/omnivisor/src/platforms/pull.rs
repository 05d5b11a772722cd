//! `omnivisor pull`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use platform::{PullOptions, VmName};

use super::{DONE, ReachArgs, failed, plain, split};
use crate::disk::{Progress, human};
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

    /// How many connections at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,

    /// Most bytes in a second, with K, M or G
    #[arg(long, value_name = "SIZE")]
    rate: Option<spec::Size>,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Copies a VM's files into a folder.
pub fn run(args: &PullArgs) -> Result<ExitCode, Failure> {
    let (uri, vm) = split(&args.vm);
    let connection = args.reach.connect(&uri)?;
    let folder = args.folder.clone().unwrap_or_else(|| PathBuf::from(vm.replace('/', "_")));
    let mut say = |sentence: String| eprintln!("{}.", plain(&sentence));
    let ready = connection.pullable(vm, &mut say).map_err(failed)?;
    let options = PullOptions {
        connections: args.connections.into(),
        rate: args.rate.map(|rate| rate.bytes()),
        ..PullOptions::default()
    };
    let progress = Progress::new(ready.total());
    let report = ready.pull(&folder, &options, &mut |at| progress.show(at.done)).map_err(failed)?;
    drop(progress);
    for file in &report.files {
        println!("{}  {}", file.sha256, plain(&file.path.display().to_string()));
    }
    eprintln!(
        "{}: {} copied, {} were here; each file has the hash that was sent.",
        folder.display(),
        human(report.copied),
        human(report.kept)
    );
    DONE
}
