//! Reads [`Facts`] from a machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::capture::Capture;
use crate::cpuid::{CpuidDump, CpuidSource, NativeCpuid};
use crate::facts::{
    Availability, ContainerFacts, Cpuinfo, Distribution, Dmi, Facts, IommuFacts, Kernel, Module,
    XenFacts,
};
use crate::inside::made_by_container_engine;
use crate::msr;
use crate::root::Root;

impl Facts {
    /// Reads the machine whose root folder this is, `/` for the one that the program runs on. What
    /// is not there, or may not be read, is missing in the facts; nothing here fails.
    pub fn gather(root: &Path, cpuid: &dyn CpuidSource) -> Self {
        gather(&Root::folder(root), CpuidDump::of(cpuid))
    }

    /// Reads the machine that the program runs on.
    pub fn of_this_machine() -> Self {
        Self::gather(Path::new("/"), &NativeCpuid)
    }

    /// Reads a machine that was captured.
    pub fn replay(capture: &Capture) -> Self {
        gather(&Root::capture(capture), CpuidDump::of(&capture.cpuid))
    }
}

impl Capture {
    /// Writes down everything that [`Facts::gather`] reads from this root folder.
    pub fn of(root: &Path, cpuid: &dyn CpuidSource) -> Self {
        let cpuid = CpuidDump::of(cpuid);
        let root = Root::folder(root);
        gather(&root, cpuid.clone());
        let source = "captured".to_owned();
        Self { source, cpuid, ..root.into_record() }
    }
}

/// Nodes whose permissions matter, and whether it is harmless to open them.
const NODES: [(&str, bool); 16] = [
    ("/dev/kvm", true),
    ("/dev/mshv", false),
    ("/dev/vboxdrv", false),
    ("/dev/vmmon", false),
    ("/dev/vmnet0", false),
    ("/dev/prl_vm_host", false),
    ("/dev/prl_tg", false),
    ("/dev/xen/privcmd", false),
    ("/dev/sev", false),
    ("/dev/sev-guest", false),
    ("/dev/tdx_guest", false),
    ("/dev/vhost-net", false),
    ("/dev/acrn_hsm", false),
    ("/run/libvirt/libvirt-sock", false),
    ("/run/libvirt/virtqemud-sock", false),
    ("/run/libvirt/libvirt-sock-ro", false),
];

const PROGRAMS: [&str; 14] = [
    "VBoxManage",
    "VBoxControl",
    "vmware",
    "vmrun",
    "vmplayer",
    "vmware-modconfig",
    "xl",
    "xe",
    "prlctl",
    "virsh",
    "libvirtd",
    "virtqemud",
    "qemu-system-x86_64",
    "modprobe",
];

/// Modules other than KVM's whose presence tells something.
const MODULES: [&str; 18] = [
    "vboxdrv",
    "vboxguest",
    "vmmon",
    "vmnet",
    "vmw_balloon",
    "mshv",
    "mshv_root",
    "mshv_vtl",
    "hv_vmbus",
    "xen_privcmd",
    "xen_blkfront",
    "prl_tg",
    "prl_fs",
    "msr",
    "vhost_net",
    "ccp",
    "firmware_attributes_class",
    "acrn",
];

const KVM_MODULES: [&str; 4] = ["kvm", "kvm_intel", "kvm_amd", "kvm_pvm"];

fn gather(root: &Root<'_>, cpuid: CpuidDump) -> Facts {
    let mut facts = Facts { cpuid, caller: root.caller(), ..Default::default() };
    facts.cpuinfo = cpuinfo(root);
    facts.kernel = kernel(root);
    facts.nodes = NODES
        .iter()
        .filter_map(|&(path, open)| Some((path.to_owned(), root.node(path, open)?)))
        .collect();
    facts.programs =
        PROGRAMS.iter().filter_map(|&name| Some((name.to_owned(), root.program(name)?))).collect();
    facts.modules = modules(root);
    facts.msrs = msr::wanted(&facts.cpuid)
        .into_iter()
        .filter_map(|number| Some((number, root.msr(number)?)))
        .collect();
    facts.dmi = dmi(root);
    facts.acpi_tables =
        root.list("/sys/firmware/acpi/tables", |name| name.len() <= 5).unwrap_or_default();
    facts.efi = root.list("/sys/firmware/efi", |_| false).is_some();
    facts.pci_vendors = pci_vendors(root);
    facts.xen = xen(root);
    facts.iommu = iommu(root);
    facts.container = container(root);
    facts.distribution = distribution(root);
    facts.denied = root.denied();
    facts
}

