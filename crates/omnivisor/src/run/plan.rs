//! From the command line, the file and the image to what the machine is made of.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image::{Features, ImageRef, Kernel, Options};
use machine::Config;
use machine::boot::BootPlan;
use machine::disks::OpenDisk;
use machine::memory::MemoryConfig;
use spec::{Console, Nic, NicKind, Share, Topology, VmSpec, Vsock};

use crate::cli::RunArgs;
use crate::disk::print;
use crate::failure::{FAILED, Failure, NOT_FOUND, USAGE};
use crate::run::description::{describe, passt_is_installed, write_in_place};
use crate::run::guest::{self, Prepared};
use crate::run::remote::Remote;
use crate::run::scratch::Scratch;
use crate::run::{disks, kernel, room, seed, state, terminal};

/// Everything that is decided before a machine is built.
pub struct Plan {
    /// The whole description.
    pub spec: VmSpec,
    /// What the machine is made of but for its devices.
    pub config: Config,
    /// How the guest's agent reaches us, if a command is to be run.
    pub agent: Option<AgentSocket>,
    /// That command.
    pub command: Vec<OsString>,
    /// The command is a shell that nobody asked for: the user is told that the guest is there.
    pub is_script: bool,
    /// The disks are those of a VM of another host.
    pub remote: Option<Remote>,
    /// What to boot is on the disks, and is filled in by [`look_into`](Plan::look_into).
    boots_from_disks: bool,
    /// The entry of the menu there, if it is not to be the default one.
    entry: Option<String>,
    /// Files that were made for the boot.
    _folder: Option<Scratch>,
}

/// The Unix socket at which the guest's agent arrives.
pub struct AgentSocket {
    /// The socket of its port.
    pub path: PathBuf,
    /// The folder made for it, which goes with it.
    _folder: Option<Scratch>,
}

/// What Linux need not do on this board. `noearly`: scan PCI for quirks by ports; `nr_uarts`: look for three more
/// serial ports; `notests`: test its cryptography, which is more than half of a boot.
pub const BOARD_WORDS: &str = "pci=noearly 8250.nr_uarts=1 cryptomgr.notests";

