//! Containers, and Windows' Linux subsystem.

use crate::facts::Facts;
use crate::report::{Confidence, Evidence, Layer, LayerKind, Role};

/// The containers around this process, innermost first.
pub(super) fn layers(facts: &Facts) -> Vec<Layer> {
    let mut list: Vec<Layer> = engine(facts).into_iter().collect();
    if facts.container.kubernetes {
        let evidence =
            vec![Evidence::new("environment and /var/run/secrets", "Kubernetes' service account")];
        list.push(layer("kubernetes", "Kubernetes", Confidence::Likely, evidence));
    }
    list.extend(wsl(facts));
    list
}

/// One kind of container: stable name, name, and a piece of the control group path that only it
/// makes.
const ENGINES: [(&str, &str, &[&str]); 8] = [
    ("docker", "Docker", &["/docker/", "/docker-"]),
    ("podman", "Podman", &["/libpod-", "/libpod_pod"]),
    ("kubernetes", "Kubernetes", &["/kubepods"]),
    ("lxc", "LXC", &["/lxc/", "/lxc.payload"]),
    ("containerd", "containerd", &["/cri-containerd", "/containerd"]),
    ("cri-o", "CRI-O", &["/crio-"]),
    (
        "systemd-nspawn",
        "systemd-nspawn",
        &["/machine.slice/systemd-nspawn", "/machine.slice/machine-"],
    ),
    ("garden", "Garden", &["/garden/"]),
];

/// Whether a control group path was made by a container engine. Others are nobody's business.
pub(crate) fn made_by_container_engine(path: &str) -> bool {
    ENGINES.iter().any(|(.., pieces)| pieces.iter().any(|piece| path.contains(piece)))
}

fn engine(facts: &Facts) -> Option<Layer> {
    let traces = &facts.container;
    let mut evidence = Vec::new();
    let mut found: Option<(String, String, Confidence)> = None;
    let mut vote = |id: &str, confidence: Confidence, said: Evidence| {
        evidence.push(said);
        let name = ENGINES.iter().find(|(known, ..)| *known == id).map_or(id, |&(_, name, _)| name);
        if found.as_ref().is_none_or(|(_, _, before)| *before < confidence) {
            found = Some((id.to_owned(), name.to_owned(), confidence));
        }
    };
    if let Some(manager) = traces.manager.as_deref().filter(|manager| *manager != "wsl") {
        vote(
            manager,
            Confidence::Certain,
            Evidence::new("environment of process 1", format!("container={manager}")),
        );
    }
    for path in &traces.cgroup {
        let engine =
            ENGINES.iter().find(|(.., pieces)| pieces.iter().any(|piece| path.contains(piece)));
        if let Some((id, ..)) = engine {
            vote(id, Confidence::Certain, Evidence::new("/proc/self/cgroup", path));
        }
    }
    if traces.openvz {
        vote("openvz", Confidence::Certain, Evidence::new("/proc/vz", "there, without /proc/bc"));
    }
    if facts.log_line(&["gvisor"]).is_some() {
        vote("gvisor", Confidence::Certain, Evidence::new("kernel log", "gVisor's own"));
    }
    if traces.containerenv {
        vote("podman", Confidence::Likely, Evidence::new("/run/.containerenv", "there"));
    }
    if traces.dockerenv {
        vote("docker", Confidence::Likely, Evidence::new("/.dockerenv", "there"));
    }
    let (id, name, mut confidence) = found?;
    let mut note = None;
    if traces.process_2.as_deref() == Some("kthreadd") && confidence < Confidence::Certain {
        confidence = Confidence::Possible;
        note = Some(
            "Process 2 is kthreadd, so this is the PID namespace of the whole machine: probably \
             no container, but a root \
             file system that was made from a container image"
                .to_owned(),
        );
    }
    Some(Layer { note, ..layer(&id, &name, confidence, evidence) })
}

/// Windows' Linux subsystem: version 1 has no Linux kernel, version 2 has one made by Microsoft in
/// a small virtual machine.
fn wsl(facts: &Facts) -> Option<Layer> {
    let release = &facts.kernel.release;
    let evidence = |file: &str, says: &str| vec![Evidence::new(file, says)];
    let kernel = "/proc/sys/kernel/osrelease";
    if release.ends_with("-Microsoft") {
        let note =
            "There is no Linux kernel: CPUID is the processor's as Windows sees it".to_owned();
        let wsl = layer("wsl1", "WSL 1 (Windows)", Confidence::Certain, evidence(kernel, release));
        Some(Layer { note: Some(note), ..wsl })
    } else if release.contains("microsoft") || release.contains("WSL") {
        Some(layer("wsl2", "WSL 2 (Windows)", Confidence::Certain, evidence(kernel, release)))
    } else if facts.container.wsl_interop {
        let says = evidence("/proc/sys/fs/binfmt_misc/WSLInterop", "there");
        Some(layer("wsl2", "WSL 2 (Windows)", Confidence::Likely, says))
    } else {
        None
    }
}

fn layer(id: &str, name: &str, confidence: Confidence, evidence: Vec<Evidence>) -> Layer {
    Layer {
        kind: LayerKind::Container,
        id: id.into(),
        name: name.into(),
        monitor: None,
        role: Role::Guest,
        confidence,
        evidence,
        note: None,
    }
}
