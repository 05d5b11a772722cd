//! The processor's extensions, and whether firmware lets them be used.

use crate::facts::Facts;
use crate::msr;
use crate::report::{
    Evidence, Extension, Firmware, FirmwareState, Layer, LayerKind, Presence, Repair, Role,
};

/// Whose words the processor speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// VT-x: Intel, VIA and Zhaoxin.
    Intel,
    /// AMD-V: AMD and Hygon.
    Amd,
}

impl Maker {
    pub(crate) fn of(facts: &Facts) -> Self {
        let vendor = facts.cpuid.vendor();
        let amd = facts.cpuid.svm() || vendor == "AuthenticAMD" || vendor == "HygonGenuine";
        if amd && !facts.cpuid.vmx() { Self::Amd } else { Self::Intel }
    }

    /// The flag in `/proc/cpuinfo`.
    pub(crate) fn flag(self) -> &'static str {
        if self == Self::Intel { "vmx" } else { "svm" }
    }

    /// KVM's module.
    pub(crate) fn module(self) -> &'static str {
        if self == Self::Intel { "kvm_intel" } else { "kvm_amd" }
    }

    /// The extension's name.
    pub(crate) fn extension(self) -> &'static str {
        if self == Self::Intel { "VT-x" } else { "AMD-V" }
    }
}

/// Whether the processor has VT-x or AMD-V, by CPUID or by the kernel's word.
pub(crate) fn has_extension(facts: &Facts) -> bool {
    facts.cpuid.vmx()
        || facts.cpuid.svm()
        || ["vmx", "svm"].iter().any(|&flag| facts.cpuinfo.flags.contains(flag))
}

/// Whether it can be used as well: a kernel that Xen paravirtualizes sees the processor's own CPUID.
pub(crate) fn usable_extension(facts: &Facts, inside: &[Layer]) -> bool {
    has_extension(facts) && !inside.iter().any(|layer| layer.role == Role::ParavirtualGuest)
}

/// The extensions of this processor's maker.
pub(crate) fn extensions(facts: &Facts, inside: &[Layer]) -> Vec<Extension> {
    let maker = Maker::of(facts);
    let mut main = main_extension(facts, maker);
    let usable = usable_extension(facts, inside);
    if !usable && main.state == Presence::Present {
        main.state = Presence::Absent;
        let says = "a PV guest sees the processor's own CPUID, and cannot use this";
        main.evidence.push(Evidence::new("Xen", says));
    }
    let mut list = vec![main];
    if usable {
        match maker {
            Maker::Intel => list.extend(intel(facts)),
            Maker::Amd => list.extend(amd(facts)),
        }
        list.push(nested(facts, maker));
    }
    list.push(iommu(facts));
    list
}

/// Whether firmware locked the extension off: by the register, by the kernel's log, or by what the
/// kernel made of it.
pub(crate) fn firmware(facts: &Facts, inside: &[Layer]) -> Firmware {
    let maker = Maker::of(facts);
    let enabled = |evidence| Firmware {
        state: FirmwareState::Enabled,
        evidence: vec![evidence],
        repair: Vec::new(),
    };
    let locked = |evidence| Firmware {
        state: FirmwareState::LockedOff,
        evidence: vec![evidence],
        repair: setup_repair(facts, maker, inside),
    };
    if let Some((locked_off, evidence)) = firmware_register(facts, maker) {
        return if locked_off { locked(evidence) } else { enabled(evidence) };
    }
    if let Some(line) = disabled_in_log(facts) {
        return locked(Evidence::new("kernel log", line));
    }
    if !usable_extension(facts, inside) {
        return Firmware {
            state: FirmwareState::NotApplicable,
            evidence: Vec::new(),
            repair: Vec::new(),
        };
    }
    if facts.modules.contains_key(maker.module()) {
        let says = "loaded, which it refuses to be where firmware has locked the extension off";
        return enabled(Evidence::new(format!("/sys/module/{}", maker.module()), says));
    }
    // Linux clears the flag when it finds the lock: VT-x since 5.6, AMD-V since 6.7. Xen hides the
    // flag from its dom0 anyway.
    let clears_flag = match maker {
        Maker::Intel => facts.kernel_at_least(5, 6),
        Maker::Amd => facts.kernel_at_least(6, 7),
    };
    let has_cpuinfo = !facts.cpuinfo.flags.is_empty();
    let xen = inside.iter().any(|layer| layer.id == "xen");
    if clears_flag && has_cpuinfo && !xen {
        let flag = maker.flag();
        return if facts.cpuinfo.flags.contains(flag) {
            let says = format!("Linux {} kept the flag `{flag}`", facts.kernel.release);
            enabled(Evidence::new("/proc/cpuinfo", says))
        } else {
            let says = format!(
                "CPUID has {}, but Linux {} cleared the flag `{flag}`, which it does where \
                 firmware has locked it off",
                maker.extension(),
                facts.kernel.release
            );
            locked(Evidence::new("/proc/cpuinfo", says))
        };
    }
    Firmware { state: FirmwareState::Unknown, evidence: Vec::new(), repair: Vec::new() }
}

