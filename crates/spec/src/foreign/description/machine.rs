//! Processors, memory and how a VM starts.

use serde::{Deserialize, Serialize};

use super::FileRef;
use crate::{Cpus, MAX_CPUS, Topology};

/// The processor that a guest was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    #[serde(rename = "x86_64")]
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit Arm.
    Arm64,
    /// Another one, by its name.
    Other(String),
}

/// How a guest is virtualized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Virtualization {
    /// As a whole computer with firmware.
    #[default]
    Full,
    /// Xen's paravirtualization: a kernel that knows it.
    Pv,
    /// Xen's PV in a hardware container.
    Pvh,
    /// A container that shares the host's kernel.
    Container,
}

/// What starts a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Firmware {
    /// Its kind; absent if the description leaves it to the platform.
    pub kind: Option<FirmwareKind>,
    /// Whether only signed programs start; absent if the description does not say.
    pub secure_boot: Option<bool>,
    /// Whose signatures count.
    pub template: Option<String>,
    /// Its program, if the description names one.
    pub loader: Option<String>,
    /// Its variables.
    pub nvram: Option<FileRef>,
}

/// Kinds of firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// A PC's.
    Bios,
    /// UEFI.
    Uefi,
}

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Processors {
    /// How many; absent if the description leaves it to the platform.
    pub count: Option<u32>,
    /// How many can be added while it runs, those that it has included.
    pub maximum: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Cores of each socket.
    pub cores: Option<u32>,
    /// Threads of each core.
    pub threads: Option<u32>,
    /// The model, in the platform's words.
    pub model: Option<String>,
    /// Whether the guest can be a hypervisor itself.
    pub nested: Option<bool>,
}

impl From<Cpus> for Processors {
    fn from(cpus: Cpus) -> Self {
        let is_said = cpus.sockets.or(cpus.cores).or(cpus.threads).is_some();
        // All of it, so that other programs need not conclude anything.
        let cpus = cpus.topology().filter(|_| is_said).map_or(cpus, Cpus::from);
        let Cpus { count, sockets, cores, threads } = cpus;
        Self { count, sockets, cores, threads, ..Self::default() }
    }
}

impl Processors {
    /// Whether anything is said of how they are divided.
    pub(crate) fn is_divided(&self) -> bool {
        self.sockets.or(self.cores).or(self.threads).is_some()
    }

    /// So many of them as they are divided.
    pub(crate) fn divided(&self, count: u32) -> Cpus {
        Cpus {
            count: Some(count),
            // Those that can be added while it runs are the last ones.
            sockets: self.sockets.filter(|_| self.maximum.is_none_or(|most| most <= count)),
            cores: self.cores,
            threads: self.threads,
        }
    }

    /// As they are run here: cores of one socket if they cannot be what was said.
    pub(crate) fn to_cpus(&self) -> Cpus {
        let count = self.count.map(|count| count.min(MAX_CPUS));
        match self.divided(count.unwrap_or(1)).topology() {
            Some(topology) if topology != Topology::cores(topology.count()) => topology.into(),
            _ => Cpus { count, ..Cpus::default() },
        }
    }

    /// Threads of each socket: its cores for those who know no threads.
    pub(crate) fn threads_of_socket(&self) -> Option<u32> {
        Some(self.cores?.saturating_mul(self.threads.unwrap_or(1)))
    }
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryAmount {
    /// How much it starts with.
    pub size: Option<u64>,
    /// How little the platform may leave to it.
    pub minimum: Option<u64>,
    /// How much the platform may give to it.
    pub maximum: Option<u64>,
    /// Whether huge pages are asked for.
    pub hugepages: bool,
}

/// A kernel or boot loader outside of the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: Option<FileRef>,
    /// The initial file system.
    pub initrd: Option<FileRef>,
    /// What the kernel is told.
    pub cmdline: Option<String>,
    /// The program on the host that takes a kernel out of a disk, such as `pygrub`.
    pub bootloader: Option<String>,
    /// What is tried in turn, in the platform's words.
    pub order: Vec<String>,
}

impl Architecture {
    /// From any of its usual names.
    pub(crate) fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "x86_64" | "amd64" | "x64" | "x86_64p" => Self::X86_64,
            "i386" | "i486" | "i586" | "i686" | "x86" | "x86_32" | "x86_32p" => Self::X86,
            "aarch64" | "arm64" => Self::Arm64,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// Its name as the kernel writes it.
    pub fn name(&self) -> &str {
        match self {
            Self::X86_64 => "x86_64",
            Self::X86 => "i686",
            Self::Arm64 => "aarch64",
            Self::Other(name) => name,
        }
    }
}

impl FirmwareKind {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        }
    }
}