fn cpuinfo(root: &Root<'_>) -> Cpuinfo {
    const FIELDS: [&str; 4] = ["vendor_id", "model name", "flags", "vmx flags"];
    let first_processor = |text: &str| {
        let first = text.split("\n\n").next().unwrap_or_default();
        let wanted = first.lines().filter(|line| FIELDS.contains(&field(line).0));
        wanted.map(|line| format!("{line}\n")).collect()
    };
    let text = root.read_part("/proc/cpuinfo", first_processor).unwrap_or_default();
    let mut cpuinfo = Cpuinfo::default();
    for line in text.lines() {
        let (name, value) = field(line);
        let words = || value.split_whitespace().map(str::to_owned).collect();
        match name {
            "vendor_id" => cpuinfo.vendor = value.to_owned(),
            "model name" => cpuinfo.model = value.to_owned(),
            "flags" => cpuinfo.flags = words(),
            "vmx flags" => cpuinfo.vmx_flags = Some(words()),
            _ => {}
        }
    }
    cpuinfo
}

/// Name and value of a `name : value` line.
fn field(line: &str) -> (&str, &str) {
    line.split_once(':').map_or((line, ""), |(name, value)| (name.trim(), value.trim()))
}

fn kernel(root: &Root<'_>) -> Kernel {
    let release = root.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let parameters = root.read_part("/proc/cmdline", |text| {
        let wanted =
            text.split_whitespace().take_while(|&word| word != "--").filter_map(relevant_parameter);
        wanted.collect::<Vec<_>>().join(" ")
    });
    let folder = format!("/lib/modules/{release}");
    let built_in = root.read_part(&format!("{folder}/modules.builtin"), |text| {
        text.lines().filter(|line| line.contains("/kvm/")).map(|line| format!("{line}\n")).collect()
    });
    let files = root.list(&format!("{folder}/kernel/arch/x86/kvm"), |_| true);
    let mut available = BTreeMap::new();
    for file in files.unwrap_or_default() {
        available.insert(module_name(&file), Availability::Loadable);
    }
    for line in built_in.unwrap_or_default().lines() {
        let file = line.rsplit('/').next().unwrap_or_default();
        available.insert(module_name(file), Availability::BuiltIn);
    }
    available.retain(|name, _| KVM_MODULES.contains(&name.as_str()));
    Kernel {
        parameters: parameters.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        log: root.kernel_log(|line| is_relevant(&line.to_ascii_lowercase())),
        modules_disabled: root.read("/proc/sys/kernel/modules_disabled").as_deref() == Some("1"),
        available,
        installed: root.list("/lib/modules", |_| true).unwrap_or_default(),
        modprobe: modprobe_lines(root),
        release,
    }
}

/// The part of a kernel parameter that concerns virtualization. Values that could be private are
/// left out.
fn relevant_parameter(word: &str) -> Option<&str> {
    const WHOLE: [&str; 10] = [
        "intel_iommu=",
        "amd_iommu=",
        "iommu=",
        "iommu.",
        "module_blacklist=",
        "modprobe.blacklist=",
        "kvm",
        "reboot=",
        "pci=",
        "mem_encrypt=",
    ];
    if word == "nomodule" || WHOLE.iter().any(|start| word.starts_with(start)) {
        return Some(word);
    }
    word.starts_with("virtio_mmio.device=").then_some("virtio_mmio.device=")
}

fn is_relevant(line: &str) -> bool {
    const NOISE: [&str; 3] = ["kvm-clock", "kvm-guest", "command line:"];
    const WORDS: [&str; 20] = [
        "disabled by bios",
        "(by bios)",
        "hypervisor detected",
        "paravirtualized kernel",
        "acpi: rsdp",
        "iommu enabled",
        "amd-vi: found iommu",
        "kvm: ",
        "kvm-",
        "kvm_",
        "sev supported",
        "sev-es supported",
        "sev-snp supported",
        "virt/tdx",
        "memory encryption features",
        "mshv",
        "hyper-v: ",
        "xen version",
        "gvisor",
        "not supported by cpu",
    ];
    WORDS.iter().any(|word| line.contains(word)) && !NOISE.iter().any(|word| line.contains(word))
}

