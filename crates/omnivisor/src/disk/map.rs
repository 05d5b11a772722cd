//! `omnivisor disk map`.

use std::os::fd::AsRawFd;
use std::process::ExitCode;

use clap::Args;
use disk::{Content, Extents};
use serde_json::json;

use super::{ImageArgs, OutputFormat, failed, print};
use crate::failure::Failure;

/// Options of `omnivisor disk map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// How to print; each line is an object with `json`
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// What is printed in one line.
struct Row {
    start: u64,
    end: u64,
    kind: &'static str,
    place: Option<(i32, u64)>,
}

/// Prints the map.
pub fn run(args: &MapArgs) -> Result<ExitCode, Failure> {
    let options = args.image.how.options(&args.image.path)?;
    let disk = disk::open(&args.image.path, &options).map_err(failed)?;
    if args.format == OutputFormat::Table {
        print("         start          length  kind        where\n")?;
    }
    let mut last: Option<Row> = None;
    for extent in Extents::new(&*disk, 0..disk.len()) {
        let extent = extent.map_err(failed)?;
        let (kind, place) = match extent.content {
            Content::Data(Some(place)) => ("data", Some((place.file.as_raw_fd(), place.offset))),
            Content::Data(None) => ("compressed", None),
            Content::Zero => ("zero", None),
            Content::Hole => ("hole", None),
        };
        let row = Row { start: extent.range.start, end: extent.range.end, kind, place };
        match &mut last {
            Some(last) if last.goes_on_with(&row) => last.end = row.end,
            _ => {
                if let Some(last) = last.replace(row) {
                    last.print(args.format)?;
                }
            }
        }
    }
    last.map_or(Ok(()), |last| last.print(args.format))?;
    Ok(ExitCode::SUCCESS)
}

impl Row {
    fn goes_on_with(&self, next: &Self) -> bool {
        let follows = match (self.place, next.place) {
            (Some((file, offset)), Some((other, next))) => {
                file == other && offset.checked_add(self.end - self.start) == Some(next)
            }
            (None, None) => true,
            _ => false,
        };
        follows && self.kind == next.kind
    }

    fn print(&self, format: OutputFormat) -> Result<(), Failure> {
        let length = self.end - self.start;
        let file = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        match (format, self.place) {
            (OutputFormat::Table, Some((fd, offset))) => print(&format!(
                "{:>14}  {length:>14}  {:<10}  {} at {offset}\n",
                self.start,
                self.kind,
                file(fd).display()
            )),
            (OutputFormat::Table, None) => {
                print(&format!("{:>14}  {length:>14}  {}\n", self.start, self.kind))
            }
            (OutputFormat::Json, place) => {
                let row = json!({
                    "start": self.start,
                    "length": length,
                    "kind": self.kind,
                    "file": place.map(|(fd, _)| file(fd)),
                    "offset": place.map(|(_, offset)| offset),
                });
                print(&format!("{row}\n"))
            }
        }
    }
}
