//! `omnivisor import`: a VM of any platform becomes one of ours, in a folder of its own.

mod adapt;
mod journal;
mod page;
mod registry;
mod steps;
mod verify;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use disk::{CreateOptions, Disk, FilePolicy, Format, ImageInfo, ImageOptions};
use guest::{BootPlan, Guest, PlanOptions, RegistryChange, Report};
use spec::VmSpec;
use spec::foreign::{Level, OWN_DESCRIPTION};

use crate::cli::EngineChoice;
use crate::description;
use crate::disk::{failed, print, reading};
use crate::failure::{FAILED, Failure, NOT_FOUND, NOT_STARTED, USAGE};
use crate::import::adapt::Changes;
use crate::import::journal::Journal;
use crate::inspect::totals;
use crate::package::DeployArgs;
use crate::run::{engine, of_nics, plan, room};

/// Options of `omnivisor import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omnivisor import web.ova web --dry-run   what would be done
  omnivisor import web.ova web             then: omnivisor run web
  omnivisor import /vmfs/web web --link    at once: the disks stay where they are, beneath an overlay

What was interrupted goes on with the same command.")]
pub struct ImportArgs {
    /// The VM: its description, folder or package, or a disk
    #[arg(value_name = "VM")]
    source: PathBuf,

    /// The folder to make
    #[arg(value_name = "DIR")]
    target: PathBuf,

    /// Print what would be done, and end
    #[arg(long)]
    dry_run: bool,

    /// Format of the disks, then options
    #[arg(
        long,
        value_name = "FORMAT[,OPTION=VALUE]...",
        default_value = "qcow2",
        conflicts_with = "link"
    )]
    to: CreateOptions,

    /// Leave the disks where they are and make overlays
    #[arg(long)]
    link: bool,

    /// Remove the tools of other hypervisors from the guest
    #[arg(long)]
    remove_tools: bool,

    /// Change nothing in the guest
    #[arg(long)]
    unchanged: bool,

    /// Change the registry of a Windows that was not shut down, too
    #[arg(long, conflicts_with = "unchanged")]
    force: bool,

    /// Do not see whether it boots
    #[arg(long)]
    no_verify: bool,

    /// Seconds that the guest has for its changes, and again for its boot
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,

    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t)]
    engine: EngineChoice,

    /// Another name for the machine
    #[arg(long)]
    name: Option<String>,

    #[command(flatten)]
    deploy: DeployArgs,
}

/// An original disk, open.
struct Original {
    disk: Arc<dyn Disk>,
    chain: Vec<ImageInfo>,
    /// Bytes of data in its images.
    data: u64,
    /// Name of the image that it becomes.
    name: String,
}

/// What was found out before anything is written.
struct Preflight {
    spec: VmSpec,
    originals: Vec<Original>,
    report: Report,
    /// How Linux is started; otherwise why it cannot be.
    boot: Result<(), String>,
    changes: Changes,
    /// What changes in Windows' registry.
    registry: Vec<RegistryChange>,
    notes: Vec<String>,
}

