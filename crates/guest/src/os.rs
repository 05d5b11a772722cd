//! The operating system in a tree of files.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::fs::Kind;
use crate::volume::at;
use crate::{Tree, windows};

const MAX_TEXT: u64 = 1 << 20;
/// Most files of network configuration that are listed.
const MAX_NETWORK: usize = 256;

/// What is known of an operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Os {
    /// `linux` or `windows`.
    pub kind: &'static str,
    /// os-release's ID, such as `debian`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Windows' edition, such as `Professional`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edition: Option<String>,
    /// Windows' build, with its revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Its name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Architecture of its programs, as `uname -m` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<&'static str>,
    /// Its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Kernels that it has modules for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
    /// Agents and tools of hypervisors and clouds in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<&'static str>,
    /// What it mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fstab: Vec<Fstab>,
    /// Files that configure its network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<String>,
    /// Interfaces that these name.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub interfaces: BTreeSet<String>,
}

/// A line of fstab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fstab {
    /// What is mounted.
    pub spec: String,
    /// Where.
    pub path: String,
    /// As what.
    pub kind: String,
    /// How.
    pub options: String,
}

impl Fstab {
    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Agents and tools by the programs that they consist of.
const TOOLS: [(&str, &[&str]); 8] = [
    ("VMware tools", &["/usr/bin/vmtoolsd", "/usr/sbin/vmtoolsd"]),
    (
        "VirtualBox additions",
        &[
            "/usr/sbin/VBoxService",
            "/usr/bin/VBoxService",
            "/opt/VBoxGuestAdditions/sbin/VBoxService",
        ],
    ),
    (
        "Hyper-V daemons",
        &["/usr/sbin/hv_kvp_daemon", "/usr/sbin/hypervkvpd", "/usr/lib/linux-tools/hv_kvp_daemon"],
    ),
    ("Parallels tools", &["/usr/bin/prltoolsd", "/usr/sbin/prltoolsd"]),
    ("QEMU guest agent", &["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"]),
    ("Xen guest utilities", &["/usr/sbin/xe-daemon", "/usr/sbin/xe-linux-distribution"]),
    ("cloud-init", &["/usr/bin/cloud-init"]),
    ("Azure agent", &["/usr/sbin/waagent", "/usr/bin/waagent"]),
];

/// A tree looks like the root of a system.
pub fn is_root(tree: &Tree) -> bool {
    let is_linux = tree.is_file("/etc/os-release")
        || tree.is_file("/usr/lib/os-release")
        || tree.is_file("/etc/fstab") && tree.is_folder("/bin");
    is_linux || windows::is_windows(tree)
}

/// What is installed in `tree`.
pub fn look(tree: &Tree) -> Os {
    if windows::is_windows(tree) {
        return windows::look(tree);
    }
    let text = |path: &str| tree.read_text(path, MAX_TEXT).ok();
    let release = text("/etc/os-release").or_else(|| text("/usr/lib/os-release"));
    let release = release.unwrap_or_default();
    let field = |name: &str| release_field(&release, name);
    let older = || {
        let name = text("/etc/redhat-release").or_else(|| text("/etc/SuSE-release"));
        name.and_then(|name| name.lines().next().map(str::to_owned))
    };
    let mut os = Os {
        kind: "linux",
        id: field("ID"),
        version: field("VERSION_ID"),
        name: field("PRETTY_NAME").or_else(|| field("NAME")).or_else(older),
        architecture: architecture(tree),
        hostname: hostname(tree),
        ..Os::default()
    };
    for folder in ["/usr/lib/modules", "/lib/modules"] {
        let kernels = tree.names(folder).into_iter();
        os.kernels = kernels
            .filter(|kernel| tree.is_file(&format!("{folder}/{kernel}/modules.dep")))
            .collect();
        if !os.kernels.is_empty() {
            break;
        }
    }
    let is_there = |paths: &[&str]| paths.iter().any(|path| tree.is_file(path));
    os.tools = TOOLS.iter().filter(|(_, paths)| is_there(paths)).map(|(name, _)| *name).collect();
    os.fstab = fstab(&text("/etc/fstab").unwrap_or_default());
    network(tree, &mut os);
    os
}

/// A value of os-release, which is written as a shell would read it.
fn release_field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim();
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = inner('"').or_else(|| inner('\'')).unwrap_or(value);
    let plain = value.replace('\\', "");
    (!plain.is_empty()).then_some(plain)
}

fn hostname(tree: &Tree) -> Option<String> {
    let text = tree.read_text("/etc/hostname", MAX_TEXT).unwrap_or_default();
    let name = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    // Red Hat before systemd.
    let older = || {
        let text = tree.read_text("/etc/sysconfig/network", MAX_TEXT).ok()?;
        release_field(&text, "HOSTNAME")
    };
    name.map(str::to_owned).or_else(older)
}

/// By the ELF header of a program that every system has.
fn architecture(tree: &Tree) -> Option<&'static str> {
    let programs = ["/usr/bin/sh", "/bin/sh", "/sbin/init", "/usr/bin/env", "/bin/busybox"];
    programs.iter().find_map(|program| {
        let elf = tree.read(program, 64 << 20).ok()?;
        if !elf.starts_with(b"\x7fELF") {
            return None;
        }
        Some(match (at::le16(&elf, 18)?, elf.get(4)?) {
            (62, 2) => "x86_64",
            (62, _) => "x32",
            (3, _) => "i686",
            (183, _) => "aarch64",
            (40, _) => "arm",
            (243, _) => "riscv64",
            (21, _) => "ppc64le",
            (22, _) => "s390x",
            _ => return None,
        })
    })
}

