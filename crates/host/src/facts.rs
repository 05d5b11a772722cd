//! What was read from this computer, before anybody judged it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cpuid::{CpuidDump, CpuidSource, Registers};

/// Everything that [`crate::report()`] judges by. It is plain data: a machine that was captured, or
/// invented by a test, is judged by the same code as the one that the program runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The CPUID leaves that matter.
    pub cpuid: CpuidDump,
    /// `/proc/cpuinfo`, first processor.
    pub cpuinfo: Cpuinfo,
    /// The kernel, its parameters and its log.
    pub kernel: Kernel,
    /// Who asks.
    pub caller: Caller,
    /// Device nodes and sockets that are there, by path.
    pub nodes: BTreeMap<String, Node>,
    /// Kernel modules that are loaded or built in and have a folder in `/sys/module`, by name with
    /// underscores.
    pub modules: BTreeMap<String, Module>,
    /// Model-specific registers of processor 0, by number.
    pub msrs: BTreeMap<u32, Msr>,
    /// What the firmware says that this computer is; absent where there is no SMBIOS.
    pub dmi: Option<Dmi>,
    /// Names of the ACPI tables.
    pub acpi_tables: BTreeSet<String>,
    /// Whether the computer was started by UEFI.
    pub efi: bool,
    /// PCI vendor numbers that are on the bus.
    pub pci_vendors: BTreeSet<u16>,
    /// Traces of Xen.
    pub xen: XenFacts,
    /// The I/O memory management unit.
    pub iommu: IommuFacts,
    /// Traces of containers.
    pub container: ContainerFacts,
    /// Programs found in PATH, with where they are.
    pub programs: BTreeMap<String, String>,
    /// Where this distribution's packages come from.
    pub distribution: Distribution,
    /// What could not be read for lack of permission, by path.
    pub denied: BTreeSet<String>,
}

/// What `/proc/cpuinfo` says. Linux removes `vmx` and `svm` from the flags when it finds them
/// locked off by firmware, so this is another witness than CPUID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpuinfo {
    /// `vendor_id`.
    pub vendor: String,
    /// `model name`.
    pub model: String,
    /// `flags`.
    pub flags: BTreeSet<String>,
    /// `vmx flags`, which Linux 5.6 and later print on processors with VT-x.
    pub vmx_flags: Option<BTreeSet<String>>,
}

/// The running kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// As `uname -r`.
    pub release: String,
    /// Command-line parameters that concern virtualization.
    pub parameters: Vec<String>,
    /// Log lines that concern virtualization; absent if the log cannot be read.
    pub log: Option<Vec<String>>,
    /// Whether `kernel.modules_disabled` forbids loading modules.
    pub modules_disabled: bool,
    /// KVM's modules as files or as part of the kernel, by name with underscores; empty if
    /// `/lib/modules` has nothing for this kernel.
    pub available: BTreeMap<String, Availability>,
    /// Kernel versions that have a folder in `/lib/modules`.
    pub installed: BTreeSet<String>,
    /// Lines of modprobe's configuration that concern KVM, with their file.
    pub modprobe: Vec<String>,
}

/// How a kernel has a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// A file that modprobe can load.
    Loadable,
    /// Part of the kernel image.
    BuiltIn,
}

/// The user that the program runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Effective user number.
    pub euid: u32,
    /// Names of the groups of this process.
    pub groups: BTreeSet<String>,
    /// Names of the groups that `/etc/group` gives to the user: those that a new login would have.
    pub assigned_groups: BTreeSet<String>,
}

/// A device node or socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Permission bits.
    pub mode: u32,
    /// Number of the owner.
    pub owner: u32,
    /// Name of the group, or its number if it has no name here.
    pub group: String,
    /// Error number of opening it for reading and writing; absent if that works.
    pub errno: Option<i32>,
}

/// A loaded kernel module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Module {
    /// How many use it; absent for one built in.
    pub users: Option<u32>,
    /// Its readable parameters.
    pub parameters: BTreeMap<String, String>,
}

/// One reading of a model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Msr {
    /// Its value.
    Value(u64),
    /// The error number of reading it.
    Errno(i32),
}

/// SMBIOS strings from `/sys/class/dmi/id`. Serial numbers are never read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dmi {
    /// `sys_vendor`.
    pub system_vendor: String,
    /// `product_name`.
    pub product: String,
    /// `product_version`.
    pub version: String,
    /// `board_vendor`.
    pub board_vendor: String,
    /// `bios_vendor`.
    pub bios_vendor: String,
    /// `bios_version`.
    pub bios_version: String,
    /// `chassis_vendor`.
    pub chassis_vendor: String,
    /// `chassis_asset_tag`; some clouds write their name there.
    pub chassis_asset_tag: String,
}