/// Imports; what was done is told on standard error.
pub fn run(args: &ImportArgs) -> Result<ExitCode, Failure> {
    let preflight = look(args)?;
    if args.dry_run {
        print(&preflight.page(args))?;
        return Ok(ExitCode::SUCCESS);
    }
    tell!("{}", preflight.page(args).trim_end());
    // Before hours of copying, not after them.
    let engine = if preflight.boot.is_ok() && !(args.no_verify && preflight.changes.is_empty()) {
        Some(engine::choose(args.engine)?)
    } else {
        None
    };
    let cannot = |error: std::io::Error| {
        Failure::new(FAILED, format!("Cannot write to {}: {error}", args.target.display()))
    };
    std::fs::create_dir_all(&args.target).map_err(cannot)?;
    let mut journal = Journal::open(&args.target, &preflight.identity(args))?;
    let spec = preflight.take_disks(args, &mut journal)?;
    write_whole(&args.target.join(OWN_DESCRIPTION), spec.to_toml()?.as_bytes()).map_err(cannot)?;
    let spec = spec.relative_to(&args.target);
    if !preflight.registry.is_empty() && !journal.is_done("registry") {
        registry::change(&spec, &preflight.registry)?;
        journal.done("registry")?;
    }
    let limit = Duration::from_secs(args.timeout);
    let dir = args.target.display();
    let Some(engine) = engine else {
        return match &preflight.boot {
            Ok(()) => {
                tell!(
                    "Imported into {dir}; whether it boots was not tried. Start it with `omnivisor run {dir}`."
                );
                Ok(ExitCode::SUCCESS)
            }
            Err(why) => {
                tell!(
                    "Its disks and its description are in {dir}. It cannot be started here yet: {why}."
                );
                Ok(ExitCode::SUCCESS)
            }
        };
    };
    if !preflight.changes.is_empty() && !journal.is_done("changes") {
        steps::change(&*engine, &spec, &preflight.changes, limit)?;
        journal.done("changes")?;
    }
    if !args.no_verify && !journal.is_done("verified") {
        let (how, took) = steps::verify(&*engine, &spec, limit)?;
        journal.done("verified")?;
        tell!("It boots on {}: {how} after {:.1} s.", engine.name(), took.as_secs_f64());
    }
    tell!("Imported into {dir}. Start it with `omnivisor run {dir}`.");
    Ok(ExitCode::SUCCESS)
}

/// Reads the description and looks into every disk.
fn look(args: &ImportArgs) -> Result<Preflight, Failure> {
    let mut notes = Vec::new();
    let mut spec = if spec::foreign::is_description(&args.source) {
        let (vm, spec) = args.deploy.read(&args.source)?;
        let differences = vm.notes.iter().cloned().chain(vm.differences());
        notes.extend(
            differences.filter(|note| note.level != Level::Obstacle).map(|note| note.message),
        );
        spec
    } else {
        args.deploy.refuse_without_description()?;
        description::of_disk(&args.source, args.deploy.package.allow_outside).ok_or_else(|| {
            Failure::new(NOT_FOUND, format!("There is no VM at {}", args.source.display()))
        })?
    };
    spec.name = args.name.clone().or(spec.name);
    notes.extend(room::warning(&spec));
    let mut originals: Vec<Original> = Vec::new();
    for disk in &spec.disks {
        let original = open(disk, &args.to, args.link, &originals)?;
        originals.push(original);
    }
    let disks: Vec<_> = originals.iter().map(|original| Arc::clone(&original.disk)).collect();
    let guest = Guest::open(&disks);
    let nics = of_nics(&spec, guest.os());
    for (index, nic) in spec.nics.iter_mut().flatten().enumerate() {
        // What is to last is written down.
        nic.mac = nics.get(index).and_then(|known| known.mac.parse().ok()).or(nic.mac);
    }
    let options = PlanOptions { console: Some("ttyS0".into()), ..PlanOptions::default() };
    let report = guest.report();
    let (boot, changes) = match guest.plan(&options) {
        Ok(BootPlan::Linux(linux)) => {
            notes.extend(linux.notes.iter().map(|note| note.trim_end_matches('.').to_owned()));
            let changes = if args.unchanged {
                Changes::default()
            } else {
                Changes::of(&report, &linux.added_modules, &nics, args.remove_tools)
            };
            (Ok(()), changes)
        }
        Ok(BootPlan::Firmware { reason, .. }) => {
            let why = match report.os.as_ref().map(|os| os.kind) {
                Some("windows") => {
                    "booting Windows needs firmware, which is not here yet".to_owned()
                }
                _ => format!("it needs firmware, which is not here yet: {reason}"),
            };
            (Err(why), Changes::default())
        }
        Err(error) => (Err(error.to_string()), Changes::default()),
    };
    let registry = match guest.registry_plan() {
        Some(plan) if !args.unchanged => registry::plan(plan, args.force, &mut notes)?,
        _ => Vec::new(),
    };
    Ok(Preflight { spec, originals, report, boot, changes, registry, notes })
}