/// `kvm-intel.ko.xz` is the file of the module `kvm_intel`.
fn module_name(file: &str) -> String {
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn modprobe_lines(root: &Root<'_>) -> Vec<String> {
    const FOLDERS: [&str; 4] =
        ["/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"];
    let mut lines = Vec::new();
    let mut seen = BTreeSet::new();
    for folder in FOLDERS {
        for name in root.list(folder, |name| name.ends_with(".conf")).unwrap_or_default() {
            // A name in an earlier folder replaces the same name in a later one.
            if !seen.insert(name.clone()) {
                continue;
            }
            let path = format!("{folder}/{name}");
            let concerns_kvm = |text: &str| {
                let wanted = text.lines().map(str::trim).filter(|line| {
                    let mut words = line.split_whitespace();
                    let command = words.next().unwrap_or_default();
                    let module = words.next().unwrap_or_default().replace('-', "_");
                    ["blacklist", "install", "options"].contains(&command)
                        && KVM_MODULES.contains(&module.as_str())
                });
                wanted.map(|line| format!("{line}\n")).collect()
            };
            let text = root.read_part(&path, concerns_kvm).unwrap_or_default();
            lines.extend(text.lines().map(|line| format!("{path}: {line}")));
        }
    }
    lines
}

fn modules(root: &Root<'_>) -> BTreeMap<String, Module> {
    let wanted = |name: &str| name.starts_with("kvm") || MODULES.contains(&name);
    let loaded = root.list("/sys/module", wanted).unwrap_or_default();
    let module = |name: &String| {
        let folder = format!("/sys/module/{name}");
        let parameters = if name.starts_with("kvm") {
            root.list(&format!("{folder}/parameters"), |_| true).unwrap_or_default()
        } else {
            BTreeSet::new()
        };
        let value = |parameter: String| {
            let value = root.read(&format!("{folder}/parameters/{parameter}"))?;
            Some((parameter, value))
        };
        Module {
            users: root.read(&format!("{folder}/refcnt")).and_then(|count| count.parse().ok()),
            parameters: parameters.into_iter().filter_map(value).collect(),
        }
    };
    loaded.iter().map(|name| (name.clone(), module(name))).collect()
}

fn dmi(root: &Root<'_>) -> Option<Dmi> {
    let read = |name: &str| root.read(&format!("/sys/class/dmi/id/{name}"));
    let system_vendor = read("sys_vendor");
    let bios_vendor = read("bios_vendor");
    if system_vendor.is_none() && bios_vendor.is_none() {
        return None;
    }
    let read = |name: &str| read(name).unwrap_or_default();
    Some(Dmi {
        product: read("product_name"),
        version: read("product_version"),
        board_vendor: read("board_vendor"),
        bios_version: read("bios_version"),
        chassis_vendor: read("chassis_vendor"),
        chassis_asset_tag: read("chassis_asset_tag"),
        system_vendor: system_vendor.unwrap_or_default(),
        bios_vendor: bios_vendor.unwrap_or_default(),
    })
}

/// The second column of `/proc/bus/pci/devices` is vendor and device, four hexadecimal digits each.
fn pci_vendors(root: &Root<'_>) -> BTreeSet<u16> {
    let vendor =
        |line: &str| u16::from_str_radix(line.split_whitespace().nth(1)?.get(..4)?, 16).ok();
    let text = root.read_part("/proc/bus/pci/devices", |text| {
        let vendors: BTreeSet<u16> = text.lines().filter_map(vendor).collect();
        vendors.iter().map(|vendor| format!("0000 {vendor:04x}\n")).collect()
    });
    text.unwrap_or_default().lines().filter_map(vendor).collect()
}

fn xen(root: &Root<'_>) -> XenFacts {
    let uuid = root.read_part("/sys/hypervisor/uuid", |text| text.chars().take(3).collect());
    let features = root.read("/sys/hypervisor/properties/features");
    let number = |name: &str| root.read(&format!("/sys/hypervisor/version/{name}"));
    let version = number("major").zip(number("minor"));
    XenFacts {
        hypervisor_type: root.read("/sys/hypervisor/type"),
        guest_type: root.read("/sys/hypervisor/guest_type"),
        features: features
            .and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()),
        version: version.map(|(major, minor)| {
            format!("{major}.{minor}{}", number("extra").unwrap_or_default())
        }),
        uuid_is_ec2: uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case("ec2")),
        proc_xen: root.list("/proc/xen", |_| true).is_some(),
        capabilities: root.read("/proc/xen/capabilities"),
    }
}