/// Traces of Xen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct XenFacts {
    /// `/sys/hypervisor/type`.
    pub hypervisor_type: Option<String>,
    /// `/sys/hypervisor/guest_type`: PV, HVM or PVH.
    pub guest_type: Option<String>,
    /// `/sys/hypervisor/properties/features`, a bit mask in hexadecimal.
    pub features: Option<u64>,
    /// `/sys/hypervisor/version` as `4.17.3`.
    pub version: Option<String>,
    /// The UUID begins with `ec2`, as Amazon's do.
    pub uuid_is_ec2: bool,
    /// `/proc/xen` exists.
    pub proc_xen: bool,
    /// `/proc/xen/capabilities`.
    pub capabilities: Option<String>,
}

/// Traces of an I/O memory management unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IommuFacts {
    /// Folders in `/sys/kernel/iommu_groups`.
    pub groups: usize,
    /// Units in `/sys/class/iommu`.
    pub units: Vec<String>,
}

/// Traces of containers and of Windows' Linux subsystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFacts {
    /// `/.dockerenv` exists.
    pub dockerenv: bool,
    /// `/run/.containerenv` exists (Podman).
    pub containerenv: bool,
    /// `/run/systemd/container` or `container=` in the environment of process 1.
    pub manager: Option<String>,
    /// Path of this process in the control group hierarchy, one line per hierarchy.
    pub cgroup: Vec<String>,
    /// Name of process 2: `kthreadd` is seen only from the PID namespace of the whole machine.
    pub process_2: Option<String>,
    /// User numbers of this process are not those of the machine.
    pub user_namespace: bool,
    /// Kubernetes has told this process about itself.
    pub kubernetes: bool,
    /// `/proc/vz` without `/proc/bc`: inside an OpenVZ or Virtuozzo container.
    pub openvz: bool,
    /// A handler for Windows programs is registered.
    pub wsl_interop: bool,
}

/// The Linux distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// `ID` and `ID_LIKE` of `/etc/os-release`.
    pub ids: Vec<String>,
}

impl Facts {
    /// Whether `/dev/kvm` is there and could be opened, so that a proof is worth trying.
    pub fn kvm_opens(&self) -> bool {
        self.nodes.get("/dev/kvm").is_some_and(|node| node.errno.is_none())
    }

    /// Whether Linux is at least this version.
    pub(crate) fn kernel_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers =
            self.kernel.release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }

    /// The first log line that contains all of `words`, in any case.
    pub(crate) fn log_line(&self, words: &[&str]) -> Option<&str> {
        let lines = self.kernel.log.as_deref().unwrap_or_default();
        lines.iter().map(String::as_str).find(|line| {
            let line = line.to_ascii_lowercase();
            words.iter().all(|word| line.contains(word))
        })
    }

    /// A parameter of a loaded module.
    pub(crate) fn parameter(&self, module: &str, name: &str) -> Option<&str> {
        self.modules.get(module)?.parameters.get(name).map(String::as_str)
    }

    /// Whether a parameter of a loaded module is on.
    pub(crate) fn parameter_is_on(&self, module: &str, name: &str) -> Option<bool> {
        self.parameter(module, name).map(|value| matches!(value, "Y" | "y" | "1"))
    }

    /// A CPUID leaf's sub-leaf 0.
    pub(crate) fn cpuid_leaf(&self, leaf: u32) -> Registers {
        self.cpuid.leaf(leaf, 0)
    }

    /// The value of a model-specific register, if it could be read.
    pub(crate) fn msr(&self, number: u32) -> Option<u64> {
        match self.msrs.get(&number) {
            Some(Msr::Value(value)) => Some(*value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        let kernel = |release: &str| Facts {
            kernel: Kernel { release: release.into(), ..Default::default() },
            ..Default::default()
        };
        assert!(kernel("6.1.0-18-cloud-amd64").kernel_at_least(5, 6));
        assert!(kernel("5.10.0").kernel_at_least(5, 6));
        assert!(!kernel("5.4.0-150-generic").kernel_at_least(5, 6));
        assert!(kernel("6.12+deb13-amd64").kernel_at_least(6, 12));
        assert!(!kernel("").kernel_at_least(2, 6));
    }
}