fn open(
    disk: &spec::Disk,
    to: &CreateOptions,
    link: bool,
    others: &[Original],
) -> Result<Original, Failure> {
    let files = match &disk.within {
        _ if disk.outside => FilePolicy::Anywhere,
        Some(folder) => FilePolicy::Within(folder.clone()),
        None => FilePolicy::SameFolder,
    };
    let format = disk.format.as_deref().map(str::parse::<Format>).transpose();
    let format = format.map_err(|error| Failure::from_error(USAGE, error))?;
    let options = ImageOptions { format, files, whole: true, ..reading() };
    let (opened, chain) = disk::open_chain(&disk.path, &options).map_err(failed)?;
    // A map that is damaged is found out here, not after hours.
    let data = totals(&*opened)?.data;
    let stem = disk.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let stem: String = stem
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' })
        .collect();
    let end = if link { Format::Qcow2.name() } else { to.format.name() };
    let stem = stem.trim_start_matches('.');
    let stem = if stem.is_empty() { "disk" } else { stem };
    let names = std::iter::once(format!("{stem}.{end}"))
        .chain((2_u32..).map(|number| format!("{stem}-{number}.{end}")));
    let name = names.into_iter().find(|name| others.iter().all(|other| other.name != *name));
    Ok(Original { disk: opened, chain, data, name: name.unwrap_or_default() })
}

impl Preflight {
    /// By what an interrupted import is known again: the originals as they are, and what is made of them.
    fn identity(&self, args: &ImportArgs) -> serde_json::Value {
        let stamp = |info: &ImageInfo| {
            let metadata = info.path.ancestors().find_map(|path| std::fs::metadata(path).ok());
            let modified = metadata.as_ref().and_then(|data| data.modified().ok());
            let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            serde_json::json!([
                info.path,
                metadata.map(|data| data.len()),
                since.map(|since| since.as_nanos().to_string())
            ])
        };
        let disks = self.originals.iter().map(|original| {
            serde_json::json!({ "name": original.name, "chain": original.chain.iter().map(stamp).collect::<Vec<_>>() })
        });
        serde_json::json!({
            "disks": disks.collect::<Vec<_>>(),
            "how": format!(
                "{:?} {} {} {} {}",
                args.to, args.link, args.unchanged, args.remove_tools, args.force
            ),
        })
    }

    /// Converts or links each disk that is not there yet; the description of the new VM, whose files lie in its folder.
    fn take_disks(&self, args: &ImportArgs, journal: &mut Journal) -> Result<VmSpec, Failure> {
        let mut spec = self.spec.clone();
        for (disk, original) in spec.disks.iter_mut().zip(&self.originals) {
            let target = args.target.join(&original.name);
            let step = format!("disk {}", original.name);
            if !journal.is_done(&step) {
                if args.link {
                    steps::link(original, &target)?;
                } else {
                    steps::convert(original, &target, &args.to)?;
                }
                journal.done(&step)?;
            }
            let format = if args.link { Format::Qcow2 } else { args.to.format };
            *disk = spec::Disk {
                path: original.name.clone().into(),
                format: Some(format.name().to_owned()),
                in_place: !disk.readonly && !disk.discard,
                outside: args.link,
                within: None,
                ..disk.clone()
            };
        }
        Ok(spec)
    }
}

/// Under its name is all of it or nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// The console's end as help.
fn with_console(sentence: &str, lines: &str) -> Failure {
    let failure = Failure::new(NOT_STARTED, sentence);
    if lines.is_empty() {
        failure
    } else {
        failure.help(format!("the guest's console ended with\n{lines}"))
    }
}

/// The words for the kernel that every guest gets.
fn words() -> &'static str {
    plan::BOARD_WORDS
}
