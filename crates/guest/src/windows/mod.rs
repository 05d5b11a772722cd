//! Windows: what it is, by its registry, and what must change there before it starts on other storage.

mod hive;
mod storage;

use std::sync::Arc;

pub use self::storage::{RegistryChange, RegistryPlan, plan};
use crate::os::Os;
use crate::{Result, Tree};
use hive::Hive;

const FOLDER: &str = "/Windows/System32/config";
/// First build that calls itself 11, which its product name does not.
const ELEVEN: u32 = 22000;

/// Agents and tools by the services that they install.
const TOOLS: [(&str, &[&str]); 8] = [
    ("VMware tools", &["VMTools"]),
    ("VirtualBox additions", &["VBoxService", "VBoxGuest"]),
    ("Parallels tools", &["prl_tools", "prl_tools_service"]),
    ("QEMU guest agent", &["QEMU-GA", "QEMU Guest Agent"]),
    ("virtio drivers", &["viostor", "vioscsi", "netkvm"]),
    ("Xen guest utilities", &["XenAgent", "XenSvc", "xenbus"]),
    ("cloudbase-init", &["cloudbase-init"]),
    ("Azure agent", &["WindowsAzureGuestAgent"]),
];

/// A tree is that of a Windows system.
pub fn is_windows(tree: &Tree) -> bool {
    tree.is_file(&path_of("SOFTWARE"))
}

/// What is installed in `tree`.
pub fn look(tree: &Tree) -> Os {
    let mut os = Os { kind: "windows", name: Some("Windows".into()), ..Os::default() };
    // What cannot be read is not known.
    if let Ok(software) = open(tree, "SOFTWARE") {
        let _ = version(&software, &mut os);
    }
    if let Ok(system) = open(tree, "SYSTEM") {
        let _ = machine(&system, &mut os);
    }
    os
}

/// A hive with its transaction logs.
fn open(tree: &Tree, name: &str) -> Result<Hive> {
    let path = path_of(name);
    let logs = [".LOG1", ".LOG2"].map(|end| tree.open(&format!("{path}{end}")));
    let logs: Vec<Arc<_>> = logs.into_iter().flatten().collect();
    Hive::open(tree.open(&path)?, &logs)
}

fn path_of(hive: &str) -> String {
    format!("{FOLDER}/{hive}")
}

fn version(hive: &Hive, os: &mut Os) -> Result<()> {
    let Some(key) = hive.key("Microsoft\\Windows NT\\CurrentVersion")? else { return Ok(()) };
    let values = hive.values(&key)?;
    let find = |name: &str| values.iter().find(|value| value.name.eq_ignore_ascii_case(name));
    let text = |name: &str| find(name)?.text().filter(|text| !text.is_empty());
    let number = |name: &str| find(name)?.number();
    let build = text("CurrentBuildNumber").or_else(|| text("CurrentBuild"));
    let is_server = text("InstallationType").is_some_and(|kind| kind.starts_with("Server"));
    let is_eleven = build
        .as_ref()
        .and_then(|build| build.parse().ok())
        .is_some_and(|build: u32| build >= ELEVEN);
    let mut name = text("ProductName");
    if let Some(name) = name.as_mut().filter(|_| is_eleven && !is_server) {
        *name = name.replace("Windows 10", "Windows 11");
    }
    // Service packs of old versions, half-years of new ones.
    let more = text("CSDVersion").or_else(|| text("DisplayVersion")).or_else(|| text("ReleaseId"));
    os.name = match (name, more) {
        (Some(name), Some(more)) => Some(format!("{name} {more}")),
        (name, _) => name.or(os.name.take()),
    };
    os.id = Some("windows".into());
    os.version = number("CurrentMajorVersionNumber")
        .zip(number("CurrentMinorVersionNumber"))
        .map(|(major, minor)| format!("{major}.{minor}"))
        .or_else(|| text("CurrentVersion"));
    os.edition = text("EditionID");
    os.build = build.map(|build| match number("UBR") {
        Some(revision) => format!("{build}.{revision}"),
        None => build,
    });
    Ok(())
}

fn machine(hive: &Hive, os: &mut Os) -> Result<()> {
    let set = control_sets(hive)?.into_iter().next().unwrap_or_else(|| "ControlSet001".into());
    let text = |path: &str, name: &str| -> Result<Option<String>> {
        let Some(key) = hive.key(&format!("{set}\\{path}"))? else { return Ok(None) };
        let value = hive.value(&key, name)?.and_then(|value| value.text());
        Ok(value.filter(|text| !text.is_empty()))
    };
    os.hostname = match text("Services\\Tcpip\\Parameters", "Hostname")? {
        Some(name) => Some(name),
        None => text("Control\\ComputerName\\ComputerName", "ComputerName")?,
    };
    let environment = "Control\\Session Manager\\Environment";
    os.architecture = match text(environment, "PROCESSOR_ARCHITECTURE")?.as_deref() {
        Some("AMD64") => Some("x86_64"),
        Some("x86") => Some("i686"),
        Some("ARM64") => Some("aarch64"),
        _ => None,
    };
    let is_there =
        |name: &&str| hive.key(&format!("{set}\\Services\\{name}")).is_ok_and(|key| key.is_some());
    let tools = TOOLS.iter().filter(|(_, services)| services.iter().any(&is_there));
    os.tools = tools.map(|(name, _)| *name).collect();
    Ok(())
}

/// The names of the sets of services that may be started next, the likely one first.
fn control_sets(hive: &Hive) -> Result<Vec<String>> {
    let Some(key) = hive.key("Select")? else { return Ok(Vec::new()) };
    let mut sets = Vec::new();
    for name in ["Default", "Current"] {
        let number = hive.value(&key, name)?.and_then(|value| value.number());
        let set = number.map(|number| format!("ControlSet{number:03}"));
        sets.extend(set.filter(|set| !sets.contains(set)));
    }
    Ok(sets)
}

/// The names of all sets of services: Windows takes another one when the likely one does not start.
fn all_control_sets(hive: &Hive) -> Result<Vec<String>> {
    let mut sets = control_sets(hive)?;
    let names = hive.key("")?.map(|root| hive.names(&root)).transpose()?.unwrap_or_default();
    let is_set = |name: &String| {
        let number = name.get(..10).filter(|start| start.eq_ignore_ascii_case("ControlSet"));
        number.is_some()
            && name[10..].bytes().all(|digit| digit.is_ascii_digit())
            && name.len() > 10
    };
    for name in names.into_iter().filter(is_set) {
        if !sets.iter().any(|set| set.eq_ignore_ascii_case(&name)) {
            sets.push(name);
        }
    }
    // `Select` may name one that is not there.
    let mut there = Vec::new();
    for set in sets {
        if hive.key(&set)?.is_some() {
            there.push(set);
        }
    }
    Ok(there)
}

/// Opens any bytes as a hive and reads what is looked for; must return whatever they are.
pub fn fuzz_hive(bytes: &[u8]) {
    let file: Arc<dyn crate::volume::Volume> = Arc::new(crate::volume::Memory(bytes.to_vec()));
    let Ok(hive) = Hive::open(Arc::clone(&file), &[file]) else { return };
    let mut os = Os::default();
    let _ = version(&hive, &mut os);
    let _ = machine(&hive, &mut os);
    let _ = storage::changes(&hive, &mut RegistryPlan::default());
    for path in ["", "a", "Select", "Microsoft"] {
        if let Ok(Some(key)) = hive.key(path) {
            let _ = hive.values(&key);
        }
    }
}

#[cfg(test)]
mod tests;