fn iommu(root: &Root<'_>) -> IommuFacts {
    let groups = root.list("/sys/kernel/iommu_groups", |_| true).unwrap_or_default();
    let units = root.list("/sys/class/iommu", |_| true).unwrap_or_default();
    IommuFacts { groups: groups.len(), units: units.into_iter().collect() }
}

fn container(root: &Root<'_>) -> ContainerFacts {
    let of_process_1 = root.read_part("/proc/1/environ", |text| {
        text.split('\0')
            .find(|variable| variable.starts_with("container="))
            .unwrap_or_default()
            .to_owned()
    });
    let of_process_1 =
        of_process_1.and_then(|variable| Some(variable.strip_prefix("container=")?.to_owned()));
    let kubernetes = root.read_part("/proc/self/environ", |text| {
        let known = |variable: &str| variable.starts_with("KUBERNETES_SERVICE_HOST=");
        if text.split('\0').any(known) {
            "KUBERNETES_SERVICE_HOST=".to_owned()
        } else {
            String::new()
        }
    });
    // The identity mapping of all user numbers: "0 0 4294967295".
    let user_namespace = root
        .read_part("/proc/self/uid_map", |text| {
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .is_some_and(|map| !map.is_empty() && map != "0 0 4294967295");
    let cgroup = root.read_part("/proc/self/cgroup", |text| {
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let paths: BTreeSet<_> = paths.filter(|path| made_by_container_engine(path)).collect();
        paths.into_iter().map(|path| format!("0::{path}\n")).collect()
    });
    ContainerFacts {
        dockerenv: root.has_file("/.dockerenv"),
        containerenv: root.has_file("/run/.containerenv"),
        manager: root
            .read("/run/systemd/container")
            .or(of_process_1)
            .filter(|name| !name.is_empty()),
        cgroup: cgroup
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2).map(str::to_owned))
            .collect(),
        process_2: root.read("/proc/2/comm"),
        user_namespace,
        kubernetes: kubernetes.is_some_and(|text| !text.is_empty())
            || root.list("/var/run/secrets/kubernetes.io", |_| false).is_some(),
        openvz: root.list("/proc/vz", |_| false).is_some()
            && root.list("/proc/bc", |_| false).is_none(),
        wsl_interop: root.has_file("/proc/sys/fs/binfmt_misc/WSLInterop"),
    }
}

fn distribution(root: &Root<'_>) -> Distribution {
    let wanted = |line: &&str| line.starts_with("ID=") || line.starts_with("ID_LIKE=");
    let text = root.read_part("/etc/os-release", |text| {
        text.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
    });
    let ids = text.unwrap_or_default();
    let ids = ids.lines().filter_map(|line| line.split_once('=')).flat_map(|(_, value)| {
        value.trim_matches(['"', '\'']).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    Distribution { ids: ids.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_parameters_about_virtualization_are_kept() {
        assert_eq!(relevant_parameter("intel_iommu=on"), Some("intel_iommu=on"));
        assert_eq!(relevant_parameter("kvm_intel.nested=1"), Some("kvm_intel.nested=1"));
        assert_eq!(
            relevant_parameter("virtio_mmio.device=4K@0xd0000000:5"),
            Some("virtio_mmio.device=")
        );
        assert_eq!(relevant_parameter("password=secret"), None);
    }

    #[test]
    fn log_lines_about_virtualization_are_kept_and_the_clock_is_not() {
        assert!(is_relevant("x86/cpu: vmx (outside txt) disabled by bios"));
        assert!(is_relevant("kvm_amd: svm disabled (by bios) in msr_vm_cr on cpu 3"));
        assert!(!is_relevant("kvm-clock: using msrs 4b564d01 and 4b564d00"));
        assert!(!is_relevant("kernel command line: kvm-x=1"));
        assert!(!is_relevant("usb 1-1: new device"));
    }

    #[test]
    fn a_modules_file_name_gives_its_name() {
        assert_eq!(module_name("kvm-intel.ko.xz"), "kvm_intel");
        assert_eq!(module_name("kvm.ko"), "kvm");
    }
}