/// Whether the register locks the extension off, if it could be read.
fn firmware_register(facts: &Facts, maker: Maker) -> Option<(bool, Evidence)> {
    match maker {
        Maker::Intel => {
            let value = facts.msr(msr::FEATURE_CONTROL)?;
            let (lock, outside_smx) = (value & 1 != 0, value & 4 != 0);
            let says = match (lock, outside_smx) {
                (true, true) => "locked with VMX on",
                (true, false) => "locked with VMX off",
                (false, _) => "not locked, so that the kernel may switch VMX on",
            };
            let source = "MSR 0x3a IA32_FEATURE_CONTROL";
            Some((lock && !outside_smx, Evidence::new(source, format!("{value:#x}: {says}"))))
        }
        Maker::Amd => {
            let value = facts.msr(msr::VM_CR)?;
            let disabled = value & (1 << 4) != 0;
            let says = if disabled { "SVM disabled" } else { "SVM allowed" };
            Some((disabled, Evidence::new("MSR 0xc0010114 VM_CR", format!("{value:#x}: {says}"))))
        }
    }
}

/// The kernel's words changed over the years; all contain one of these pairs.
fn disabled_in_log(facts: &Facts) -> Option<&str> {
    const WORDS: [[&str; 2]; 6] = [
        ["vmx", "disabled by bios"],
        ["kvm", "disabled by bios"],
        ["svm", "disabled by bios"],
        ["vmx", "(by bios)"],
        ["svm", "(by bios)"],
        ["kvm", "(by bios)"],
    ];
    WORDS.iter().find_map(|words| facts.log_line(words))
}

/// Where the setting is. Makers name and place it differently; the names are from their manuals.
fn setup_repair(facts: &Facts, maker: Maker, inside: &[Layer]) -> Vec<Repair> {
    if inside.iter().any(|layer| layer.kind == LayerKind::Hypervisor) {
        // The firmware of a virtual machine has no such setting; the hypervisor's configuration
        // decides.
        return Vec::new();
    }
    let dmi = facts.dmi.clone().unwrap_or_default();
    let maker_of_board = format!("{} {}", dmi.system_vendor, dmi.board_vendor).to_ascii_lowercase();
    let intel = maker == Maker::Intel;
    let by_maker: [(&str, &str, &str); 9] = [
        (
            "lenovo",
            "Security > Virtualization > Intel Virtualization Technology",
            "Security > Virtualization > AMD SVM Technology",
        ),
        ("dell", "Virtualization Support > Virtualization", "Virtualization Support > SVM Mode"),
        (
            "hewlett",
            "Security > System Security > Virtualization Technology (VTx)",
            "Security > System Security > SVM CPU Virtualization",
        ),
        (
            "hp",
            "Security > System Security > Virtualization Technology (VTx)",
            "Security > System Security > SVM CPU Virtualization",
        ),
        (
            "asus",
            "Advanced > CPU Configuration > Intel (VMX) Virtualization Technology",
            "Advanced > CPU Configuration > SVM Mode",
        ),
        (
            "gigabyte",
            "Tweaker > Advanced CPU Settings > VT-x",
            "Tweaker > Advanced CPU Settings > SVM Mode",
        ),
        (
            "micro-star",
            "OC > CPU Features > Intel Virtualization Tech",
            "OC > CPU Features > SVM Mode",
        ),
        (
            "asrock",
            "Advanced > CPU Configuration > Intel Virtualization Technology",
            "Advanced > CPU Configuration > SVM Mode",
        ),
        (
            "supermicro",
            "Advanced > CPU Configuration > Intel Virtualization Technology",
            "Advanced > CPU Configuration > SVM Mode",
        ),
    ];
    let place = by_maker.iter().find(|(name, ..)| maker_of_board.contains(name)).map_or(
        if intel {
            "Intel Virtualization Technology (VT-x, VMX or Vanderpool), usually under Advanced \
             or Security > CPU Configuration"
        } else {
            "SVM Mode (AMD-V), usually under Advanced > CPU Configuration"
        },
        |&(_, for_intel, for_amd)| if intel { for_intel } else { for_amd },
    );
    let explain = format!(
        "In the firmware setup switch on {place}, save, and switch the computer off and on again"
    );
    if facts.efi {
        vec![Repair::command(explain, "sudo systemctl reboot --firmware-setup")]
    } else {
        vec![Repair::advice(explain)]
    }
}

