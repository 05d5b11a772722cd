//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::consent::ConsentArgs;
use crate::convert::ConvertArgs;
use crate::disk::DiskVerb;
use crate::export::ExportArgs;
use crate::import::ImportArgs;
use crate::inspect::InspectArgs;
use crate::package::DeployArgs;
use crate::platforms::{
    ConsoleLogArgs, CopyArgs, ListArgs, PlatformsArgs, PullArgs, ReachArgs, ResetArgs, ShowArgs,
    SnapshotVerb, StopArgs, VmArgs, WatchArgs,
};
use crate::probe::ProbeArgs;

/// Runs any hypervisor's virtual machine on the fastest hypervisor the machine has
#[derive(Debug, Parser)]
#[command(name = "omnivisor", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Say more on stderr: the guest's console with `run -- COMMAND`, and what is done; twice for details
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a virtual machine
    Run(Box<RunArgs>),
    /// Tell what this computer's virtualization can do, and how to repair what it cannot
    Probe(ProbeArgs),
    /// Tell what a VM of any platform or a disk of any format is, and what it is made of
    Inspect(InspectArgs),
    /// Print a VM's description of any platform in another form
    Export(ExportArgs),
    /// Bring a VM of any platform home: its disks, its description, and a guest that is at home on virtio
    Import(Box<ImportArgs>),
    /// Make a new image out of a disk of any format
    Convert(Box<ConvertArgs>),
    /// Compare, map, check, create and commit disks
    Disk {
        /// What to do
        #[command(subcommand)]
        verb: DiskVerb,
    },
    /// List the VMs of platforms, here and on other computers
    List(ListArgs),
    /// Tell all that a platform knows of a VM
    Show(ShowArgs),
    /// Start a VM where it lives
    Start(VmArgs),
    /// Ask a VM's guest to shut down, or cut its power
    Stop(StopArgs),
    /// Stop a VM's processors
    Pause(VmArgs),
    /// Let a paused VM's processors go on
    Resume(VmArgs),
    /// Ask a VM's guest to restart, or reset it
    Reset(ResetArgs),
    /// List, create, delete and go back to snapshots of a VM
    Snapshot {
        /// What to do
        #[command(subcommand)]
        verb: SnapshotVerb,
    },
    /// Print what a VM's guest wrote to its console
    ConsoleLog(ConsoleLogArgs),
    /// Print changes of VMs as they happen
    Watch(WatchArgs),
    /// Copy a VM with its disks from a platform into a folder
    Pull(PullArgs),
    /// Tell what can be done with which platform
    Platforms(PlatformsArgs),
    /// Print the JSON Schema of --config files
    Schema,
    /// Print a script that completes this command line in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// Into this folder
        folder: PathBuf,
    },
}

/// Options of `omnivisor run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omnivisor run debian                      a shell in a Debian kernel with busybox
  omnivisor run debian -- uname -a          one command; its output, its exit code
  omnivisor run host -- ls /etc             this host's kernel and files, read-only
  omnivisor run guest.qcow2 --memory 1G     the Linux that is on a disk, by its boot loader's default entry
  omnivisor run esx://root@host/web         a VM of another host, at once; its disks are copied meanwhile
  omnivisor run --kernel vmlinux --initrd initrd.img --disk root.img --memory 2G --cpus 2

On a terminal, Ctrl-] or Ctrl-a x leaves the console and ends the machine.")]
pub struct RunArgs {
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineChoice,

    /// Number of processors; then ,sockets=N ,cores=N of each socket ,threads=N of each core [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<spec::Cpus>,

    /// Memory, with K, M, G or T; then ,hugepages ,prealloc ,shared [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<spec::Memory>,

    /// Kernel: an ELF vmlinux, a bzImage, or `host` for the one this host runs
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// Words to add to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub cmdline: Option<String>,

