//! `omnivisor convert`: a disk of any format as a new raw or qcow2 image.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use disk::{Compression, ConvertOptions, CreateOptions, FilePolicy, Format, ImageOptions, Report};

/// Progress is shown this often.
const REFRESH: Duration = Duration::from_millis(200);

/// Options of `omnivisor convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The disk to read, with its chain of parents
    #[arg(value_name = "SRC")]
    pub source: PathBuf,

    /// The image to make
    #[arg(value_name = "DST")]
    pub target: PathBuf,

    /// Format of SRC, instead of finding it out by content
    #[arg(long, value_name = "FORMAT")]
    pub from: Option<Format>,

    /// Format of DST: raw or qcow2
    #[arg(long, value_name = "FORMAT", default_value = "qcow2")]
    pub to: Format,

    /// Compress every cluster: zlib or zstd
    #[arg(long, value_name = "KIND")]
    pub compress: Option<Compression>,

    /// How hard to compress
    #[arg(long, value_name = "N", requires = "compress", allow_negative_numbers = true)]
    pub level: Option<i32>,

    /// Threads that compress; one per processor otherwise
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,

    /// Replace DST if it is there
    #[arg(long)]
    pub force: bool,

    /// Follow parents outside the folder of SRC
    #[arg(long)]
    pub allow_outside: bool,
}

/// Converts, with progress on a terminal, and says what was done.
pub fn run(args: &ConvertArgs) -> disk::Result<Report> {
    let files = if args.allow_outside { FilePolicy::Anywhere } else { FilePolicy::SameFolder };
    let options =
        ImageOptions { read_only: true, format: args.from, files, ..ImageOptions::default() };
    let source = disk::open(&args.source, &options)?;
    let mut image = CreateOptions::new(args.to, 0);
    image.compression = args.compress;
    let options = ConvertOptions { image, level: args.level, jobs: args.jobs, replace: args.force };
    let mut progress = Progress::new(source.len());
    let report = disk::convert(&*source, &args.target, &options, |done| progress.show(done));
    progress.clear();
    let report = report?;
    eprintln!(
        "{}: {} MiB of data in {} MiB of file, {} MiB of zeroes left out, {} MiB never read",
        args.target.display(),
        report.data >> 20,
        report.file_length >> 20,
        report.zeroes >> 20,
        report.holes >> 20,
    );
    Ok(report)
}

/// One line on a terminal; nothing elsewhere.
struct Progress {
    length: u64,
    begun: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    fn new(length: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { length, begun: Instant::now(), shown: None, is_terminal }
    }

    fn show(&mut self, done: u64) {
        let is_due = self.shown.is_none_or(|shown| shown.elapsed() >= REFRESH);
        if !self.is_terminal || !is_due || done == 0 {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(0.001);
        let left = self.length.saturating_sub(done) as f64 / rate;
        let percent = done as f64 / self.length as f64 * 100.0;
        let rate = rate / f64::from(1 << 20);
        // A terminal that is gone is no reason to stop.
        let _ =
            write!(std::io::stderr(), "\r\x1b[K{percent:5.1} % {rate:.0} MiB/s {left:.0} s left");
    }

    fn clear(&self) {
        if self.is_terminal && self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