fn extension(id: &str, name: &str, state: Presence, evidence: Vec<Evidence>) -> Extension {
    Extension { id: id.into(), name: name.into(), state, evidence }
}

fn main_extension(facts: &Facts, maker: Maker) -> Extension {
    let (id, leaf, by_cpuid) = match maker {
        Maker::Intel => ("vt-x", "CPUID 0x1 ECX bit 5 (VMX)", facts.cpuid.vmx()),
        Maker::Amd => ("amd-v", "CPUID 0x80000001 ECX bit 2 (SVM)", facts.cpuid.svm()),
    };
    let mut evidence = vec![Evidence::new(leaf, if by_cpuid { "1" } else { "0" })];
    let flag = maker.flag();
    let by_kernel = facts.cpuinfo.flags.contains(flag);
    if !facts.cpuinfo.flags.is_empty() {
        let says =
            format!("{} `{flag}`", if by_kernel { "has the flag" } else { "lacks the flag" });
        evidence.push(Evidence::new("/proc/cpuinfo", says));
    }
    let state = if by_cpuid || by_kernel { Presence::Present } else { Presence::Absent };
    extension(id, maker.extension(), state, evidence)
}

/// Parts of VT-x: the kernel's list, the module's parameters, or the register with what may be
/// switched on.
fn intel(facts: &Facts) -> Vec<Extension> {
    // Name, what /proc/cpuinfo calls it, parameter of kvm_intel, bit of IA32_VMX_PROCBASED_CTLS2
    // (Intel SDM volume 3, 24.6.2).
    const PARTS: [(&str, &str, &str, &str, u32); 4] = [
        ("ept", "EPT (nested paging)", "ept", "ept", 1),
        ("vpid", "VPID", "vpid", "vpid", 5),
        ("unrestricted-guest", "unrestricted guest", "unrestricted_guest", "unrestricted_guest", 7),
        ("apicv", "APICv", "apicv", "enable_apicv", 8),
    ];
    // Bit 31 of the primary controls says that the secondary ones exist; the upper half is what may
    // be 1.
    let secondary = facts.msr(msr::VMX_PROCBASED_CTLS).filter(|controls| controls & (1 << 63) != 0);
    let secondary = secondary.and_then(|_| facts.msr(msr::VMX_PROCBASED_CTLS2));
    let mut list: Vec<Extension> = PARTS
        .iter()
        .map(|&(id, name, flag, parameter, bit)| {
            let by_register = secondary.map(|controls| {
                let allowed = controls & (1 << (32 + bit)) != 0;
                let source = format!(
                    "MSR {:#x} IA32_VMX_PROCBASED_CTLS2 bit {}",
                    msr::VMX_PROCBASED_CTLS2,
                    32 + bit
                );
                (allowed, Evidence::new(source, if allowed { "1" } else { "0" }))
            });
            let by_kernel = facts.cpuinfo.vmx_flags.as_ref().map(|flags| {
                let has = flags.contains(flag);
                let says = format!("{} `{flag}`", if has { "has" } else { "lacks" });
                (has, Evidence::new("/proc/cpuinfo vmx flags", says))
            });
            with_parameter(
                facts,
                "kvm_intel",
                parameter,
                extension(id, name, Presence::Unknown, vec![]),
                [by_register, by_kernel],
            )
        })
        .collect();
    list.push(tdx(facts));
    list
}

/// Parts of AMD-V: leaf 0x8000000a EDX, and what the module does with them.
fn amd(facts: &Facts) -> Vec<Extension> {
    // AMD64 APM volume 3, appendix E.4.
    const PARTS: [(&str, &str, &str, u32); 5] = [
        ("npt", "NPT (nested paging)", "npt", 0),
        ("nrips", "next RIP", "nrips", 3),
        ("avic", "AVIC", "avic", 13),
        ("vgif", "virtual GIF", "vgif", 16),
        ("vnmi", "virtual NMI", "vnmi", 25),
    ];
    let features = facts.cpuid_leaf(0x8000_000a).edx;
    let secure = facts.cpuid_leaf(0x8000_001f).eax;
    let part = |id: &str, name: &str, parameter: &str, leaf: &str, bit: u32, value: u32| {
        let has = value & (1 << bit) != 0;
        let evidence =
            Evidence::new(format!("CPUID {leaf} bit {bit}"), if has { "1" } else { "0" });
        let blank = extension(id, name, Presence::Unknown, vec![]);
        with_parameter(facts, "kvm_amd", parameter, blank, [Some((has, evidence)), None])
    };
    let mut list: Vec<Extension> = PARTS
        .iter()
        .map(|&(id, name, parameter, bit)| {
            part(id, name, parameter, "0x8000000a EDX", bit, features)
        })
        .collect();
    // AMD64 APM volume 3, appendix E.4.17.
    for (id, name, parameter, bit) in [
        ("sev", "SEV", "sev", 1),
        ("sev-es", "SEV-ES", "sev_es", 3),
        ("sev-snp", "SEV-SNP", "sev_snp", 4),
    ] {
        list.push(part(id, name, parameter, "0x8000001f EAX", bit, secure));
    }
    list
}

