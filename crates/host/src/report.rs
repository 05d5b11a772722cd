//! The verdict on a machine, and the one function that reaches it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::facts::{Facts, Node};
use crate::proof::ProofResult;
use crate::{cpu, inside, kvm, platforms};

/// What this computer can do, with evidence, and what to type to change it.
///
/// Its JSON form is stable: fields and the `kebab-case` words in them may be added, and are never
/// renamed, removed or given another meaning without a new [`schema`](Self::schema) number. Texts
/// (`reason`, `note`, `says`, `explain`) are for people and may change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the form of this report: 1.
    pub schema: u32,
    /// The processor, and what firmware lets it do.
    pub cpu: CpuReport,
    /// What the program runs inside of, innermost first; empty on bare metal.
    pub inside: Vec<Layer>,
    /// KVM in detail.
    pub kvm: KvmReport,
    /// The engines of this program: `kvm`, `soft`.
    pub engines: Vec<Candidate>,
    /// Hypervisor products, as a host of virtual machines: `xen`, `vmware`, `virtualbox`,
    /// `hyper-v`, `parallels`, `libvirt`.
    pub platforms: Vec<Candidate>,
    /// Who uses the processor's virtualization now, and who else wants it.
    pub holders: Vec<Holder>,
    /// What `omnivisor run` would do.
    pub choice: Choice,
    /// What the same command would also know as root; empty if nothing was hidden.
    pub root_would_add: Vec<String>,
}

/// Something that was seen, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// A file, a CPUID leaf, a register, a measurement.
    pub source: String,
    /// What it says.
    pub says: String,
}

/// One way to change something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// What it does, or where to do it if there is no command.
    pub explain: String,
    /// What to type; absent if it cannot be done from a shell on this machine.
    pub command: Option<String>,
}

/// The processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// CPUID's vendor string, for example `GenuineIntel`.
    pub vendor: String,
    /// Its name as its maker, or the hypervisor, gives it.
    pub model: String,
    /// Virtualization extensions: `vt-x`, `ept`, `vpid`, `unrestricted-guest`, `tdx`; `amd-v`,
    /// `npt`, `nrips`, `avic`, `vgif`, `sev`, `sev-es`, `sev-snp`; `nested`, `iommu`. Those of the
    /// other maker are left out, as are parts of an extension that is absent.
    pub extensions: Vec<Extension>,
    /// Whether firmware lets the extension be used.
    pub firmware: Firmware,
}

/// A processor extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Stable name.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Whether it is there.
    pub state: Presence,
    /// How we know.
    pub evidence: Vec<Evidence>,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// There, and on.
    Present,
    /// There, and switched off by a setting of the kernel or of a module.
    Off,
    /// Not there.
    Absent,
    /// Nobody told.
    Unknown,
}

/// Firmware's word on hardware virtualization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// The setting.
    pub state: FirmwareState,
    /// How we know.
    pub evidence: Vec<Evidence>,
    /// Where to change it.
    pub repair: Vec<Repair>,
}

/// What firmware did to the register that enables virtualization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareState {
    /// It may be used.
    Enabled,
    /// It was switched off and the setting locked until the next reset.
    LockedOff,
    /// Nobody told.
    Unknown,
    /// The processor has no such extension.
    NotApplicable,
}

/// One thing that the program runs inside of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What kind of thing it is.
    pub kind: LayerKind,
    /// Stable name: `kvm`, `xen`, `vmware`, `hyper-v`, `virtualbox`, `parallels`, `qemu-tcg`,
    /// `bhyve`, `acrn`, ..., `unknown`; `docker`, `podman`, `wsl2`, ...; `aws`, `google-cloud`,
    /// `azure`, ...
    pub id: String,
    /// Name for people.
    pub name: String,
    /// The program that drives the hypervisor, where it can be told: `qemu`, `firecracker`,
    /// `cloud-hypervisor`, ...
    pub monitor: Option<String>,
    /// Our part in it.
    pub role: Role,
    /// How sure we are.
    pub confidence: Confidence,
    /// What speaks for it.
    pub evidence: Vec<Evidence>,
    /// What speaks against it, or what others take it for.
    pub note: Option<String>,
}

/// The kind of a [`Layer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// Shares its kernel with others.
    Container,
    /// Has a virtual processor.
    Hypervisor,
    /// Whose computer it is.
    Cloud,
}

/// Our part in a [`Layer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// One of its guests.
    Guest,
    /// A guest whose kernel knows that it has no real processor (Xen PV).
    ParavirtualGuest,
    /// The privileged system that manages it: Xen's dom0, Hyper-V's root partition. It is not a
    /// guest in the ordinary sense.
    Manager,
    /// A whole computer of a cloud.
    BareMetal,
}

/// How sure a statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// One sign that can have other reasons.
    Possible,
    /// Good signs, but not the hypervisor's own word.
    Likely,
    /// The hypervisor's or the kernel's own word, and nothing against it.
    Certain,
}

/// KVM in detail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvmReport {
    /// `/dev/kvm`, if it is there.
    pub node: Option<Node>,
    /// The module behind it: `kvm_intel`, `kvm_amd`, or another one.
    pub module: Option<String>,
    /// Parameters of that module and of `kvm`, as `module.parameter`.
    pub parameters: BTreeMap<String, String>,
    /// What running a tiny guest showed; absent if it was not tried.
    pub proof: Option<ProofResult>,
}

/// An engine or a platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Stable name.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// The verdict.
    pub state: Usability,
    /// Why, in one sentence.
    pub reason: String,
    /// How we know.
    pub evidence: Vec<Evidence>,
    /// What would make it usable, best first; empty if it is, or if nothing would.
    pub repair: Vec<Repair>,
}

