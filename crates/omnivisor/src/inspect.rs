//! `omnivisor inspect`: what a VM or a disk is, and what it is made of.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use disk::{Content, Disk, Extents, ImageInfo};
use guest::Guest;
use serde_json::{Map, Value, json};
use spec::foreign::ReadOptions;

use crate::description;
use crate::disk::{OpenArgs, OutputFormat, failed, human, print, print_json, snapshot_json};
use crate::failure::{Failure, USAGE};
use crate::guest_page;

/// Options of `omnivisor inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A VM's description of any platform, its folder or package; or a disk of any format
    #[arg(value_name = "VM|DISK")]
    path: PathBuf,

    #[command(flatten)]
    how: OpenArgs,

    /// The deployment option of an OVF package
    #[arg(long, value_name = "ID")]
    option: Option<String>,

    /// Check all files of an OVF package against its manifest
    #[arg(long)]
    verify: bool,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Bytes of a disk by what is known of them.
#[derive(Default)]
pub(crate) struct Totals {
    /// They lie in an image.
    pub data: u64,
    /// They are zeroes, an image says.
    pub zeroes: u64,
    /// No image has them.
    pub holes: u64,
}

/// Prints what is known.
pub fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    if args.how.from.is_none() && spec::foreign::is_description(&args.path) {
        let options = ReadOptions {
            verify: args.verify,
            ..description::options(args.how.allow_outside, args.option.as_ref())
        };
        let vms = description::read(&args.path, &options)?;
        match args.format {
            OutputFormat::Json => print_json(&description::json(&vms))?,
            OutputFormat::Table => {
                let pages: Vec<_> = vms.iter().map(description::page).collect();
                print(&pages.join("\n"))?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.option.is_some() || args.verify {
        let message = "--option and --verify are for an OVF package, and this is none";
        return Err(Failure::new(USAGE, message));
    }
    let options = args.how.options(&args.path)?;
    let (disk, chain) = disk::open_chain(&args.path, &options).map_err(failed)?;
    let totals = totals(&*disk)?;
    let guest = Guest::open(&[Arc::clone(&disk)]).report();
    match args.format {
        OutputFormat::Json => print_json(&json!({
            "length": disk.len(),
            "logical_block": disk.geometry().logical_block,
            "data": totals.data,
            "zeroes": totals.zeroes,
            "holes": totals.holes,
            "chain": chain.iter().map(image_json).collect::<Vec<_>>(),
            "guest": guest,
        }))?,
        OutputFormat::Table => {
            let mut text = table(&*disk, &chain, &totals);
            if guest_page::is_worth_telling(&guest) {
                let mut page = description::Page::default();
                for (about, line) in guest_page::lines(&guest) {
                    page.line(about, line);
                }
                text.push_str(&page.text);
            }
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Goes through the whole map of a disk.
///
/// # Errors
/// The map is damaged, or leads behind the end of a file.
pub(crate) fn totals(disk: &dyn Disk) -> Result<Totals, Failure> {
    let mut totals = Totals::default();
    for extent in Extents::new(disk, 0..disk.len()) {
        let extent = extent.map_err(failed)?;
        let length = extent.range.end - extent.range.start;
        *match extent.content {
            Content::Data(_) => &mut totals.data,
            Content::Zero => &mut totals.zeroes,
            Content::Hole => &mut totals.holes,
        } += length;
    }
    Ok(totals)
}

pub(crate) fn image_json(image: &ImageInfo) -> Value {
    let details: Map<String, Value> = image
        .details
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
        .collect();
    let snapshots: Vec<Value> = image.snapshots.iter().map(snapshot_json).collect();
    json!({
        "path": image.path,
        "format": image.format.name(),
        "length": image.length,
        "file_length": image.file_length,
        "allocated": allocated(image),
        "block_size": image.block_size,
        "details": details,
        "snapshots": snapshots,
    })
}

fn table(disk: &dyn Disk, chain: &[ImageInfo], totals: &Totals) -> String {
    let mut text = format!(
        "disk      {} ({} bytes): {} of data, {} of zeroes, {} of holes\n",
        human(disk.len()),
        disk.len(),
        human(totals.data),
        human(totals.zeroes),
        human(totals.holes)
    );
    let sector = disk.geometry().logical_block;
    if sector != 512 {
        text.push_str(&format!("sectors   {sector} bytes\n"));
    }
    for (depth, image) in chain.iter().enumerate() {
        let role = if depth == 0 { "image" } else { "parent" };
        text.push_str(&format!("{role:<9} {}\n", image.path.display()));
        let allocated =
            allocated(image).map_or(String::new(), |size| format!(", {} allocated", human(size)));
        let blocks = match image.block_size {
            1 => String::new(),
            size => format!(", blocks of {}", human(size)),
        };
        text.push_str(&format!(
            "          {}, {} of file{allocated}{blocks}\n",
            image.format,
            human(image.file_length)
        ));
        for (name, value) in &image.details {
            text.push_str(&format!("          {name}: {value}\n"));
        }
        for snapshot in &image.snapshots {
            // What others wrote must not steer the terminal.
            let name = snapshot.name.replace(char::is_control, " ");
            text.push_str(&format!(
                "          snapshot {} \"{name}\", made {}, {}\n",
                snapshot.id,
                spec::foreign::utc(snapshot.created),
                human(snapshot.length)
            ));
        }
    }
    text
}

/// Bytes that its files take on their file systems; nothing for devices.
pub(crate) fn allocated(image: &ImageInfo) -> Option<u64> {
    let files = std::iter::once(&image.path).chain(&image.parts);
    files
        .map(|path| path.metadata().ok().filter(Metadata::is_file).map(|file| file.blocks() * 512))
        .sum()
}
