//! `omnivisor convert`: a disk of any format as a new image.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use disk::{Compression, ConvertOptions, CreateOptions, Disk, Format, Report};

use crate::disk::{OpenArgs, Progress, failed, human, usual};
use crate::failure::{FAILED, Failure};

/// How often to note what is done.
pub const RESUME: Duration = Duration::from_secs(2);

/// Options of `omnivisor convert`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  omnivisor convert web.vmdk web.qcow2
  omnivisor convert web.qcow2 web.vmdk --to vmdk,layout=stream
  omnivisor convert web.vhdx web.qcow2 --compress zstd --verify
  omnivisor convert web.qcow2 /dev/vg/web --force

Formats that can be made: raw, qcow2, vmdk, vhd, vhdx, vdi, parallels. Options: layout=sparse, fixed, stream,
split-sparse or split-fixed; block-size=SIZE; preallocation=metadata, falloc or full; extended-l2=on; data-file=NAME.")]
pub struct ConvertArgs {
    /// The disk to read, with its chain of parents
    #[arg(value_name = "SRC")]
    pub source: PathBuf,

    /// The image to make, or with --force a block device to write the disk to
    #[arg(value_name = "DST")]
    pub target: PathBuf,

    #[command(flatten)]
    how: OpenArgs,

    /// Format of DST, then options; by the end of its name otherwise, or qcow2
    #[arg(long, value_name = "FORMAT[,OPTION=VALUE]...")]
    pub to: Option<CreateOptions>,

    /// Compress every cluster: zlib or zstd
    #[arg(long, value_name = "KIND")]
    pub compress: Option<Compression>,

    /// How hard to compress
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub level: Option<i32>,

    /// Threads that read, unpack and compress; one per processor otherwise
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,

    /// Read DST afterwards and compare it with SRC
    #[arg(long)]
    pub verify: bool,

    /// Replace DST if it is there; write over it if it is a block device
    #[arg(long)]
    pub force: bool,
}

/// Converts, with progress on a terminal, and says what was done.
pub fn run(args: &ConvertArgs) -> Result<ExitCode, Failure> {
    let source = disk::open(&args.source, &args.how.options(&args.source)?).map_err(failed)?;
    let mut image = args.to.clone().unwrap_or_else(|| usual(&args.target));
    image.compression = args.compress.or(image.compression);
    let options = ConvertOptions {
        image,
        level: args.level,
        jobs: args.jobs,
        replace: args.force,
        resume: Some(RESUME),
    };
    let progress = Progress::new(source.len());
    let done = |done| progress.show(done);
    let report = disk::convert(&*source, &args.target, &options, done).map_err(|error| {
        let mut notes = args.target.clone().into_os_string();
        notes.push(".partial.journal");
        let is_kept = Path::new(&notes).exists();
        let is_there = matches!(&error, disk::Error::Io { action: "create", source, .. }
            if source.kind() == ErrorKind::AlreadyExists);
        let failure = failed(error);
        match (is_kept, is_there) {
            (true, _) => failure.help("the same command goes on with what is done"),
            (_, true) => failure.help("--force replaces it"),
            _ => failure,
        }
    })?;
    drop(progress);
    tell(&args.target, &report);
    if args.verify {
        verify(&*source, &args.target, options.image.format)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(target: &Path, report: &Report) {
    if report.resumed != 0 {
        let (target, done) = (target.display(), human(report.resumed));
        tell!("{target}: went on with the {done} that an earlier conversion had done");
    }
    let kinds = [
        ("copied", report.data - report.compressed - report.shared),
        ("compressed", report.compressed),
        ("shared with the source", report.shared),
        ("of zeroes found", report.zeroes),
        ("of zeroes known", report.holes),
    ];
    let kinds: Vec<String> = kinds
        .iter()
        .filter(|(_, bytes)| *bytes != 0)
        .map(|(kind, bytes)| format!("{} {kind}", human(*bytes)))
        .collect();
    let file = human(report.file_length);
    tell!("{}: {file} of file; {}", target.display(), kinds.join(", "));
}

fn verify(source: &dyn Disk, target: &Path, format: Format) -> Result<(), Failure> {
    let how = OpenArgs { from: Some(format), allow_outside: false };
    let made = disk::open(target, &how.options(target)?).map_err(failed)?;
    let progress = Progress::new(source.len());
    let compared = disk::compare(source, &*made, |done| progress.show(done)).map_err(failed)?;
    drop(progress);
    // What a device has behind the disk's end is not the disk's.
    match compared.difference.filter(|&offset| offset < source.len()) {
        None => {
            tell!("{}: verified, {} compared", target.display(), human(compared.read));
            Ok(())
        }
        Some(offset) => {
            let what = format!("{} differs from its source at byte {offset}", target.display());
            Err(Failure::new(FAILED, what))
        }
    }
}