/// The verdict on a [`Candidate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usability {
    /// It can run guests now, for this user.
    Usable,
    /// Some of it is there, but it cannot.
    Unusable,
    /// It is not there.
    Absent,
}

/// Someone who uses the processor's virtualization extension, or wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// `kvm`, `xen`, `hyper-v`, `vmware`, `virtualbox`.
    pub id: String,
    /// Whether it has it now; otherwise it is loaded and will want it when its next guest starts.
    pub holds: bool,
    /// How we know.
    pub evidence: Vec<Evidence>,
}

/// What `omnivisor run` would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The engine, if there is a usable one.
    pub engine: Option<String>,
    /// Why this one, or why none.
    pub reason: String,
    /// Every other engine and platform, and why not it.
    pub rejected: Vec<Rejected>,
}

/// One that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Which engine or platform.
    pub id: String,
    /// Why not.
    pub reason: String,
}

/// Reaches the verdict. It reads nothing but its arguments.
pub fn report(facts: &Facts, proof: Option<&ProofResult>) -> Report {
    let inside = inside::layers(facts);
    let firmware = cpu::firmware(facts, &inside);
    let kvm = kvm::candidate(facts, &inside, &firmware, proof);
    let engines = vec![kvm, soft_engine()];
    let holders = platforms::holders(facts, &inside);
    let platforms = platforms::candidates(facts, &inside, &holders);
    let choice = choose(&engines, &platforms);
    let cpuinfo_model = Some(&facts.cpuinfo.model).filter(|model| !model.is_empty()).cloned();
    Report {
        schema: SCHEMA,
        cpu: CpuReport {
            vendor: facts.cpuid.vendor(),
            model: cpuinfo_model.unwrap_or_else(|| facts.cpuid.brand()),
            extensions: cpu::extensions(facts, &inside),
            firmware,
        },
        inside,
        kvm: kvm::details(facts, proof),
        engines,
        platforms,
        holders,
        choice,
        root_would_add: root_would_add(facts),
    }
}

const SCHEMA: u32 = 1;

impl Report {
    /// The engine that `run` would choose.
    pub fn usable_engine(&self) -> Option<&Candidate> {
        let chosen = self.choice.engine.as_deref()?;
        self.engines.iter().find(|engine| engine.id == chosen)
    }

    /// An engine or platform by its stable name.
    pub fn candidate(&self, id: &str) -> Option<&Candidate> {
        self.engines.iter().chain(&self.platforms).find(|candidate| candidate.id == id)
    }
}

impl Evidence {
    pub(crate) fn new(source: impl Into<String>, says: impl Into<String>) -> Self {
        Self { source: source.into(), says: says.into() }
    }
}

impl Repair {
    pub(crate) fn command(explain: impl Into<String>, command: impl Into<String>) -> Self {
        Self { explain: explain.into(), command: Some(command.into()) }
    }

    pub(crate) fn advice(explain: impl Into<String>) -> Self {
        Self { explain: explain.into(), command: None }
    }
}

/// The software processor needs nothing but an x86-64 computer, which this program runs on.
fn soft_engine() -> Candidate {
    Candidate {
        id: "soft".into(),
        name: "software processor".into(),
        state: Usability::Usable,
        reason: "Works on every x86-64 computer, slower than a hypervisor".into(),
        evidence: Vec::new(),
        repair: Vec::new(),
    }
}

/// The first usable engine, in the order of their speed. Platforms are not chosen: `run` runs
/// guests in its own process.
fn choose(engines: &[Candidate], platforms: &[Candidate]) -> Choice {
    let chosen = engines.iter().find(|engine| engine.state == Usability::Usable);
    let rejected_engines =
        engines.iter().filter(|engine| chosen.is_none_or(|chosen| chosen.id != engine.id));
    let rejected_platforms = platforms.iter().map(|platform| Rejected {
        id: platform.id.clone(),
        reason: match platform.state {
            Usability::Usable => {
                "It runs guests of its own; `run` starts them in its own process, with an engine"
                    .to_owned()
            }
            _ => platform.reason.clone(),
        },
    });
    let rejected = rejected_engines
        .map(|engine| Rejected { id: engine.id.clone(), reason: engine.reason.clone() })
        .chain(rejected_platforms)
        .collect();
    Choice {
        engine: chosen.map(|engine| engine.id.clone()),
        reason: match chosen {
            Some(engine) => engine.reason.clone(),
            None => "No engine can run guests on this computer".to_owned(),
        },
        rejected,
    }
}

/// What was hidden from this user, in words.
fn root_would_add(facts: &Facts) -> Vec<String> {
    if facts.caller.euid == 0 {
        return Vec::new();
    }
    let mut hidden = Vec::new();
    let has_extension = facts.cpuid.vmx() || facts.cpuid.svm();
    let msr_refused =
        facts.msrs.values().any(|reading| matches!(reading, crate::facts::Msr::Errno(_)));
    if has_extension && (msr_refused || facts.msrs.is_empty()) {
        let driver =
            if facts.modules.contains_key("msr") { "" } else { ", after `sudo modprobe msr`" };
        hidden.push(format!(
            "The firmware lock from the processor's own register (/dev/cpu/0/msr{driver})"
        ));
    }
    if facts.kernel.log.is_none() {
        hidden.push(
            "The kernel's log: what KVM, the IOMMU and the hypervisor said at boot".to_owned(),
        );
    }
    if facts.denied.contains("/proc/1/environ") && facts.container.manager.is_none() {
        hidden.push(
            "The environment of process 1, where container managers leave their name".to_owned(),
        );
    }
    if facts.denied.contains("/proc/xen/capabilities") {
        hidden.push("Whether this is Xen's dom0 (/proc/xen/capabilities)".to_owned());
    }
    hidden
}