    /// A disk image of any format or a block device; repeatable
    ///
    /// What the guest writes goes into an overlay that the next run of the same --name goes on with; the
    /// image is not changed. Options: ,in-place writes to the image itself, ,discard keeps nothing, ,readonly
    /// lets the guest write nothing; ,format=NAME says the format instead of finding it out by content, ,outside
    /// follows parents in other folders; ,direct ,serial=TEXT ,queues=N
    #[arg(long, value_name = "FILE[,OPTION]...")]
    pub disk: Vec<spec::Disk>,

    /// Keep nothing of what the guest writes to any disk
    #[arg(long)]
    pub discard: bool,

    /// Write what the guest writes into the VM's own images, which is asked about first
    #[arg(long, conflicts_with = "discard")]
    pub in_place: bool,

    #[command(flatten)]
    pub consent: ConsentArgs,

    /// A network card: user[,forward=8080:80], tap=NAME, or none; repeatable
    /// [default: user where passt is installed]
    #[arg(long, value_name = "user|tap=NAME|none")]
    pub net: Vec<String>,

    /// A folder of the host for the guest to see, then ,readonly; repeatable
    #[arg(long, value_name = "DIR[:TAG]")]
    pub share: Vec<spec::Share>,

    /// Unix socket by which the host reaches the guest's vsock ports, then ,cid=N
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<spec::Vsock>,

    /// What the guest reads about its computer: its UUID, then ,serial=TEXT ,oem-strings=TEXT (repeatable)
    #[arg(long, value_name = "UUID[,OPTION]...")]
    pub smbios: Option<spec::Smbios>,

    /// Where the guest's console is [default: serial]
    #[arg(long, value_enum)]
    pub console: Option<ConsoleChoice>,

    /// The entry of the boot menu on the VM's disks: its title, its identifier, or its place from 0, as `inspect` lists them
    #[arg(long, value_name = "ENTRY")]
    pub entry: Option<String>,

    /// The machine's name
    #[arg(long)]
    pub name: Option<String>,

    /// Boot a full Debian root (systemd, apt) on a disk of this size instead of busybox
    #[arg(long, value_name = "SIZE", requires = "image")]
    pub disk_size: Option<spec::Size>,

    /// End instead of starting again when the guest reboots
    #[arg(long)]
    pub no_reboot: bool,

    /// Read the description from a TOML file; what is given here counts more
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Fetch and build what is needed, print what would run, and end
    #[arg(long)]
    pub dry_run: bool,

    /// Print what each processor did, as JSON on stderr, at the end
    #[arg(long)]
    pub statistics: bool,

    /// What cloud-init in the guest is to do: a #cloud-config, a script and others
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,

    /// A public SSH key, or the file of one, for cloud-init to let in; repeatable
    #[arg(long, value_name = "KEY|FILE")]
    pub ssh_key: Vec<String>,

    /// The name that cloud-init gives the guest
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,

    #[command(flatten)]
    pub deploy: DeployArgs,

    /// A guest that is just there: debian, debian:6.12, debian:PACKAGE, host; or a VM of any platform: its
    /// description, folder or package, its disk alone, or URI/NAME where it lives
    #[arg(value_name = "IMAGE|VM")]
    pub image: Option<String>,

    #[command(flatten)]
    pub copy: CopyArgs,

    #[command(flatten)]
    pub reach: ReachArgs,

    /// A command to run in the guest; its exit code becomes ours
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// `--engine`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// The fastest that is usable here
    #[default]
    Auto,
    /// Linux's KVM
    Kvm,
    /// The built-in software processor: anywhere
    Soft,
    /// The same without its translator, several times slower
    #[value(name = "soft,interpret")]
    SoftInterpret,
    /// The same on one processor, where interpreter and translator are compared; stops where they differ
    #[value(name = "soft,verify")]
    SoftVerify,
}

/// `--console`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsoleChoice {
    /// The serial port, ttyS0
    Serial,
    /// A virtio console, hvc0
    Virtio,
}