impl Plan {
    /// Reads the file, lays the command line over it, and fetches what is missing.
    pub fn new(args: &RunArgs) -> Result<Self, Failure> {
        let (mut spec, remote) = describe(args)?;
        spec.disks.extend(seed::disk(args)?);
        let image = image_of(&spec)?;
        if !args.command.is_empty() && image.is_none() && spec.boot.kernel.is_none() {
            return Err(Failure::new(
                USAGE,
                "A command needs the guest agent, which a guest's own disk does not have",
            )
            .help("say `omnivisor run debian -- COMMAND`, or name a kernel with --kernel"));
        }
        if spec.nics.is_none() {
            let user = Nic { kind: Some(NicKind::User), ..Nic::default() };
            spec.nics = Some(if passt_is_installed() { vec![user] } else { Vec::new() });
        }
        if image == Some(ImageRef::Host) {
            let root =
                Share { dir: "/".into(), tag: Some(image::HOST_ROOT_TAG.into()), readonly: true };
            spec.shares.insert(0, root);
        }
        // Without a terminal nobody can talk with a console: the guest's shell reads standard input instead.
        let is_script =
            args.command.is_empty() && image.is_some() && !std::io::stdin().is_terminal();
        let command = if is_script { vec!["sh".into()] } else { args.command.clone() };
        let agent = if command.is_empty() { None } else { Some(agent_socket(&mut spec)?) };
        for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly && args.discard) {
            (disk.in_place, disk.discard) = (false, true);
        }
        if args.in_place {
            write_in_place(&mut spec, args, remote.is_some())?;
        }
        spec.validate()?;
        room::check(&spec)?;
        let boots_from_disks = image.is_none() && spec.boot.kernel.is_none();
        if args.entry.is_some() && !boots_from_disks {
            let text = "--entry is about the boot menu on a VM's disks, which is not read where a kernel is named";
            return Err(Failure::new(USAGE, text));
        }
        let mut folder = None;
        let boot = match &image {
            Some(image) => {
                let options =
                    Options { features: features(&spec), full_root: args.disk_size.is_some() };
                let prepared = image::prepare(image, &options, &progress)?;
                let kept = kernel::keep(&prepared.kernel)?;
                boot_image(prepared, kept, &mut spec, args, agent.is_some())?
            }
            None if !command.is_empty() => {
                let file = spec.boot.kernel.clone().unwrap_or_default();
                let kept = kernel::keep(&file)?;
                let kernel = Kernel::of_file(&file, &kept.0)?;
                if kernel.modules.as_os_str().is_empty() {
                    let release = &kernel.release;
                    tell!("No modules of {release} are here: it needs virtio-vsock built in.");
                }
                let own = spec.boot.initrd.clone();
                let features = features(&spec);
                let mut prepared =
                    image::prepare_kernel(kernel, features, own.is_some(), &progress)?;
                if let Some(own) = own {
                    let made = Scratch::new().map_err(|e| Failure::from_error(FAILED, e))?;
                    prepared.initrd = join(&[&own, &prepared.initrd], made.path())?;
                    folder = Some(made);
                }
                boot_image(prepared, kept, &mut spec, args, true)?
            }
            None if boots_from_disks => BootPlan {
                kernel: PathBuf::new(),
                kernel_is_immutable: false,
                initrd: None,
                cmdline: String::new(),
            },
            None => boot_files(&spec)?,
        };
        let config = config(&spec, boot);
        Ok(Self {
            spec,
            config,
            agent,
            command,
            is_script,
            remote,
            boots_from_disks,
            entry: args.entry.clone(),
            _folder: folder,
        })
    }

    /// Finds what to boot on the disks, if it is there. What is returned must outlast the machine.
    pub fn look_into(&mut self, disks: &[OpenDisk]) -> Result<Option<Prepared>, Failure> {
        if !self.boots_from_disks {
            return Ok(None);
        }
        let words = match &self.spec.boot.cmdline {
            Some(words) => format!("{BOARD_WORDS} {words}"),
            None => BOARD_WORDS.to_owned(),
        };
        let (entry, console) = (self.entry.as_deref(), console_device(&self.spec));
        let prepared = guest::prepare(&self.spec, disks, entry, console, &words)?;
        tracing::info!(
            entry = prepared.title,
            cmdline = prepared.boot.cmdline,
            "found on the disks"
        );
        for note in &prepared.notes {
            tracing::info!("{note}");
        }
        self.config.boot = prepared.boot.clone();
        Ok(Some(prepared))
    }

    /// Prints the description in the form of a --config file, with kernel, initrd and the whole command line.
    pub fn print(&mut self) -> Result<ExitCode, Failure> {
        if self.boots_from_disks {
            // As the images are, so that nothing is made for a machine that is not run.
            let mut spec = self.spec.clone();
            spec.disks.iter_mut().for_each(|disk| (disk.readonly, disk.in_place) = (true, false));
            let disks = match self.remote.take() {
                Some(remote) => remote.open(&spec)?,
                None => disks::open(&spec)?,
            };
            let mut lines = Vec::new();
            if let Some(prepared) = self.look_into(&disks)? {
                lines.push(format!("from its disks: {}", prepared.title));
                lines.push(format!("command line: {}", prepared.boot.cmdline));
                lines.extend(prepared.notes.iter().cloned());
            }
            let comments: String = lines
                .iter()
                .map(|line| format!("# {}\n", line.replace(char::is_control, " ")))
                .collect();
            print(&(comments + &self.spec.to_toml()?))?;
            return Ok(ExitCode::SUCCESS);
        }
        let BootPlan { kernel, initrd, cmdline, .. } = &self.config.boot;
        let mut spec = self.spec.clone();
        spec.image = None;
        spec.boot.kernel = Some(kernel.clone());
        spec.boot.initrd.clone_from(initrd);
        spec.boot.cmdline = Some(cmdline.clone());
        print(&format!("{}\n", spec.to_toml()?.trim_end()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The machine that `spec` describes, but for its devices.
pub fn config(spec: &VmSpec, boot: BootPlan) -> Config {
    let memory = MemoryConfig {
        size: spec.memory.size().0,
        hugepages: spec.memory.hugepages(),
        prealloc: spec.memory.prealloc(),
        shared: spec.memory.shared(),
    };
    let cpus = spec.cpus.topology().unwrap_or(Topology::cores(spec.cpus.count()));
    Config { cpus, memory, smbios: spec.smbios.clone(), boot, offered: None }
}

fn image_of(spec: &VmSpec) -> Result<Option<ImageRef>, Failure> {
    match (&spec.image, &spec.boot.kernel) {
        (None, Some(_)) if spec.boot.is_host_kernel() => Ok(Some(ImageRef::Host)),
        (None, Some(_)) => Ok(None),
        (Some(image), Some(_)) => Err(Failure::new(
            USAGE,
            format!("The image {image} brings its own kernel: leave out --kernel"),
        )),
        (Some(image), None) => {
            let known = image.parse::<ImageRef>();
            known.map(Some).map_err(|error| Failure::from_error(NOT_FOUND, error))
        }
        // What is on the disks.
        (None, None) if !spec.disks.is_empty() => Ok(None),
        (None, None) => Err(Failure::new(USAGE, "There is nothing to boot").help(
            "name an image, as in `omnivisor run debian`, a disk with `--disk FILE`, or a kernel with `--kernel FILE`",
        )),
    }
}

fn boot_files(spec: &VmSpec) -> Result<BootPlan, Failure> {
    let (kernel, kernel_is_immutable) =
        kernel::keep(spec.boot.kernel.as_deref().unwrap_or(Path::new("")))?;
    let cmdline = match &spec.boot.cmdline {
        Some(words) => words.clone(),
        None => format!("console={} {BOARD_WORDS}", console_device(spec)),
    };
    Ok(BootPlan { kernel, kernel_is_immutable, initrd: spec.boot.initrd.clone(), cmdline })
}

/// What the initramfs needs drivers for.
fn features(spec: &VmSpec) -> Features {
    Features {
        net: spec.nics.as_ref().is_some_and(|nics| !nics.is_empty()),
        blk: !spec.disks.is_empty(),
        vsock: spec.vsock.is_some(),
        fs: !spec.shares.is_empty(),
        balloon: spec.balloon.unwrap_or(true),
        rng: spec.rng.unwrap_or(true),
        console: spec.console == Some(Console::Virtio),
        overlay: false,
    }
}

/// A file in `folder` of several initial RAM disks, of which later ones replace files of earlier ones.
fn join(parts: &[&Path], folder: &Path) -> Result<PathBuf, Failure> {
    let mut whole = Vec::new();
    for part in parts {
        let bytes = std::fs::read(part).map_err(|error| {
            Failure::new(NOT_FOUND, format!("Cannot read {}: {error}", part.display()))
        })?;
        // Each begins at a multiple of four bytes.
        whole.resize(whole.len().next_multiple_of(4), 0);
        whole.extend(bytes);
    }
    let path = folder.join("initrd");
    std::fs::write(&path, whole).map_err(|error| {
        Failure::new(FAILED, format!("Cannot write {}: {error}", path.display()))
    })?;
    Ok(path)
}

/// Boots an initramfs of ours with `kernel`, which is kept, and may be immutable.
fn boot_image(
    prepared: image::Prepared,
    (kernel, kernel_is_immutable): (PathBuf, bool),
    spec: &mut VmSpec,
    args: &RunArgs,
    agent: bool,
) -> Result<BootPlan, Failure> {
    if let (Some(base), Some(size)) = (&prepared.disk, args.disk_size) {
        let name = spec.name.as_deref().unwrap_or("debian");
        let path = state::root_disk(name, base, size)?;
        let format = Some("raw".to_owned());
        let disk = spec::Disk { path, format, in_place: true, ..spec::Disk::default() };
        spec.disks.insert(0, disk);
    }
    let mut words = vec![format!("console={}", console_device(spec)), BOARD_WORDS.to_owned()];
    words.push(if agent { "quiet loglevel=1 panic=-1".into() } else { "quiet".into() });
    words.extend((!prepared.cmdline_extra.is_empty()).then(|| prepared.cmdline_extra.clone()));
    if agent {
        words.push(format!("omnivisor.agent=vsock:{}", agent::DEFAULT_PORT));
    } else if let Some((columns, rows)) = terminal::size() {
        words.push(format!("omnivisor.window={columns}x{rows}"));
        let term = std::env::var("TERM")
            .ok()
            .filter(|term| term.chars().all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c)));
        words.extend(term.map(|term| format!("omnivisor.term={term}")));
    }
    if let Some(name) = &spec.name {
        words.push(format!("omnivisor.hostname={name}"));
    }
    for share in spec.shares.iter().filter(|share| share.tag() != image::HOST_ROOT_TAG) {
        let read_only = if share.readonly { ":ro" } else { "" };
        words.push(format!("omnivisor.share={0}:/mnt/{0}{read_only}", share.tag()));
    }
    words.extend(spec.boot.cmdline.clone());
    Ok(BootPlan {
        kernel,
        kernel_is_immutable,
        initrd: Some(prepared.initrd),
        cmdline: words.join(" "),
    })
}

/// A socket in a folder of our own, or beside the one that was asked for.
fn agent_socket(spec: &mut VmSpec) -> Result<AgentSocket, Failure> {
    let mut folder = None;
    if spec.vsock.is_none() {
        let made = Scratch::new().map_err(|error| Failure::from_error(FAILED, error))?;
        spec.vsock = Some(Vsock { path: made.path().join("vsock"), cid: None });
        folder = Some(made);
    }
    let base = spec.vsock.as_ref().map(|vsock| vsock.path.clone()).unwrap_or_default();
    let mut path = base.into_os_string();
    path.push(format!("_{}", agent::DEFAULT_PORT));
    Ok(AgentSocket { path: path.into(), _folder: folder })
}

fn console_device(spec: &VmSpec) -> &'static str {
    match spec.console.unwrap_or_default() {
        Console::Serial => "ttyS0",
        Console::Virtio => "hvc0",
    }
}

/// What takes time is told on a terminal.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        tell!("{text}");
    }
}

/// Adds the repair to errors that have one.
pub fn explain(error: machine::Error) -> Failure {
    let help = match &error {
        machine::Error::MemoryAllocation { .. } => Some(
            "give it less with --memory, or reserve huge pages with `sysctl vm.nr_hugepages=N`",
        ),
        machine::Error::InitrdTooLarge { .. } => Some("say --memory 1G"),
        _ => None,
    };
    let failure = Failure::from(error);
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}