/// The state from what the hardware has and what the module uses of it.
fn with_parameter(
    facts: &Facts,
    module: &str,
    parameter: &str,
    mut part: Extension,
    hardware: [Option<(bool, Evidence)>; 2],
) -> Extension {
    let mut has = None;
    for (found, evidence) in hardware.into_iter().flatten() {
        has = Some(has.unwrap_or(false) || found);
        part.evidence.push(evidence);
    }
    let used = facts.parameter_is_on(module, parameter);
    if let Some(value) = facts.parameter(module, parameter) {
        part.evidence
            .push(Evidence::new(format!("/sys/module/{module}/parameters/{parameter}"), value));
    }
    part.state = match (has, used) {
        (_, Some(true)) => Presence::Present,
        (Some(true), Some(false)) => Presence::Off,
        (Some(true), None) => Presence::Present,
        (Some(false), _) => Presence::Absent,
        // A module that has it off either lacks it or was told so; nobody else knows.
        (None, _) => Presence::Unknown,
    };
    part
}

fn tdx(facts: &Facts) -> Extension {
    let mut evidence = Vec::new();
    let keys = facts.msr(msr::MKTME_KEYID_PARTITIONING).map(|value| value >> 32);
    if let Some(keys) = keys {
        evidence.push(Evidence::new(
            "MSR 0x87 IA32_MKTME_KEYID_PARTITIONING",
            format!("{keys} keys for TDX"),
        ));
    }
    let log = facts.log_line(&["virt/tdx"]);
    evidence.extend(log.map(|line| Evidence::new("kernel log", line)));
    let used = facts.parameter_is_on("kvm_intel", "tdx");
    if let Some(value) = facts.parameter("kvm_intel", "tdx") {
        evidence.push(Evidence::new("/sys/module/kvm_intel/parameters/tdx", value));
    }
    let state = match (used, keys) {
        (Some(true), _) => Presence::Present,
        (_, Some(keys)) if keys > 0 => Presence::Off,
        (_, Some(_)) => Presence::Absent,
        _ if log.is_some() => Presence::Off,
        _ => Presence::Unknown,
    };
    extension("tdx", "TDX", state, evidence)
}

fn nested(facts: &Facts, maker: Maker) -> Extension {
    let module = maker.module();
    let blank = extension("nested", "nested guests", Presence::Unknown, vec![]);
    let Some(value) = facts.parameter(module, "nested") else { return blank };
    let state = if facts.parameter_is_on(module, "nested") == Some(true) {
        Presence::Present
    } else {
        Presence::Off
    };
    let evidence = Evidence::new(format!("/sys/module/{module}/parameters/nested"), value);
    Extension { state, evidence: vec![evidence], ..blank }
}

fn iommu(facts: &Facts) -> Extension {
    let mut evidence = Vec::new();
    if facts.iommu.groups > 0 {
        evidence.push(Evidence::new(
            "/sys/kernel/iommu_groups",
            format!("{} groups", facts.iommu.groups),
        ));
    }
    if !facts.iommu.units.is_empty() {
        evidence.push(Evidence::new("/sys/class/iommu", facts.iommu.units.join(" ")));
    }
    let table =
        ["DMAR", "IVRS", "VIOT"].into_iter().find(|&table| facts.acpi_tables.contains(table));
    if let Some(table) = table {
        evidence.push(Evidence::new("/sys/firmware/acpi/tables", format!("{table} describes one")));
    }
    let parameter = facts.kernel.parameters.iter().find(|word| word.contains("iommu"));
    if let Some(parameter) = parameter {
        evidence.push(Evidence::new("/proc/cmdline", parameter));
    }
    let state = if facts.iommu.groups > 0 {
        Presence::Present
    } else if table.is_some() || !facts.iommu.units.is_empty() {
        Presence::Off
    } else if facts.acpi_tables.is_empty() {
        Presence::Unknown
    } else {
        evidence.push(Evidence::new("/sys/firmware/acpi/tables", "no DMAR, IVRS or VIOT"));
        Presence::Absent
    };
    extension("iommu", "IOMMU", state, evidence)
}