/// The lines of an fstab.
fn fstab(text: &str) -> Vec<Fstab> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(unescape);
            let (spec, path, kind) = (words.next()?, words.next()?, words.next()?);
            let options = words.next().unwrap_or_else(|| "defaults".into());
            Some(Fstab { spec, path, kind, options })
        })
        .take(256)
        .collect()
}

/// Blanks are written as octal numbers.
fn unescape(word: &str) -> String {
    word.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn network(tree: &Tree, os: &mut Os) {
    let folders = [
        ("/etc/network/interfaces.d", ""),
        ("/etc/netplan", ".yaml"),
        ("/etc/systemd/network", ".network"),
        ("/etc/systemd/network", ".link"),
        ("/etc/NetworkManager/system-connections", ""),
        ("/etc/sysconfig/network-scripts", ""),
        ("/etc/sysconfig/network", ""),
        ("/etc/udev/rules.d", "-net.rules"),
    ];
    let mut files = vec!["/etc/network/interfaces".to_owned()];
    for (folder, end) in folders {
        for entry in tree.read_dir(folder).unwrap_or_default() {
            let is_wanted = match folder {
                "/etc/sysconfig/network-scripts" | "/etc/sysconfig/network" => {
                    entry.name.starts_with("ifcfg-") && entry.name != "ifcfg-lo"
                }
                _ => entry.name.ends_with(end),
            };
            if is_wanted && entry.kind != Kind::Folder {
                files.push(format!("{folder}/{}", entry.name));
            }
        }
    }
    files.sort_unstable();
    for path in files.into_iter().take(MAX_NETWORK) {
        let Ok(text) = tree.read_text(&path, MAX_TEXT) else { continue };
        let before = os.interfaces.len();
        interfaces(&path, &text, &mut os.interfaces);
        // ifupdown's own file is there even if it configures nothing.
        if path != "/etc/network/interfaces" || os.interfaces.len() > before {
            os.network.push(path);
        }
    }
}

/// The interfaces that a file names.
fn interfaces(path: &str, text: &str, found: &mut BTreeSet<String>) {
    let mut add = |name: &str| {
        let name = name.trim().trim_matches(['"', '\'']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name != "lo" && (1..16).contains(&name.len()) && name.chars().all(is_name) {
            found.insert(name.to_owned());
        }
    };
    let mut section: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if path.starts_with("/etc/netplan") {
            // Names are the keys one level below "ethernets:".
            match section {
                Some(above) if indent <= above => section = None,
                Some(above) if indent <= above + 4 && line.ends_with(':') => {
                    let name = line.trim_end_matches(':');
                    if !name.contains(' ')
                        && !matches!(name, "match" | "addresses" | "nameservers" | "routes")
                    {
                        add(name);
                    }
                }
                _ => {}
            }
            if matches!(line, "ethernets:" | "vlans:" | "bridges:" | "bonds:") {
                section = Some(indent);
            }
        } else if let Some(rest) = line.strip_prefix("iface ") {
            add(rest.split_whitespace().next().unwrap_or(""));
        } else if let Some((key, value)) = line.split_once('=') {
            match (key.trim(), path.ends_with(".network")) {
                ("Name", true) => value.split_whitespace().for_each(&mut add),
                ("interface-name" | "DEVICE", _) => add(value),
                _ => {}
            }
        }
    }
    if let Some(name) = path.rsplit_once("/ifcfg-").map(|(_, name)| name) {
        add(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn a_systems_files_are_read() {
        let tree = Files::tree(&[
            ("/etc/os-release", "-> ../usr/lib/os-release"),
            (
                "/usr/lib/os-release",
                "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
            ),
            ("/etc/hostname", "# name\nweb\n"),
            (
                "/etc/fstab",
                "# c\nUUID=1 / ext4 errors=remount-ro 0 1\n/dev/sda5 none swap sw\nx /my\\040disk btrfs subvol=@home,ro\n",
            ),
            ("/usr/bin/vmtoolsd", "x"),
            (
                "/etc/network/interfaces",
                "auto lo\niface lo inet loopback\niface ens192 inet dhcp\n",
            ),
            (
                "/etc/netplan/50.yaml",
                "network:\n  version: 2\n  ethernets:\n    ens3:\n      dhcp4: true\n      match:\n        macaddress: aa\n",
            ),
            ("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=\"eth0\"\n"),
            ("/etc/systemd/network/a.network", "[Match]\nName=enp1s0 enp2*\n"),
        ]);
        assert!(is_root(&tree));
        let os = look(&tree);
        assert_eq!(os.id.as_deref(), Some("debian"));
        assert_eq!(os.name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(os.hostname.as_deref(), Some("web"));
        assert_eq!(os.tools, ["VMware tools"]);
        assert_eq!(os.fstab.len(), 3);
        assert_eq!(os.fstab[2].path, "/my disk");
        assert_eq!(os.fstab[2].option("subvol"), Some("@home"));
        let names: Vec<_> = os.interfaces.iter().map(String::as_str).collect();
        assert_eq!(names, ["enp1s0", "ens192", "ens3", "eth0"]);
        assert_eq!(os.network.len(), 4);
    }
}
